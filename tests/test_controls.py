"""plots/published/controls.py: methods and repairs that the script is compared with."""

import argparse

import controls
import numpy as np
import pytest
from conftest import SHARED, TOY, draw_network, flat, received

import network_pruning
from network_pruning import METHODS, network_of, tf

CASES = SHARED / "cases"
RNG = np.random.default_rng(0)
IMAGES = RNG.random((200, 30), np.float32)
NETWORK = draw_network([30, 20, 10, 3], RNG)
INPUTS = received(NETWORK, IMAGES)
CONTROLS = {**controls.ABLATION, **controls.OTHERS}


def options(**changes):
    return argparse.Namespace(**vars(network_pruning.parse_options([])) | changes)


def pruned_once(method, network, inputs, sparsity):
    [hidden] = CONTROLS[method](network, inputs, [sparsity], None)
    return hidden


def test_scores_are_ranked_within_a_layer_within_a_unit_or_in_all_layers():
    network = network_of([np.array([[4.0, -1.0], [1.0, -0.3]]), None, None])
    inputs = [np.array([[1.0, 3.0], [0.0, 4.0]])]  # norms of 1 and 5: products 4, 1, 5 and 1.5
    [scaled] = pruned_once("one_shot_scaled_layer", network, inputs, 0.5)
    np.testing.assert_array_equal(scaled, [[4, 0], [1, 0]])
    [wanda] = pruned_once("wanda", network, inputs, 0.5)
    np.testing.assert_array_equal(wanda, [[0, 0], [1, -0.3]])
    two = network_of([*network.hidden, np.array([[2.0, 0.5, -3.0, 0.1]]), None, None])
    together = pruned_once("one_shot_magnitude_together", two, None, 0.5)
    np.testing.assert_array_equal(flat(together), [4, 0, 1, 0, 2, 0, -3, 0])


def test_the_score_of_obs_is_the_error_that_the_other_weights_cannot_make_up_for():
    [scores] = controls.obs(NETWORK._replace(hidden=NETWORK.hidden[:1]), [IMAGES])
    damping = np.sqrt(0.01 * np.mean(np.sum(IMAGES**2, axis=0))) * np.eye(30)
    rows = np.vstack([IMAGES, damping])  # damping is as more images
    weights = NETWORK.hidden[0][:, 0]
    others = np.delete(rows, 4, axis=1)
    change, *_ = np.linalg.lstsq(others, rows[:, 4] * weights[4])
    error = np.linalg.norm(rows[:, 4] * weights[4] - others @ change)
    assert scores[4, 0] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(
    ("control", "method"),
    [
        ("one_shot_magnitude_layer", "weight"),
        ("one_shot_saliencies_layer", "saliency_weight"),
        ("rounds_saliencies_together", "gradual_weight"),
    ],
)
def test_three_of_the_ablation_are_methods_of_the_script(control, method):
    levels = [0.5, 0.9]
    pairs = zip(*(f(NETWORK, INPUTS, levels, None) for f in (CONTROLS[control], METHODS[method])))
    for found, expected in pairs:
        np.testing.assert_array_equal(flat(found), flat(expected))


def test_rounds_prune_by_their_own_score_and_within_layers():
    by_magnitude = pruned_once("rounds_magnitude_layer", NETWORK, INPUTS, 0.2)  # one round
    expected = pruned_once("one_shot_magnitude_layer", NETWORK, INPUTS, 0.2)
    np.testing.assert_array_equal(flat(by_magnitude) == 0, flat(expected) == 0)
    assert network_pruning.saliencies is controls.saliencies


@pytest.mark.skipif(not CASES.exists(), reason="needs the reference outputs")
@pytest.mark.parametrize("case", range(3))
def test_sparsegpt_makes_what_its_authors_code_makes(case):
    arrays = np.load(CASES / "sparsegpt.npz")
    names = ("kernel", "inputs", "sparsity", "pruned")
    kernel, inputs, sparsity, expected = (arrays[f"{name}_{case}"] for name in names)
    pruned = controls.sparsegpt(kernel, inputs, float(sparsity))
    np.testing.assert_array_equal(pruned == 0, expected == 0)
    np.testing.assert_allclose(pruned, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["sparsegpt", "wanda"])
def test_each_layer_is_pruned_on_the_outputs_of_those_pruned_before(name):
    first, second = pruned_once(name, NETWORK, [IMAGES], 0.5)
    expected = getattr(controls, name)(NETWORK.hidden[1], np.maximum(IMAGES @ first, 0), 0.5)
    np.testing.assert_array_equal(second, expected)


@pytest.mark.skipif(not CASES.exists(), reason="needs the network of the benchmark")
def test_magnitude_leaves_of_the_public_network_what_its_papers_say():
    network = network_of([*np.load(CASES / "mlpnet.npz").values(), None, None])
    [dataset] = network_pruning.load_datasets(["mnist"], SHARED / "data")
    rows = list(controls.prune_mlpnet(network, dataset, 0, options(refit_images=100)))
    assert len(rows) == 3 * 2 * 7
    by_magnitude = [r["test_accuracy"] for r in rows if r["method"] == "weight"][::2]
    assert by_magnitude[-2:] == pytest.approx([0.8364, 0.3225], abs=2e-4)  # at 0.95 and 0.98


def test_training_on_a_few_images_brings_a_pruned_network_back_to_the_dense_one(monkeypatch):
    dense = draw_network([6, 20, 10, 6], RNG)
    images = tf.constant(RNG.normal(size=(100, 6)), tf.float32)
    labels = np.argmax(received(dense, images)[-1] @ dense.output, axis=1)
    taught = network_pruning.Dataset("toy", images, tf.one_hot(labels, 6), images, labels)
    repairs = ["none", "distilled", "labeled"]
    monkeypatch.setattr(controls, "COMPARED", [(["weight"], repairs, [100])])
    monkeypatch.setattr(controls, "LEVELS", [0.8])
    monkeypatch.setattr(controls, "FEW_EPOCHS", 600)
    rows = list(controls.compare(dense, taught, 0, options()))
    accuracies = {row["repair"]: row["test_accuracy"] for row in rows}
    assert accuracies["none"] < min(accuracies["distilled"], accuracies["labeled"])
    assert [row["images"] for row in rows] == [100] * 3


def test_magnitude_in_rounds_is_trained_for_an_epoch_after_each(monkeypatch):
    epochs = []
    monkeypatch.setattr(network_pruning, "train", lambda *given: epochs.append(given) or given[0])
    monkeypatch.setattr(controls, "COMPARED", [(["rounds_retrained"], ["retrain"], [100])])
    monkeypatch.setattr(controls, "LEVELS", [0.8])
    [row] = controls.compare(draw_network([6, 20, 10, 6], RNG), TOY, 0, options())
    assert [given[1:3] for given in epochs] == [(TOY, 1)] * 8  # seven rounds, and at the level
    pruned = [np.mean(flat(given[0].hidden) == 0) for given in epochs[:7]]
    np.testing.assert_allclose(pruned, 1 - 0.8 ** np.arange(1, 8), atol=0.01)
    assert row["live_fraction"] <= 0.2


def test_ways_to_a_small_network_are_timed_from_the_dense_one(monkeypatch):
    monkeypatch.setattr(controls, "TIMED", [("weight", "none"), ("neuron", "retrain")])
    dense = draw_network([6, 20, 10, 6], np.random.default_rng(0))
    rows = list(controls.time_networks(dense, TOY, 0, options(epochs=1)))
    ways = {(row["method"], row["repair"], row["batch"]) for row in rows}
    states = (("weight", "none"), ("neuron", "retrain"), ("scratch", "retrain"))
    assert ways == {(*state, batch) for state in states for batch in controls.BATCHES}
    assert all(row["seconds"] > 0 and row["speedup"] > 0 for row in rows)
