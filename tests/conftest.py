"""What the test files share."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

import network_pruning
from network_pruning import METHODS, network_of, tf

ROOT = Path(network_pruning.__file__).parent
SCRIPT = ROOT / "network_pruning.py"
REAL_DATA = ROOT.parent / "shared" / "data"
KEY = ["seed", "method", "sparsity", "repair"]  # of a row of a data set

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # pytest runs a worker on each core
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# the environment of the processes that tests start
CLEAN = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
network_pruning.configure_tensorflow()

# options of a small experiment
TINY = ("--datasets", "digits", "--epochs", 1, "--hidden-units", 50, 20, "--sparsities", 0.5)

# images whose label is their brightest pixel; the test set is the training set
IMAGES = np.random.default_rng(0).random((100, 6), dtype=np.float32)
LABELS = IMAGES.argmax(axis=1)
TENSOR = tf.constant(IMAGES)
TOY = network_pruning.Dataset("toy", TENSOR, tf.one_hot(LABELS, 6), TENSOR, LABELS)


def draw_kernels(sizes, rng):
    return [rng.normal(size=shape).astype(np.float32) for shape in zip(sizes, sizes[1:])]


def draw_network(sizes, rng):
    return network_of([*draw_kernels(sizes, rng), np.zeros(sizes[-1], np.float32)])


def received(network, images):
    """What each layer of a network receives, as arrays."""
    return [np.asarray(array) for array in network_pruning.layer_inputs(network.hidden, images)]


def pruned_by(method, network, sparsities, seed=0):
    """Hidden kernels at each sparsity, pruned by a method; those that look at images see noise."""
    images = np.random.default_rng(seed).random((9, network.sizes[0]), np.float32)
    rng = np.random.default_rng(seed)
    return list(METHODS[method](network, received(network, images), sparsities, rng))


def edited(folder, *edits):
    """Load a copy of the script in which each old text of the edits is a new one."""
    text = SCRIPT.read_text("utf-8")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = folder / "edited.py"
    path.write_text(text, "utf-8")
    spec = importlib.util.spec_from_file_location("edited", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_command(tmp_path):
    """Run the script in a process of its own, in an empty folder and without a network."""

    def run(*arguments, **variables):
        # a proxy that refuses every connection: downloads fail at once, on any machine
        proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        return subprocess.run(
            [sys.executable, SCRIPT, *map(str, arguments)],
            cwd=tmp_path,
            env={**CLEAN, **proxies, "KERAS_HOME": str(tmp_path / "keras"), **variables},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def run_main(tmp_path, monkeypatch, capfd):
    """Run the script in this process, in an empty folder; draw its figures only if `draw`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, draw=False, script=network_pruning):
        figures = script.FIGURES
        script.FIGURES = figures if draw else {}
        message = ""
        try:
            script.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            message = f"{stop.code}\n"  # which Python prints as it exits
        finally:
            script.FIGURES = figures
        said = capfd.readouterr()
        returncode = 1 if message else 0
        return SimpleNamespace(returncode=returncode, stdout=said.out, stderr=said.err + message)

    return run


@pytest.fixture
def real_data():
    if not REAL_DATA.is_dir():
        pytest.skip("no real data beside this checkout")
    return REAL_DATA


def results(folder="plots", name="digits"):
    return pandas.read_csv(Path(folder, f"{name}.csv"), dtype={"dataset": str})


def assert_one_line(done, message):
    """A command ended with one line of error, and no traceback."""
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "network_pruning.py: error: " in line]
    assert len(lines) == 1 and message in lines[0], done.stderr
    assert "Traceback" not in done.stderr
