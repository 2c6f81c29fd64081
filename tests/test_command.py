"""The command as a user runs it: in a process of its own, on real data, without a network."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from conftest import CLEAN, DEVICE, SCRIPT, read_rows, without_times

import network_pruning
from network_pruning import METHODS, SPARSITIES

SHORT = ("--datasets", "digits", "--epochs", 2, "--hidden-units", 50, 20)
DEFAULT_METHODS = ["weight", "neuron", "matched_weight", "random_weight", "random_neuron"]
COLUMNS = [
    *["dataset", "run", "seed", "method", "sparsity", "retrain_epochs", "achieved_sparsity"],
    *["test_accuracy", "unbiased_accuracy", "test_loss", "live_fraction", "stored_fraction"],
    *["layer_sizes", "speedup"],
    *["epochs", "batch_size", "learning_rate", "device", "versions"],
]


def test_the_command_falls_back_to_digits_and_shows_what_pruning_does(run_command, tmp_path):
    done = run_command()
    assert done.returncode == 0
    assert "mnist is unavailable: download failed" in done.stderr
    assert "Using scikit-learn's digits instead.\n" in done.stderr
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["digits-analysis.png", "digits.csv", "digits.png"]

    rows = read_rows(tmp_path / "plots" / "digits.csv")
    assert list(rows[0]) == COLUMNS
    keys = [(row["run"], row["seed"], row["method"], row["sparsity"]) for row in rows]
    assert keys == [
        (run, 0, method, sparsity)
        for run in range(3)
        for method in DEFAULT_METHODS
        for sparsity in SPARSITIES
    ]
    for row in rows:
        if row["method"] != "matched_weight":
            assert abs(row["achieved_sparsity"] - row["sparsity"]) < 1e-3
    settings = {(row["epochs"], row["batch_size"], row["learning_rate"]) for row in rows}
    assert settings == {(10, 128, 0.001)}
    assert rows[0]["layer_sizes"] == "64-1000-1000-500-200-10" and rows[0]["speedup"] == 1

    def mean(method, sparsity):
        found = [
            r["test_accuracy"] for r in rows if (r["method"], r["sparsity"]) == (method, sparsity)
        ]
        return sum(found) / len(found)

    assert mean("weight", 0) > 0.88
    # directions that hold for any seed, with room for another machine's rounding
    assert mean("weight", 0.5) > mean("weight", 0) - 0.03
    assert mean("weight", 0.9) > mean("neuron", 0.9) + 0.2
    assert mean("weight", 0.8) > mean("random_weight", 0.8) + 0.1
    assert f"{mean('weight', 0.9):.4f} \u00b1" in done.stdout

    # without a terminal, these lines and the table are all that the script prints
    lines = done.stdout[done.stdout.index("device: ") :].split("\n\n")[0].splitlines()
    assert len(lines) == 4
    for number, line in enumerate(lines[1:], 1):
        assert re.fullmatch(
            rf"scikit-learn digits, run {number} of 3: dense test accuracy 0\.\d{{4}}, \d+ s, "
            r"saved in plots/digits\.csv",
            line,
        )


def test_the_same_seed_gives_the_same_csv_and_another_seed_another(run_command, run_main, tmp_path):
    def csv(run, name, *changes):
        methods = ("--methods", "neuron", "random_weight", "--sparsities", 0.5)
        retrained = ("--runs", 2, "--retrain-epochs", 1, *methods)
        done = run(*SHORT, *retrained, "--output-dir", name, *changes)
        assert done.returncode == 0
        return without_times(tmp_path / name / "digits.csv")

    first, again = csv(run_command, "first"), csv(run_main, "again")
    assert first == again
    csv(run_main, "other", "--seed", 1)
    losses = [
        {row["test_loss"] for row in read_rows(tmp_path / name / "digits.csv")}
        for name in ("first", "other")
    ]
    assert not losses[0] & losses[1]


def test_retraining_changes_no_one_shot_row(run_main, tmp_path):
    short = (*SHORT, "--runs", 1, "--sparsities", 0.5, 0.9)
    assert run_main(*short, "--output-dir", "once").returncode == 0
    done = run_main(*short, "--retrain-epochs", 2, "--output-dir", "again")
    once, again = (read_rows(tmp_path / name / "digits.csv") for name in ("once", "again"))
    for row in (*once, *again):
        del row["speedup"]
    assert [row for row in again if row["retrain_epochs"] == 0] == once
    retrained = [row for row in again if row["retrain_epochs"]]
    assert {row["retrain_epochs"] for row in retrained} == {2}
    assert {row["method"] for row in retrained} == {*DEFAULT_METHODS, "scratch"}
    assert len({row["test_loss"] for row in retrained if row["sparsity"] == 0}) == 1
    assert "scratch" in done.stdout


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_run_alone(run_main, tmp_path, method):
    done = run_main(*SHORT, "--runs", 1, "--methods", method, "--sparsities", 0.5)
    assert done.returncode == 0 and method in done.stdout
    assert {row["method"] for row in read_rows(tmp_path / "plots" / "digits.csv")} == {method}
    assert len(list((tmp_path / "plots").glob("*.png"))) == 2


def test_only_the_methods_asked_for_are_run_and_sparsity_0_is_always_there(run_main, tmp_path):
    twice = ("--methods", "global_weight", "global_weight", "--sparsities", 1, 0.5, 0.5)
    done = run_main(*SHORT, "--runs", 1, *twice)
    assert done.returncode == 0
    rows = read_rows(tmp_path / "plots" / "digits.csv")
    assert [(row["method"], row["sparsity"]) for row in rows] == [
        ("global_weight", 0),
        ("global_weight", 0.5),
        ("global_weight", 1),
    ]
    assert [row["achieved_sparsity"] for row in rows] == [0, 0.5, 1]
    assert "\u00b1 0" not in done.stdout  # the spread of a single run is unknown, not 0


def test_the_csv_has_the_learning_rate_to_the_last_digit(run_main, tmp_path):
    short = (*SHORT, "--runs", 1, "--sparsities", 0, "--learning-rate", 0.0012345678)
    assert run_main(*short).returncode == 0
    rows = read_rows(tmp_path / "plots" / "digits.csv")
    assert {row["learning_rate"] for row in rows} == {0.0012345678}


@pytest.mark.skipif(DEVICE.startswith("GPU"), reason="TensorFlow sees a GPU here")
@pytest.mark.parametrize("tool", [None, "/usr/bin/nvidia-smi"])
def test_a_gpu_that_tensorflow_does_not_see_is_pointed_out(run_main, monkeypatch, tool):
    monkeypatch.setattr(network_pruning.shutil, "which", lambda name: tool)
    done = run_main(*SHORT, "--runs", 1, "--epochs", 1, "--sparsities", 0)
    assert ("TensorFlow does not see the NVIDIA GPU" in done.stdout) == bool(tool)


def test_a_hundred_levels_are_swept(run_main, tmp_path):
    levels = [i / 100 for i in range(100)]
    done = run_main(*SHORT, "--runs", 1, "--sparsities", *levels)
    assert done.returncode == 0
    assert len(read_rows(tmp_path / "plots" / "digits.csv")) == 500


def test_a_terminal_shows_run_epoch_method_and_the_time_left(tmp_path):
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 30, 120, 0, 0))  # rows, columns
    arguments = [*SHORT, "--runs", 2, "--epochs", 40, "--sparsities", 0.5]
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, arguments)],
        cwd=tmp_path,
        env=CLEAN,
        stdout=subprocess.DEVNULL,
        stderr=end,
    )
    os.close(end)
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:  # the terminal's other end is closed
        pass
    os.close(terminal)
    assert process.wait() == 0
    text = shown.decode()
    # the line of the whole job, with the time since its start and the time left
    assert re.search(r"scikit-learn digits, run 2 of 2:  50%\|.*\| 1/2 \[\d\d:\d\d<\d\d:\d\d", text)
    assert re.search(r"\| \d+/40 \[.*epoch", text) and re.search(r"\| \d/5 \[.*method", text)


def test_the_real_data_sets_train_side_by_side(run_command, real_data, tmp_path):
    short = ("--epochs", 1, "--runs", 1, "--hidden-units", 200, 100, "--sparsities", 0.5, 0.99)
    done = run_command("--data-dir", real_data, *short)
    assert done.returncode == 0 and "network_pruning.py" not in done.stderr
    for name, least in (("mnist", 0.93), ("fashion_mnist", 0.80)):
        rows = read_rows(tmp_path / "plots" / f"{name}.csv")
        assert {row["dataset"] for row in rows} == {name}
        assert rows[0]["test_accuracy"] > least
        assert rows[2]["test_accuracy"] < least - 0.2
        assert (tmp_path / "plots" / f"{name}.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsities", "1.5"], "argument --sparsities: 1.5 is not between 0 and 1"),
        (["--sparsities", "0", "nan"], "argument --sparsities: nan is not between 0 and 1"),
        (["--sparsities", "-0.1"], "argument --sparsities: -0.1 is not between 0 and 1"),
        (["--sparsities", "half"], "argument --sparsities: invalid float value: 'half'"),
        (["--epochs", "0"], "argument --epochs: 0 is not between 1 and 2147483647"),
        (["--runs", "-1"], "argument --runs: -1 is not between 1 and 2147483647"),
        (["--batch-size", "2.5"], "argument --batch-size: invalid int value: '2.5'"),
        (["--hidden-units", "9", "0"], "argument --hidden-units: 0 is not between 1 and"),
        (["--hidden-units", str(10**17)], "argument --hidden-units: 100000000000000000 is not"),
        (["--learning-rate", "0"], "argument --learning-rate: 0 is not between 1e-06 and"),
        (["--learning-rate", "inf"], "argument --learning-rate: inf is not between"),
        (["--seed", "-1"], "argument --seed: -1 is not between 0 and 2147483647"),
        (["--retrain-epochs", "-1"], "argument --retrain-epochs: -1 is not between 0 and"),
        (["--methods", "l1"], "argument --methods: invalid choice: 'l1'"),
        (
            ["--methods", "weight", "--save-models"],
            "--save-models saves neuron-pruned networks: add neuron",
        ),
        (["--datasets", "cifar"], "--datasets cifar: not mnist, fashion_mnist, digits, nor a"),
        (["--data-dir", ".", "--datasets", "../x"], "--datasets ../x: not mnist, "),
        (["--data-dir", ".", "--datasets", ".."], "--datasets ..: not mnist, "),
        (["--data-dir", ".", "--datasets", ""], "--datasets : not mnist, "),
        (["--epoch", "1"], "unrecognized arguments: --epoch 1"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_happens(
    run_command, tmp_path, arguments, message
):
    for package in ("tensorflow", "keras", "pandas", "matplotlib"):
        (tmp_path / f"{package}.py").write_text("raise SystemExit('imported too early')")
    done = run_command(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("usage: network_pruning.py [options]\n")
    assert done.stderr.count("\n") == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("network_pruning.py: error: ") and message in error
    assert not (tmp_path / "plots").exists()


def test_an_output_dir_that_is_a_file_is_refused(run_main, tmp_path):
    (tmp_path / "taken").write_text("precious")
    done = run_main(*SHORT, "--output-dir", "taken")
    assert done.returncode == 1 and "error: [Errno 17] File exists: 'taken'" in done.stderr
    assert (tmp_path / "taken").read_text() == "precious"


def test_importing_the_script_prints_nothing_and_loads_no_tensorflow():
    slow = ("tensorflow", "keras", "pandas", "matplotlib", "sklearn")
    check = f"import sys, network_pruning; print(*set({slow}) & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=SCRIPT.parent, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("\n", "")


def test_help_lists_every_option_with_its_default(run_command):
    done = run_command("--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for default in ("0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95", "1000, 1000, 500, 200)", "128)"):
        assert f"({default}" in text
    assert all(method in text for method in METHODS)
