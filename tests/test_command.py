"""The command: its options, and where people run it."""

import ast
import re
import runpy
import shutil
import signal
import sys

import nbclient
import nbformat
import pytest
import tensorflow as tf
from conftest import ROOT, SCRIPT, TINY, assert_one_line, results

import network_pruning
from network_pruning import REPAIRS, keras

SHORT = (*TINY, "--methods", "weight", "--seeds", 0)


POSITIVE = "error: numbers are above 0; --seeds and --retrain-epochs may be 0"
FRACTIONS = "error: --sparsities are above 0, up to 1; the dense network is always measured"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sparsities 50 90", FRACTIONS),
        ("--sparsities 0", FRACTIONS),
        ("--sparsities nan", FRACTIONS),
        ("--sparsities 50%", "argument --sparsities: invalid float value: '50%'"),
        ("--methods l1", "argument --methods: invalid choice: 'l1'"),
        ("--refit-images -500", POSITIVE),
        ("--epochs -1", POSITIVE),
        ("--epochs 0", POSITIVE),
        ("--hidden-units 50 0", POSITIVE),
        ("--batch-size 0", POSITIVE),
        ("--seeds 0 -1", POSITIVE),
        ("--retrain-epochs -1", POSITIVE),
    ],
)
def test_a_wrong_option_is_refused_before_anything_happens(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(network_pruning, "load_datasets", None)
    with pytest.raises(SystemExit) as stop:
        network_pruning.main(arguments.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_every_package_of_the_script_is_in_its_inline_metadata():
    block = re.search(r"^# /// script\n(.*?)^# ///$", SCRIPT.read_text(), re.M | re.S)[1]
    metadata = re.sub(r"^# ?", "", block, flags=re.M)
    assert metadata.startswith('requires-python = ">=3.10"\ndependencies = [\n')
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    stated = [line.partition("#")[0].strip() for line in lines]
    assert ast.literal_eval(metadata.partition("dependencies = ")[2]) == list(filter(None, stated))


def test_leftovers_in_the_environment_change_nothing(run_command, run_main, tmp_path):
    """Settings of Matplotlib, Keras and Jupyter that people have."""
    assert run_main(*SHORT, draw=True).returncode == 0
    plain = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "keras").mkdir(exist_ok=True)
    (tmp_path / "keras" / "keras.json").write_text('{"backend": "jax", "floatx": "float64"}')
    (tmp_path / "matplotlibrc").write_text(
        "savefig.format: pdf\nfont.size: 30\naxes.grid: True\nfigure.dpi: 30\ntext.usetex: True\n"
    )
    odd = {"MPLBACKEND": "module://not_here", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    for _ in range(2):  # makes the files, then reads them
        done = run_command(*SHORT, "--output-dir", "odd", **odd)
        assert done.returncode == 0 and "Traceback" not in done.stderr
        for path, content in plain.items():
            other = tmp_path / "odd" / path.relative_to(tmp_path / "plots")
            assert len(other.read_bytes()) == pytest.approx(len(content), rel=0.02)


def test_a_gpu_that_tensorflow_does_not_see_is_said_with_what_helps(monkeypatch, capsys):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    network_pruning.configure_tensorflow()
    assert network_pruning.device_name() == "CPU"
    assert "pip install 'tensorflow[and-cuda]'" in capsys.readouterr().err


def test_ctrl_c_during_a_download_is_one_that_keras_can_tidy_up_after(monkeypatch):
    handlers = []

    def load_data():
        handlers.append(signal.getsignal(signal.SIGINT))
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    monkeypatch.setattr(sys, "argv", ["network_pruning.py"])
    with pytest.raises(KeyboardInterrupt):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert handlers == [signal.default_int_handler]


def test_a_failed_training_is_one_line_and_leaves_nothing(run_main, tmp_path):
    done = run_main("--datasets", "digits", "--learning-rate", 100)
    assert_one_line(done, "error: training failed: the loss is ")
    assert done.stderr.endswith("pass a lower --learning-rate\n")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


FIT = """
import keras
model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
model.compile("adam", "mse")
model.fit(tf.random.uniform((64, 8)), tf.zeros(64), batch_size=8, shuffle=True, verbose=0)
"""


def test_a_notebook_runs_the_script_in_all_three_ways_and_can_still_train(tmp_path):
    """In the same process, models with dropout train, and Ctrl-C still interrupts."""
    options = " ".join(map(str, SHORT))
    cells = [
        "import tensorflow as tf; tf.ones(3) + 1  # TensorFlow is in use",
        f"%run {SCRIPT} {options}\nimport signal; print(signal.getsignal(signal.SIGINT))",
        f"tf.ones(3) + tf.random.normal([3])\n{FIT}",
        f"!{sys.executable} {SCRIPT} {options} --output-dir shell",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from network_pruning import main; main('{options} --output-dir main'.split())\n"
        "from IPython.display import Image; Image('plots/digits-accuracy.png')",
        FIT,
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    for folder in ("plots", "shell", "main"):
        assert len(results(tmp_path / folder)) == 2 * len(REPAIRS)
        assert (tmp_path / folder / "digits-methods.png").exists()
    assert any("default_int_handler" in out.get("text", "") for out in notebook.cells[1].outputs)
    assert "image/png" in notebook.cells[4].outputs[-1]["data"]
