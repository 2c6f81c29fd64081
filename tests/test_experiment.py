"""The experiment: which networks it makes, and what it measures of each."""

from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import tensorflow as tf
from conftest import draw_kernels, pruned_by

import network_pruning
from network_pruning import (
    HIDDEN_UNITS,
    METHODS,
    REPAIRS,
    STYLES,
    Dataset,
    Network,
    compact,
    evaluate,
    load_dataset,
    logits,
    prune_dense,
    train_dense,
)

KEY = ["method", "sparsity", "repair"]


def toy_data():
    """Images whose label is their brightest pixel; the test set is the training set."""
    images = np.random.default_rng(0).random((100, 6), dtype=np.float32)
    labels = images.argmax(axis=1)
    tensor = tf.constant(images)
    return Dataset("toy", tensor, tf.one_hot(labels, 6), tensor, labels, 0)


def recipe(**changes):
    """Options of a small experiment."""
    settings = {
        "hidden_units": [16, 8],
        "epochs": 20,
        "batch_size": 32,
        "learning_rate": 0.01,
        "refit_images": 50,
        "retrain_epochs": 0,
        "methods": ["weight", "neuron"],
        "sparsities": [0.5, 1.0],
    }
    return SimpleNamespace(**settings | changes)


def run(data=None, seed=0, **changes):
    """Rows of a run on the toy data, by method, sparsity and repair, without times; the models."""
    data = data or toy_data()
    options = recipe(**changes)
    rows, models = prune_dense(train_dense(data, seed, options), data, seed, options)
    table = pandas.DataFrame(rows)
    assert not table[KEY].duplicated().any()
    return table.drop(columns="speedup").set_index(KEY).to_dict("index"), models


def rows_of(**changes):
    """The rows alone."""
    return run(**changes)[0]


# -------------------------------------------------------------------------------------- the rows


def test_a_run_measures_the_dense_network_and_every_method_sparsity_and_repair():
    rows = rows_of(methods=list(METHODS))
    repairs = ("none", "no_bias", *REPAIRS)
    assert list(rows) == [
        ("dense", 0, "none"),
        ("dense", 0, "no_bias"),
        *((method, sparsity, repair) for method in METHODS for sparsity in (0.5, 1)
          for repair in repairs),
    ]  # fmt: skip
    assert rows["neuron", 0.5, "none"]["layer_sizes"] == "6-8-4-6"
    assert rows["dense", 0, "none"]["live_fraction"] == 1
    # nothing but the bias is left
    left = [rows[method, 1, "none"] for method in ("weight", "neuron")]
    assert left[0] == left[1] and left[0]["live_fraction"] == 0


def test_retraining_adds_rows_and_changes_none():
    once, again = rows_of(), rows_of(retrain_epochs=3)
    assert {key: again[key] for key in once} == once
    added = [key for key in again if key not in once]
    # where nothing is left, there is no small network to train from scratch
    assert sorted(added) == sorted(
        [("dense", 0, "retrain"), ("scratch", 0.5, "retrain")]
        + [(method, s, "retrain") for method in ("weight", "neuron") for s in (0.5, 1)]
    )
    retrained = again["neuron", 0.5, "retrain"]
    assert again["scratch", 0.5, "retrain"]["layer_sizes"] == retrained["layer_sizes"]


def test_networks_from_scratch_come_with_retrained_neurons_only():
    assert {method for method, _, _ in rows_of(methods=["weight"], retrain_epochs=1)} == {
        "dense",
        "weight",
    }


def test_rows_do_not_depend_on_what_else_is_asked_for():
    many = rows_of(methods=["weight", "random_neuron", "neuron"], retrain_epochs=1)
    few = {"methods": ["neuron", "random_neuron"], "sparsities": [0.5], "refit_images": 0}
    for key, row in rows_of(retrain_epochs=1, **few).items():
        assert many[key] == row


def test_without_images_there_is_no_refit_and_more_than_there_are_mean_all():
    assert {repair for _, _, repair in rows_of(refit_images=0)} == {"none", "no_bias"}
    assert rows_of(refit_images=1000) == rows_of(refit_images=100)


def loss_of(network):
    """Loss on the toy data."""
    data = toy_data()
    return evaluate(logits(network, data.test_images).numpy(), data.test_labels)[1]


@pytest.mark.parametrize(
    ("changes", "last"),
    [({}, "refit"), ({"retrain_epochs": 1}, "retrain"), ({"refit_images": 0}, "none")],
)
def test_networks_come_back_in_their_last_state(changes, last):
    rows, models = run(**changes)
    assert list(models) == ["dense", "neuron-0.5", "neuron-1.0"]
    measured = loss_of(models["neuron-0.5"])
    assert rows["neuron", 0.5, last]["test_loss"] == pytest.approx(measured, rel=1e-5)


def test_no_bias_is_the_same_network_without_its_output_bias():
    rows, models = run(refit_images=0)
    network = models["neuron-0.5"]
    expected = loss_of(network._replace(bias=0 * network.bias))
    assert rows["neuron", 0.5, "no_bias"]["test_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_student_adds_a_method_and_a_repair_by_a_function_and_an_entry(monkeypatch):
    def first_layer(kernels, inputs, sparsity, rng):
        return [network_pruning.prune_weights(kernels[0], sparsity), *kernels[1:]]

    def doubled(network, images, targets):
        return network._replace(kernels=[2 * kernel for kernel in network.kernels])

    monkeypatch.setitem(METHODS, "first_layer", first_layer)
    monkeypatch.setitem(REPAIRS, "doubled", doubled)
    rows = rows_of(methods=["first_layer"], sparsities=[0.5])
    assert list(rows)[2:] == [
        ("first_layer", 0.5, repair) for repair in ("none", "no_bias", *REPAIRS)
    ]
    assert rows["first_layer", 0.5, "doubled"]["live_fraction"] < 1
    assert "first_layer" not in STYLES


def test_refit_gives_digits_back_where_pruning_has_collapsed():
    methods = ["neuron", "random_weight"]
    rows = rows_of(
        data=load_dataset("digits", None),
        hidden_units=[300, 100],
        learning_rate=0.001,
        sparsities=[0.9],
        methods=methods,
        refit_images=1000,
    )
    for method in methods:
        pruned, refitted = (rows[method, 0.9, repair] for repair in ("none", "refit"))
        # at least 0.31 more in ten seeds
        assert refitted["test_accuracy"] > pruned["test_accuracy"] + 0.1


# ----------------------------------------------------------------------------------- measurement


def measured(kernels, dense, images, labels, bias, monkeypatch):
    """The row of a network that a method makes of one with dense kernels, on a few images."""
    images = tf.constant(images)
    data = Dataset("toy", images, None, images, np.array(labels), 0)
    monkeypatch.setitem(METHODS, "given", lambda *_: kernels[:-1])
    options = recipe(refit_images=0, methods=["given"], sparsities=[0.5])
    return prune_dense(Network(dense, bias), data, 0, options)[0][2]


@pytest.mark.parametrize(("sparsity", "share"), [(0, 1), (0.5, 0.332), (0.8, 0.093), (0.9, 0.040)])
def test_of_a_neuron_pruned_network_fewer_weights_are_live_than_kept(sparsity, share):
    *hidden, output = draw_kernels([784, *HIDDEN_UNITS, 10], np.random.default_rng(0))
    *live, _ = compact([*pruned_by("neuron", hidden, sparsity), output])
    weights = [sum(kernel.size for kernel in kernels) for kernels in (live, hidden)]
    assert round(weights[0] / weights[1], 3) == share


def test_live_and_stored_weights_of_a_hand_worked_network(monkeypatch):
    first = np.array([[1, 0, 2], [0, 0, 3]], np.float32)
    second = np.array([[1, 0], [4, 0], [5, 0]], np.float32)
    kernels = [first, second, np.ones((2, 2), np.float32)]
    dense = [np.ones_like(kernel) for kernel in kernels]
    bias = np.array([0, 100], np.float32)
    images = np.ones((4, 2), np.float32)
    row = measured(kernels, dense, images, [0, 1, 1, 1], bias, monkeypatch)
    # unit 1 of the first layer and unit 1 of the second have no inputs: of the 12 hidden weights
    # a 2 x 2 and a 2 x 1 kernel are stored, one of whose weights is 0
    assert row["stored_fraction"] == 0.5 and row["layer_sizes"] == "2-2-1-2"
    assert row["live_fraction"] == pytest.approx(5 / 12)
    assert row["test_accuracy"] == 0.75  # as the bias says


def test_a_speedup_above_1_means_faster_than_dense_and_equal_sizes_share_it(monkeypatch):
    seconds = {(6, 16, 8, 6): 8.0, (6, 8, 4, 6): 4.0, (6, 1, 1, 6): 1.0}
    monkeypatch.setattr(network_pruning, "time_sizes", lambda sizes, images: seconds)
    data, options = toy_data(), recipe(methods=["neuron"], refit_images=0)
    rows, _ = prune_dense(train_dense(data, 0, options), data, 0, options)
    assert [row["speedup"] for row in rows] == [1, 1, 2, 2, 8, 8]
