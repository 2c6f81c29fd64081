"""The command: its options, and where people run it."""

import ast
import fcntl
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios

import nbclient
import nbformat
import pytest
import tensorflow as tf
from conftest import CLEAN, ROOT, SCRIPT, TINY, assert_one_line, files_in, read_rows

import network_pruning
from network_pruning import METHODS, REPAIRS

SHORT = (*TINY, "--methods", "weight", "--seeds", 0)
ROWS = 4 + len(REPAIRS)  # that SHORT makes: two of the dense network, the others of a pruned one


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
        (["--seeds", "-1"], "argument --seeds: -1 is not between 0 and 4294967296"),
        (["--refit-images", "-1"], "argument --refit-images: -1 is not between 0 and"),
        (["--methods", "l1"], "argument --methods: invalid choice: 'l1'"),
        (["--methods", "weight", "--save-models"], "neuron-pruned networks: add neuron"),
        (["--datasets", "cifar"], "--datasets cifar: not mnist, fashion_mnist, digits; others are"),
        (["--data-dir", ".", "--datasets", "../x"], "'../x' is not the name of a folder"),
        (["--data-dir", ".", "--datasets", ""], "'' is not the name of a folder"),
        (["--data-dir", ".", "--datasets", ".."], "'..' is not the name of a folder"),
        (["--data-dir", ".", "--datasets", "a" * 151], "aaa' is not the name of a folder"),
        (["--data-dir", ".", "--datasets", "a\nb"], "'a\\nb' is not the name of a folder"),
        (["--methods", "scaled_weight", "--refit-images", "0"], "needs images: pass --refit-im"),
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


def test_importing_the_script_prints_nothing_loads_no_tensorflow_and_hides_no_name():
    slow = ("tensorflow", "keras", "pandas", "matplotlib", "sklearn")
    check = "import sys; tf = keras = 1; from network_pruning import *; assert tf == keras == 1; "
    check += f"prune_weights, main; print(*set({slow}) & set(sys.modules))"
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


def write_package(folder, name, code):
    """Write a package that runs code as it is imported."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


@pytest.mark.parametrize("package", ["numpy", "sklearn"])
def test_a_package_that_is_missing_is_one_line_with_a_command_that_installs_it(
    run_command, tmp_path, package
):
    write_package(tmp_path, package, "raise ModuleNotFoundError('No module named it')")
    done = run_command(*SHORT, PYTHONPATH=str(tmp_path))
    command = f"{sys.executable} -m pip install -r {ROOT / 'requirements.txt'}"
    assert_one_line(done, f"error: No module named it; run {command}")
    assert "dense test accuracy" not in done.stdout


def test_a_script_copied_alone_names_the_packages_and_quotes_a_path_with_spaces(monkeypatch):
    monkeypatch.setattr(network_pruning, "__file__", "/elsewhere/network_pruning.py")
    monkeypatch.setattr(sys, "executable", "/my programs/python")
    with pytest.raises(ImportError, match='"/my programs/python" -m pip install tensorflow numpy '):
        network_pruning.require("a_package_that_is_not_there")


@pytest.mark.parametrize("package", ["numpy", "pandas", "tensorflow"])
def test_a_file_that_hides_a_package_is_named_and_not_run(run_command, tmp_path, package):
    script = tmp_path / "network_pruning.py"
    shutil.copy(SCRIPT, script)
    hiding = tmp_path / f"{package}.py"
    hiding.write_text("print('run')")
    done = run_command(*SHORT, script=script)
    assert_one_line(done, f"error: {hiding} hides the package {package}; rename it")
    assert "run" not in done.stdout


BROKEN = "raise TypeError('Descriptors cannot\\n\\n be created')"


@pytest.mark.parametrize(
    ("package", "code", "reason"),
    [
        ("tensorflow", BROKEN, "TypeError: Descriptors cannot be created"),
        ("keras", "raise ImportError('lib.so: failed to map segment')", "lib.so: failed to map"),
        ("pandas", "raise SystemExit", "SystemExit"),
    ],
)
def test_a_package_that_cannot_be_imported_is_one_line_without_advice_to_install_it(
    run_command, tmp_path, package, code, reason
):
    write_package(tmp_path, package, code)
    done = run_command(*SHORT, PYTHONPATH=str(tmp_path))
    assert_one_line(done, f"error: {package} cannot be imported: ")
    assert reason in done.stderr and "pip install" not in done.stderr


def test_settings_of_matplotlib_that_cannot_be_read_are_one_line_before_training(
    run_command, tmp_path
):
    (tmp_path / "matplotlibrc").write_bytes(b"font.size: 10\xff\n")
    done = run_command(*SHORT)
    assert_one_line(done, "error: matplotlib.figure cannot be imported: UnicodeDecodeError")
    assert done.stdout == ""


# ------------------------------------------------------------------------------------ environment


def test_leftovers_in_the_environment_change_nothing(run_command, run_main, tmp_path):
    """Settings of Matplotlib, Keras and Jupyter that people have."""
    reference = run_main(*SHORT, "--methods", "neuron", "--output-dir", "plain", draw=True)
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
    [path] = tmp_path.glob("odd/runs/*-neuron-0.5.keras")
    model = tf.keras.models.load_model(path)
    assert {weights.dtype.name for weights in model.get_weights()} == {"float32"}


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


def test_a_home_folder_of_nobody_is_a_folder_of_that_name(run_main):
    done = run_main("--draw", "--output-dir=~nobody-of-this-name/x")
    assert_one_line(done, "~nobody-of-this-name/x/runs cannot be read: No such file or directory")


def test_a_failed_training_draws_nothing(run_main, tmp_path):
    done = run_main("--datasets", "digits", "--learning-rate", 100)
    assert_one_line(done, "error: training failed in epoch ")
    assert done.stderr.endswith("pass a --learning-rate below 100\n")
    assert files_in(tmp_path / "plots") == []


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


@pytest.mark.parametrize("streams", ["2>&1 | head -1", "> /dev/full"])
def test_a_job_goes_on_to_its_end_when_nobody_reads_what_it_says(tmp_path, streams):
    options = " ".join(str(argument) for argument in (*SHORT, "--seeds", 0, 1))
    command = f"{sys.executable} {SCRIPT} {options} {streams}"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=CLEAN, capture_output=True)
    assert len(read_rows(tmp_path / "plots" / "digits.csv")) == 2 * ROWS


class Unwritable(io.StringIO):
    """A standard output without a file behind it that takes nothing."""

    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [Unwritable(), None])
def test_an_output_that_is_no_file_does_not_end_the_job(run_main, monkeypatch, tmp_path, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_main(*SHORT).returncode == 0
    assert len(read_rows(tmp_path / "plots" / "digits.csv")) == ROWS


def test_an_output_that_cannot_encode_a_character_does_not_lose_the_results(run_main, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert run_main(*SHORT).returncode == 0
    assert b"dense test accuracy" in sys.stdout.buffer.getvalue()


def test_a_notebook_runs_the_script_in_all_three_ways_and_can_still_be_interrupted(tmp_path):
    options = [str(argument) for argument in SHORT]
    cells = [
        "import tensorflow as tf; tf.ones(3) + 1  # TensorFlow is in use",
        f"%run {SCRIPT} {' '.join(options)}\nimport signal; print(signal.getsignal(signal.SIGINT))",
        f"!{sys.executable} {SCRIPT} {' '.join(options)} --output-dir shell",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from network_pruning import main; main({[*options, '--output-dir', 'main']})\n"
        "from IPython.display import Image; Image('plots/digits-accuracy.png')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    for folder in ("plots", "shell", "main"):
        assert len(read_rows(tmp_path / folder / "digits.csv")) == ROWS
        assert (tmp_path / folder / "digits-analysis.png").exists()
    assert any("default_int_handler" in out.get("text", "") for out in notebook.cells[1].outputs)
    assert "image/png" in notebook.cells[3].outputs[-1]["data"]
