"""The command: its options, and where people run it."""

import ast
import re
import shutil
import sys

import nbclient
import nbformat
import pytest
import tensorflow as tf
from conftest import ROOT, SCRIPT, TINY, assert_one_line, results

import network_pruning
from network_pruning import REPAIRS

SHORT = (*TINY, "--methods", "weight", "--seeds", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsities", "50", "90"], "error: --sparsities are fractions: above 0, up to 1"),
        (["--sparsities", "0", "nan"], "error: --sparsities are fractions: above 0, up to 1"),
        (["--sparsities", "50%"], "argument --sparsities: invalid float value: '50%'"),
        (["--methods", "l1"], "argument --methods: invalid choice: 'l1'"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_happens(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(network_pruning, "run", None)
    with pytest.raises(SystemExit) as stop:
        network_pruning.main(arguments)
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
    assert run_main(*SHORT, "--output-dir", "plain", draw=True).returncode == 0
    (tmp_path / "keras").mkdir(exist_ok=True)
    (tmp_path / "keras" / "keras.json").write_text('{"backend": "jax"}')
    (tmp_path / "matplotlibrc").write_text(
        "savefig.format: pdf\nfont.size: 30\naxes.grid: True\nfigure.dpi: 30\ntext.usetex: True\n"
    )
    done = run_command(
        *(*SHORT, "--output-dir", "odd"),
        MPLBACKEND="module://matplotlib_inline_that_is_not_here",
        MATPLOTLIBRC=str(tmp_path / "matplotlibrc"),
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    for name in ("digits-accuracy.png", "digits-repairs.png"):  # without the times
        plain, odd = ((tmp_path / folder / name).read_bytes() for folder in ("plain", "odd"))
        assert odd[:4] == b"\x89PNG" and len(odd) == pytest.approx(len(plain), rel=0.02)


def test_a_gpu_that_tensorflow_does_not_see_is_said_with_what_helps(monkeypatch, capsys):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert network_pruning.configure_tensorflow() == "CPU"
    assert "pip install 'tensorflow[and-cuda]'" in capsys.readouterr().err


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
