"""The files: what is remembered and read again, and that nothing is lost, stale or mixed."""

import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from conftest import TINY, TOY, edited, one_line, results, run_main, start

import network_pruning
from network_pruning import METHODS, REPAIRS, keras, load_dataset

SHORT = (*TINY, "--methods", "neuron", "--seeds", 0)
DEFAULTS = network_pruning.parse_options([])


def files():
    """The remembered files and when each was written."""
    return {path: path.stat().st_mtime_ns for path in Path("plots").glob("*/*")}


def networks():
    return len(list(Path("plots/networks").iterdir()))


def test_the_default_command_falls_back_to_digits_and_shows_what_pruning_does():
    # Keras cannot write its folder
    process = start("--hidden-units", 200, 100, KERAS_HOME="/dev/null/keras")
    output, errors = process.communicate()
    assert process.returncode == 0 and "Using scikit-learn's digits instead" in errors
    kinds = Counter(path.suffix for path in Path("plots").rglob("*.*"))
    assert kinds == {".keras": 3, ".csv": 3 * len(DEFAULTS.methods) + 1, ".png": 3}
    rows = results()
    assert len(rows) == 3 * len(REPAIRS) * (1 + 7 * len(DEFAULTS.sparsities))
    mean = rows.groupby(["method", "sparsity", "repair"])["test_accuracy"].mean()
    # ten single seeds: at least 0.87; at most 0.042 below it; at least 0.17 ahead
    assert mean["dense", 0, "none"] > 0.8
    assert mean["weight", 0.5, "none"] > mean["dense", 0, "none"] - 0.1
    for other in ("neuron", "random_weight"):
        assert mean["weight", 0.8, "none"] > mean[other, 0.8, "none"] + 0.08
    # without a terminal, tables are all that goes to stdout
    lines = [line for line in output.splitlines() if not line.startswith("Downloading")]
    assert lines[1] == "digits: mean test accuracy" and max(map(len, lines)) <= 90
    assert re.search(r"^digits, seed 2: \d+ s on the \w", errors, re.MULTILINE)
    assert "Warning: " not in errors


def test_a_table_has_what_its_command_names_whatever_the_folder_holds():
    run_main(*TINY, "--seeds", 0, 1, "--methods", "neuron", "weight")
    table, before = Path("plots/digits.csv").read_bytes(), files()
    assert len(before) == 2 + 2 * 3  # two networks; each as it is, and by two methods
    # the same command again
    run_main(*TINY, "--seeds", 1, 0, 1, "--methods", "weight", "neuron")
    assert Path("plots/digits.csv").read_bytes() == table and files() == before
    for options, trained in (
        (("--seeds", 1, "--methods", "weight", "--sparsities", 0.9), 0),
        (("--retrain-epochs", 1), 0),
        (("--refit-images", 9), 0),
        (("--epochs", 2), 1),
        (("--hidden-units", 30), 1),
    ):
        before = networks()
        tables = []
        for folder in ("plots", "new"):
            run_main(*SHORT, *options, "--output-dir", folder)
            tables.append(results(folder).drop(columns="speedup"))
        pandas.testing.assert_frame_equal(*tables)
        assert networks() == before + trained


def test_a_command_reads_what_jobs_made_side_by_side_and_goes_on_where_one_was_interrupted():
    whole, broken = (start(*SHORT, "--seeds", *seeds) for seeds in ([0], range(1, 6)))
    while broken.poll() is None and not list(Path("plots/runs").glob("digits-seed1-neuron-*")):
        time.sleep(0.02)
    broken.send_signal(signal.SIGINT)
    began = time.perf_counter()
    assert "Traceback" not in broken.communicate(timeout=60)[1]
    assert broken.returncode == -signal.SIGINT and time.perf_counter() - began < 5
    assert whole.wait() == 0
    # what another device has measured is read, too
    path = next(Path("plots/runs").glob("digits-seed1-neuron-*"))
    made_by = path.stem.split("-")[-1]
    path.write_text(path.read_text().replace(",CPU,", ",GPU: H,").replace(made_by, "1e100"))
    before = files()
    run_main(*SHORT, "--seeds", *range(6))
    assert before.items() <= files().items() and len(files()) == 6 * 3
    devices = results().groupby("seed")["device"].unique().map(sorted)
    assert list(devices) == [["CPU"], ["CPU", "GPU: H"], *(4 * [["CPU"]])]
    assert ",1e100\n" in Path("plots/digits.csv").read_text()


NO_EDIT, RESULTS_ANEW, ALL_ANEW = (True, True), (True, False), (False, False)
TO_FIGURES = "STYLES = {  # of methods"
BELOW = "def cut(kernels"  # of METHODS, above the results


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("return zero_lowest(", "return  zero_lowest(", NO_EDIT),
        ("# TensorFlow 1's Adam", "# An", NO_EDIT),
        ("Return a network trained further", "Train further", NO_EDIT),
        ("ms=4", "ms=5", NO_EDIT),
        ("import functools", "import functools, statistics", NO_EDIT),
        ("default=[0, 1, 2]", "default=[0]", RESULTS_ANEW),
        ("def main(", "def helper():\n    return 2\n\n\ndef main(", RESULTS_ANEW),
        ("np.abs(kernel), sparsity)", "kernel, sparsity)", RESULTS_ANEW),
        ("steps=5)", "steps=6)", RESULTS_ANEW),
        ("def weight(", "ROUNDS: int = 3\n\n\ndef weight(", RESULTS_ANEW),
        ("def weight(", "@functools.cache\ndef weight(", RESULTS_ANEW),
        ('rng_for(seed, f"prune {method}")', 'rng_for(seed, "prune")', RESULTS_ANEW),
        ("def load_dataset(", "FACTOR = 2\n\n\ndef load_dataset(", ALL_ANEW),
        ("100 * math.log(", "99 * math.log(", ALL_ANEW),
        ("def train(", f"# {'-' * 9} my own\ndef train(", NO_EDIT),
        ("def train_dense(", f"# {'-' * 9} my own\nRATE = 2\ndef train_dense(", ALL_ANEW),
        ('ONEDNN_OPTS", "1"', 'ONEDNN_OPTS", "0"', ALL_ANEW),
    ],
)
def test_what_an_edit_of_the_script_makes_anew(monkeypatch, old, new, same):
    monkeypatch.setattr(network_pruning.os, "environ", dict(network_pruning.os.environ))
    script = edited(old, new)
    assert (script.TRAINING == network_pruning.TRAINING) == same[0]
    assert (script.CODE == network_pruning.CODE) == same[1]


OWN = """
def own(network, inputs, sparsities, rng):
    yield [{} * kernel for kernel in network.hidden]
METHODS["own"] = own
"""
IMPORT = "import elsewhere\nMETHODS['own'] = elsewhere.own\n"


@pytest.mark.parametrize(
    ("own", "place", "kept"),
    [(OWN, BELOW, [4, 7, 7]), (OWN, TO_FIGURES, [1, 1, 1]), (IMPORT, BELOW, [3, 3, 3])],
)
def test_an_edited_method_is_measured_anew_and_kept_if_it_can_be(monkeypatch, own, place, kept):
    monkeypatch.syspath_prepend("")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of two versions in a second
    made = []
    for factor in (1, 0, 1):
        Path("elsewhere.py").write_text("METHODS = {}\n" + OWN.format(factor))
        sys.modules.pop("elsewhere", None)
        script = edited(place, own.format(factor) + place)
        run_main(*SHORT, "--methods", "own", "neuron", script=script)
        assert set(results().set_index("method").loc["own", "live_fraction"]) == {factor}
        made.append(len(files()))
    assert made == kept and networks() == 1
    # a method that is gone is gone
    run_main(*SHORT)
    assert set(results()["method"]) == {"dense", "neuron"}


def test_what_a_notebook_changes_is_measured_and_not_kept(monkeypatch):
    run_main(*SHORT)
    before, table = files(), results()
    for registry, name, own in (
        (METHODS, "neuron", METHODS["weight"]),
        (REPAIRS, "refit", REPAIRS["none"]),
        (REPAIRS, "own", REPAIRS["none"]),
        (vars(network_pruning), "refit", lambda kernel, *_: kernel),
        (vars(network_pruning), "train", lambda network, *_: network),
    ):
        with monkeypatch.context() as notebook:
            notebook.setitem(registry, name, own)
            run_main(*SHORT)
            assert files() == before and not results()["test_loss"].equals(table["test_loss"])
            assert "other code" in set(results()["made_by"])
    all_left = (lambda kernel, sparsity: kernel).__code__
    with monkeypatch.context() as autoreload:  # puts new code into the old function
        autoreload.setattr(network_pruning.prune_neurons, "__code__", all_left)
        run_main(*SHORT)
        assert files() == before and not results()["test_loss"].equals(table["test_loss"])
    run_main(*SHORT)
    pandas.testing.assert_frame_equal(results(), table)


def test_other_images_labels_or_an_option_of_ones_own_make_other_files():
    recipe = "--epochs 1 --hidden-units 9 --seeds 0 --sparsities 0.5 --methods weight"
    options = network_pruning.parse_options(recipe.split())
    used = [(TOY, options), (TOY, SimpleNamespace(**vars(options), noise=1))]
    for name in TOY._fields[1:]:
        changed = np.roll(getattr(TOY, name), 1, axis=0)
        used.append((TOY._replace(**{name: changed}), options))
    for dataset, chosen in used + used[:2]:
        network_pruning.run(dataset, chosen)
    assert networks() == 6 and len(files()) == 6 * 3


@pytest.mark.parametrize("content", ["", "half", "other"])
def test_a_damaged_or_other_network_is_named(content):
    run_main(*SHORT)
    [path] = Path("plots/networks").iterdir()
    path.write_bytes(path.read_bytes()[: 5000 if content else 0])
    if content == "other":
        keras.Sequential([keras.Input([64]), keras.layers.Dense(10)]).save(path)
    with one_line(f"{path} is not the trained network: ", "; remove it"):
        run_main(*SHORT)


def test_saved_models_are_all_that_is_measured_and_measure_as_the_csv_says():
    """Also those saved by the same command that did not save them before."""
    for more in ([], ["--save-models"]):
        run_main(*SHORT, "--retrain-epochs", 1, *more)
    rows = results()
    assert networks() == 1 + len(rows)
    digits = load_dataset("digits")
    for _, row in rows.iterrows():
        name = f"digits-seed0-{row['method']}-{row['sparsity']:g}-{row['repair']}.keras"
        logits = keras.models.load_model(Path("plots/networks", name))(digits.test_images)
        measured = network_pruning.evaluate(logits.numpy(), digits.test_labels)
        assert measured == pytest.approx(dict(row[list(measured)]), rel=1e-4)


def test_an_error_loses_nothing_that_was_finished_and_leaves_no_partial_file():
    run_main(*SHORT)
    table, before = results(), files()
    full = "        if path.name == 'digits.csv':\n            raise OSError('disk full')\n"
    replace = "        partial.replace(path)\n"
    with one_line("disk full"):
        run_main(*SHORT, "--methods", "weight", script=edited(replace, full + replace))
    assert before.items() <= files().items() and len(files()) == 2 * len(before)
    pandas.testing.assert_frame_equal(results(), table)
    assert not list(Path().rglob(".*"))
