"""The files: what is kept and used again, and that nothing is lost, stale or mixed."""

import re
import runpy
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas
import pytest
from conftest import CLEAN, KEY, SCRIPT, TINY, assert_one_line, results

import network_pruning
from network_pruning import METHODS, REPAIRS, SPARSITIES, keras, load_dataset, replacing

SHORT = (*TINY, "--methods", "neuron", "--seeds", 0)


def without_times(table):
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
    assert done.returncode == 0 and "Using scikit-learn's digits instead" in done.stderr
    paths = [str(path.relative_to(tmp_path / "plots")) for path in tmp_path.glob("plots/**/*.*")]
    assert sorted(re.sub("-[0-9a-f]{8}", "", path) for path in paths) == sorted(
        ["digits.csv", *(f"digits-{kind}.png" for kind in network_pruning.FIGURES)]
        + [f"runs/digits-seed{seed}.csv" for seed in range(3)]
        + [f"networks/digits-seed{seed}.keras" for seed in range(3)]
    )
    rows = results(tmp_path / "plots")
    assert len(rows) == 3 * len(REPAIRS) * (1 + 5 * len(SPARSITIES))
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
    assert re.fullmatch(r"digits, seed 2: dense accuracy 0\.\d{4}, \d+ s on the \w.*", lines[2])
    assert f" {mean['weight', 0.9, 'refit']:.3f} " in done.stdout
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "saved in plots/digits.csv, drawn in plots/digits-*.png"


def test_the_same_command_again_does_only_what_is_left(run_main, trainings, tmp_path):
    assert run_main(*SHORT, "--seeds", 0, 1).returncode == 0
    assert trainings == [1, 1]
    before = results()
    [path] = (tmp_path / "plots" / "runs").glob("digits-seed1-*.csv")
    path.unlink()
    done = run_main(*SHORT, "--seeds", 0, 1)
    assert "digits, seed 0: done before; to repeat it, remove plots/runs/digits-s" in done.stdout
    assert "digits, seed 1: dense accuracy" in done.stdout
    pandas.testing.assert_frame_equal(without_times(before), without_times(results()))
    assert trainings == [1, 1]  # a network is trained once for each folder


def test_other_methods_levels_and_retraining_need_no_new_dense_network(run_main, trainings):
    assert run_main(*SHORT).returncode == 0
    for more in (["--methods", "weight"], ["--sparsities", 0.9]):
        assert "digits, seed 0: dense accuracy" in run_main(*SHORT, *more).stdout
    assert trainings == [1]
    run_main(*SHORT, "--retrain-epochs", 2)
    assert trainings == [1, 2, 2, 3]  # dense, pruned, and small from scratch


def all_left(kernels, inputs, sparsity, rng):
    return kernels


def none_left(kernels, inputs, sparsity, rng):
    return [0 * kernel for kernel in kernels]


def test_what_an_edited_script_made_is_measured_anew_and_an_undone_edit_counts(
    run_main, trainings, monkeypatch
):
    in_script = {all_left, none_left, *network_pruning.IN_SCRIPT}
    monkeypatch.setattr(network_pruning, "IN_SCRIPT", in_script)
    for version, method, more, share in (
        ("first", all_left, ["neuron"], 1),
        ("edited", none_left, [], 0),
        ("first", all_left, ["neuron"], 1),
    ):
        monkeypatch.setattr(network_pruning, "SCRIPT", version)
        monkeypatch.setitem(METHODS, "own", method)
        done = run_main(*SHORT, "--methods", "own", *more)
        rows = results().set_index("method")
        assert set(rows.loc["own", "live_fraction"]) == {share}
    assert "done before" in done.stdout
    assert trainings == [1]


def test_methods_and_repairs_of_another_file_are_always_measured_anew(run_main, monkeypatch):
    monkeypatch.setitem(METHODS, "own", all_left)
    for _ in range(2):
        assert "done before" not in run_main(*SHORT, "--methods", "own").stdout
    monkeypatch.setitem(REPAIRS, "own", lambda network, images, targets: network)
    for _ in range(2):
        assert "done before" not in run_main(*SHORT).stdout


def test_networks_are_keras_models_that_measure_as_the_csv_says(run_main):
    """Also those saved by the same command that did not save them before."""
    for save in ([], ["--save-models"]):
        assert run_main(*SHORT, "--retrain-epochs", 1, *save).returncode == 0
    rows = results().set_index(KEY)
    digits = load_dataset("digits")
    names = {("neuron", 0.5, repair): f"neuron-0.5-{repair}" for repair in (*REPAIRS, "retrain")}
    for key, name in {("dense", 0, "none"): "????????", **names}.items():
        [path] = Path("plots/networks").glob(f"digits-seed0-{name}.keras")
        model = keras.models.load_model(path)
        measured = model.evaluate(digits.test_images, digits.test_labels, verbose=0)
        expected = rows.loc[(0, *key), ["test_loss", "test_accuracy"]].tolist()
        assert measured == pytest.approx(expected, rel=1e-4)
        assert name != "neuron-0.5-no_bias" or not model.get_weights()[-1].any()


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
    assert set(results()["seed"]) == {0, 1}


def test_networks_of_other_images_are_neither_used_nor_mixed(run_main, trainings, monkeypatch):
    assert run_main(*SHORT).returncode == 0
    images, *others = network_pruning.read_arrays("digits", None)
    arrays = [np.roll(images, 1, axis=1), *others]
    monkeypatch.setattr(network_pruning, "read_arrays", lambda *_: arrays)
    assert_one_line(run_main(*SHORT), "error: digits: data is ")
    Path("plots/runs").rename("moved")
    assert run_main(*SHORT).returncode == 0
    assert trainings == [1, 1]


@pytest.mark.parametrize(
    ("edit", "same"), [("return zero_lowest", True), ("100 * math", False), ("/ float(", False)]
)
def test_networks_are_of_other_code_only_if_what_trains_was_edited(tmp_path, edit, same):
    path = tmp_path / "edited.py"  # in a method, in `train`, where the images are scaled
    path.write_text(SCRIPT.read_text("utf-8").replace(edit, edit + "  "), "utf-8")
    assert (runpy.run_path(path)["TRAINING_CODE"] == network_pruning.TRAINING_CODE) == same


def test_networks_of_another_machine_are_not_mixed(run_main, tmp_path):
    """On another kind of processor, the same seed gives another network."""
    assert run_main(*SHORT).returncode == 0
    [path] = (tmp_path / "plots" / "runs").iterdir()
    rows = pandas.read_csv(path)
    rows.assign(dense_network="3").to_csv(path.with_name("elsewhere.csv"), index=False)
    done = run_main("--draw")
    assert_one_line(done, "digits, 0: dense_network is ")
    assert f" in {path.relative_to(tmp_path)}, but 3 in plots/runs/elsewhere.csv" in done.stderr


def test_a_file_that_is_no_result_or_no_folder_is_named(run_main, tmp_path):
    done = run_main(*SHORT, "--output-dir", "/dev/null/plots")
    assert_one_line(done, "error: [Errno 20] Not a directory: '/dev/null/plots")
    assert_one_line(run_main("--draw"), "error: plots/runs has no results")
    (tmp_path / "plots" / "runs").mkdir(parents=True)
    for content in (b"", b"a,b\n1,2\n", b"\0\5\x16\7\0\2\0\0Mac OS X\xff"):
        (tmp_path / "plots" / "runs" / "mine.csv").write_bytes(content)
        done = run_main(*SHORT)
        assert_one_line(done, "error: plots/runs/mine.csv is no result of this script: ")
        assert done.stderr.endswith("; move it away\n")


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "new" / "numbers.csv"
    with replacing(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("cut o")
        raise KeyboardInterrupt
    assert path.read_text() == "whole"


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
