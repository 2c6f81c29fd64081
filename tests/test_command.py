"""The command as a user runs it: in a process of its own, on real data, without a network."""

import struct
import subprocess
import sys

import pytest
from conftest import SCRIPT, read_csv

from network_pruning import METHODS, SPARSITIES

SHORT = ("--datasets", "digits", "--epochs", 2, "--hidden-units", 50, 20)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def test_the_command_falls_back_to_digits_and_shows_what_pruning_does(run_command, tmp_path):
    done = run_command()
    assert done.returncode == 0
    assert "mnist cannot be downloaded" in done.stderr
    assert done.stderr.endswith("Using the embedded digits instead.\n")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "digits.csv",
        "digits.png",
    ]
    assert "device: " in done.stdout and "plots/digits.png" in done.stdout

    rows = read_csv(tmp_path / "plots" / "digits.csv")
    assert list(rows[0]) == (
        "dataset run seed method sparsity achieved_sparsity test_accuracy test_loss "
        "live_fraction stored_fraction speedup".split()
    )
    keys = [(row["run"], row["seed"], row["method"], row["sparsity"]) for row in rows]
    assert keys == [
        (run, 0, method, sparsity)
        for run in range(3)
        for method in METHODS
        for sparsity in SPARSITIES
    ]
    assert all(abs(row["achieved_sparsity"] - row["sparsity"]) < 1e-3 for row in rows)

    def mean(method, sparsity):
        found = [
            r["test_accuracy"] for r in rows if (r["method"], r["sparsity"]) == (method, sparsity)
        ]
        return sum(found) / len(found)

    assert mean("weight", 0) > 0.95
    # directions that hold for any seed, with room for another machine's rounding
    assert mean("weight", 0.5) > mean("weight", 0) - 0.03
    assert mean("weight", 0.9) > mean("neuron", 0.9) + 0.2
    assert mean("weight", 0.8) > mean("random_weight", 0.8) + 0.3
    assert mean("neuron", 0.6) > mean("random_neuron", 0.6)
    assert f"{mean('weight', 0.9):.4f} \u00b1" in done.stdout

    png = (tmp_path / "plots" / "digits.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    assert png.startswith(PNG_SIGNATURE) and width >= 1000 and height >= 600


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    run_command, run_main, tmp_path
):
    def numbers(run, name, *seed):
        done = run(*SHORT, "--runs", 2, "--output-dir", name, *seed)
        assert done.returncode == 0 and done.stderr == ""
        lines = (tmp_path / name / "digits.csv").read_bytes().splitlines()
        return [line.rpartition(b",")[0] for line in lines]  # without the times, the last column

    first = numbers(run_command, "first")
    again, other = numbers(run_main, "again"), numbers(run_main, "other", "--seed", 1)
    assert first == again
    losses = [
        {line.split(b",")[7] for line in some[1:]} for some in (first[:41], first[40:], other)
    ]
    assert not losses[0] & losses[2]  # no network of seed 0 comes back under seed 1
    assert losses[0] != losses[1]


def test_sparsities_are_sorted_and_merged_and_the_extremes_work(run_main, tmp_path):
    done = run_main(*SHORT, "--runs", 1, "--sparsities", 1, 0.5, 0, 0.5, "-0.0")
    assert done.returncode == 0
    rows = read_csv(tmp_path / "plots" / "digits.csv")
    assert [row["sparsity"] for row in rows] == [0, 0.5, 1] * 4
    assert [row["achieved_sparsity"] for row in rows] == [0, 0.5, 1] * 4


@pytest.mark.filterwarnings("error:::network_pruning")
@pytest.mark.parametrize("level", [0, 0.5, 1])
def test_a_single_level_is_drawn_without_a_warning(run_main, tmp_path, level):
    done = run_main(*SHORT, "--runs", 1, "--epochs", 1, "--sparsities", level)
    assert done.returncode == 0 and done.stderr == ""
    assert (tmp_path / "plots" / "digits.png").read_bytes().startswith(PNG_SIGNATURE)


def test_a_hundred_levels_are_swept(run_main, tmp_path):
    levels = [i / 100 for i in range(100)]
    done = run_main(*SHORT, "--runs", 1, "--sparsities", *levels)
    assert done.returncode == 0
    assert len(read_csv(tmp_path / "plots" / "digits.csv")) == 400


def test_the_real_data_sets_train_side_by_side(run_command, real_data, tmp_path):
    short = "--epochs 1 --runs 1 --hidden-units 200 100 --sparsities 0 0.5 0.99".split()
    done = run_command("--data-dir", real_data, *short)
    assert done.returncode == 0 and done.stderr == ""
    for name, least in (("mnist", 0.93), ("fashion_mnist", 0.80)):
        rows = read_csv(tmp_path / "plots" / f"{name}.csv")
        assert {row["dataset"] for row in rows} == {name}
        assert rows[0]["test_accuracy"] > least
        assert rows[2]["test_accuracy"] < least - 0.2
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsities", "1.5"], "argument --sparsities: 1.5 is not a fraction in [0, 1]"),
        (["--sparsities", "nan"], "argument --sparsities: nan is not a fraction in [0, 1]"),
        (["--sparsities", "-0.1"], "argument --sparsities: -0.1 is not a fraction in [0, 1]"),
        (["--sparsities", "half"], "argument --sparsities: half is not a fraction in [0, 1]"),
        (["--epochs", "0"], "argument --epochs: 0 is not a whole number from 1 to 2147483647"),
        (["--runs", "-1"], "argument --runs: -1 is not a whole number from 1 to 2147483647"),
        (
            ["--batch-size", "2.5"],
            "argument --batch-size: 2.5 is not a whole number from 1 to 2147483647",
        ),
        (
            ["--hidden-units", "9", "0"],
            "argument --hidden-units: 0 is not a whole number from 1 to 2147483647",
        ),
        (
            ["--learning-rate", "0"],
            "argument --learning-rate: 0 is not a number between 0 and 1e38",
        ),
        (
            ["--learning-rate", "inf"],
            "argument --learning-rate: inf is not a number between 0 and 1e38",
        ),
        (["--seed", "-1"], "argument --seed: -1 is not a whole number of 0 or more"),
        (["--datasets", "cifar"], "argument --datasets: invalid choice: 'cifar'"),
        (["--data-dir", "nowhere"], "argument --data-dir: nowhere is not a directory"),
        (["--data-dir", "x" * 300], f"argument --data-dir: {'x' * 300} is not a directory"),
        (["--epoch", "1"], "unrecognized arguments: --epoch 1"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_happens(
    run_command, tmp_path, arguments, message
):
    for package in ("tensorflow", "keras"):
        (tmp_path / f"{package}.py").write_text("raise SystemExit('imported too early')")
    done = run_command(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"network_pruning.py: error: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "plots").exists()


def test_a_batch_larger_than_the_training_set_is_refused(run_main):
    done = run_main("--datasets", "digits", "--batch-size", 1438)
    assert done.returncode == 2
    assert (
        done.stderr == "network_pruning.py: error: --batch-size 1438: digits has only 1437 images\n"
    )


def test_an_output_dir_that_is_a_file_is_refused(run_main, tmp_path):
    (tmp_path / "taken").write_text("precious")
    done = run_main(*SHORT, "--output-dir", "taken")
    assert done.returncode == 2 and "--output-dir taken cannot be written to" in done.stderr
    assert (tmp_path / "taken").read_text() == "precious"


def test_importing_the_script_prints_nothing_and_loads_no_tensorflow():
    check = (
        "import sys, network_pruning; print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=SCRIPT.parent, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False False\n", "")


def test_too_little_memory_is_one_line(run_main):
    done = run_main("--datasets", "digits", "--hidden-units", 1, 10**7, 10**7)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: Unable to allocate" in done.stderr


def test_help_lists_every_option_with_its_default(run_command):
    done = run_command("--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "(default: 0 0.25 0.5 0.6 0.7 0.8 0.9 0.95 0.97 0.99)" in text
    assert "(default: 1000 1000 500 200)" in text
