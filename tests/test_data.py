"""Where the images come from, and what happens when they are unavailable."""

import gzip
import socket
import struct
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from conftest import read_rows
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import network_pruning
from network_pruning import IDX_FILES, UserError, load_datasets, read_idx

RNG = np.random.default_rng(0)
ARRAYS = [  # 20 training and 10 test images of 4 x 3 pixels
    RNG.integers(0, 256, (20, 4, 3), dtype=np.uint8),
    np.arange(20, dtype=np.uint8) % 10,
    RNG.integers(0, 256, (10, 4, 3), dtype=np.uint8),
    np.arange(10, dtype=np.uint8),
]


def idx_bytes(array):
    """An array of unsigned bytes in the IDX format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_folder(folder, arrays=ARRAYS, packed=True):
    """Write the four IDX files of a data set."""
    folder.mkdir(parents=True)
    for name, array in zip(IDX_FILES, arrays):
        if packed:
            (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / f"{name}-ubyte").write_bytes(idx_bytes(array))


def changed(index, array):
    """The arrays of a data set with one of them replaced."""
    return [*ARRAYS[:index], array, *ARRAYS[index + 1 :]]


@pytest.fixture
def no_download(monkeypatch):
    """Let every download fail, as it does without a network."""

    def fail():
        raise Exception("URL fetch failure on\nhttps://example.org: no route to host")

    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", fail)
    monkeypatch.setattr(tf.keras.datasets.fashion_mnist, "load_data", fail)


@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, max_side=9)), st.booleans())
def test_an_idx_file_is_read_back_as_written(tmp_path_factory, array, packed):
    folder, content = tmp_path_factory.mktemp("idx"), idx_bytes(array)
    (folder / ("file.gz" if packed else "file")).write_bytes(
        gzip.compress(content) if packed else content
    )
    np.testing.assert_array_equal(read_idx(folder / "file"), array)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_data_dir_is_used_instead_of_a_download(tmp_path, name, packed, no_download):
    write_folder(tmp_path / name, packed=packed)
    [dataset] = load_datasets([name], tmp_path)
    assert dataset.name == name
    for loaded, written in zip(dataset[1:], ARRAYS):
        np.testing.assert_array_equal(loaded, written)


def test_a_data_dir_without_names_means_both_data_sets(tmp_path):
    write_folder(tmp_path / "mnist")
    write_folder(tmp_path / "fashion_mnist")
    assert [d.name for d in load_datasets(None, tmp_path)] == ["mnist", "fashion_mnist"]


def test_a_file_missing_from_the_data_dir_is_named(tmp_path, no_download):
    write_folder(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        UserError, match="mnist/t10k-labels-idx1-ubyte.*No such file.*; --data-dir is"
    ):
        load_datasets(["mnist"], tmp_path)


def test_without_a_data_dir_both_are_downloaded_by_keras(monkeypatch):
    train, test = ARRAYS[:2], ARRAYS[2:]
    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", lambda: (train, test))
    monkeypatch.setattr(tf.keras.datasets.fashion_mnist, "load_data", lambda: (train, test))
    datasets = load_datasets(None, None)
    assert [d.name for d in datasets] == ["mnist", "fashion_mnist"]
    assert datasets[0].train_images is ARRAYS[0] and datasets[0].test_labels is ARRAYS[3]


def test_a_silent_server_does_not_hang_the_download(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", lambda: opener.open(url))
        monkeypatch.setattr(network_pruning, "DOWNLOAD_TIMEOUT", 0.2)
        with pytest.raises(UserError, match=r"mnist is unavailable: .*TimeoutError\('timed out'\)"):
            load_datasets(["mnist"], None)


def test_where_nothing_is_named_the_digits_stand_in_and_that_is_said(no_download, capsys):
    [dataset] = load_datasets(None, None)
    assert dataset.name == "digits"
    said = capsys.readouterr().err
    assert "no route to host" in said and "Using scikit-learn's digits instead" in said


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_data_set_that_was_named_is_never_replaced(name, no_download):
    with pytest.raises(UserError, match=rf"{name} is unavailable: .*pass --data-dir"):
        load_datasets([name], None)


def test_a_failed_download_ends_the_command_with_one_line(no_download, run_main, tmp_path):
    done = run_main("--datasets", "mnist")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "network_pruning.py: error: mnist is unavailable: download failed"
    )
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "plots").iterdir())


def test_one_of_the_two_alone_is_not_used_either(no_download, monkeypatch, capsys):
    loaded = (ARRAYS[:2], ARRAYS[2:])
    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", lambda: loaded)
    assert [dataset.name for dataset in load_datasets(None, None)] == ["digits"]
    assert "fashion_mnist is unavailable" in capsys.readouterr().err


def test_the_digits_are_split_once_and_for_all():
    first, second = load_datasets(["digits"], None)[0], load_datasets(["digits"], None)[0]
    assert first.train_images.shape == (1437, 8, 8) and first.test_images.shape == (360, 8, 8)
    assert first.train_images.dtype == np.uint8 and first.train_images.max() == 16
    assert set(first.test_labels) == set(range(10))
    np.testing.assert_array_equal(first.test_images, second.test_images)


def test_with_a_data_dir_digits_too_are_a_folder_in_it(tmp_path):
    write_folder(tmp_path / "digits")
    [dataset] = load_datasets(["digits"], tmp_path)
    np.testing.assert_array_equal(dataset.train_images, ARRAYS[0])


def test_any_folder_in_the_format_of_mnist_is_a_data_set(run_main, tmp_path):
    """Such as KMNIST and EMNIST; the number of classes comes from the labels."""
    letters = changed(1, np.arange(20, dtype=np.uint8))  # 20 classes
    write_folder(tmp_path / "data" / "emnist-letters", letters)
    # 300 units: more than the unsigned bytes of the labels could count
    short = ("--epochs", 1, "--hidden-units", 300, "--runs", 1, "--batch-size", 99)
    done = run_main("--data-dir", "data", "--datasets", "emnist-letters", *short)
    assert done.returncode == 0 and "emnist-letters, run 1 of 1" in done.stdout
    rows = read_rows(tmp_path / "plots" / "emnist-letters.csv")
    assert rows[0]["layer_sizes"] == "12-300-20" and rows[0]["dataset"] == "emnist-letters"
    assert (tmp_path / "plots" / "emnist-letters.png").exists()


def test_the_real_files_are_read(real_data):
    for dataset in load_datasets(None, real_data):
        assert dataset.train_images.shape == (60000, 28, 28)
        assert dataset.test_images.shape == (10000, 28, 28)
        assert set(np.bincount(dataset.test_labels)) == (
            {1000}
            if dataset.name == "fashion_mnist"
            else {980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009}
        )
