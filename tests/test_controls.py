"""plots/published/controls.py: methods and repairs that the script is compared with."""

import controls
import numpy as np
import pytest
from conftest import ROOT, TOY, draw_kernels

import network_pruning
from network_pruning import layer_inputs, network_of

CASES = ROOT.parent / "shared" / "cases" / "sparsegpt.npz"


def draw_network(rng):
    """A network with two hidden layers, half of its hidden weights pruned, and 200 images."""
    kernels = draw_kernels([30, 20, 10, 3], rng)
    hidden = network_pruning.weight(kernels[:-1], None, 0.5, None)
    return network_of([*hidden, kernels[-1], np.zeros(3, np.float32)]), rng.random((200, 30), "f")


@pytest.mark.parametrize("case", range(3))
def test_sparsegpt_makes_what_its_authors_code_makes(case):
    if not CASES.exists():
        pytest.skip("needs the reference outputs")
    arrays = np.load(CASES)
    names = ("kernel", "inputs", "sparsity", "pruned")
    kernel, inputs, sparsity, expected = (arrays[f"{name}_{case}"] for name in names)
    pruned = controls.sparsegpt(kernel, inputs, float(sparsity))
    np.testing.assert_array_equal(pruned == 0, expected == 0)
    np.testing.assert_allclose(pruned, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["sparsegpt", "wanda"])
def test_each_layer_is_pruned_on_the_outputs_of_those_pruned_before(name):
    network, images = draw_network(np.random.default_rng(0))
    first, second = controls.METHODS[name](network.hidden, [images], 0.5, None)
    received = np.maximum(images @ first, 0)
    expected = getattr(controls, name)(network.hidden[1], received, 0.5)
    np.testing.assert_array_equal(second, expected)


def test_wanda_leaves_as_many_weights_in_each_unit():
    rng = np.random.default_rng(0)
    pruned = controls.wanda(rng.normal(size=(30, 20)), rng.random((200, 30)), 0.7)
    assert set(np.count_nonzero(pruned, axis=0)) == {9}


def test_shuffled_weights_stay_in_their_unit_and_random_values_in_their_places():
    network, images = draw_network(np.random.default_rng(0))
    shuffled = controls.shuffled(network, images, None, repair=lambda network, *_: network)
    targets = [None, None, images[:, :3]]
    values = controls.random_values(network, images, targets)
    for kernel, moved, redrawn in zip(network.hidden, shuffled.hidden, values.hidden):
        np.testing.assert_array_equal(np.sort(kernel, axis=0), np.sort(moved, axis=0))
        np.testing.assert_array_equal(kernel == 0, redrawn == 0)
        assert (kernel != moved).any() and (kernel != redrawn).any()


def test_a_distilled_network_is_nearer_to_the_dense_one_and_as_sparse():
    network, images = draw_network(np.random.default_rng(0))
    wanted = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    teacher = controls.tf.nn.softmax(wanted)
    distilled = controls.distilled(network, images, [wanted])

    def cross_entropy(network):
        outputs = network_pruning.logits(network, layer_inputs(network.hidden, images)[-1])
        losses = controls.tf.nn.softmax_cross_entropy_with_logits(teacher, outputs)
        return float(controls.tf.reduce_mean(losses))

    assert cross_entropy(distilled) < cross_entropy(network)
    for before, after in zip(network.hidden, distilled.hidden):
        np.testing.assert_array_equal(after[before == 0], 0)


def test_all_controls_of_a_seed_start_from_the_network_that_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(network_pruning, "REPAIRS", {})  # is as before when the test is over
    monkeypatch.setattr(controls, "COMPARED", [(["weight"], ["none", "distilled"], 50, [0.5])])
    monkeypatch.setattr(controls, "EXPLAINED", [(["weight"], ["refit"], "foreign", [0.5])])
    changes = ["--epochs", "1", "--hidden-units", "20", "10", "--output-dir", str(tmp_path)]
    other = TOY._replace(train_images=TOY.train_images[::-1])
    rows = list(controls.run(TOY, other, 0, network_pruning.parse_options(changes)))
    measured = [(row["repair"], row["images"]) for row in rows]
    assert measured == [("none", 50), ("distilled", 50), ("refit", "foreign")]
    assert len(list(tmp_path.glob("networks/*"))) == 1
    assert len({row["dense_network"] for row in rows}) == 1
