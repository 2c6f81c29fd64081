"""What the test files share."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

import network_pruning

ROOT = Path(network_pruning.__file__).parent
SCRIPT = ROOT / "network_pruning.py"
REAL_DATA = ROOT.parent / "shared" / "data"
PLOTS = ROOT / "plots"

# the environment of the processes that tests start, as it is before TensorFlow is configured
CLEAN = dict(os.environ)
DEVICE = network_pruning.configure_tensorflow()


def draw_kernels(sizes, rng):
    """Random kernels of a network with layers of these sizes, the input's first."""
    return [rng.normal(size=shape).astype(np.float32) for shape in zip(sizes, sizes[1:])]


def recipe(**changes):
    """Options of a small experiment."""
    settings = {
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 0.01,
        "retrain_epochs": 0,
        "seed": 0,
        "methods": ["weight", "neuron"],
        "sparsities": [0.0, 0.5, 1.0],
    }
    return SimpleNamespace(**settings | changes)


@pytest.fixture
def run_command(tmp_path):
    """Run the script in a process of its own, in an empty folder and without a network."""

    def run(*arguments, **variables):
        # a proxy that refuses every connection: downloads fail at once, on any machine
        proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        environment = {**CLEAN, **proxies, "KERAS_HOME": str(tmp_path / "keras"), **variables}
        return subprocess.run(
            [sys.executable, SCRIPT, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=170,
        )

    return run


@pytest.fixture
def run_main(tmp_path, monkeypatch, capfd):
    """Run the script in this process, where TensorFlow has started already, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = 0
        try:
            network_pruning.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        if isinstance(status, str):  # what Python does with a message as it exits
            print(status, file=sys.stderr)
            status = 1
        said = capfd.readouterr()
        return SimpleNamespace(returncode=status, stdout=said.out, stderr=said.err)

    return run


@pytest.fixture
def real_data():
    """The folder of the real MNIST and Fashion-MNIST, where it is there."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data beside this checkout")
    return REAL_DATA


def read_rows(path):
    """Rows of a CSV file as dicts."""
    return pandas.read_csv(path).to_dict("records")


def without_times(path):
    """The text of a CSV file but for the times, which differ from run to run."""
    return pandas.read_csv(path, dtype=str).drop(columns="speedup").to_csv(index=False)
