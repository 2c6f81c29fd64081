"""What the test files share."""

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas
import pytest

import network_pruning
from network_pruning import METHODS, network_of, tf

ROOT = Path(network_pruning.__file__).parent
SCRIPT = ROOT / "network_pruning.py"
SHARED = ROOT.parent / "shared"
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # pytest runs a worker on each core
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
network_pruning.configure_tensorflow()
# options of a small experiment
TINY = ("--datasets", "digits", "--epochs", 1, "--hidden-units", 50, 20, "--sparsities", 0.5)
# images whose label is their brightest pixel; the test set is the training set
IMAGES = np.random.default_rng(0).random((100, 6), dtype=np.float32)
LABELS = IMAGES.argmax(axis=1)
TENSOR = tf.constant(IMAGES)
TOY = network_pruning.Dataset("toy", TENSOR, tf.one_hot(LABELS, 6), TENSOR, LABELS)


def draw_network(sizes, rng):
    kernels = [rng.normal(size=shape).astype(np.float32) for shape in itertools.pairwise(sizes)]
    return network_of([*kernels, np.zeros(sizes[-1], np.float32)])


def flat(kernels):
    return np.concatenate([np.ravel(kernel) for kernel in kernels])


def received(network, images):
    return [np.asarray(array) for array in network_pruning.layer_inputs(network.hidden, images)]


def pruned_by(method, network, sparsities, seed=0):
    """Hidden kernels at each sparsity, pruned by a method; those that look at images see noise."""
    images = np.random.default_rng(seed).random((9, network.sizes[0]), np.float32)
    rng = np.random.default_rng(seed)
    return list(METHODS[method](network, received(network, images), sparsities, rng))


def edited(old, new):
    """Load a copy of the script in which an old text is a new one."""
    text = SCRIPT.read_text("utf-8")
    assert old in text
    Path("edited.py").write_text(text.replace(old, new), "utf-8")
    spec = importlib.util.spec_from_file_location("edited", "edited.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def work_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def start(*arguments, **variables):
    """Start the script in a process of its own, without a network."""
    # a proxy that refuses every connection: downloads fail at once
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **proxies, "KERAS_HOME": os.path.abspath("keras"), **variables}
    del environment["KERAS_BACKEND"]  # set in this process by the script
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def run_main(*arguments, draw=(), script=network_pruning):
    """Run the script in this process; draw only the figures named in `draw`."""
    figures = {name: script.FIGURES[name] for name in draw}
    leaping = itertools.count().__next__  # a clock by which networks are timed in three rounds
    with mock.patch.object(script, "FIGURES", figures), mock.patch("time.monotonic", leaping):
        script.main([str(argument) for argument in arguments])


def one_line(start, end=""):
    """The error of a command that ends with one line."""
    pattern = f"^network_pruning.py: error: {re.escape(start)}[^\n]*{re.escape(end)}$"
    return pytest.raises(SystemExit, match=pattern)


def results(folder="plots"):
    return pandas.read_csv(Path(folder, "digits.csv"))
