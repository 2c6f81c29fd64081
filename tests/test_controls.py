"""plots/published/controls.py: methods and repairs that the script is compared with."""

from pathlib import Path

import controls
import numpy as np
import pytest
from conftest import SHARED, TOY, draw_network, flat, received

import network_pruning
from network_pruning import network_of, prune_weights, refit_layers, tf

CASES = SHARED / "cases" / "sparsegpt.npz"
RNG = np.random.default_rng(0)
IMAGES = RNG.random((200, 30), np.float32)
NETWORK = draw_network([30, 20, 10, 3], RNG)
PRUNED = NETWORK._replace(hidden=tuple(prune_weights(kernel, 0.5) for kernel in NETWORK.hidden))


def pruned_once(method, network, inputs, sparsity):
    [hidden] = controls.METHODS[method](network, inputs, [sparsity], None)
    return hidden


def test_scores_are_ranked_within_a_layer_within_a_unit_or_in_all_layers():
    network = network_of([np.array([[4.0, -1.0], [1.0, -0.3]]), None, None])
    inputs = [np.array([[1.0, 3.0], [0.0, 4.0]])]  # norms of 1 and 5: products 4, 1, 5 and 1.5
    [scaled] = pruned_once("scaled_weight", network, inputs, 0.5)
    np.testing.assert_array_equal(scaled, [[4, 0], [1, 0]])
    [wanda] = pruned_once("wanda", network, inputs, 0.5)
    np.testing.assert_array_equal(wanda, [[0, 0], [1, -0.3]])
    two = network_of([*network.hidden, np.array([[2.0, 0.5, -3.0, 0.1]]), None, None])
    together = pruned_once("global_weight", two, None, 0.5)
    np.testing.assert_array_equal(flat(together), [4, 0, 1, 0, 2, 0, -3, 0])


def test_gradual_pruning_refits_after_each_step_whatever_sparsities_are_named():
    inputs = received(NETWORK, IMAGES)[:-1]
    targets = [x @ kernel for x, kernel in zip(inputs, NETWORK.hidden)]
    # two steps by hand: the first and the second of SPARSITIES
    first = pruned_once("scaled_weight", NETWORK, inputs, 0.25)
    fitted = NETWORK._replace(hidden=refit_layers(first, IMAGES, targets))
    second = pruned_once("scaled_weight", fitted, received(fitted, IMAGES), 0.5)
    levels = [0.1, 0.5, 0.55, 0.9, 1]
    found = list(controls.gradual_scaled(NETWORK, inputs, levels, None))
    np.testing.assert_allclose(flat(found[1]), flat(second), atol=1e-4)
    for sparsity, hidden in zip(levels, found):
        alone = pruned_once("gradual_scaled", NETWORK, inputs, sparsity)
        np.testing.assert_array_equal(flat(hidden), flat(alone))


@pytest.mark.skipif(not CASES.exists(), reason="needs the reference outputs")
@pytest.mark.parametrize("case", range(3))
def test_sparsegpt_makes_what_its_authors_code_makes(case):
    names = ("kernel", "inputs", "sparsity", "pruned")
    kernel, inputs, sparsity, expected = (np.load(CASES)[f"{name}_{case}"] for name in names)
    pruned = controls.sparsegpt(kernel, inputs, float(sparsity))
    np.testing.assert_array_equal(pruned == 0, expected == 0)
    np.testing.assert_allclose(pruned, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["sparsegpt", "wanda"])
def test_each_layer_is_pruned_on_the_outputs_of_those_pruned_before(name):
    first, second = pruned_once(name, NETWORK, [IMAGES], 0.5)
    expected = getattr(controls, name)(NETWORK.hidden[1], np.maximum(IMAGES @ first, 0), 0.5)
    np.testing.assert_array_equal(second, expected)


def test_repairs_leave_zeros_but_shuffling_and_a_distilled_network_is_nearer_to_the_dense_one():
    wanted = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    shuffled = controls.shuffled(PRUNED, IMAGES, None, repair=lambda network, *_: network)
    for kernel, moved in zip(PRUNED.hidden, shuffled.hidden):
        np.testing.assert_array_equal(np.sort(kernel, axis=0), np.sort(moved, axis=0))
        assert (kernel != moved).any()
    distilled = controls.distilled(PRUNED, IMAGES, [wanted])
    for network in (distilled, controls.random_values(PRUNED, IMAGES, [None, None, wanted])):
        changed = flat(network.hidden) != flat(PRUNED.hidden)
        assert changed.any() and flat(PRUNED.hidden)[changed].all()

    def distance(network):
        logits = received(network, IMAGES)[-1] @ network.output + network.bias
        return np.mean(np.abs(tf.nn.softmax(logits) - tf.nn.softmax(wanted)))

    assert distance(distilled) < distance(PRUNED)


def test_all_controls_of_a_seed_start_from_the_network_that_is_kept(monkeypatch):
    monkeypatch.setattr(network_pruning, "REPAIRS", {})  # is as before when the test is over
    monkeypatch.setattr(controls, "COMPARED", [(["weight"], ["none", "distilled"], 50, [0.5])])
    monkeypatch.setattr(controls, "EXPLAINED", [(["weight"], ["refit"], "foreign", [0.5])])
    changes = ["--epochs", "1", "--hidden-units", "20", "10"]
    other = TOY._replace(train_images=TOY.train_images[::-1])
    rows = list(controls.run(TOY, other, 0, network_pruning.parse_options(changes)))
    measured = [(row["repair"], row["images"]) for row in rows]
    assert measured == [("none", 50), ("distilled", 50), ("refit", "foreign")]
    assert len(list(Path("plots/networks").iterdir())) == 1
