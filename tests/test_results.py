"""The files: what is remembered and read again, and that nothing is lost, stale or mixed."""

import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas
import pytest
from conftest import CLEAN, KEY, SCRIPT, TINY, assert_one_line, edited, results

import network_pruning
from network_pruning import METHODS, REPAIRS, keras, load_dataset, save

SHORT = (*TINY, "--methods", "neuron", "--seeds", 0)
DEFAULTS = network_pruning.parse_options([])


def files(folder="plots"):
    """The remembered files and when each was written."""
    return {path: path.stat().st_mtime_ns for path in Path(folder).glob("*/*")}


def networks(folder="plots"):
    return len(list(Path(folder).glob("networks/*")))


def without_times(table):
    return table.drop(columns="speedup").sort_values(KEY, ignore_index=True)


def test_the_default_command_falls_back_to_digits_and_shows_what_pruning_does(
    run_command, tmp_path
):
    # Keras cannot write its folder
    done = run_command("--hidden-units", 200, 100, KERAS_HOME="/dev/null/keras")
    assert done.returncode == 0 and "Using scikit-learn's digits instead" in done.stderr
    paths = [str(path.relative_to(tmp_path / "plots")) for path in tmp_path.glob("plots/**/*.*")]
    assert sorted(re.sub("-[0-9a-f]{8}", "", path) for path in paths) == sorted(
        ["digits.csv", *(f"digits-{kind}.png" for kind in network_pruning.FIGURES)]
        + [f"runs/digits-seed{seed}-{m}.csv" for seed in range(3) for m in DEFAULTS.methods]
        + [f"networks/digits-seed{seed}.keras" for seed in range(3)]
    )
    rows = results(tmp_path / "plots")
    assert len(rows) == 3 * len(REPAIRS) * (1 + 7 * len(DEFAULTS.sparsities))
    assert rows["layer_sizes"][0] == "64-200-100-10" and rows["speedup"][0] == 1
    mean = rows.groupby(["method", "sparsity", "repair"])["test_accuracy"].mean()
    # ten single seeds: at least 0.87; at most 0.042 below it; at least 0.17 ahead
    assert mean["dense", 0, "none"] > 0.8
    assert mean["weight", 0.5, "none"] > mean["dense", 0, "none"] - 0.1
    assert mean["weight", 0.8, "none"] > mean["neuron", 0.8, "none"] + 0.08
    assert mean["weight", 0.8, "none"] > mean["random_weight", 0.8, "none"] + 0.08

    # without a terminal, tables are all that goes to stdout
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Downloading")]
    assert lines[1] == "digits: mean test accuracy"
    assert f" {mean['weight', 0.9, 'refit']:.3f} " in done.stdout
    assert max(map(len, lines)) <= 90
    assert lines[-1] == "saved in plots/digits.csv, drawn in plots/digits-*.png"
    assert re.search(r"^digits, seed 2: \d+ s on the \w", done.stderr, re.MULTILINE)
    assert "Warning: " not in done.stderr


def test_the_same_command_again_measures_nothing_and_makes_the_same_table(run_main):
    assert run_main(*SHORT, "--methods", "neuron", "weight", "--seeds", 0, 1).returncode == 0
    table, before = Path("plots/digits.csv").read_bytes(), files()
    assert len(before) == 2 + 2 * 3  # two networks; each as it is, and by two methods
    assert run_main(*SHORT, "--methods", "weight", "neuron", "--seeds", 1, 0, 1).returncode == 0
    assert Path("plots/digits.csv").read_bytes() == table and files() == before
    next(Path("plots/runs").glob("digits-seed1-weight-*")).unlink()
    assert run_main(*SHORT, "--methods", "neuron", "weight", "--seeds", 0, 1).returncode == 0
    assert len(files()) == len(before)


@pytest.mark.parametrize(
    "options",
    [
        ("--seeds", 1),
        ("--methods", "weight"),
        ("--sparsities", 0.9),
        ("--retrain-epochs", 1),
        ("--refit-images", 9),
        ("--epochs", 2),
        ("--hidden-units", 30),
    ],
)
def test_a_table_has_what_its_command_names_whatever_the_folder_holds(run_main, options):
    used = ("--seeds", 0, 1, "--methods", "neuron", "weight", "--sparsities", 0.5, 0.9)
    assert run_main(*TINY, *used).returncode == 0
    assert run_main(*SHORT, *options, "--output-dir", "new").returncode == 0
    trained = networks()
    assert run_main(*SHORT, *options).returncode == 0
    pandas.testing.assert_frame_equal(without_times(results()), without_times(results("new")))
    assert networks() - trained == (options[0] in ("--epochs", "--hidden-units"))


def test_jobs_side_by_side_are_read_by_a_command_that_names_all(run_command, run_main, tmp_path):
    with ThreadPoolExecutor() as side_by_side:
        jobs = side_by_side.map(lambda seed: run_command(*SHORT, "--seeds", seed), range(2))
        assert [done.stderr for done in jobs if done.returncode] == []
    before = files()
    # what another device has measured is read, too
    path = next(Path("plots/runs").glob("digits-seed1-neuron-*"))
    made_by = path.stem.split("-")[-1]
    text = path.read_text().replace(",CPU,", ",GPU: H,").replace(made_by, "1e100")
    path.write_text(text)
    before = files()
    assert run_main(*SHORT, "--seeds", 0, 1).returncode == 0
    assert files() == before
    rows = results().set_index("seed")
    assert "GPU: H" in set(rows.loc[1, "device"]) and "GPU: H" not in set(rows.loc[0, "device"])
    assert ",1e100\n" in Path("plots/digits.csv").read_text()


NO_EDIT, RESULTS_ANEW, ALL_ANEW = (True, True), (True, False), (False, False)
TO_FIGURES = "STYLES = {  # of methods"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("return zero_lowest(", "return  zero_lowest(", NO_EDIT),
        ("# TensorFlow 1's Adam", "# An", NO_EDIT),
        ("Return a network trained further", "Train further", NO_EDIT),
        ("ms=4", "ms=5", NO_EDIT),
        ("default=[0, 1, 2]", "default=[0]", NO_EDIT),
        ("np.abs(kernel), sparsity)", "kernel, sparsity)", RESULTS_ANEW),
        ("steps=5)", "steps=6)", RESULTS_ANEW),
        ("def weight(", "ROUNDS: int = 3\n\n\ndef weight(", RESULTS_ANEW),
        ("def weight(", "@functools.cache\ndef weight(", RESULTS_ANEW),
        ('rng_for(seed, f"prune {method}")', 'rng_for(seed, "prune")', RESULTS_ANEW),
        ("/ brightest", "/ 255", RESULTS_ANEW),  # networks know the images themselves
        ("100 * math.log(", "99 * math.log(", ALL_ANEW),
        ("def train(", f"# {'-' * 9} my own\ndef train(", NO_EDIT),
        ("def train_dense(", f"# {'-' * 9} my own\nRATE = 2\ndef train_dense(", ALL_ANEW),
        ('ONEDNN_OPTS", "1"', 'ONEDNN_OPTS", "0"', ALL_ANEW),
    ],
)
def test_what_an_edit_of_the_script_makes_anew(tmp_path, monkeypatch, old, new, same):
    monkeypatch.setattr(network_pruning.os, "environ", dict(network_pruning.os.environ))
    script = edited(tmp_path, (old, new))
    assert (script.TRAINING_CODE == network_pruning.TRAINING_CODE) == same[0]
    assert (script.CODE == network_pruning.CODE) == same[1]


OWN = """
def own(network, inputs, sparsities, rng):
    for sparsity in sparsities:
        yield [{} * kernel for kernel in network.hidden]

METHODS["own"] = own

"""


def live(method):
    """The live shares of the networks that a method has made."""
    rows = results()
    return set(rows.loc[rows["method"] == method, "live_fraction"])


def test_an_edited_method_is_measured_anew_and_an_undone_edit_is_read(run_main, tmp_path):
    below = "def cut(kernels"
    all_left, none_left = ((below, OWN.format(factor) + below) for factor in (1, 0))
    made = []
    for edit, share in ((all_left, 1), (none_left, 0), (all_left, 1)):
        script = edited(tmp_path, edit)
        assert run_main(*SHORT, "--methods", "own", "neuron", script=script).returncode == 0
        assert live("own") == {share}
        made.append(len(files()))
    assert made == [4, 7, 7] and networks() == 1
    # a method that is gone is gone
    assert run_main(*SHORT).returncode == 0
    assert set(results()["method"]) == {"dense", "neuron"}


def test_methods_from_other_files_or_below_the_results_are_always_measured(
    run_main, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    head = "import network_pruning\nMETHODS = {}\n"
    below = "def cut(kernels"
    imported = (below, "import elsewhere\nMETHODS['own'] = elsewhere.own\n" + below)
    for factor, share in ((1, 1), (0, 0)):
        (tmp_path / "elsewhere.py").write_text(head + OWN.format(factor))
        sys.modules.pop("elsewhere", None)
        sys.dont_write_bytecode = True  # of two versions in a second
        below_results = (TO_FIGURES, OWN.format(factor) + TO_FIGURES)
        for edit in (imported, below_results):
            script = edited(tmp_path, edit)
            assert run_main(*SHORT, "--methods", "own", script=script).returncode == 0
            assert live("own") == {share}


def test_what_a_notebook_changes_is_measured_and_not_kept(run_main, monkeypatch):
    def double(network, images, targets):
        return network._replace(output=2 * network.output)

    assert run_main(*SHORT).returncode == 0
    before, table = files(), results()
    for registry, name, own in (
        (METHODS, "neuron", METHODS["weight"]),
        (METHODS, "own", METHODS["weight"]),
        (REPAIRS, "refit", REPAIRS["none"]),
        (REPAIRS, "own", double),
        (vars(network_pruning), "refit", lambda kernel, *_: kernel),
    ):
        with monkeypatch.context() as notebook:
            notebook.setitem(registry, name, own)
            assert run_main(*SHORT).returncode == 0
            assert files() == before
            assert name == "own" or not results().equals(table)
    assert run_main(*SHORT).returncode == 0
    pandas.testing.assert_frame_equal(results(), table)


def test_an_option_of_ones_own_counts(run_main, tmp_path):
    option = ('    add("--save-models"', '    add("--noise", type=int, default=0)\n')
    script = edited(tmp_path, (option[0], option[1] + option[0]))
    made = []
    for noise in (0, 1, 0):
        assert run_main(*SHORT, "--noise", noise, script=script).returncode == 0
        made.append(len(files()))
    assert made == [3, 6, 6]
    assert len(results()) == 2 * len(REPAIRS)


def test_other_images_train_other_networks(run_main, monkeypatch):
    assert run_main(*SHORT).returncode == 0
    arrays = list(network_pruning.read_arrays("digits", None))
    for changed in (0, 1, 2, 3):
        others = [np.roll(a, 1, axis=-1) if i == changed else a for i, a in enumerate(arrays)]
        monkeypatch.setattr(network_pruning, "read_arrays", lambda *_, others=others: others)
        assert run_main(*SHORT).returncode == 0
        assert networks() == 2 + changed


@pytest.mark.parametrize("content", ["", "half", "other"])
def test_a_damaged_or_other_network_is_named(run_main, tmp_path, content):
    assert run_main(*SHORT).returncode == 0
    [path] = Path("plots/networks").iterdir()
    if content == "other":
        keras.Sequential([keras.Input([64]), keras.layers.Dense(10)]).save(path)
    else:
        path.write_bytes(path.read_bytes()[: 5000 if content else 0])
    done = run_main(*SHORT)
    assert_one_line(done, f"error: {path} is not the trained network: ")
    assert done.stderr.endswith("; remove it\n")


def test_saved_models_are_all_that_is_measured_and_measure_as_the_csv_says(run_main):
    """Also those saved by the same command that did not save them before."""
    for more in ([], ["--save-models"]):
        options = (*SHORT, "--methods", "gradual_weight", "neuron", "--retrain-epochs", 1, *more)
        assert run_main(*options).returncode == 0
    rows = results()
    assert networks() == 1 + len(rows)
    digits = load_dataset("digits")
    for _, row in rows[rows["repair"] != "no_bias"].iterrows():
        name = f"digits-seed0-{row['method']}-{row['sparsity']:g}-{row['repair']}.keras"
        model = keras.models.load_model(Path("plots/networks", name))
        measured = model.evaluate(digits.test_images, digits.test_labels, verbose=0)
        assert measured == pytest.approx([row["test_loss"], row["test_accuracy"]], rel=1e-4)


def test_an_error_loses_nothing_that_was_finished_and_leaves_no_partial_file(run_main, tmp_path):
    below = "def cut(kernels"
    broken = OWN.format(1).replace("yield", "raise OSError('disk full') or")
    script = edited(tmp_path, (below, broken + below))
    done = run_main(*SHORT, "--methods", "own", "weight", script=script)
    assert_one_line(done, "error: disk full")
    assert len(list(Path("plots/runs").glob("digits-seed0-weight-*.csv"))) == 1
    path = tmp_path / "new" / "numbers.csv"
    save(path, lambda partial: partial.write_text("whole"))

    def cut_off(partial):
        partial.write_text("cut o")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(path, cut_off)
    assert path.read_text() == "whole"
    assert not list(tmp_path.rglob(".*"))
    assert_one_line(run_main(*SHORT, "--output-dir", "/dev/null/plots"), "Not a directory")


def test_an_interrupted_command_ends_at_once_and_goes_on_when_run_again(tmp_path):
    options = (*SHORT, "--hidden-units", 200, "--epochs", 3, "--seeds", *range(4))
    command = [sys.executable, SCRIPT, *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=CLEAN, **pipes)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob("plots/runs/[!.]*.csv")):
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and time.monotonic() - began < 5
    assert "Traceback" not in errors
    before = files(tmp_path / "plots")
    assert subprocess.run(command, cwd=tmp_path, env=CLEAN, capture_output=True).returncode == 0
    assert before.items() <= files(tmp_path / "plots").items()
    assert len(results(tmp_path / "plots")) == 4 * 2 * len(REPAIRS)
