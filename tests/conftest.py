"""What the test files share."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import network_pruning

SCRIPT = Path(network_pruning.__file__)
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"

network_pruning.set_up_device()  # before any test uses TensorFlow, which then allows it no more
# the environment of the processes that tests start, without the log level that was just set: the
# script hides TensorFlow's start only where it finds none
CLEAN = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


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
def run_main(tmp_path, monkeypatch, capsys):
    """Run the script in this process, where TensorFlow has started already, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments):
        status = network_pruning.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=said.out, stderr=said.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def real_data():
    """The folder of the real MNIST and Fashion-MNIST, where it is there."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data beside this checkout")
    return REAL_DATA


def read_csv(path):
    """Rows of a CSV file as dicts, numbers as floats."""
    with open(path, newline="") as file:
        return [
            {k: v if k in ("dataset", "method") else float(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]
