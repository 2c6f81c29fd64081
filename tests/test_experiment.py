"""The experiment: which networks it makes, and what it measures of each."""

import itertools
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from conftest import TOY

import network_pruning
from network_pruning import METHODS, REPAIRS, UserError, load_dataset, network_of, parse_options


def run(data=TOY, times=lambda sizes, _: dict.fromkeys(sizes, 1), **changes):
    """Run the experiment on a data set; return its rows by method, sparsity and repair."""
    options = parse_options(["--learning-rate", "0.01", "--batch-size", "32"])
    few = {"methods": ["dense", "weight", "neuron"], "sparsities": [0.5, 1.0], "seeds": [0]}
    vars(options).update({"hidden_units": [16, 8], "refit_images": 50, **few, **changes})
    with mock.patch("network_pruning.time_passes", times):
        rows = network_pruning.run(data, options).drop(columns=["made_by", "retrain_epochs"])
    return rows.set_index(["method", "sparsity", "repair"]).to_dict("index")


def test_every_repair_of_every_method_and_sparsity_is_measured_and_of_the_dense_network():
    rows = run(methods=list(METHODS))
    methods = [name for name in METHODS if name != "dense"]
    networks = [("dense", 0), *((method, s) for method in methods for s in (0.5, 1))]
    assert list(rows) == [(*network, repair) for network in networks for repair in REPAIRS]
    assert rows["neuron", 0.5, "none"]["layer_sizes"] == "6-8-4-6"
    dense, refitted = (rows["dense", 0, repair]["test_loss"] for repair in ("none", "refit"))
    assert dense == pytest.approx(refitted, rel=1e-4)
    # nothing but the bias is left
    left = [rows[method, 1, "none"] for method in methods]
    assert left == left[:1] * len(methods) and left[0]["live_fraction"] == 0


def test_rows_do_not_depend_on_what_else_is_asked_for_and_retraining_only_adds_some():
    methods = ["dense", "gradual_weight", "random_neuron", "neuron"]
    many = run(methods=methods, sparsities=[0.5, 0.7], retrain_epochs=1)
    for some, epochs in ((methods[::-1], 0), (["neuron", "gradual_weight"], 1), (["dense"], 1)):
        few = run(methods=some, sparsities=[0.7], retrain_epochs=epochs)
        assert {key: many[key] for key in few} == few
    assert list(few) == [("dense", 0, repair) for repair in (*REPAIRS, "retrain")]
    networks = {("dense", 0), *itertools.product([*methods[1:], "scratch"], [0.5, 0.7])}
    assert {key[:2] for key in many if key[2] == "retrain"} == networks
    sizes = [many[method, 0.5, "retrain"]["layer_sizes"] for method in ("neuron", "scratch")]
    assert sizes == ["6-8-4-6"] * 2


def test_a_method_or_a_repair_cannot_change_what_others_get(monkeypatch):
    method, repair = mock.Mock(wraps=METHODS["weight"]), mock.Mock(wraps=REPAIRS["none"])
    monkeypatch.setitem(METHODS, "own", method)
    monkeypatch.setitem(REPAIRS, "own", repair)
    run(methods=["own"], sparsities=[0.5])
    network, inputs, *_ = method.call_args.args
    pruned, images, targets = repair.call_args.args
    for array in (*network.kernels, network.bias, *inputs, *pruned.kernels, images, *targets):
        assert not array.flags.writeable


def test_too_few_networks_or_logits_that_are_not_finite_are_refused(monkeypatch):
    monkeypatch.setitem(METHODS, "own", lambda network, *_: [network.hidden])
    with pytest.raises(ValueError, match="shorter"):
        run(methods=["own"])
    monkeypatch.setitem(REPAIRS, "own", lambda network, *_: network._replace(bias=[np.nan]))
    with pytest.raises(UserError, match="^weight at 0.5, own: the logits are not finite$"):
        run(methods=["weight"])


def test_refit_gives_digits_back_where_pruning_has_collapsed():
    methods = ["neuron", "random_weight"]
    changes = {"hidden_units": [300, 100], "learning_rate": 0.001, "refit_images": 1000}
    rows = run(load_dataset("digits"), methods=methods, sparsities=[0.9], epochs=20, **changes)
    for method in methods:
        pruned, refitted = (rows[method, 0.9, repair] for repair in ("none", "refit"))
        # at least 0.31 more in ten seeds
        assert refitted["test_accuracy"] > pruned["test_accuracy"] + 0.1


def test_live_weights_and_accuracy_of_a_hand_worked_network(monkeypatch):
    ones = [np.ones(shape, np.float32) for shape in ((2, 3), (3, 2), (2, 2))]
    dense = network_of([*ones, np.array([0, 100], np.float32)])
    monkeypatch.setattr(network_pruning, "dense_network", lambda *_: dense)
    # unit 1 of the first layer and unit 1 of the second have no inputs: of the 12 hidden weights
    # a 2 x 2 and a 2 x 1 kernel are stored, one of whose weights is 0
    pruned = [np.array([[1, 0, 2], [0, 0, 3]]), np.array([[1, 0], [4, 0], [5, 0]])]
    monkeypatch.setitem(METHODS, "given", lambda *_: iter([pruned]))
    images = tf.ones((4, 2))
    data = network_pruning.Dataset("toy", images, images, images, np.array([0, 1, 1, 1]))
    row = run(data, methods=["given"], sparsities=[0.5])["given", 0.5, "none"]
    assert row["layer_sizes"] == "2-2-1-2" and row["live_fraction"] == pytest.approx(5 / 12)
    assert row["test_accuracy"] == 0.75  # as the bias says


def test_the_time_of_a_size_is_the_best_of_all_rounds(monkeypatch):
    dense, small = (6, 16, 6), (6, 2, 6)
    ends = iter([8, 2, 9, 1, 9, 3])  # seconds of the dense and of the small network, three times
    clock = (second for end in ends for second in (0, end))
    monkeypatch.setattr(network_pruning.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(network_pruning.time, "monotonic", iter([0, 1]).__next__)
    seconds = network_pruning.time_passes([dense, small, dense], tf.ones((3, 6)))
    assert seconds == {dense: 8, small: 1}


def test_networks_of_the_same_sizes_are_equally_fast_in_a_command():
    small = iter([8, 2, 4])  # seconds of the small networks of each method; 8 of the dense one

    def times(sizes, images):
        return dict.fromkeys(sizes, next(small)) | {(6, 16, 8, 6): 8}

    rows = run(methods=["dense", "neuron", "random_neuron"], sparsities=[0.5], times=times)
    speedups = {(row["layer_sizes"], row["speedup"]) for row in rows.values()}
    assert speedups == {("6-16-8-6", 1), ("6-8-4-6", 3)}  # the median of 4 and 2
