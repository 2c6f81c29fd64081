"""The command: its options, and where people run it."""

import ast
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import nbclient
import nbformat
import pytest
import tensorflow as tf
from conftest import CLEAN, DEVICE, ROOT, SCRIPT, TINY, assert_one_line, read_rows

import network_pruning
from network_pruning import METHODS

SHORT = (*TINY, "--methods", "weight", "--seeds", 0)
ROWS = 6  # that SHORT makes: the dense network in two states, and a pruned one in four states


# ---------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsities", "1.5"], "argument --sparsities: 1.5 is not between 0 and 1"),
        (["--sparsities", "0", "nan"], "argument --sparsities: nan is not between 0 and 1"),
        (["--sparsities", "half"], "argument --sparsities: invalid float value: 'half'"),
        (["--sparsities", "0"], "--sparsities needs one above 0"),
        (["--epochs", "0"], "argument --epochs: 0 is not between 1 and 2147483647"),
        (["--batch-size", "2.5"], "argument --batch-size: invalid int value: '2.5'"),
        (["--hidden-units", str(10**17)], "argument --hidden-units: 100000000000000000 is not"),
        (["--learning-rate", "inf"], "argument --learning-rate: inf is not between 1e-06 and"),
        (["--seeds", "-1"], "argument --seeds: -1 is not between 0 and 2147483647"),
        (["--refit-images", "-1"], "argument --refit-images: -1 is not between 0 and"),
        (["--methods", "l1"], "argument --methods: invalid choice: 'l1'"),
        (["--methods", "weight", "--save-models"], "neuron-pruned networks: add neuron"),
        (["--datasets", "cifar"], "--datasets cifar: not mnist, fashion_mnist, digits, nor a"),
        (["--data-dir", ".", "--datasets", "../x"], "--datasets ../x: not mnist, "),
        (["--data-dir", ".", "--datasets", ""], "--datasets : not mnist, "),
        (["--epoch", "1"], "unrecognized arguments: --epoch 1"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_happens(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(network_pruning, "run_job", None)
    with pytest.raises(SystemExit) as stop:
        network_pruning.main(arguments)
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.count("\n") == 2 and message in said.err.splitlines()[-1]


def test_only_the_methods_asked_for_are_run_each_once(run_main, tmp_path):
    done = run_main(
        *SHORT, "--methods", "global_weight", "global_weight", "--sparsities", 1, 0, 0.5
    )
    rows = read_rows(tmp_path / "plots" / "digits.csv")
    assert done.returncode == 0
    assert [(row["method"], row["sparsity"]) for row in rows if row["repair"] == "none"] == [
        ("dense", 0),
        ("global_weight", 0.5),
        ("global_weight", 1),
    ]


@pytest.mark.parametrize("optimized", [[], ["-OO"]])
def test_help_lists_every_option_without_the_slow_packages(tmp_path, optimized):
    for package in ("tensorflow", "keras", "pandas", "matplotlib", "sklearn"):
        (tmp_path / f"{package}.py").write_text("raise SystemExit('imported too early')")
    command = [sys.executable, *optimized, SCRIPT, "--help"]
    environment = {**CLEAN, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for default in ("0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95", "1000, 1000, 500, 200)", "128)"):
        assert f"{default}" in text
    assert all(method in text for method in METHODS)


def test_importing_the_script_prints_nothing_and_loads_no_tensorflow():
    slow = ("tensorflow", "keras", "pandas", "matplotlib", "sklearn")
    check = f"import sys, network_pruning; print(*set({slow}) & set(sys.modules))"
    command = [sys.executable, "-c", check]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


# ------------------------------------------------------------------------------- what is installed


def test_every_package_of_the_script_is_in_its_inline_metadata():
    block = re.search(r"^# /// script\n(.*?)^# ///$", SCRIPT.read_text(), re.M | re.S)[1]
    metadata = re.sub(r"^# ?", "", block, flags=re.M)
    assert metadata.startswith('requires-python = ">=3.10"\ndependencies = [\n')
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    stated = [line.partition("#")[0].strip() for line in lines]
    assert ast.literal_eval(metadata.partition("dependencies = ")[2]) == list(filter(None, stated))


MISSING = "ImportError('No module named it')"


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ("numpy", MISSING),
        ("tqdm", MISSING),
        ("pandas", MISSING),
        ("matplotlib", MISSING),
        ("keras", MISSING),
        ("tensorflow", MISSING),
        ("sklearn", MISSING),
        ("keras", "TypeError('protobuf')"),
        ("tensorflow", "TypeError('protobuf')"),
    ],
)
def test_a_package_that_cannot_be_imported_is_one_line_before_any_training(
    run_command, tmp_path, package, reason
):
    (tmp_path / f"{package}.py").write_text(f"raise {reason}")
    done = run_command(*SHORT, PYTHONPATH=str(tmp_path))
    assert_one_line(done, f"run {sys.executable} -m pip install -r {ROOT / 'requirements.txt'}")
    assert reason.partition("'")[2].rstrip("')") in done.stderr
    assert "dense test accuracy" not in done.stdout


def test_the_whole_message_of_a_broken_tensorflow_is_shown(run_command, tmp_path):
    text = "DLL load failed while importing _pywrap\\n\\nFailed to load the native runtime.\\n"
    (tmp_path / "tensorflow.py").write_text(f"raise ImportError('{text}')")
    done = run_command(*SHORT, PYTHONPATH=str(tmp_path))
    assert_one_line(done, "TensorFlow cannot be imported; run ")
    assert "DLL load failed" in done.stderr and "Failed to load the native" in done.stderr


# ------------------------------------------------------------------------------------ environment


def test_leftovers_in_the_environment_change_nothing(run_command, run_main, tmp_path):
    """Settings of Matplotlib, Keras and Jupyter that people have."""
    reference = run_main(*SHORT, "--methods", "neuron", "--save-models", "--output-dir", "plain")
    assert reference.returncode == 0
    (tmp_path / "keras").mkdir(exist_ok=True)
    settings = {"floatx": "float16", "backend": "jax", "image_data_format": "channels_first"}
    (tmp_path / "keras" / "keras.json").write_text(json.dumps(settings))
    (tmp_path / "matplotlibrc").write_text(
        "savefig.format: pdf\nfont.size: 30\naxes.grid: True\nfigure.dpi: 30\ntext.usetex: True\n"
    )
    done = run_command(
        *SHORT,
        *("--methods", "neuron", "--save-models", "--output-dir", "odd"),
        MPLBACKEND="module://matplotlib_inline_that_is_not_here",
        MATPLOTLIBRC=str(tmp_path / "matplotlibrc"),
        TF_USE_LEGACY_KERAS="1",
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    for path in (tmp_path / "plain").glob("*.png"):
        png = (tmp_path / "odd" / path.name).read_bytes()
        assert png[:4] == b"\x89PNG" and len(png) == pytest.approx(path.stat().st_size, rel=0.02)
    model = tf.keras.models.load_model(tmp_path / "odd" / "digits-neuron-0.5.keras")
    assert {weights.dtype.name for weights in model.get_weights()} == {"float32"}


@pytest.mark.skipif(DEVICE.startswith("GPU"), reason="TensorFlow sees a GPU here")
@pytest.mark.parametrize(
    ("tool", "visible", "said"),
    [
        (None, None, False),
        ("/usr/bin/nvidia-smi", None, True),
        ("/usr/bin/nvidia-smi", "-1", False),
    ],
)
def test_a_gpu_that_tensorflow_does_not_see_is_pointed_out(
    run_main, monkeypatch, tool, visible, said
):
    monkeypatch.setattr(network_pruning.shutil, "which", lambda name: tool)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    done = run_main(*SHORT)
    assert ("TensorFlow does not see the NVIDIA GPU" in done.stdout) == said


def test_a_gpu_that_cannot_be_used_is_one_line(run_main, monkeypatch):
    def fail(*_):
        raise tf.errors.InternalError(None, None, "no kernel image is available\nfor execution")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    monkeypatch.setattr(tf, "matmul", fail)
    done = run_main(*SHORT)
    assert_one_line(
        done, "error: the GPU cannot be used: no kernel image is available; set the env"
    )
    assert "CUDA_VISIBLE_DEVICES=-1" in done.stderr


@pytest.mark.parametrize(
    "error", [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")]
)
def test_out_of_memory_is_one_line(run_main, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(network_pruning, "train", fail)
    assert_one_line(run_main(*SHORT), "pass smaller --hidden-units, --refit-images or --batch-size")


def test_a_failed_training_draws_nothing(run_main, tmp_path):
    done = run_main("--datasets", "digits", "--learning-rate", 100)
    assert_one_line(done, "error: training failed in epoch ")
    assert done.stderr.endswith("pass a --learning-rate below 100\n")
    assert not list((tmp_path / "plots").iterdir())


# ----------------------------------------------------------------------------- terminal, notebook


def test_a_terminal_shows_seed_epoch_method_and_the_time_left(tmp_path):
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 30, 120, 0, 0))  # rows, columns
    arguments = [*SHORT, "--seeds", 3, 5, "--epochs", 12]
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
    assert re.search(r"digits, seed 5:  50%\|.*\| 1/2 \[\d\d:\d\d<\d\d:\d\d", text)
    assert re.search(r"\| \d+/12 \[.*epoch", text) and re.search(r"\| 0/1 \[.*method", text)


class FullDisk(io.StringIO):
    """A standard output that takes nothing from the first accuracy on."""

    def write(self, text):
        if "accuracy" in text:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_standard_output_is_one_line_and_loses_no_finished_seed(
    run_main, monkeypatch, tmp_path
):
    monkeypatch.setattr(sys, "stdout", FullDisk())
    done = run_main(*SHORT)
    assert_one_line(done, "error: standard output cannot be written: No space left on device")
    assert len(read_rows(tmp_path / "plots" / "digits.csv")) == ROWS


def test_a_closed_standard_output_does_not_lose_the_results(run_main, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    assert run_main(*SHORT).returncode == 0
    assert len(read_rows(tmp_path / "plots" / "digits.csv")) == ROWS


def test_an_output_that_cannot_encode_a_character_does_not_lose_the_results(run_main, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert run_main(*SHORT).returncode == 0
    assert b"mean test accuracy ? deviation" in sys.stdout.buffer.getvalue()


def test_a_notebook_runs_the_script_in_all_three_ways_and_can_still_be_interrupted(tmp_path):
    options = [str(argument) for argument in SHORT]
    cells = [
        "import tensorflow as tf; tf.ones(3) + 1  # TensorFlow is in use",
        f"%run {SCRIPT} {' '.join(options)}\nimport signal; print(signal.getsignal(signal.SIGINT))",
        f"!{sys.executable} {SCRIPT} {' '.join(options)} --output-dir shell",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from network_pruning import main; main({[*options, '--output-dir', 'main']})\n"
        "from IPython.display import Image; Image('plots/digits.png')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    for folder in ("plots", "shell", "main"):
        assert len(read_rows(tmp_path / folder / "digits.csv")) == ROWS
        assert (tmp_path / folder / "digits-analysis.png").exists()
    assert any("default_int_handler" in out.get("text", "") for out in notebook.cells[1].outputs)
    assert "image/png" in notebook.cells[3].outputs[-1]["data"]
