"""What the test files share."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "network_pruning.py"
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def run_command(tmp_path):
    """Run the script in a process of its own, in an empty folder and without a network."""

    def run(*arguments, **variables):
        # a proxy that refuses every connection: downloads fail at once, on any machine
        proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        environment = {**os.environ, **proxies, "KERAS_HOME": str(tmp_path / "keras"), **variables}
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
