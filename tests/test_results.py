"""The files: each job's own, all else made from them; what was measured is not lost or mixed."""

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
from conftest import CLEAN, SCRIPT, TINY, assert_one_line, files_in

import network_pruning
from network_pruning import (
    COLUMNS,
    DEFAULT_METHODS,
    FIGURES,
    REPAIRS,
    SPARSITIES,
    UserError,
    load_dataset,
    write_all,
)

SHORT = (*TINY, "--methods", "neuron", "--seeds", 0)
FIGURE_NAMES = [f"digits-{kind}.png" for kind in sorted(FIGURES)]
KEY = ["seed", "method", "sparsity", "repair"]


def results(folder, name="digits"):
    """All rows of a data set that a folder shows."""
    return pandas.read_csv(folder / f"{name}.csv")


def without_times(table):
    """The rows of a CSV file but for the times, which differ from run to run."""
    return table.drop(columns="speedup").sort_values(KEY, ignore_index=True)


# ------------------------------------------------------------------------------------ the default


def test_the_default_command_falls_back_to_digits_and_shows_what_pruning_does(
    run_command, tmp_path
):
    # Keras cannot write its folder
    done = run_command("--hidden-units", 200, 100, KERAS_HOME="/dev/null/keras")
    assert done.returncode == 0
    assert "mnist is unavailable: download failed" in done.stderr
    assert "Using scikit-learn's digits instead.\n" in done.stderr
    runs = [name for name in files_in(tmp_path / "plots") if name.startswith("runs/")]
    assert [re.sub("-[0-9a-f]{8}", "", name) for name in runs] == [
        f"runs/digits-seed{seed}.csv" for seed in range(3)
    ]
    assert files_in(tmp_path / "plots") == sorted(["digits.csv", *FIGURE_NAMES, *runs])
    for name in FIGURE_NAMES:
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")

    rows = results(tmp_path / "plots")
    assert list(rows) == list(COLUMNS)
    repairs = ("none", "no_bias", *REPAIRS)
    networks = [(m, s, repair) for m in DEFAULT_METHODS for s in SPARSITIES for repair in repairs]
    dense = [("dense", 0, "none"), ("dense", 0, "no_bias")]
    assert list(rows[KEY].itertuples(index=False, name=None)) == [
        (seed, *network) for seed in range(3) for network in (*dense, *networks)
    ]
    recipe = rows[["hidden_units", "epochs", "batch_size", "learning_rate"]].drop_duplicates()
    assert recipe.to_numpy().tolist() == [["200-100", 10, 128, 0.001]]
    assert rows["layer_sizes"][0] == "64-200-100-10" and rows["speedup"][0] == 1
    assert rows["majority_accuracy"].unique() == [0.102778]  # 37 of the 360 test images

    mean = rows.groupby(["method", "sparsity", "repair"])["test_accuracy"].mean()
    # ten single seeds: at least 0.87; at most 0.042 below it; at least 0.17 ahead
    assert mean["dense", 0, "none"] > 0.8
    assert mean["weight", 0.5, "none"] > mean["dense", 0, "none"] - 0.1
    assert mean["weight", 0.8, "none"] > mean["neuron", 0.8, "none"] + 0.08
    assert mean["weight", 0.8, "none"] > mean["random_weight", 0.8, "none"] + 0.08

    # without a terminal, these lines and the tables are all that the script prints
    lines = done.stdout[done.stdout.index("device: ") :].split("\n\n")[0].splitlines()
    for number, line in enumerate(lines[1:]):
        assert re.fullmatch(rf"digits, seed {number}: dense test accuracy 0\.\d{{4}}, \d+ s", line)
    assert len(lines) == 4
    for repair in ("none", "refit"):
        assert f" {mean['weight', 0.9, repair]:.3f} " in done.stdout
    tables = done.stdout[done.stdout.index("digits, as pruned") :]
    assert max(map(len, tables.splitlines())) <= 80
    files = "plots/digits.csv, drawn in plots/digits-{accuracy,ladder,analysis}.png"
    assert done.stdout.endswith(f"\nsaved in {files}\n")


def test_the_csv_has_the_settings_to_the_last_digit(run_main, tmp_path):
    settings = ("--learning-rate", 1.5e-6, "--sparsities", 0.1234567, 0.99999999, 0.1234567)
    assert run_main(*SHORT, *settings).returncode == 0
    rows = results(tmp_path / "plots")
    assert set(rows["learning_rate"]) == {1.5e-6}
    assert set(rows["sparsity"]) == {0, 0.1234567, 0.99999999}


def test_saved_models_are_evaluated_by_keras_alone_as_the_csv_says(run_main, tmp_path):
    options = ("--methods", "neuron", "random_neuron", "--seeds", 1, 2, "--retrain-epochs", 2)
    assert run_main(*TINY, *options, "--save-models").returncode == 0
    digits = load_dataset("digits", None)
    rows = results(tmp_path / "plots").set_index(KEY)
    for seed in (1, 2):
        [job] = (tmp_path / "plots" / "runs").glob(f"digits-seed{seed}-*.csv")
        for name, network in (("dense", ("dense", 0)), ("neuron-0.5", ("neuron", 0.5))):
            row = rows.loc[(seed, *network, "retrain")]
            model = tf.keras.models.load_model(job.with_name(f"{job.stem}-{name}.keras"))
            loss, accuracy = model.evaluate(digits.test_images, digits.test_labels, verbose=0)
            assert accuracy == pytest.approx(row["test_accuracy"], abs=1e-6)
            assert loss == pytest.approx(row["test_loss"], rel=1e-4)
    assert len(list((tmp_path / "plots" / "runs").iterdir())) == 6


# ----------------------------------------------------------------------------- jobs into one folder


def test_jobs_of_seeds_methods_levels_and_retraining_add_to_one_another(run_main, tmp_path):
    whole = ("--seeds", 10, 2, "--methods", "neuron", "weight", "--sparsities", 0.5, 0.9)
    assert run_main(*TINY, *whole, "--retrain-epochs", 1, "--output-dir", "whole").returncode == 0
    jobs = [
        ("--seeds", 10, "--methods", "neuron", "--retrain-epochs", 1),
        ("--seeds", 2, "--methods", "neuron", "--retrain-epochs", 1),
        ("--seeds", 2, 10, "--methods", "weight"),
        ("--seeds", 2, 10, "--methods", "neuron", "weight", "--retrain-epochs", 1,
         "--sparsities", 0.9),
        ("--seeds", 2, 10, "--methods", "weight", "--retrain-epochs", 1),
    ]  # fmt: skip
    for job in jobs:
        assert run_main(*TINY, *job).returncode == 0
    assert len(list((tmp_path / "plots" / "runs").iterdir())) == 8
    parts, whole = results(tmp_path / "plots"), results(tmp_path / "whole")
    settings = ["refit_images", "retrain_epochs"]
    pandas.testing.assert_frame_equal(
        without_times(parts).drop(columns=settings), without_times(whole).drop(columns=settings)
    )
    assert list(parts["seed"]) == sorted(parts["seed"])


def test_jobs_side_by_side_leave_the_whole_picture(run_command, tmp_path):
    with ThreadPoolExecutor() as side_by_side:
        jobs = side_by_side.map(lambda seed: run_command(*SHORT, "--seeds", seed), range(2))
        assert [done.stderr for done in jobs if done.returncode] == []
    assert set(results(tmp_path / "plots")["seed"]) == {0, 1}


def test_a_job_that_has_drawn_draws_again_if_others_have_finished_meanwhile(
    run_main, monkeypatch, tmp_path
):
    assert run_main(*SHORT, "--seeds", 1, "--output-dir", "other").returncode == 0
    [other] = (tmp_path / "other" / "runs").iterdir()

    def write_slowly(files):
        write_all(files)
        if other.exists() and any(path.name == "digits.csv" for path in list(drawn)):
            other.rename(tmp_path / "plots" / "runs" / other.name)
        drawn.update(tmp_path.glob("plots/*.csv"))

    drawn = set()
    monkeypatch.setattr(network_pruning, "write_all", write_slowly)
    assert run_main(*SHORT, "--seeds", 0, 2).returncode == 0
    assert not other.exists()
    assert set(results(tmp_path / "plots")["seed"]) == {0, 1, 2}


def test_the_same_command_again_replaces_its_own_files_alone(run_main, tmp_path):
    for _ in range(2):
        assert run_main(*SHORT, "--seeds", 0, 1).returncode == 0
    assert run_main(*SHORT).returncode == 0  # the first of these seeds alone
    assert len(list((tmp_path / "plots" / "runs").iterdir())) == 2
    assert set(results(tmp_path / "plots")["seed"]) == {0, 1}


# ----------------------------------------------------------------------------- files of other hands

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
    "speedup": 1.0,
    "layer_sizes": "9-5-2",
    "data": 3_000_000_000,
    "majority_accuracy": 0.6,
    "hidden_units": "5",
    "epochs": 10,
    "batch_size": 128,
    "learning_rate": 0.001,
    "refit_images": 1000,
    "retrain_epochs": 0,
    "network": 4_000_000_000,
    "script": 2_000_000_000,
    "device": "CPU",
    "versions": "tensorflow 2",
}
PRUNED = {**ROW, "method": "weight", "sparsity": 0.5, "layer_sizes": "9-4-2"}
RETRAINED = {**PRUNED, "repair": "retrain", "retrain_epochs": 1}


def write(path, *rows, columns=None, **how):
    """Write rows as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows, columns=columns).to_csv(path, index=False, **how)


def test_of_a_network_in_two_files_the_newest_counts_and_any_name_will_do(run_main, tmp_path):
    runs = tmp_path / "plots" / "runs"
    write(runs / "backup of b.csv", {**ROW, "device": "old"}, {**PRUNED, "test_accuracy": 0.1})
    write(runs / "a.csv", ROW, PRUNED, RETRAINED)
    write(runs / "two.csv", {**ROW, "dataset": "007"}, {**PRUNED, "dataset": "007"})
    os.utime(runs / "backup of b.csv", (0, 0))
    assert run_main("--draw").returncode == 0
    rows = results(tmp_path / "plots", "2024")
    assert list(rows[["method", "repair"]].itertuples(index=False, name=None)) == [
        ("dense", "none"),
        ("weight", "none"),
        ("weight", "retrain"),
    ]
    assert set(rows["device"]) == {"CPU"} and set(rows["test_accuracy"]) == {0.9}
    assert len(results(tmp_path / "plots", "007")) == 2
    assert (tmp_path / "plots" / "007-accuracy.png").exists()


def test_drawing_again_takes_no_tensorflow_and_writes_every_file_anew(run_command, tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')")
    write(tmp_path / "plots" / "runs" / "a.csv", ROW, PRUNED)
    done = run_command("--draw", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    made = ["2024.csv", *(f"2024-{kind}.png" for kind in FIGURES), "runs/a.csv"]
    assert files_in(tmp_path / "plots") == sorted(made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 5, "seed": 1}, "dataset 2024: epochs is 10 in {a}, 5 in {b}; a folder holds"),
        ({"learning_rate": 0.1}, "learning_rate is 0.001 in {a}, 0.1 in {b}"),
        ({"hidden_units": "6", "seed": 1}, "hidden_units is 5 in {a}, 6 in {b}"),
        ({"data": 1, "seed": 1}, "data is 3000000000 in {a}, 1 in {b}"),
        ({"refit_images": 9}, "refit_images is 1000 in {a}, 9 in {b}"),
        (
            {"network": 1},
            "dataset 2024, seed 0: network is 4000000000 in {a}, 1 in {b}; other",
        ),
    ],
)
def test_files_that_disagree_are_not_mixed(run_main, tmp_path, changes, message):
    write(tmp_path / "plots" / "runs" / "a.csv", ROW, PRUNED, RETRAINED)
    write(tmp_path / "plots" / "runs" / "b.csv", {**PRUNED, **changes})
    write(tmp_path / "plots" / "runs" / "fine.csv", {**ROW, "dataset": "fine"})
    done = run_main("--draw")
    assert_one_line(done, message.format(a="plots/runs/a.csv", b="plots/runs/b.csv"))
    assert files_in(tmp_path / "plots") == ["runs/a.csv", "runs/b.csv", "runs/fine.csv"]


def test_a_network_that_was_not_retrained_or_refit_agrees_with_one_that_was(run_main, tmp_path):
    unknown = {"refit_images": 0, "network": 0, "script": 0, "data": 0}
    write(tmp_path / "plots" / "runs" / "a.csv", RETRAINED, PRUNED)
    write(tmp_path / "plots" / "runs" / "b.csv", {**ROW, **unknown})
    assert run_main("--draw").returncode == 0


SPREADSHEETS = {
    "bom": {"encoding": "utf-8-sig"},
    "crlf": {"lineterminator": "\r\n"},
    "quoted": {"quoting": 1},
    "rounded": {"float_format": "%g"},
}


@pytest.mark.parametrize("how", SPREADSHEETS.values(), ids=SPREADSHEETS)
def test_what_a_spreadsheet_wrote_is_drawn_if_its_values_are_readable(run_main, tmp_path, how):
    dates = {"layer_sizes": "2009-04-02", "note": "a column of somebody's own"}
    write(tmp_path / "plots" / "runs" / "a.csv", {**ROW, **dates}, {**PRUNED, **dates}, **how)
    assert run_main("--draw").returncode == 0
    assert results(tmp_path / "plots", "2024")["test_accuracy"].tolist() == [0.9, 0.9]


FOREIGN = {
    "empty": (b"", "cannot be read as a CSV file"),
    "foreign": (b"a,b\n1,2\n", "has no column dataset; its header is 'a,b'"),
    "binary": (b"\0\5\x16\7\0\2\0\0Mac OS X\xff", "cannot be read as a CSV file"),  # ._mnist.csv
    "semicolons": (b"dataset;seed\nmnist;0\n", "has no column dataset; its header is 'dataset;s"),
    "text": ({**ROW, "seed": "x"}, "column seed: invalid literal for int"),
    "empty-cell": ({**ROW, "test_accuracy": ""}, "column test_accuracy: could not convert"),
    "nan": ({**ROW, "test_accuracy": "nan"}, "column test_accuracy: nan is not between 0 and 1"),
    "percent": ({**PRUNED, "sparsity": 50}, "column sparsity: 50.0 is not between 0 and 1"),
    "comma": ({**ROW, "test_loss": "0,5"}, "column test_loss: could not convert"),
    "name": ({**ROW, "dataset": "../x"}, "column dataset: '../x' is not the name of a folder"),
}


@pytest.mark.parametrize(("content", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_ours_is_named_with_its_column(run_main, tmp_path, content, message):
    path = tmp_path / "plots" / "runs" / "mnist.csv"
    write(path.with_name("fine.csv"), {**ROW, "dataset": "fine"}, {**PRUNED, "dataset": "fine"})
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, ROW, content)
    done = run_main("--draw")
    assert_one_line(done, "error: plots/runs/mnist.csv")
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert files_in(tmp_path / "plots") == ["runs/fine.csv", "runs/mnist.csv"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "plots/runs (--output-dir) has no results of this script"),
        ([ROW], "2024 cannot be drawn without a pruned network, repair none"),
        ([ROW, RETRAINED], "cannot be drawn without a pruned network, repair none"),
        ([PRUNED], "2024 cannot be drawn without the dense network of seed 0, repair none"),
        ([ROW, PRUNED, {**PRUNED, "seed": 3}], "without the dense network of seed 3, repair none"),
    ],
)
def test_what_is_left_of_filtered_results_is_drawn_or_refused(run_main, tmp_path, rows, message):
    runs = tmp_path / "plots" / "runs"
    write(runs / "a.csv", *rows, columns=list(COLUMNS))
    write(runs / "header.csv", columns=list(COLUMNS))
    assert_one_line(run_main("--draw"), message)
    assert files_in(tmp_path / "plots") == ["runs/a.csv", "runs/header.csv"]


def test_a_job_that_does_not_fit_its_folder_is_refused_before_training(run_main, tmp_path):
    assert run_main(*SHORT).returncode == 0
    before = (tmp_path / "plots" / "digits.csv").read_bytes()
    done = run_main(*SHORT, "--epochs", 2)
    assert_one_line(done, "dataset digits: epochs is 1 in plots/runs/digits-seed0-")
    assert "2 in this job; a folder holds one recipe: pass another --output-dir" in done.stderr
    assert done.stdout == ""
    assert (tmp_path / "plots" / "digits.csv").read_bytes() == before


def test_a_job_whose_dense_network_is_another_is_refused_before_pruning(
    run_main, monkeypatch, tmp_path
):
    """As on another processor."""
    assert run_main(*SHORT).returncode == 0
    [path] = (tmp_path / "plots" / "runs").iterdir()
    rows = pandas.read_csv(path)
    rows.assign(network=1).to_csv(path.with_name("elsewhere.csv"), index=False)
    path.unlink()
    monkeypatch.setattr(network_pruning, "prune_dense", None)
    done = run_main(*SHORT, "--methods", "weight")
    assert_one_line(done, "seed 0: network is 1 in plots/runs/elsewhere.csv, ")
    assert "in this job; other processors, threads, versions or code train others" in done.stderr


# ---------------------------------------------------------------------------------------- writing


def test_a_file_is_replaced_only_by_a_whole_one_and_a_link_stays_one(tmp_path):
    path, link = tmp_path / "numbers.csv", tmp_path / "link.csv"
    path.write_text("old")
    link.symlink_to(path)

    def cut_off(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all({link: cut_off})
    assert path.read_text() == "old"

    def write_both(temporary):  # two processes at once
        write_all({link: lambda other: other.write_text("first")})
        temporary.write_text("last")

    write_all({link: write_both})
    assert path.read_text() == "last" and link.is_symlink()
    (tmp_path / "device").symlink_to(os.devnull)
    with pytest.raises(UserError, match="it is no regular file"):
        write_all({tmp_path / "device": cut_off})
    assert files_in(tmp_path) == ["link.csv", "numbers.csv"]


def test_what_can_be_written_is_written_and_the_rest_is_left_to_write(tmp_path):
    def fail(path):
        raise ValueError("a figure that cannot\nbe drawn")

    files = {tmp_path / "a.png": fail, tmp_path / "new" / "b.csv": lambda path: path.touch()}
    with pytest.raises(UserError, match=r"a\.png cannot be written: ValueError.*cannot.*be drawn"):
        write_all(files)
    assert list(files) == [tmp_path / "a.png"] and (tmp_path / "new" / "b.csv").exists()


def test_the_home_folder_is_meant_by_its_sign(run_main, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_main(*SHORT, "--output-dir=~/new/plots").returncode == 0
    assert (tmp_path / "new" / "plots" / "digits.csv").exists()


@pytest.mark.parametrize(("failing", "status"), [([1], 0), ([1, 2], 1)])
@pytest.mark.parametrize("what", ["runs/digits-seed0", "plots/digits.csv"])
def test_what_cannot_be_written_is_tried_again_after_the_next_seed(
    run_main, monkeypatch, tmp_path, what, failing, status
):
    """As of a full disk, or of a CSV open in a spreadsheet on Windows."""
    calls = []
    replace = os.replace

    def sometimes(source, target):
        if what in str(target):
            calls.append(target)
            if len(calls) in failing:
                raise PermissionError(13, "The file is open")
        replace(source, target)

    monkeypatch.setattr(network_pruning.os, "replace", sometimes)
    done = run_main(*SHORT, "--seeds", 0, 1)
    assert done.returncode == status
    assert done.stderr.count(" cannot be written: The file is open\n") == len(failing)
    assert "digits, seed 1: dense test accuracy" in done.stdout
    assert ("these could not be written, for the reason above: " in done.stderr) == bool(status)
    if status == 0:
        assert set(results(tmp_path / "plots")["seed"]) == {0, 1}
    elif what.startswith("runs"):  # the other seed is drawn
        assert set(results(tmp_path / "plots")["seed"]) == {1}
    assert not [name for name in files_in(tmp_path / "plots") if name.startswith(".")]


def test_a_folder_that_was_moved_away_meanwhile_is_made_again(run_main, monkeypatch, tmp_path):
    train = network_pruning.train_dense

    def moving(dataset, seed, options):
        if seed == 1:
            (tmp_path / "plots").rename(tmp_path / "moved")
        return train(dataset, seed, options)

    monkeypatch.setattr(network_pruning, "train_dense", moving)
    assert run_main(*SHORT, "--seeds", 0, 1, 2).returncode == 0
    assert set(results(tmp_path / "moved")["seed"]) == {0}
    assert set(results(tmp_path / "plots")["seed"]) == {1, 2}


def test_a_csv_that_was_not_made_from_runs_is_not_replaced(run_main, tmp_path):
    """As of an older version of the script."""
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "digits.csv").write_text("precious")
    assert_one_line(run_main(*SHORT), "error: plots/digits.csv would be lost: runs/ has no rows of")
    assert (tmp_path / "plots" / "digits.csv").read_text() == "precious"


def test_a_file_that_is_no_result_and_comes_during_a_job_ends_no_job(
    run_main, monkeypatch, tmp_path
):
    train = network_pruning.train_dense

    def littering(dataset, seed, options):
        (tmp_path / "plots" / "runs" / "notes.csv").write_text("hello")
        return train(dataset, seed, options)

    monkeypatch.setattr(network_pruning, "train_dense", littering)
    done = run_main(*SHORT, "--seeds", 0, 1)
    assert_one_line(done, "these could not be written, for the reason above: the figures of digits")
    assert done.stderr.count("plots/runs/notes.csv has no column dataset") == 2
    (tmp_path / "plots" / "runs" / "notes.csv").unlink()
    assert run_main("--draw").returncode == 0
    assert set(results(tmp_path / "plots")["seed"]) == {0, 1}


def test_an_output_folder_that_cannot_be_made_is_refused(run_main, tmp_path):
    done = run_main(*SHORT, "--output-dir", "/dev/null/plots")
    assert_one_line(done, "error: [Errno 20] Not a directory: '/dev/null/plots")
    (tmp_path / "taken").write_text("precious")
    done = run_main(*SHORT, "--output-dir", "taken")
    assert_one_line(done, "Not a directory: 'taken")
    assert (tmp_path / "taken").read_text() == "precious"


def test_an_interrupted_command_ends_at_once_and_leaves_whole_files(tmp_path):
    png = tmp_path / "plots" / "digits-analysis.png"
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
    assert len(results(tmp_path / "plots")) % (4 + len(REPAIRS)) == 0
    assert png.read_bytes().endswith(b"IEND\xaeB`\x82")
