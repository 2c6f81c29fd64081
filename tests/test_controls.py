"""plots/published/controls.py: methods and repairs that the script is compared with."""

import controls
import numpy as np
import pytest
from conftest import ROOT, TOY, draw_kernels

import network_pruning
from network_pruning import layer_inputs, network_of, prune_weights, refit_layers

CASES = ROOT.parent / "shared" / "cases" / "sparsegpt.npz"


def draw_network(rng, sparsity=0.5):
    """A network with two hidden layers, some of their weights pruned, and 200 images."""
    *hidden, output = draw_kernels([30, 20, 10, 3], rng)
    hidden = [prune_weights(kernel, sparsity) for kernel in hidden]
    return network_of([*hidden, output, np.zeros(3, np.float32)]), rng.random((200, 30), "f")


def pruned_once(method, network, inputs, sparsity):
    [hidden] = controls.METHODS[method](network, inputs, [sparsity], None)
    return hidden


def test_global_pruning_removes_the_smallest_weights_of_all_layers():
    hidden = [np.array([[1.0, -9.0], [2.0, 8.0]]), np.array([[3.0, -4.0, 0.5], [7.0, 6.0, 5.0]])]
    # half of the 10 weights: 0.5, 1, 2, 3 and 4
    first, second = pruned_once("global_weight", network_of([*hidden, None, None]), None, 0.5)
    np.testing.assert_array_equal(first, [[0, -9], [0, 8]])
    np.testing.assert_array_equal(second, [[0, 0, 0], [7, 6, 5]])


def test_scaled_pruning_removes_the_smallest_products_of_magnitude_and_norm_of_the_input():
    hidden = [np.array([[4.0, -1.0], [1.0, -0.3]]), np.array([[1.0, 2.0]])]
    # the inputs have norms 1 and 5, and 0: the products are 4, 1, 5 and 1.5, and all 0
    inputs = [np.array([[1.0, 3.0], [0.0, 4.0]]), np.array([[0.0], [0.0]])]
    first, second = pruned_once("scaled_weight", network_of([*hidden, None, None]), inputs, 0.5)
    np.testing.assert_array_equal(first, [[4, 0], [1, 0]])
    np.testing.assert_array_equal(second, [[0, 2]])


def test_gradual_pruning_refits_after_each_step_and_removes_a_superset():
    network, images = draw_network(np.random.default_rng(0), sparsity=0)
    inputs = [images, np.maximum(images @ network.hidden[0], 0)]
    targets = [received @ kernel for received, kernel in zip(inputs, network.hidden)]
    # two steps by hand: the first and the second of SPARSITIES
    first = pruned_once("scaled_weight", network, inputs, 0.25)
    fitted = network._replace(hidden=refit_layers(first, images, targets))
    received = [images, np.maximum(images @ fitted.hidden[0], 0)]
    second = pruned_once("scaled_weight", fitted, received, 0.5)
    once, twice, thrice = controls.gradual_scaled(network, inputs, [0.25, 0.5, 0.55], None)
    for layer in range(2):
        np.testing.assert_array_equal(once[layer], first[layer])
        np.testing.assert_allclose(twice[layer], second[layer], atol=1e-4)
        assert not thrice[layer][twice[layer] == 0].any()


def test_gradual_pruning_takes_the_same_steps_whatever_sparsities_are_named():
    network, images = draw_network(np.random.default_rng(0), sparsity=0)
    inputs = [images, np.maximum(images @ network.hidden[0], 0)]
    levels = [0.1, 0.5, 0.55, 0.9, 1]
    for sparsity, hidden in zip(levels, controls.gradual_scaled(network, inputs, levels, None)):
        for kernel, alone in zip(hidden, pruned_once("gradual_scaled", network, inputs, sparsity)):
            np.testing.assert_array_equal(kernel, alone)


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
    first, second = pruned_once(name, network, [images], 0.5)
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
        outputs = layer_inputs(network.hidden, images)[-1] @ network.output + network.bias
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
