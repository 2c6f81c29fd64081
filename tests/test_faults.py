"""Bad files, failed writes, signals: one clear line, and finished work stays whole."""

import gzip
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import tensorflow as tf
from conftest import CLEAN, SCRIPT, read_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import ARRAYS, changed, idx_bytes, write_folder

import network_pruning
from network_pruning import UserError, load_datasets, read_idx, replacing

SHORT = ("--datasets", "digits", "--epochs", "1", "--hidden-units", "20", "--sparsities", "0.5")
ROWS = 10  # that SHORT makes in a run: 5 methods, 2 sparsities
FILES = ["digits-analysis.png", "digits.csv", "digits.png"]
IMAGES = idx_bytes(ARRAYS[0])


def damage(tmp_path, content, name="train-images-idx3-ubyte.gz"):
    """Write a data set, one of whose files holds `content`, and return what the loader says."""
    write_folder(tmp_path / "mnist")
    (tmp_path / "mnist" / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_datasets(["mnist"], tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_in(folder):
    """Names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def assert_one_line(done, message, status=1):
    """A command ended with one line of error, and no traceback."""
    assert done.returncode == status
    lines = [line for line in done.stderr.splitlines() if line.startswith("network_pruning.py")]
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


# ------------------------------------------------------------------------------------- data files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it does not begin like an IDX file"),
        (b"not a gzip file", "Not a gzipped file"),
        (gzip.compress(IMAGES)[:-20], "ended before the end-of-stream"),
        (gzip.compress(IMAGES)[:99] + bytes(4) + gzip.compress(IMAGES)[103:], "CRC check"),
        (gzip.compress(b"\1" + IMAGES[1:]), "it does not begin like"),
        (gzip.compress(b"\0\0\x0d\3" + IMAGES[4:]), "it does not begin like"),
        (gzip.compress(IMAGES[:3]), "index out of range"),
        (gzip.compress(IMAGES[:10]), "buffer"),
        (gzip.compress(IMAGES[:-1]), "cannot reshape array of size 239 into shape (20,4,3)"),
        (gzip.compress(IMAGES + b"\0"), "cannot reshape array of size 241"),
        (gzip.compress(IMAGES[:4] + b"\xff" * 12), "reshape"),
    ],
    ids=(
        ["empty", "text", "truncated", "corrupt", "magic", "type", "three-bytes", "header"]
        + ["short", "long", "huge"]
    ),
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, content, message):
    said = damage(tmp_path, content)
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    assert said.startswith(f"{path} cannot be read as an IDX file: ")
    assert message in said


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    write_folder(tmp_path / "mnist")
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"{path} cannot be read as an IDX file"):
        load_datasets(["mnist"], tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(1, ARRAYS[1][:-1]), r"train-images \(20, 4, 3\) and train-labels \(19,\)"),
        (changed(3, ARRAYS[3][:-1]), r"t10k-images \(10, 4, 3\) and t10k-labels \(9,\)"),
        (
            changed(3, np.arange(1, 11, dtype=np.uint8)),
            "labels .* up to 10, where training has .* 10 classes",
        ),
        (changed(1, np.zeros(20, np.uint8)), "labels .* up to 0, where training has .* 1 classes"),
        (
            changed(2, np.ones((10, 3, 4), np.uint8)),
            r"images \(10, 3, 4\) .* training has images \(4, 3\)",
        ),
        (changed(0, ARRAYS[0][:0]), r"images \(0, 4, 3\) and train-labels \(20,\)"),
        (changed(2, ARRAYS[2][:0]), r"images \(0, 4, 3\) and t10k-labels \(10,\)"),
        (changed(0, 0 * ARRAYS[0]), "train-images .* not all black"),
        (changed(0, ARRAYS[1]), r"images \(20,\) and train-labels \(20,\)"),
        (changed(1, ARRAYS[0]), r"images \(20, 4, 3\) and train-labels \(20, 4, 3\)"),
    ],
    ids=(
        ["counts", "test-counts", "labels", "one-class", "shape", "empty-training", "empty-test"]
        + ["black", "labels-as-images", "images-as-labels"]
    ),
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, arrays, message):
    write_folder(tmp_path / "mnist", arrays)
    with pytest.raises(UserError, match=message) as caught:
        load_datasets(["mnist"], tmp_path)
    assert str(tmp_path / "mnist") in str(caught.value)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_mutated_file_gives_the_right_array_or_the_clear_error(tmp_path_factory, data):
    packed = data.draw(st.booleans())
    content = bytearray(gzip.compress(IMAGES, mtime=0) if packed else IMAGES)
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(start + 8, len(content))))
    content[start:stop] = data.draw(st.binary(max_size=8))
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.with_name("mutated.gz").unlink(missing_ok=True)
    path.with_name("mutated.gz" if packed else "mutated").write_bytes(content)
    try:
        array = read_idx(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert array.dtype == np.uint8
        if packed:  # its check sum protects the content
            np.testing.assert_array_equal(array, ARRAYS[0])
        else:
            assert idx_bytes(array) == bytes(content)


def test_bad_data_end_the_command_with_one_line_that_names_the_files(run_main, tmp_path):
    write_folder(tmp_path / "data" / "mnist", changed(1, ARRAYS[1][:-1]))
    done = run_main("--data-dir", "data", "--datasets", "mnist")
    assert_one_line(done, "error: data/mnist: train-images (20, 4, 3) and train-labels (19,)")


# -------------------------------------------------------------------------------------- downloads


def test_a_damaged_download_is_reported_with_where_it_is(run_command, tmp_path):
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    write_folder(cache)
    path = cache / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])  # as a killed download leaves it
    done = run_command("--datasets", "fashion_mnist")
    assert_one_line(done, "delete an interrupted download in ~/.keras/datasets")


class Halting(BaseHTTPRequestHandler):
    """Promises a file, sends half of it and closes, or answers with an error."""

    def do_GET(self):
        if self.path == "/error":
            return self.send_error(503)
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(bytes(500))

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("path", "message"), [("error", "503"), ("half", "500 out of 1000 bytes")])
def test_a_failed_download_leaves_no_file_and_says_why(tmp_path, monkeypatch, path, message):
    server = HTTPServer(("127.0.0.1", 0), Halting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    monkeypatch.setattr(urllib.request, "_opener", opener)

    def load_data():
        url = f"http://127.0.0.1:{server.server_address[1]}/{path}"
        tf.keras.utils.get_file("file.npz", url, cache_dir=tmp_path)

    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", load_data)
    with pytest.raises(UserError, match=rf"mnist is unavailable: .*{message}.*--data-dir"):
        load_datasets(["mnist"], None)
    server.shutdown()
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


# ---------------------------------------------------------------------------------------- writing


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["numbers.csv"]


def test_two_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "numbers.csv"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the last to finish
    assert [file.name for file in tmp_path.iterdir()] == ["numbers.csv"]


MANY_LEVELS = [str(i / 100) for i in range(100)]  # a CSV of over 20,000 bytes


@pytest.fixture
def files_of_20_kilobytes_at_most():
    """A quota on the size of files, as a full disk another way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("levels", "name"), [(MANY_LEVELS, "digits.csv"), (["0.5"], "digits.png")])
def test_a_file_that_cannot_grow_leaves_earlier_results_whole(
    run_main, tmp_path, files_of_20_kilobytes_at_most, levels, name
):
    assert run_main(*SHORT, "--runs", 1).returncode == 0
    csv, png = tmp_path / "plots" / "digits.csv", tmp_path / "plots" / "digits.png"
    earlier = csv.read_bytes(), png.read_bytes()
    files_of_20_kilobytes_at_most()
    done = run_main(*SHORT, "--runs", 1, "--seed", 1, "--sparsities", *levels)
    assert_one_line(done, f"error: plots/{name} cannot be written: File too large")
    assert png.read_bytes() == earlier[1]
    assert (csv.read_bytes() == earlier[0]) == (name == "digits.csv")
    assert len(read_rows(csv)) == ROWS
    assert files_in(tmp_path / "plots") == FILES


@pytest.fixture
def mount(tmp_path):
    """Mount an empty file system in memory with some options, where that is allowed."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("may not mount a file system here")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def test_a_full_file_system_is_reported(run_main, mount):
    folder = mount("size=16k")
    done = run_main(*SHORT, "--runs", 1, "--output-dir", folder)
    assert_one_line(done, "digits.png cannot be written: No space left on device")
    assert files_in(folder) == ["digits.csv"]
    assert len(read_rows(folder / "digits.csv")) == ROWS


def test_a_read_only_file_system_is_refused_before_training(run_main, mount):
    folder = mount("ro")
    done = run_main(*SHORT, "--output-dir", folder)
    assert_one_line(done, f"error: [Errno 30] Read-only file system: '{folder}")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_refused_before_training(run_main, tmp_path):
    (tmp_path / "plots").mkdir(mode=0o500)
    assert_one_line(run_main(*SHORT), "error: [Errno 13] Permission denied: 'plots/")


def test_an_output_folder_that_cannot_be_made_is_refused(run_main):
    done = run_main(*SHORT, "--output-dir", "/dev/null/plots")
    assert_one_line(done, "error: [Errno 20] Not a directory: '/dev/null/plots'")


# --------------------------------------------------------------------------------- standard output


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_standard_output_is_one_line(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, SCRIPT, *SHORT, "--runs", "1"],
            cwd=tmp_path,
            env=CLEAN,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert_one_line(done, "error: standard output cannot be written: No space left on device")


def test_a_standard_output_that_ends_early_is_one_line(tmp_path):
    command = f"'{sys.executable}' '{SCRIPT}' {' '.join(SHORT)} --runs 1; echo $? >status"
    done = subprocess.run(
        ["sh", "-c", f"({command}) | true"], cwd=tmp_path, env=CLEAN, capture_output=True, text=True
    )
    done.returncode = int((tmp_path / "status").read_text())
    assert_one_line(done, "error: standard output cannot be written: Broken pipe")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_streams_do_not_lose_the_results(tmp_path, closed):
    command = f"'{sys.executable}' '{SCRIPT}' {' '.join(SHORT)} --runs 1 {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=CLEAN, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert files_in(tmp_path / "plots") == FILES
    assert len(read_rows(tmp_path / "plots" / "digits.csv")) == ROWS


def test_an_output_that_cannot_encode_a_character_does_not_lose_the_results(run_command):
    done = run_command(*SHORT, "--runs", 2, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "mean ? standard deviation" in done.stdout


# -------------------------------------------------------------------------------------- TensorFlow


@pytest.mark.parametrize("reason", ["No module named tensorflow", "a traceback\\n\\nno runtime\\n"])
def test_a_missing_tensorflow_is_one_line_with_the_command_that_installs_it(
    run_command, tmp_path, reason
):
    (tmp_path / "tensorflow.py").write_text(f"raise ImportError('{reason}')")
    done = run_command(*SHORT, PYTHONPATH=str(tmp_path))
    assert_one_line(done, f"run {sys.executable} -m pip install -r requirements.txt")
    assert done.stderr.count("\n") == 1


def test_what_tensorflow_prints_as_it_dies_is_seen(run_command, tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os; os.write(2, b'compiled to use AVX instructions'); os.abort()"
    )
    done = run_command(*SHORT, PYTHONPATH=str(tmp_path))
    assert done.returncode == -signal.SIGABRT and "AVX instructions" in done.stderr


def test_out_of_memory_in_tensorflow_is_one_line(run_main, monkeypatch):
    def fail(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(network_pruning, "train", fail)
    done = run_main(*SHORT)
    assert_one_line(done, "pass a smaller --batch-size or smaller --hidden-units")
    assert "error: out of memory on the " in done.stderr


def test_out_of_memory_in_numpy_is_one_line(run_main):
    done = run_main("--datasets", "digits", "--hidden-units", 1, 10**7, 10**7)
    assert_one_line(done, "error: out of memory on the ")


# ------------------------------------------------------------------------- interruption, training


def interrupt(number, folder, ready, *arguments):
    """Start the script, send it a signal once `ready` is there, return its status and delay."""
    command = [sys.executable, SCRIPT, *SHORT, *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=CLEAN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, time.monotonic() - began, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_command_ends_at_once_and_leaves_whole_files(tmp_path, number):
    csv, png = tmp_path / "plots" / "digits.csv", tmp_path / "plots" / "digits-analysis.png"
    arguments = ("--runs", "1000", "--hidden-units", "1000", "1000", "--epochs", "10")
    returned, seconds, errors = interrupt(number, tmp_path, png.exists, *arguments)
    assert returned == -number
    assert seconds < 5
    assert "network_pruning.py" not in errors
    assert len(read_rows(csv)) % ROWS == 0 and len(read_rows(csv)) >= ROWS
    assert png.read_bytes().endswith(b"IEND\xaeB`\x82")


def test_a_failed_training_draws_no_curve_and_keeps_earlier_results(run_main, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "digits.csv").write_text("earlier")
    done = run_main("--datasets", "digits", "--learning-rate", 100)
    assert_one_line(done, "error: training failed in epoch ")
    assert done.stderr.endswith("pass a --learning-rate below 100\n")
    assert files_in(tmp_path / "plots") == ["digits.csv"]
    assert (tmp_path / "plots" / "digits.csv").read_text() == "earlier"
