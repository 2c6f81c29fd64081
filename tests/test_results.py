"""The files: CSV, merging, models; a failed or interrupted write loses nothing."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pandas
import pytest
import tensorflow as tf
from conftest import CLEAN, SCRIPT, TINY, assert_one_line, read_rows, without_times

import network_pruning
from network_pruning import COLUMNS, METHODS, SPARSITIES, load_dataset, replacing

SHORT = (*TINY, "--methods", "neuron", "--seeds", 0)
FILES = ["digits-analysis.png", "digits-ladder.png", "digits.csv", "digits.png"]


def files_in(folder):
    """Names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def seeds_in(path):
    """The seeds of a CSV file, in order."""
    return list(dict.fromkeys(row["seed"] for row in read_rows(path)))


# ------------------------------------------------------------------------------------ the default


def test_the_default_command_falls_back_to_digits_and_shows_what_pruning_does(
    run_command, tmp_path
):
    # Keras cannot write its folder
    done = run_command("--hidden-units", 200, 100, KERAS_HOME="/dev/null/keras")
    assert done.returncode == 0
    assert "mnist is unavailable: download failed" in done.stderr
    assert "Using scikit-learn's digits instead.\n" in done.stderr
    assert files_in(tmp_path / "plots") == FILES

    rows = read_rows(tmp_path / "plots" / "digits.csv")
    assert list(rows[0]) == list(COLUMNS)
    methods = [method for method in METHODS if method != "global_weight"]
    repairs = ("none", "no_bias", "refit_output", "refit")
    assert [(row["seed"], row["method"], row["sparsity"], row["repair"]) for row in rows] == [
        (seed, *network)
        for seed in range(3)
        for network in [
            ("dense", 0, "none"),
            ("dense", 0, "no_bias"),
            *((m, s, repair) for m in methods for s in SPARSITIES for repair in repairs),
        ]
    ]
    settings = {(row["epochs"], row["batch_size"], row["learning_rate"]) for row in rows}
    assert settings == {(10, 128, 0.001)}
    assert rows[0]["layer_sizes"] == "64-200-100-10" and rows[0]["speedup"] == 1

    accuracy = pandas.DataFrame(rows).groupby(["method", "sparsity", "repair"])["test_accuracy"]
    mean = accuracy.mean()
    assert mean["dense", 0, "none"] > 0.88
    # directions that hold for any seed, with room for another machine's rounding
    assert mean["weight", 0.5, "none"] > mean["dense", 0, "none"] - 0.03
    assert mean["weight", 0.9, "none"] > mean["neuron", 0.9, "none"] + 0.2
    assert mean["weight", 0.8, "none"] > mean["random_weight", 0.8, "none"] + 0.1
    for repair in ("none", "refit"):
        assert f"{mean['weight', 0.9, repair]:.4f} \u00b1" in done.stdout

    # without a terminal, these lines and the tables are all that the script prints
    lines = done.stdout[done.stdout.index("device: ") :].split("\n\n")[0].splitlines()
    for number, line in enumerate(lines[1:]):
        assert re.fullmatch(rf"digits, seed {number}: dense test accuracy 0\.\d{{4}}, \d+ s", line)
    assert len(lines) == 4 and done.stdout.endswith("saved in plots/digits.csv\n\n")


def test_the_csv_has_the_settings_to_the_last_digit(run_main, tmp_path):
    settings = ("--learning-rate", 1.5e-6, "--sparsities", 0.1234567, 0.99999999, 0.1234567)
    assert run_main(*SHORT, *settings).returncode == 0
    rows = read_rows(tmp_path / "plots" / "digits.csv")
    assert {row["learning_rate"] for row in rows} == {1.5e-6}
    assert {row["sparsity"] for row in rows} == {0, 0.1234567, 0.99999999}


def test_saved_models_are_evaluated_by_keras_alone_as_the_csv_says(run_main, tmp_path):
    options = ("--methods", "neuron", "random_neuron", "--seeds", 1, 2, "--retrain-epochs", 2)
    assert run_main(*TINY, *options, "--save-models").returncode == 0
    digits = load_dataset("digits", None)
    names = {"dense": ("dense", 0), "neuron-0.5": ("neuron", 0.5)}
    files = {path.stem for path in (tmp_path / "plots").glob("*.keras")}
    assert files == {f"digits-{name}" for name in names}
    rows = pandas.DataFrame(read_rows(tmp_path / "plots" / "digits.csv"))
    for name, (method, sparsity) in names.items():
        chosen = (rows["method"] == method) & (rows["sparsity"] == sparsity) & (rows["seed"] == 1)
        row = rows[chosen & (rows["repair"] == "retrain")].iloc[0]
        model = tf.keras.models.load_model(tmp_path / "plots" / f"digits-{name}.keras")
        loss, accuracy = model.evaluate(digits.test_images, digits.test_labels, verbose=0)
        assert accuracy == pytest.approx(row["test_accuracy"], abs=1e-6)
        assert loss == pytest.approx(row["test_loss"], rel=1e-4)
        assert row["layer_sizes"].endswith("-".join(str(layer.units) for layer in model.layers))


# ---------------------------------------------------------------------------------------- merging


def test_jobs_of_one_seed_side_by_side_merge_to_the_csv_of_one_job(run_command, run_main, tmp_path):
    options = (*TINY, "--methods", "neuron", "--retrain-epochs", 1)
    assert run_main(*options, "--seeds", 10, 2, 10, "--output-dir", "whole").returncode == 0

    def job(seed):
        return run_command(*options, "--seeds", seed, "--output-dir", f"parts/{seed}")

    with ThreadPoolExecutor() as side_by_side:
        assert [done.returncode for done in side_by_side.map(job, (10, 2))] == [0, 0]
    parts = ("parts/10/digits.csv", "parts/2/digits.csv")
    done = run_main("--merge", *parts, "--output-dir", "plots/all")
    assert done.stdout == "merged 2 seeds into plots/all/digits.csv\n"
    assert files_in(tmp_path / "plots" / "all") == FILES
    merged, whole = tmp_path / "plots" / "all" / "digits.csv", tmp_path / "whole" / "digits.csv"
    assert without_times(merged) == without_times(whole)
    assert seeds_in(merged) == [2, 10]


ROW = {
    "dataset": "2024",
    "seed": 0,
    "method": "dense",
    "sparsity": 0.0,
    "repair": "none",
    "test_accuracy": 0.9,
    "test_loss": 1.0,
    "live_fraction": 1.0,
    "stored_fraction": 1.0,
    "layer_sizes": "9-5-2",
    "speedup": 1.0,
    "refit_images": 0,
    "retrain_epochs": 0,
    "epochs": 10,
    "batch_size": 128,
    "learning_rate": 0.001,
    "device": "CPU",
    "versions": "tensorflow 2",
}
PRUNED = {**ROW, "method": "weight", "sparsity": 0.5, "layer_sizes": "9-4-2"}
RETRAINED = {**PRUNED, "repair": "retrain", "retrain_epochs": 1}


def write(path, *rows):
    """Write rows as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_csv(path, index=False)


def test_a_merge_counts_a_network_once_and_splits_by_data_set(run_main, tmp_path):
    elsewhere = {**ROW, "speedup": 1.5, "device": "GPU", "versions": "tensorflow 3"}
    write(tmp_path / "a.csv", ROW, PRUNED)
    write(tmp_path / "b.csv", elsewhere, PRUNED, RETRAINED)
    write(tmp_path / "c.csv", {**ROW, "dataset": "007"}, {**PRUNED, "dataset": "007"})
    assert run_main("--merge", "a.csv", "b.csv", "c.csv").returncode == 0
    merged = read_rows(tmp_path / "plots" / "2024.csv")
    assert [(row["method"], row["repair"]) for row in merged] == [
        ("dense", "none"),
        ("weight", "none"),
        ("weight", "retrain"),
    ]
    assert merged[0]["device"] == "CPU"  # the first file's
    assert (tmp_path / "plots" / "007.png").exists()


def test_merging_one_file_into_its_own_place_draws_it_again_without_tensorflow(
    run_command, tmp_path
):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
    write(tmp_path / "plots" / "2024.csv", ROW, PRUNED)
    before = (tmp_path / "plots" / "2024.csv").read_bytes()
    done = run_command("--merge", "plots/2024.csv", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "plots" / "2024.csv").read_bytes() == before
    assert (tmp_path / "plots" / "2024-analysis.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_accuracy": 0.8}, "repair none, test_accuracy is 0.9 in one and 0.8 in the other"),
        ({"layer_sizes": "9-6-2", "seed": 1}, "layer_sizes is 9-5-2 in one and 9-6-2 in the other"),
        ({"epochs": 5, "seed": 1}, "for dataset 2024, epochs is 10 in one and 5 in the other"),
        ({"learning_rate": 0.1, "seed": 1}, "learning_rate is 0.001 in one and 0.1 in the other"),
        (
            {"repair": "retrain", "retrain_epochs": 2, "seed": 1},
            "repair retrain, retrain_epochs is 1 in one and 2 in the other",
        ),
    ],
)
def test_files_that_disagree_are_not_merged(run_main, tmp_path, changes, message):
    write(tmp_path / "a.csv", ROW, RETRAINED)
    write(tmp_path / "b.csv", {**ROW, **changes})
    write(tmp_path / "fine.csv", {**ROW, "dataset": "fine"})
    done = run_main("--merge", "fine.csv", "a.csv", "b.csv")
    assert_one_line(done, "error: a.csv and b.csv cannot be merged: for dataset 2024")
    assert message in done.stderr
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b\n1,2\n",
        b"dataset,seed\nmnist\n",
        b"\0\5\x16\7\0\2\0\0Mac OS X\xff",  # such as ._mnist.csv
        pandas.DataFrame([PRUNED]).to_csv(index=False).encode(),
        pandas.DataFrame([{**ROW, "seed": "x"}]).to_csv(index=False).encode(),
        pandas.DataFrame([{**ROW, "dataset": "../x"}]).to_csv(index=False).encode(),
    ],
    ids=["empty", "foreign", "short", "binary", "without-dense", "text", "name"],
)
def test_a_file_that_is_not_ours_is_named(run_main, tmp_path, content):
    (tmp_path / "mnist.csv").write_bytes(content)
    done = run_main("--merge", "mnist.csv")
    assert_one_line(done, "error: mnist.csv is not a CSV file of this script: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "plots").exists()


def test_a_file_that_is_not_there_is_named(run_main):
    assert_one_line(run_main("--merge", "none.csv"), "No such file or directory: 'none.csv'")


def test_a_job_does_not_replace_results_of_seeds_that_it_does_not_make(run_main, tmp_path):
    write(tmp_path / "plots" / "digits.csv", {**ROW, "dataset": "digits", "seed": 7})
    before = (tmp_path / "plots" / "digits.csv").read_bytes()
    done = run_main(*SHORT)
    assert_one_line(done, "error: plots/digits.csv has results of seeds that would be lost, 7; add")
    assert "dense test accuracy" not in done.stdout
    assert (tmp_path / "plots" / "digits.csv").read_bytes() == before
    assert run_main(*SHORT, "--seeds", 7).returncode == 0
    (tmp_path / "plots" / "digits.csv").write_text("mine\n")
    assert_one_line(run_main(*SHORT), "error: plots/digits.csv is not a CSV file of this script")


# ---------------------------------------------------------------------------------------- writing


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with replacing(path) as first, replacing(path) as second:  # two processes at once
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the last to finish
    assert files_in(tmp_path) == ["numbers.csv"]


def test_the_home_folder_is_meant_by_its_sign(run_main, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_main(*SHORT, "--output-dir=~/new/plots").returncode == 0
    assert files_in(tmp_path / "new" / "plots") == FILES


@pytest.mark.parametrize(("failing", "status"), [([1], 0), ([2], 1), ([1, 2], 1)])
def test_a_failed_write_is_reported_and_made_up_for_by_the_next(
    run_main, monkeypatch, tmp_path, failing, status
):
    """As of a full disk, or of a CSV open in a spreadsheet on Windows."""
    calls = []
    replace = os.replace

    def sometimes(source, target):
        if str(target).endswith(".csv"):
            calls.append(target)
            if len(calls) in failing:
                raise PermissionError(13, "The file is open")
        replace(source, target)

    monkeypatch.setattr(network_pruning.os, "replace", sometimes)
    done = run_main(*SHORT, "--seeds", 0, 1)
    assert done.returncode == status
    assert done.stderr.count("plots/digits.csv cannot be written: The file is open\n") == len(
        failing
    )
    assert "digits, seed 1: dense test accuracy" in done.stdout
    assert ("error: the last results could not be written" in done.stderr) == bool(status)
    if failing != [1, 2]:
        assert seeds_in(tmp_path / "plots" / "digits.csv") == ([0] if status else [0, 1])
    assert not [name for name in files_in(tmp_path / "plots") if name.startswith(".")]


def test_an_output_folder_that_cannot_be_made_is_refused(run_main, tmp_path):
    done = run_main(*SHORT, "--output-dir", "/dev/null/plots")
    assert_one_line(done, "error: [Errno 20] Not a directory: '/dev/null/plots'")
    (tmp_path / "taken").write_text("precious")
    done = run_main(*SHORT, "--output-dir", "taken")
    assert_one_line(done, "error: [Errno 17] File exists: 'taken'")
    assert (tmp_path / "taken").read_text() == "precious"


def test_an_interrupted_command_ends_at_once_and_leaves_whole_files(tmp_path):
    csv, png = tmp_path / "plots" / "digits.csv", tmp_path / "plots" / "digits-analysis.png"
    options = (*SHORT, "--hidden-units", 1000, 1000, "--epochs", 10, "--seeds", *range(1000))
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, options)],
        cwd=tmp_path,
        env=CLEAN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not png.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and time.monotonic() - began < 5
    assert "network_pruning.py" not in errors
    assert len(read_rows(csv)) % 6 == 0  # the dense network in two states, and one in four
    assert png.read_bytes().endswith(b"IEND\xaeB`\x82")
