"""The experiment: which networks it makes, and what it measures of each."""

import numpy as np
import pandas
import pytest
import tensorflow as tf
from conftest import TOY

import network_pruning
from network_pruning import METHODS, REPAIRS, load_dataset, network_of, parse_options

KEY = network_pruning.KEY[2:]  # of a row of a seed


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the experiment on a data set; return its rows by method, sparsity and repair."""
    monkeypatch.setattr(network_pruning, "measure_speed", lambda s, _: dict.fromkeys(s, 1))

    def run(data=TOY, **changes):
        options = parse_options(["--output-dir", str(tmp_path), "--learning-rate", "0.01"])
        few = {"methods": ["weight", "neuron"], "sparsities": [0.5, 1.0]}
        vars(options).update({"hidden_units": [16, 8], "refit_images": 50, **few, **changes})
        table = pandas.DataFrame(network_pruning.run_seed(data, 0, options))
        assert not table[KEY].duplicated().any()
        return table.set_index(KEY).to_dict("index")

    return run


def test_every_repair_of_every_method_and_sparsity_is_measured_and_of_the_dense_network(run):
    rows = run(methods=list(METHODS))
    networks = [("dense", 0), *((method, s) for method in METHODS for s in (0.5, 1))]
    assert list(rows) == [(*network, repair) for network in networks for repair in REPAIRS]
    assert rows["neuron", 0.5, "none"]["layer_sizes"] == "6-8-4-6"
    assert rows["dense", 0, "none"]["live_fraction"] == 1
    losses = [rows["dense", 0, repair]["test_loss"] for repair in ("none", "refit")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # nothing but the bias is left
    left = [rows[method, 1, "none"] for method in ("weight", "neuron")]
    assert left[0] == left[1] and left[0]["live_fraction"] == 0


def test_retraining_adds_rows_and_changes_none(run):
    once, again = run(), run(retrain_epochs=3)
    assert {key: again[key] for key in once} == once
    added = [key for key in again if key not in once]
    # where nothing is left, there is no small network to train from scratch
    assert sorted(added) == sorted(
        [("dense", 0, "retrain"), ("scratch", 0.5, "retrain")]
        + [(method, s, "retrain") for method in ("weight", "neuron") for s in (0.5, 1)]
    )
    sizes = again["neuron", 0.5, "retrain"]["layer_sizes"]
    assert again["scratch", 0.5, "retrain"]["layer_sizes"] == sizes
    assert "scratch" not in {method for method, _, _ in run(methods=["weight"], retrain_epochs=1)}


def test_rows_do_not_depend_on_what_else_is_asked_for(run, tmp_path):
    many = run(methods=["weight", "random_neuron", "neuron"], retrain_epochs=1)
    few = {"methods": ["neuron", "random_neuron"], "sparsities": [0.5]}
    for key, row in run(output_dir=tmp_path / "other", retrain_epochs=1, **few).items():
        assert many[key] == row


@pytest.mark.parametrize("which", ["kernels", "inputs", "network", "targets"])
def test_a_method_or_a_repair_cannot_change_what_others_get(run, monkeypatch, which):
    def method(kernels, inputs, sparsity, rng):
        {"kernels": kernels, "inputs": inputs}[which][0][0] = 0

    def repair(network, images, targets):
        {"network": network.hidden, "targets": targets}[which][0][0] = 0

    registry = METHODS if which in ("kernels", "inputs") else REPAIRS
    monkeypatch.setitem(registry, "in_place", method if registry is METHODS else repair)
    with pytest.raises(ValueError, match="read-only"):
        run(methods=["in_place"] if registry is METHODS else ["weight"])


def test_refit_gives_digits_back_where_pruning_has_collapsed(run):
    methods = ["neuron", "random_weight"]
    changes = {"hidden_units": [300, 100], "learning_rate": 0.001, "refit_images": 1000}
    rows = run(load_dataset("digits"), methods=methods, sparsities=[0.9], epochs=20, **changes)
    for method in methods:
        pruned, refitted = (rows[method, 0.9, repair] for repair in ("none", "refit"))
        # at least 0.31 more in ten seeds
        assert refitted["test_accuracy"] > pruned["test_accuracy"] + 0.1


def test_live_weights_and_accuracy_of_a_hand_worked_network(run, monkeypatch):
    first = np.array([[1, 0, 2], [0, 0, 3]], np.float32)
    second = np.array([[1, 0], [4, 0], [5, 0]], np.float32)
    ones = [np.ones(shape, np.float32) for shape in ((2, 3), (3, 2), (2, 2))]
    dense = network_of([*ones, np.array([0, 100], np.float32)])
    monkeypatch.setattr(network_pruning, "dense_network", lambda *_: dense)
    monkeypatch.setitem(METHODS, "given", lambda *_: [first, second])
    images = tf.ones((4, 2))
    data = network_pruning.Dataset("toy", images, None, images, np.array([0, 1, 1, 1]), "")
    row = run(data, methods=["given"], sparsities=[0.5])["given", 0.5, "none"]
    # unit 1 of the first layer and unit 1 of the second have no inputs: of the 12 hidden weights
    # a 2 x 2 and a 2 x 1 kernel are stored, one of whose weights is 0
    assert row["layer_sizes"] == "2-2-1-2"
    assert row["live_fraction"] == pytest.approx(5 / 12)
    assert row["test_accuracy"] == 0.75  # as the bias says


def test_the_speed_up_is_that_over_the_first_network_by_the_best_of_all_rounds(monkeypatch):
    dense, small = (6, 16, 6), (6, 2, 6)
    ends = iter([8, 2, 9, 1])  # seconds of the dense and of the small network, twice
    clock = (second for end in ends for second in (0, end))
    monkeypatch.setattr(network_pruning.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(network_pruning.time, "monotonic", iter([0, 2]).__next__)
    speedups = network_pruning.measure_speed([dense, small, dense], tf.ones((3, 6)), rounds=2)
    assert speedups == {dense: 1, small: 8}
