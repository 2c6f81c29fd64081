"""Where the images come from, as they lie on people's disks, and what is wrong with them."""

import gzip
import struct

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, assert_one_line, results

from network_pruning import UserError, keras, load_dataset, load_datasets

RNG = np.random.default_rng(0)
ARRAYS = [  # 20 training and 10 test images of 4 x 3 pixels
    RNG.integers(0, 256, (20, 4, 3), dtype=np.uint8),
    np.arange(20, dtype=np.uint8) % 10,
    RNG.integers(0, 256, (10, 4, 3), dtype=np.uint8),
    np.arange(10, dtype=np.uint8),
]
NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def idx_bytes(array):
    """An array of unsigned bytes in the IDX format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_folder(folder, arrays=ARRAYS, name="{}", packed=False):
    """Write the four IDX files of a data set; `name` makes a file's name from the official one."""
    for official, array in zip(NAMES, arrays):
        path = folder / name.format(official)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))


def assert_loaded(dataset):
    """A data set is that of ARRAYS, in the form in which it is used."""
    brightest = ARRAYS[0].max()
    np.testing.assert_allclose(dataset.train_images, ARRAYS[0].reshape(20, 12) / brightest)
    np.testing.assert_allclose(dataset.test_images, ARRAYS[2].reshape(10, 12) / brightest)
    np.testing.assert_array_equal(dataset.train_targets, np.eye(10)[ARRAYS[1]])
    np.testing.assert_array_equal(dataset.test_labels, ARRAYS[3])
    assert dataset.train_images.dtype == dataset.train_targets.dtype == tf.float32


# ------------------------------------------------------------------------------------- IDX files


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("{}", "", ""),
        ("{}", "-idx", ".idx"),  # as some archives unpack
        ("{0}/{0}", "", ""),  # a folder of the file's name, as Kaggle packs
        ("MNIST/raw/{}", "", ""),  # torchvision
        ("emnist-letters-{}", "t10k", "test"),
    ],
    ids=["plain", "dot", "kaggle", "torchvision", "emnist"],
)
@pytest.mark.parametrize("packed", [True, False])  # whatever the name says
def test_files_are_found_by_what_their_names_say(tmp_path, name, old, new, packed):
    write_folder(tmp_path / "mine", name=name, packed=packed)
    write_folder(tmp_path / "mine", name=f"{name}.gz", packed=True)  # beside it: counts as one
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.rename(path.with_name(path.name.replace(old, new)))
    (tmp_path / "mine" / "._train-images-idx3-ubyte").write_bytes(b"of a Mac")
    (tmp_path / "mine" / "README").write_text("train images")
    assert_loaded(load_dataset("mine", tmp_path))


def test_where_none_or_several_fit_what_was_found_is_listed(tmp_path):
    write_folder(tmp_path / "two", name="a/{}")
    write_folder(tmp_path / "two", name="b/{}")
    write_folder(tmp_path / "half", ARRAYS[:2])
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("two", "one IDX file of training images, but has a/train-images.*, b/train-images"),
        ("half", "one IDX file of test images, but has train-images.*, train-labels"),
        ("empty", "one IDX file of training images, but has no file"),
    ):
        with pytest.raises(UserError, match=message):
            load_dataset(name, tmp_path)


IMAGES = idx_bytes(ARRAYS[0])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        gzip.compress(IMAGES)[:-20],
        gzip.compress(IMAGES)[:-12] + bytes(12),
        b"\x89PNG\r\n" + IMAGES,
        b"<html>404: not found</html>",
        struct.pack(">HBBI", 0, 0x0D, 1, 1) + bytes(4),  # a float
        IMAGES[:10],
        IMAGES[:-1],
        IMAGES + b"0",
    ],
    ids=["empty", "truncated", "corrupt", "png", "html", "floats", "header", "short", "long"],
)
def test_a_damaged_file_is_named(tmp_path, content):
    write_folder(tmp_path / "mnist")
    path = tmp_path / "mnist" / NAMES[0]
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} is not a whole IDX file of bytes: [^\n]*$"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    ("index", "array", "message"),
    [
        (1, ARRAYS[1][:-1], r"training labels \(19,\)"),
        (3, ARRAYS[3][:-1], r"test labels \(9,\)"),
        (2, np.ones((10, 3, 4), np.uint8), r"test images \(10, 3, 4\)"),
        (0, ARRAYS[1], r"training images \(20,\)"),
        (3, ARRAYS[3] + 1, "the test set has labels that the training set lacks"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, index, array, message):
    write_folder(tmp_path / "mine", [*ARRAYS[:index], array, *ARRAYS[index + 1 :]])
    with pytest.raises(UserError, match=f"^mine: .*{message}"):
        load_dataset("mine", tmp_path)


# ------------------------------------------------------------------------------- which data set


@pytest.fixture
def no_download(monkeypatch):
    """Let every download fail, as it does without a network."""

    def fail():
        raise Exception("URL fetch failure on\nhttps://example.org: no route to host")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", fail)


def test_without_a_data_dir_both_are_downloaded_by_keras(monkeypatch):
    for name in ("mnist", "fashion_mnist"):
        load_data = lambda: (ARRAYS[:2], ARRAYS[2:])  # noqa: E731
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", load_data)
    for dataset in load_datasets(None, None):
        assert_loaded(dataset)


def test_without_a_network_the_digits_stand_in_and_two_lines_say_so(no_download, capsys):
    [dataset] = load_datasets(None, None)
    assert dataset.name == "digits"
    assert dataset.train_images.shape == (1437, 64) and dataset.test_images.shape == (360, 64)
    assert np.max(dataset.train_images) == 1 and set(dataset.test_labels) == set(range(10))
    missing, instead = capsys.readouterr().err.splitlines()
    assert missing.startswith("mnist cannot be downloaded") and "no route to host" in missing
    assert "put its files into DIR/mnist and pass --data-dir DIR" in missing
    assert instead == "Using scikit-learn's digits instead, 1,437 images."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "fashion_mnist"], "fashion_mnist cannot be downloaded: "),  # no stand-in
        (["--datasets", "cifar"], "cifar is neither mnist, fashion_mnist nor digits: pass --data"),
        (["--data-dir", "data/mnist"], "data/mnist/mnist is not a folder; --data-dir is the one"),
        (["--data-dir", "absent"], "absent/mnist is not a folder; --data-dir is the one above mn"),
    ],
)
def test_what_is_not_there_is_one_line(run_main, tmp_path, no_download, arguments, message):
    write_folder(tmp_path / "data" / "mnist")
    assert_one_line(run_main(*arguments), f"error: {message}")
    assert not (tmp_path / "plots").exists()


def test_any_folder_in_the_format_of_mnist_is_a_data_set(run_main, tmp_path):
    """Also with as many classes as images, or beside the digits, or with a slash at the end."""
    write_folder(
        tmp_path / "data" / "mine", [ARRAYS[0], np.arange(20, dtype=np.uint8), *ARRAYS[2:]]
    )
    options = (*TINY, "--data-dir", "data", "--datasets", "mine/", "digits", "--seeds", 0)
    assert run_main(*options).returncode == 0
    mine, digits = (results(tmp_path / "plots", name) for name in ("mine", "digits"))
    assert mine["layer_sizes"][0] == "12-50-20-20" and digits["layer_sizes"][0] == "64-50-20-10"
    assert mine["majority_accuracy"][0] == 0.1


def test_the_real_files_are_read(real_data):
    mnist, fashion_mnist = load_datasets(None, real_data)
    for dataset in (mnist, fashion_mnist):
        assert dataset.train_images.shape == (60000, 784)
        assert dataset.test_images.shape == (10000, 784)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.test_labels).tolist() == counts
    assert set(np.bincount(fashion_mnist.test_labels)) == {1000}
    assert np.count_nonzero(np.max(mnist.train_images, axis=0) == 0) == 67  # always black
