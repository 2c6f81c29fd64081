"""The files: what is kept and used again, and that nothing is lost, stale or mixed."""

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
from conftest import CLEAN, KEY, SCRIPT, TINY, assert_one_line, files_in, results

import network_pruning
from network_pruning import METHODS, REPAIRS, SPARSITIES, keras, load_dataset, replacing

SHORT = (*TINY, "--methods", "neuron", "--seeds", 0)


def without_times(table):
    """The rows of a data set but for the times, which differ from run to run."""
    return table.drop(columns="speedup").sort_values(KEY, ignore_index=True)


@pytest.fixture
def trainings(monkeypatch):
    """The networks that are trained, as their numbers of epochs."""
    trained = []
    train = network_pruning.train

    def record(network, dataset, epochs, *more):
        trained.append(epochs)
        return train(network, dataset, epochs, *more)

    monkeypatch.setattr(network_pruning, "train", record)
    return trained


def test_the_default_command_falls_back_to_digits_and_shows_what_pruning_does(
    run_command, tmp_path
):
    # Keras cannot write its folder
    done = run_command("--hidden-units", 200, 100, KERAS_HOME="/dev/null/keras")
    assert done.returncode == 0
    assert "Using scikit-learn's digits instead" in done.stderr
    names = [re.sub("-[0-9a-f]{8}", "", name) for name in files_in(tmp_path / "plots")]
    assert names == sorted(
        ["digits.csv", *(f"digits-{kind}.png" for kind in network_pruning.FIGURES)]
        + [f"runs/digits-seed{seed}.csv" for seed in range(3)]
        + [f"networks/digits-seed{seed}.keras" for seed in range(3)]
    )
    rows = results(tmp_path / "plots")
    methods = network_pruning.parse_options([]).methods
    networks = [("dense", 0), *((method, s) for method in methods for s in SPARSITIES)]
    assert list(rows[KEY].itertuples(index=False, name=None)) == [
        (seed, *network, repair) for seed in range(3) for network in networks for repair in REPAIRS
    ]
    recipe = rows[["hidden_units", "epochs", "batch_size", "learning_rate"]].drop_duplicates()
    assert recipe.to_numpy().tolist() == [["[200, 100]", 10, 128, 0.001]]
    assert rows["layer_sizes"][0] == "64-200-100-10" and rows["speedup"][0] == 1
    assert rows["majority_accuracy"].unique() == [0.102778]  # 37 of the 360 test images

    mean = rows.groupby(["method", "sparsity", "repair"])["test_accuracy"].mean()
    # ten single seeds: at least 0.87; at most 0.042 below it; at least 0.17 ahead
    assert mean["dense", 0, "none"] > 0.8
    assert mean["weight", 0.5, "none"] > mean["dense", 0, "none"] - 0.1
    assert mean["weight", 0.8, "none"] > mean["neuron", 0.8, "none"] + 0.08
    assert mean["weight", 0.8, "none"] > mean["random_weight", 0.8, "none"] + 0.08

    # without a terminal, these lines and the tables are all that the script prints
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Downloading")]
    for number in range(3):
        line = rf"digits, seed {number}: dense accuracy 0\.\d{{4}}, \d+ s on the \w.*"
        assert re.fullmatch(line, lines[number])
    for repair in ("none", "refit"):
        assert f" {mean['weight', 0.9, repair]:.3f} " in done.stdout
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "saved in plots/digits.csv, drawn in plots/digits-*.png"


# ------------------------------------------------------------------------------------ used again


def test_the_same_command_again_does_only_what_is_left(run_main, trainings, tmp_path):
    assert run_main(*SHORT, "--seeds", 0, 1).returncode == 0
    assert trainings == [1, 1]
    before = results(tmp_path / "plots")
    [path] = (tmp_path / "plots" / "runs").glob("digits-seed1-*.csv")
    path.unlink()
    done = run_main(*SHORT, "--seeds", 0, 1)
    assert "digits, seed 0: done before; to repeat it, remove plots/runs/digits-s" in done.stdout
    assert "digits, seed 1: dense accuracy" in done.stdout
    pandas.testing.assert_frame_equal(
        without_times(before), without_times(results(tmp_path / "plots"))
    )
    assert trainings == [1, 1]  # a network is trained once for each folder


def test_other_methods_levels_and_retraining_need_no_new_dense_network(run_main, trainings):
    assert run_main(*SHORT).returncode == 0
    for more in (["--methods", "weight"], ["--sparsities", 0.9]):
        assert "digits, seed 0: dense accuracy" in run_main(*SHORT, *more).stdout
    assert trainings == [1]
    run_main(*SHORT, "--retrain-epochs", 2)
    assert trainings == [1, 2, 2, 3]  # dense, pruned, and small from scratch


def test_what_an_edited_script_or_method_made_is_measured_anew(run_main, trainings, monkeypatch):
    def one(kernels, inputs, sparsity, rng):
        return [0.5 * kernel for kernel in kernels]

    def other(kernels, inputs, sparsity, rng):
        return [0 * kernel for kernel in kernels]

    for method, share in ((one, 1), (other, 0)):
        monkeypatch.setitem(METHODS, "own", method)
        run_main(*SHORT, "--methods", "own")
        assert results(Path("plots"))["live_fraction"].iloc[-1] == share
    assert "done before" in run_main(*SHORT, "--methods", "own").stdout
    monkeypatch.setattr(network_pruning, "SCRIPT", b"edited")
    assert "dense accuracy" in run_main(*SHORT, "--methods", "own").stdout
    assert trainings == [1]


def test_networks_are_keras_models_and_are_saved_after_the_same_command_without_it(run_main):
    for save in ([], ["--save-models"]):
        assert run_main(*SHORT, *save).returncode == 0
    digits = load_dataset("digits")
    rows = results(Path("plots")).set_index(KEY)["test_accuracy"]
    for key, name in (("dense", 0, "none"), "????????"), (("neuron", 0.5, "refit"), "*-refit"):
        [path] = Path("plots/networks").glob(f"digits-seed0-{name}.keras")
        _, accuracy = keras.models.load_model(path).evaluate(
            digits.test_images, digits.test_labels, verbose=0
        )
        assert accuracy == pytest.approx(rows.loc[(0, *key)], abs=1e-6)


# ----------------------------------------------------------------------------- jobs in one folder


def test_jobs_of_seeds_methods_levels_and_retraining_add_to_one_another(run_main, tmp_path):
    whole = ("--seeds", 10, 2, "--methods", "neuron", "weight", "--sparsities", 0.5, 0.9)
    assert run_main(*TINY, *whole, "--retrain-epochs", 1, "--output-dir", "whole").returncode == 0
    for job in (
        ("--seeds", 10, 2, "--methods", "neuron", "--retrain-epochs", 1),
        ("--seeds", 2, 10, "--methods", "weight"),
        (*whole, "--retrain-epochs", 1, "--sparsities", 0.9, 0),
        ("--seeds", 2, 10, "--methods", "weight", "weight", "--retrain-epochs", 1),
    ):
        assert run_main(*TINY, *job).returncode == 0
    parts, whole = results(tmp_path / "plots"), results(tmp_path / "whole")
    columns = [column for column in whole if column != "retrain_epochs"]
    pandas.testing.assert_frame_equal(without_times(parts[columns]), without_times(whole[columns]))
    assert list(parts["seed"]) == sorted(parts["seed"])


def test_jobs_side_by_side_leave_the_whole_picture(run_command, tmp_path):
    with ThreadPoolExecutor() as side_by_side:
        jobs = side_by_side.map(lambda seed: run_command(*SHORT, "--seeds", seed), range(2))
        assert [done.stderr for done in jobs if done.returncode] == []
    assert run_command("--draw", "--output-dir", "plots").returncode == 0
    assert set(results(tmp_path / "plots")["seed"]) == {0, 1}


def test_a_level_is_what_it_is_to_six_digits_and_a_rate_to_its_last(run_main, tmp_path):
    for level in (0.3, 0.1 + 0.2):
        settings = ("--learning-rate", 1.23456789012e-4, "--sparsities", level)
        assert run_main(*SHORT, *settings).returncode == 0
    rows = results(tmp_path / "plots")
    assert set(rows["sparsity"]) == {0, 0.3} and set(rows["learning_rate"]) == {1.23456789012e-4}
    assert len(rows) == 2 * len(REPAIRS)


def test_another_recipe_is_refused_before_training(run_main, trainings):
    assert run_main(*SHORT, "--retrain-epochs", 1).returncode == 0
    assert run_main(*SHORT, "--seeds", 1).returncode == 0  # no retraining goes with any
    trainings.clear()
    for option, before, after in (
        ("epochs", 1, 2),
        ("hidden-units", "[50, 20]", 50),
        ("refit-images", 1000, 9),
        ("retrain-epochs", 1, 2),
    ):
        done = run_main(*SHORT, "--seeds", 2, f"--{option}", after)
        column = option.replace("-", "_")
        assert_one_line(done, f"digits: {column} is {before} in plots/runs/digits-seed0-")
        assert " in this command; pass another --output-dir, or move one of" in done.stderr
    assert trainings == []
    assert set(results(Path("plots"))["seed"]) == {0, 1}


@pytest.mark.parametrize("what", ["data", "training_code"])
def test_networks_of_other_images_or_other_code_are_neither_used_nor_mixed(
    run_main, trainings, monkeypatch, tmp_path, what
):
    assert run_main(*SHORT).returncode == 0
    images, *others = network_pruning.read_arrays("digits", None)
    if what == "data":
        arrays = [np.roll(images, 1, axis=1), *others]
        monkeypatch.setattr(network_pruning, "read_arrays", lambda *_: arrays)
    else:
        monkeypatch.setattr(network_pruning, "TRAINING_CODE", "edited")
    assert_one_line(run_main(*SHORT), f"error: digits: {what} is ")
    assert trainings == [1]
    (tmp_path / "plots" / "runs").rename(tmp_path / "moved")
    assert run_main(*SHORT).returncode == 0
    assert trainings == [1, 1]


@pytest.mark.parametrize("column", ["dense_loss", "epochs"])
def test_files_that_disagree_are_not_mixed(run_main, tmp_path, column):
    """As from another kind of machine, where the same seed gives another network."""
    assert run_main(*SHORT).returncode == 0
    [path] = (tmp_path / "plots" / "runs").iterdir()
    rows = pandas.read_csv(path)
    rows.assign(**{column: 3}).to_csv(path.with_name("elsewhere.csv"), index=False)
    before = (tmp_path / "plots" / "digits.csv").read_bytes()
    done = run_main("--draw")
    assert_one_line(done, f": {column} is ")
    assert f" in {path.relative_to(tmp_path)}, but 3" in done.stderr
    assert " in plots/runs/elsewhere.csv; pass another --output-dir, or " in done.stderr
    assert (tmp_path / "plots" / "digits.csv").read_bytes() == before


def test_a_file_that_is_no_result_is_named(run_main, tmp_path):
    assert_one_line(run_main("--draw"), "error: plots/runs has no results")
    (tmp_path / "plots" / "runs").mkdir(parents=True)
    for content in (b"", b"a,b\n1,2\n", b"\0\5\x16\7\0\2\0\0Mac OS X\xff"):
        (tmp_path / "plots" / "runs" / "mine.csv").write_bytes(content)
        done = run_main(*SHORT)
        assert_one_line(done, "error: plots/runs/mine.csv is no result of this script: ")
        assert done.stderr.endswith("; move it away\n")


# ---------------------------------------------------------------------------------------- writing


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "new" / "numbers.csv"
    for text in ("old", "new"):
        with replacing(path) as partial:
            partial.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "new"


def test_an_output_folder_that_cannot_be_made_is_refused_before_training(run_main, trainings):
    done = run_main(*SHORT, "--output-dir", "/dev/null/plots")
    assert_one_line(done, "error: [Errno 20] Not a directory: '/dev/null/plots")
    assert trainings == []


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
    done = subprocess.run(command, cwd=tmp_path, env=CLEAN, capture_output=True, text=True)
    assert done.stdout.startswith("digits, seed 0: done before")
    assert len(results(tmp_path / "plots")) == 4 * 2 * len(REPAIRS)
