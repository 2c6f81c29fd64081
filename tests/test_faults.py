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

import keras
import numpy as np
import pytest
from conftest import CLEAN, SCRIPT, read_csv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import ARRAYS, idx_bytes, write_folder

from network_pruning import IDX_LIMIT, UserError, load_datasets, read_idx, replacing

SHORT = (
    "--datasets",
    "digits",
    "--epochs",
    "1",
    "--hidden-units",
    "20",
    "--sparsities",
    "0",
    "0.5",
)
IMAGES = idx_bytes(ARRAYS[0])


def damage(tmp_path, content, name="train-images-idx3-ubyte.gz"):
    """Write a data set, one of whose files holds `content`, and return what the loader says."""
    write_folder(tmp_path / "mnist")
    (tmp_path / "mnist" / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_datasets(["mnist"], tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------- data files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file of bytes in 3 dimension"),
        (b"not a gzip file", "cannot be read: Not a gzipped file"),
        (gzip.compress(IMAGES)[:-20], "cannot be read"),
        (gzip.compress(IMAGES)[:99] + bytes(4) + gzip.compress(IMAGES)[103:], "cannot be read"),
        (gzip.compress(b"\1" + IMAGES[1:]), "no IDX file of bytes in 3"),
        (gzip.compress(b"\0\0\x0d\3" + IMAGES[4:]), "no IDX file of bytes in 3"),
        (gzip.compress(idx_bytes(ARRAYS[1])), "no IDX file of bytes in 3"),
        (gzip.compress(IMAGES[:10]), "no IDX file of bytes in 3"),
        (gzip.compress(IMAGES[:-1]), "promises 240 bytes of data but holds 239"),
        (gzip.compress(IMAGES + b"\0"), "promises 240 bytes of data but holds more"),
        (gzip.compress(IMAGES[:4] + b"\xff" * 12), f"more than {IDX_LIMIT}"),
    ],
    ids="empty text truncated corrupt magic type labels header short long huge".split(),
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, content, message):
    said = damage(tmp_path, content)
    assert said.startswith(str(tmp_path / "mnist" / "train-images-idx3-ubyte.gz"))
    assert message in said


def test_a_small_archive_that_unpacks_without_end_is_not_unpacked(tmp_path):
    bomb = gzip.compress(IMAGES + bytes(500_000_000), compresslevel=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "holds more" in damage(tmp_path, bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    write_folder(tmp_path / "mnist")
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"{path} cannot be read"):
        load_datasets(["mnist"], tmp_path)


def changed(index, array):
    """The arrays of a data set with one of them replaced."""
    return [*ARRAYS[:index], array, *ARRAYS[index + 1 :]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(1, ARRAYS[1][:-1]), "has 20 images but 19 labels"),
        (changed(3, np.arange(1, 11, dtype=np.uint8)), "has a label 10, above 9"),
        (changed(2, np.zeros((10, 3, 4), np.uint8)), "test images of another shape"),
        (changed(0, ARRAYS[0][:0]), "has an empty set"),
        (changed(2, ARRAYS[2][:0]), "has an empty set"),
    ],
    ids="counts labels shape empty-training empty-test".split(),
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
    path = tmp_path_factory.getbasetemp() / ("mutated.gz" if packed else "mutated")
    path.write_bytes(content)
    try:
        array = read_idx(path, 3)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert array.ndim == 3 and array.dtype == np.uint8
        if packed:  # its check sum protects the content
            np.testing.assert_array_equal(array, ARRAYS[0])
        else:
            assert idx_bytes(array) == bytes(content)


def test_bad_data_end_the_command_with_one_line(run_main, tmp_path):
    write_folder(tmp_path / "data" / "mnist", changed(1, ARRAYS[1][:-1]))
    done = run_main("--data-dir", "data", "--datasets", "mnist")
    assert done.returncode == 1
    assert done.stderr == (
        "network_pruning.py: error: mnist from data/mnist has 20 images but 19 labels\n"
    )


# -------------------------------------------------------------------------------------- downloads


def test_a_damaged_cache_file_is_named_with_the_cure(run_command, tmp_path):
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    write_folder(cache)
    path = cache / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])  # as a killed download leaves it
    done = run_command("--datasets", "fashion_mnist")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"error: {path} cannot be read" in done.stderr
    assert done.stderr.endswith("delete this file to have it downloaded anew\n")


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
        keras.utils.get_file("file.npz", url, cache_dir=tmp_path)

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    with pytest.raises(UserError, match=rf"mnist cannot be downloaded \(.*{message}.*--data-dir"):
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


@pytest.mark.parametrize(("levels", "culprit"), [(MANY_LEVELS, "csv"), (["0", "0.5"], "png")])
def test_a_file_that_cannot_grow_leaves_earlier_results_whole(
    run_main, tmp_path, files_of_20_kilobytes_at_most, levels, culprit
):
    assert run_main(*SHORT, "--runs", 1).returncode == 0
    csv, png = tmp_path / "plots" / "digits.csv", tmp_path / "plots" / "digits.png"
    earlier = csv.read_bytes(), png.read_bytes()
    files_of_20_kilobytes_at_most()
    done = run_main(*SHORT, "--runs", 1, "--seed", 1, "--sparsities", *levels)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"error: plots/digits.{culprit} cannot be written: File too large" in done.stderr
    assert png.read_bytes() == earlier[1]
    assert (csv.read_bytes() == earlier[0]) == (culprit == "csv")
    assert len(read_csv(csv)) == 8
    assert len(list((tmp_path / "plots").iterdir())) == 2


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
    assert done.returncode == 1
    assert "digits.png cannot be written: No space left on device" in done.stderr
    assert [file.name for file in folder.iterdir()] == ["digits.csv"]
    assert len(read_csv(folder / "digits.csv")) == 8


def test_a_read_only_file_system_is_refused_before_training(run_main, mount):
    folder = mount("ro")
    done = run_main(*SHORT, "--output-dir", folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"--output-dir {folder} cannot be written to: " in done.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_refused_before_training(run_main, tmp_path):
    (tmp_path / "plots").mkdir(mode=0o500)
    done = run_main(*SHORT)
    assert done.returncode == 2
    assert "--output-dir plots cannot be written to: " in done.stderr


def test_an_output_folder_that_cannot_be_made_is_refused(run_main):
    done = run_main(*SHORT, "--output-dir", "/dev/null/plots")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--output-dir /dev/null/plots cannot be written to: " in done.stderr


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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_soon_and_finished_runs_are_kept(tmp_path, number, status):
    csv, png = tmp_path / "plots" / "digits.csv", tmp_path / "plots" / "digits.png"
    arguments = ("--runs", "1000", "--hidden-units", "1000", "1000", "--epochs", "10")
    returned, seconds, errors = interrupt(number, tmp_path, png.exists, *arguments)
    assert returned == status
    assert seconds < 2
    assert errors == "\ninterrupted; the results of finished runs are kept\n"
    assert len(read_csv(csv)) % 8 == 0 and len(read_csv(csv)) >= 8
    assert png.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert len(list((tmp_path / "plots").iterdir())) == 2


def test_a_killed_command_leaves_whole_files(tmp_path):
    csv, png = tmp_path / "plots" / "digits.csv", tmp_path / "plots" / "digits.png"
    assert interrupt(signal.SIGKILL, tmp_path, png.exists, "--runs", "1000")[0] == -signal.SIGKILL
    assert len(read_csv(csv)) % 8 == 0
    assert png.read_bytes().endswith(b"IEND\xaeB`\x82")


def test_a_failed_training_draws_no_curve_and_keeps_earlier_results(run_main, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "digits.csv").write_text("earlier")
    done = run_main("--datasets", "digits", "--learning-rate", 100)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: training failed in epoch " in done.stderr
    assert done.stderr.endswith("pass a --learning-rate below 100\n")
    assert [file.name for file in (tmp_path / "plots").iterdir()] == ["digits.csv"]
    assert (tmp_path / "plots" / "digits.csv").read_text() == "earlier"


def test_a_training_that_fails_in_its_last_step_draws_no_curve(run_main, tmp_path):
    one_step = ("--epochs", 1, "--batch-size", 1437, "--learning-rate", 1e30)
    done = run_main("--datasets", "digits", *one_step)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: training failed in its last step: pass a lower --learning-rate" in done.stderr
    assert not list((tmp_path / "plots").iterdir())
