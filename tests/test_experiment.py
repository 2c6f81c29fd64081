"""The experiment: which networks it makes, and what it measures of each."""

import numpy as np
import pandas
import pytest
import tensorflow as tf
from conftest import KEY, TOY

import network_pruning
from network_pruning import METHODS, REPAIRS, UserError, load_dataset, network_of, parse_options


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the experiment on a data set; return its rows by method, sparsity and repair."""
    monkeypatch.setattr(network_pruning, "time_passes", lambda sizes, _: dict.fromkeys(sizes, 1))

    def run(data=TOY, **changes):
        options = parse_options(["--output-dir", str(tmp_path), "--learning-rate", "0.01"])
        few = {"methods": ["dense", "weight", "neuron"], "sparsities": [0.5, 1.0], "seeds": [0]}
        vars(options).update({"hidden_units": [16, 8], "refit_images": 50, **few, **changes})
        rows = network_pruning.run(data, options)
        assert not rows[KEY].duplicated().any()
        columns = ["made_by", "retrain_epochs"]
        return rows.drop(columns=columns).set_index(KEY[1:]).to_dict("index")

    return run


def test_every_repair_of_every_method_and_sparsity_is_measured_and_of_the_dense_network(run):
    rows = run(methods=list(METHODS))
    methods = [name for name in METHODS if name != "dense"]
    networks = [("dense", 0), *((method, s) for method in methods for s in (0.5, 1))]
    assert list(rows) == [(*network, repair) for network in networks for repair in REPAIRS]
    assert rows["neuron", 0.5, "none"]["layer_sizes"] == "6-8-4-6"
    assert rows["dense", 0, "none"]["live_fraction"] == 1
    losses = [rows["dense", 0, repair]["test_loss"] for repair in ("none", "refit")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # nothing but the bias is left
    left = [rows[method, 1, "none"] for method in methods]
    assert left == left[:1] * len(methods) and left[0]["live_fraction"] == 0


def test_retraining_adds_rows_and_changes_none(run):
    once, again = run(), run(retrain_epochs=3)
    assert {key: again[key] for key in once} == once
    added = [key for key in again if key not in once]
    assert sorted(added) == sorted(
        [("dense", 0, "retrain")]
        + [(method, s, "retrain") for method in ("weight", "neuron", "scratch") for s in (0.5, 1)]
    )
    sizes = again["neuron", 0.5, "retrain"]["layer_sizes"]
    assert again["scratch", 0.5, "retrain"]["layer_sizes"] == sizes
    without = run(methods=["weight"], retrain_epochs=1)
    assert "scratch" not in {method for method, _, _ in without}


def test_rows_do_not_depend_on_what_else_is_asked_for(run, tmp_path):
    methods = ["gradual_weight", "random_neuron", "neuron"]
    many = run(methods=["weight", *methods], sparsities=[0.5, 0.7, 0.9], retrain_epochs=1)
    few = {"methods": methods[::-1], "sparsities": [0.7]}
    for key, row in run(output_dir=tmp_path / "other", retrain_epochs=1, **few).items():
        assert many[key] == row


@pytest.mark.parametrize("which", ["hidden", "inputs", "network", "targets"])
def test_a_method_or_a_repair_cannot_change_what_others_get(run, monkeypatch, which):
    def method(network, inputs, sparsities, rng):
        {"hidden": network.hidden, "inputs": inputs}[which][0][0] = 0
        yield network.hidden

    def repair(network, images, targets):
        {"network": network.hidden, "targets": targets}[which][0][0] = 0

    registry = METHODS if which in ("hidden", "inputs") else REPAIRS
    monkeypatch.setitem(registry, "in_place", method if registry is METHODS else repair)
    with pytest.raises(ValueError, match="read-only"):
        run(methods=["in_place"] if registry is METHODS else ["weight"])


def test_a_method_of_too_few_networks_is_refused(run, monkeypatch):
    monkeypatch.setitem(METHODS, "own", lambda network, inputs, sparsities, rng: [network.hidden])
    with pytest.raises(ValueError, match="shorter"):
        run(methods=["own"])


@pytest.mark.parametrize("wrong", ["method", "repair"])
def test_what_gives_no_finite_logits_is_named_with_its_level_and_repair(run, monkeypatch, wrong):
    def method(network, inputs, sparsities, rng):
        for sparsity in sparsities:
            yield [np.nan * kernel if sparsity == 1 else kernel for kernel in network.hidden]

    def repair(network, images, targets):
        return network._replace(bias=network.bias + np.inf)

    if wrong == "method":
        monkeypatch.setitem(METHODS, "own", method)
        message = "^own at 1, none: the logits are not finite$"
    else:
        monkeypatch.setitem(REPAIRS, "own", repair)
        message = "^weight at 0.5, own: the logits are not finite$"
    with pytest.raises(UserError, match=message):
        run(methods=["own" if wrong == "method" else "weight"])


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
    monkeypatch.setitem(METHODS, "given", lambda *_: iter([[first, second]]))
    images = tf.ones((4, 2))
    data = network_pruning.Dataset("toy", images, images, images, np.array([0, 1, 1, 1]))
    row = run(data, methods=["given"], sparsities=[0.5])["given", 0.5, "none"]
    # unit 1 of the first layer and unit 1 of the second have no inputs: of the 12 hidden weights
    # a 2 x 2 and a 2 x 1 kernel are stored, one of whose weights is 0
    assert row["layer_sizes"] == "2-2-1-2"
    assert row["live_fraction"] == pytest.approx(5 / 12)
    assert row["test_accuracy"] == 0.75  # as the bias says


def test_the_time_of_a_size_is_the_best_of_all_rounds(monkeypatch):
    dense, small = (6, 16, 6), (6, 2, 6)
    ends = iter([8, 2, 9, 1, 9, 3])  # seconds of the dense and of the small network, three times
    clock = (second for end in ends for second in (0, end))
    monkeypatch.setattr(network_pruning.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(network_pruning.time, "monotonic", iter([0, 1]).__next__)
    seconds = network_pruning.time_passes([dense, small, dense], tf.ones((3, 6)))
    assert seconds == {dense: 8, small: 1}


def test_networks_of_the_same_sizes_are_equally_fast_in_a_command(run, monkeypatch):
    seconds = iter([{}, {"6-8-4-6": 2}, {"6-8-4-6": 4}])

    def times(sizes, images):
        known = next(seconds)
        return {each: known.get("-".join(map(str, each)), 8) for each in sizes}

    monkeypatch.setattr(network_pruning, "time_passes", times)
    rows = run(methods=["dense", "neuron", "random_neuron"], sparsities=[0.5])
    speedups = pandas.DataFrame(rows).T.groupby("layer_sizes")["speedup"].unique()
    assert speedups.loc["6-16-8-6"] == [1]
    assert all(len(values) == 1 for values in speedups)
    assert rows["neuron", 0.5, "none"]["speedup"] == rows["neuron", 0.5, "refit"]["speedup"]
