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
    Dataset,
    Network,
    compact,
    layer_inputs,
    load_dataset,
    measure,
    run_seed,
    tabulate,
)

KEY = ["method", "sparsity", "repair"]


def toy_data():
    """Images whose label is their brightest pixel; the test set is the training set."""
    images = np.random.default_rng(0).random((100, 6), dtype=np.float32)
    labels = images.argmax(axis=1)
    tensor = tf.constant(images)
    return Dataset("toy", tensor, tf.one_hot(labels, 6), tensor, labels)


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


def rows_of(seed=0, **changes):
    """Rows of a run on the toy data without times, by method, sparsity and repair."""
    table, _ = run_seed(toy_data(), seed, recipe(**changes))
    assert not table[KEY].duplicated().any()
    return table.drop(columns="speedup").set_index(KEY).to_dict("index")


# -------------------------------------------------------------------------------------- the rows


def test_a_run_measures_the_dense_network_and_every_method_sparsity_and_repair():
    rows = rows_of(methods=list(METHODS))
    repairs = ("none", "no_bias", "refit_output", "refit")
    assert list(rows) == [
        ("dense", 0, "none"),
        ("dense", 0, "no_bias"),
        *((method, sparsity, repair) for method in METHODS for sparsity in (0.5, 1)
          for repair in repairs),
    ]  # fmt: skip
    assert rows["neuron", 0.5, "none"]["layer_sizes"] == "6-8-4-6"
    for (_, sparsity, _), row in rows.items():
        assert (row["live_fraction"] == 0) == (sparsity == 1)
    # nothing but the bias is left
    assert len({row["test_loss"] for key, row in rows.items() if key[1:] == (1, "none")}) == 1


def test_retraining_adds_rows_and_changes_none():
    once, again = rows_of(), rows_of(retrain_epochs=3)
    assert {key: again[key] for key in once} == once
    added = [key for key in again if key not in once]
    assert sorted(added) == sorted(
        [("dense", 0, "retrain")]
        + [(method, s, "retrain") for method in ("weight", "neuron", "scratch") for s in (0.5, 1)]
    )
    retrained = again["neuron", 0.5, "retrain"]
    assert again["scratch", 0.5, "retrain"]["layer_sizes"] == retrained["layer_sizes"]
    assert retrained["test_loss"] < again["neuron", 0.5, "none"]["test_loss"]
    for (_, _, repair), row in again.items():
        assert row["retrain_epochs"] == (3 if repair == "retrain" else 0)
        assert row["refit_images"] == (50 if repair in ("refit", "refit_output") else 0)


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
    assert rows_of(refit_images=1000)["weight", 0.5, "refit"]["refit_images"] == 100


def test_networks_come_back_in_their_last_state():
    for changes, last in (
        ({}, "refit"),
        ({"retrain_epochs": 1}, "retrain"),
        ({"refit_images": 0}, "none"),
    ):
        data = toy_data()
        table, models = run_seed(data, 0, recipe(**changes))
        assert list(models) == ["dense", "neuron-0.5", "neuron-1.0"]
        features = layer_inputs(models["neuron-0.5"], data.test_images)[-1]
        row = table.set_index(KEY).loc[("neuron", 0.5, last)]
        measured = measure(models["neuron-0.5"], features, data.test_labels)
        assert row["test_loss"] == pytest.approx(measured["test_loss"], abs=1e-6)


def test_refit_raises_the_accuracy_of_digits_where_pruning_has_collapsed():
    digits = load_dataset("digits", None)
    options = recipe(hidden_units=[300, 100], learning_rate=0.001, sparsities=[0.9],
                     methods=["weight", "neuron", "random_weight"], refit_images=1000)  # fmt: skip
    table, _ = run_seed(digits, 0, options)
    accuracy = table.set_index(KEY)["test_accuracy"]
    for method in options.methods:
        pruned, output, layers = (
            accuracy[method, 0.9, repair] for repair in ("none", "refit_output", "refit")
        )
        assert pruned + 0.1 < output < layers


# ----------------------------------------------------------------------------------- measurement


def measured(kernels, dense, images, labels, bias):
    """The row of a network on a few images, made from one with dense kernels."""
    data = toy_data()._replace(test_images=tf.constant(images), test_labels=np.array(labels))
    rows = []
    for network in (Network(dense, bias), Network(kernels, bias)):
        features = layer_inputs(network, data.test_images)[-1]
        row = {"method": "weight", "sparsity": 0.5, "repair": "none"}
        rows.append(row | measure(network, features, data.test_labels))
    return tabulate(rows, data, 0, recipe()).to_dict("records")[1]


@pytest.mark.parametrize(("sparsity", "share"), [(0, 1), (0.5, 0.332), (0.8, 0.093), (0.9, 0.040)])
def test_of_a_neuron_pruned_network_fewer_weights_are_live_than_kept(sparsity, share):
    rng = np.random.default_rng(0)
    *hidden, output = dense = draw_kernels([784, *HIDDEN_UNITS, 10], rng)
    small = compact([*pruned_by("neuron", hidden, sparsity), output])
    images = rng.random((2, 784), dtype=np.float32)
    row = measured(small, dense, images, [0, 1], np.zeros(10, np.float32))
    assert round(row["live_fraction"], 3) == round(row["stored_fraction"], 3) == share


def test_live_and_stored_weights_of_a_hand_worked_network():
    first = np.array([[1, 0, 2], [0, 0, 3]], np.float32)
    second = np.array([[1, 0], [4, 0], [5, 0]], np.float32)
    kernels = [first, second, np.ones((2, 2), np.float32)]
    bias = np.array([0, 100], np.float32)
    row = measured(compact(kernels), kernels, np.ones((4, 2), np.float32), [0, 1, 1, 1], bias)
    # unit 1 of the first layer and unit 1 of the second have no inputs: of the 12 hidden weights
    # a 2 x 2 and a 2 x 1 kernel are stored, one of whose weights is 0
    assert row["stored_fraction"] == 0.5 and row["layer_sizes"] == "2-2-1-2"
    assert row["live_fraction"] == pytest.approx(5 / 12, abs=1e-6)
    assert row["test_accuracy"] == 0.75  # as the bias says


def test_no_bias_is_the_same_network_without_its_output_bias():
    data = toy_data()
    table, models = run_seed(data, 0, recipe(refit_images=0))
    network = models["neuron-0.5"]._replace(bias=np.zeros(6, np.float32))
    features = layer_inputs(network, data.test_images)[-1]
    row = table.set_index(KEY).loc[("neuron", 0.5, "no_bias")]
    expected = measure(network, features, data.test_labels)
    assert row["test_loss"] == pytest.approx(expected["test_loss"], abs=1e-6)


def test_a_speedup_above_1_means_faster_than_dense_and_equal_sizes_share_it(monkeypatch):
    seconds = {(6, 40, 10): 8.0, (6, 20, 10): 4.0, (6, 4, 10): 1.0}
    monkeypatch.setattr(network_pruning, "time_sizes", lambda sizes, images: seconds)
    rows = [
        {"sparsity": 0.0, "live_weights": 1, "stored_weights": 1, "layer_sizes": sizes}
        for sizes in (*seconds, (6, 20, 10))
    ]
    assert list(tabulate(rows, toy_data(), 0, recipe())["speedup"]) == [1, 2, 8, 2]


def test_sizes_are_timed_in_rounds_and_the_best_of_each_counts(monkeypatch):
    clock, calls = [0.0], []
    paces = iter([5.0, 1.0, 9.0, 2.0, 3.0, 4.0])

    def logits(network, images):
        calls.append(network.sizes)
        clock[0] += next(paces)
        return tf.constant(0)

    monkeypatch.setattr(network_pruning, "logits", logits)
    monkeypatch.setattr(network_pruning.time, "perf_counter", lambda: clock[0])
    wide, narrow = (2, 4, 2), (2, 1, 2)
    sizes = pandas.Series([wide, narrow, wide])
    assert network_pruning.time_sizes(sizes, None) == {wide: 3, narrow: 1}
    assert calls == [wide, narrow] * 3
