"""The command: its options, and where people run it."""

import ast
import functools
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import ROOT, SCRIPT, TINY, one_line, results, run_main, start

import network_pruning
from network_pruning import FIGURES, REPAIRS, keras, tf

SHORT = (*TINY, "--methods", "weight")
WRONG = {  # options, and what is said of each
    "--sparsities 50 90, --sparsities 0, --sparsities nan": "--sparsities must be above 0, up to 1",
    "--sparsities 50%": "argument --sparsities: invalid float value: '50%'",
    "--methods l1": "argument --methods: invalid choice: 'l1'",
    "--epochs 0, --hidden-units 50 0, --batch-size 0, --refit-images -9": "numbers must be above 0",
    "--seeds 0 -1, --retrain-epochs -1": "numbers must be above 0; --seeds and --retrain-epochs",
}


@pytest.mark.parametrize("options", WRONG)
def test_a_wrong_option_is_refused_before_anything_happens(capsys, monkeypatch, options):
    monkeypatch.setattr(network_pruning, "load_datasets", None)
    for arguments in options.split(", "):
        with pytest.raises(SystemExit, match="2"):
            network_pruning.main(arguments.split())
        assert f"error: {WRONG[options]}" in capsys.readouterr().err.splitlines()[-1]


def test_every_package_of_the_script_is_in_its_inline_metadata():
    block = re.search(r"^# /// script\n(.*?)^# ///$", SCRIPT.read_text(), re.M | re.S)[1]
    metadata = re.sub(r"^# ?", "", block, flags=re.M)
    assert metadata.startswith('requires-python = ">=3.10"\ndependencies = [\n')
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    stated = [line.partition("#")[0].strip() for line in lines]
    assert ast.literal_eval(metadata.partition("dependencies = ")[2]) == list(filter(None, stated))


def sizes(folder):
    return {path.relative_to(folder): path.stat().st_size for path in Path(folder).rglob("*.*")}


def test_leftovers_in_the_environment_change_nothing():
    """Settings of Matplotlib, Keras and Jupyter that people have."""
    run_main(*SHORT, "--seeds", 0)
    Path("keras").mkdir()
    Path("keras/keras.json").write_text('{"backend": "jax", "floatx": "float64"}')
    style = "savefig.format: pdf\nfont.size: 30\naxes.grid: True\nfigure.dpi: 30\ntext.usetex: True"
    Path("matplotlibrc").write_text(style)
    odd = {"MPLBACKEND": "module://not_here", "MATPLOTLIBRC": "matplotlibrc"}
    # reads the files of one seed and makes those of the other
    process = start(*SHORT, "--seeds", 0, 1, **odd)
    assert "Traceback" not in process.communicate()[1] and process.returncode == 0
    run_main(*SHORT, "--seeds", 0, 1, "--output-dir", "usual", draw=FIGURES)
    assert sizes("plots") == pytest.approx(sizes("usual"), rel=0.02)


def test_a_gpu_that_tensorflow_does_not_see_is_said_with_what_helps(monkeypatch, capsys):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    network_pruning.configure_tensorflow()
    assert "pip install 'tensorflow[and-cuda]'" in capsys.readouterr().err


def test_ctrl_c_during_a_download_is_one_that_keras_can_tidy_up_after(monkeypatch):
    interrupted = functools.partial(signal.raise_signal, signal.SIGINT)
    monkeypatch.setattr(keras.datasets.mnist, "load_data", interrupted)
    monkeypatch.setattr(sys, "argv", ["network_pruning.py"])
    with pytest.raises(KeyboardInterrupt):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_a_failed_training_is_one_line_and_leaves_nothing():
    with one_line("training failed: the loss is ", "pass a lower --learning-rate"):
        run_main("--datasets", "digits", "--learning-rate", 100)
    assert not list(Path().rglob("*.*"))


def test_a_notebook_runs_the_script_in_all_three_ways_and_can_still_train():
    """In the same process, models with dropout train, and Ctrl-C still interrupts."""
    options = " ".join(map(str, (*SHORT, "--seeds", 0)))
    cells = [
        "import tensorflow as tf; tf.ones(3) + 1  # TensorFlow is in use",
        f"%run {SCRIPT} {options}\nimport signal; print(signal.getsignal(signal.SIGINT))",
        f"!{sys.executable} {SCRIPT} {options} --output-dir shell",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from network_pruning import main; main('{options} --output-dir main'.split())\n",
        "import keras; m = keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(1)])\n"
        "m.compile('sgd', 'mse'); m.fit(tf.random.uniform((64, 8)), tf.zeros(64))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook).execute()
    for folder in ("plots", "shell", "main"):
        assert len(results(folder)) == 2 * len(REPAIRS)
        assert Path(folder, "digits-methods.png").exists()
    assert any("default_int_handler" in out.get("text", "") for out in notebook.cells[1].outputs)
