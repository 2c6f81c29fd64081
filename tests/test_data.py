"""Where the images come from, as they lie on people's disks, and what is wrong with them."""

import gzip
import struct
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import SHARED, TINY, one_line, run_main

from network_pruning import UserError, keras, load_dataset, load_datasets

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 4, 3), dtype=np.uint8)
CLASSES = np.arange(30, dtype=np.uint8) % 10 + 1  # labels need not begin at 0
ARRAYS = [PIXELS[:20], CLASSES[:20], PIXELS[20:], CLASSES[20:]]
NAMES = [f"{part}-{k}-ubyte" for part in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_folder(folder="mine", arrays=ARRAYS, name="{}", packed=False):
    """Write the four IDX files of a data set; `name` makes a file's name from the official one."""
    for official, array in zip(NAMES, arrays):
        path = Path(folder, name.format(official))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))


def assert_loaded(dataset):
    """A data set is that of ARRAYS, in the form in which it is used."""
    brightest = ARRAYS[0].max()
    np.testing.assert_allclose(dataset.train_images, ARRAYS[0].reshape(20, 12) / brightest)
    np.testing.assert_allclose(dataset.test_images, ARRAYS[2].reshape(10, 12) / brightest)
    np.testing.assert_array_equal(dataset.train_targets, np.eye(10)[ARRAYS[1] - 1])
    np.testing.assert_array_equal(dataset.test_labels, ARRAYS[3] - 1)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("{}", "", ""),
        ("{}", "-idx", ".idx"),  # as some archives unpack
        ("{0}/{0}", "", ""),  # a folder of the file's name, as Kaggle packs
        ("MNIST/raw/{}", "", ""),  # torchvision
        ("emnist-letters-{}", "t10k", "test"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])  # whatever the name says
def test_files_are_found_by_what_their_names_say(name, old, new, packed):
    write_folder(name=name, packed=packed)
    write_folder(name=f"{name}.gz", packed=True)  # beside it: counts as one
    for path in [path for path in Path("mine").rglob("*") if path.is_file()]:
        path.rename(path.with_name(path.name.replace(old, new)))
    Path("mine/._train-images-idx3-ubyte").write_bytes(b"of a Mac")
    Path("mine/README").write_text("train images")
    assert_loaded(load_dataset("mine", Path()))


def test_where_none_or_several_fit_what_was_found_is_listed():
    write_folder(arrays=ARRAYS[:2], name="a/{}")
    with pytest.raises(UserError, match="one IDX file of test images, but has a/train-images.*, a"):
        load_dataset("mine", Path())
    write_folder(name="b/{}")
    with pytest.raises(UserError, match="one IDX file of training images, but has a/tr.*, b/train"):
        load_dataset("mine", Path())


IMAGES = idx_bytes(ARRAYS[0])
PACKED = gzip.compress(IMAGES)
FLOATS = struct.pack(">HBBI", 0, 0x0D, 1, 1) + bytes(4)
SIGNED = IMAGES.replace(b"\0\0\x08", b"\0\0\x09", 1)
OTHERS = [b"", FLOATS, SIGNED, b"<html>404: not found</html>", b"\x89PNG\r\n" + IMAGES]
CUT = [PACKED[:-20], PACKED[:-12] + bytes(12), IMAGES[:10], IMAGES[:-1]]


@pytest.mark.parametrize("content", OTHERS + CUT)
def test_a_damaged_file_is_named(content):
    write_folder("mnist")
    Path("mnist", NAMES[0]).write_bytes(content)
    with pytest.raises(UserError, match=f"^mnist/{NAMES[0]} is not a whole IDX file of bytes: .*$"):
        load_dataset("mnist", Path())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({1: ARRAYS[1][:-1]}, r"training labels \(19,\)"),
        ({3: ARRAYS[3][:-1]}, r"test labels \(9,\)"),
        ({2: np.ones((10, 3, 4), np.uint8)}, r"test images \(10, 3, 4\)"),
        ({0: ARRAYS[1]}, r"training images \(20,\)"),
        ({1: ARRAYS[1][:, np.newaxis]}, r"training labels \(20, 1\)"),
        ({3: np.eye(10, dtype=np.uint8)}, r"test labels \(10, 10\)"),
        ({2: ARRAYS[2][:0], 3: ARRAYS[3][:0]}, r"test images \(0, 4, 3\), test labels \(0,\)"),
        ({1: 0 * ARRAYS[1], 3: 0 * ARRAYS[3]}, "all labels are 0; a classifier needs two classes"),
    ],
)
def test_files_that_do_not_fit_or_make_no_classifier_are_refused(changed, message):
    write_folder("mine", [changed.get(i, array) for i, array in enumerate(ARRAYS)])
    with pytest.raises(UserError, match=f"^mine: .*{message}"):
        load_dataset("mine", Path())


OFFLINE = mock.Mock(side_effect=Exception("URL fetch failure on\nhttps://a.org: no route to host"))
ONLINE = mock.Mock(return_value=(ARRAYS[:2], ARRAYS[2:]))


def test_without_a_data_dir_what_can_be_downloaded_is_used_or_else_the_digits(monkeypatch, capfd):
    monkeypatch.setattr(keras.datasets.mnist, "load_data", OFFLINE)
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", OFFLINE)
    [digits] = load_datasets(None, None)
    assert digits.name == "digits"
    assert digits.train_images.shape == (1437, 64) and digits.test_images.shape == (360, 64)
    assert np.max(digits.train_images) == 1 and set(digits.test_labels) == set(range(10))
    missing, _, instead = capfd.readouterr().err.splitlines()
    assert missing.startswith("mnist cannot be downloaded") and "no route to host" in missing
    assert "put its files into DIR/mnist and pass --data-dir DIR" in missing
    assert instead == "Using scikit-learn's digits instead, 1,437 images."
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", ONLINE)
    assert [dataset.name for dataset in load_datasets(None, None)] == ["fashion_mnist"]
    monkeypatch.setattr(keras.datasets.mnist, "load_data", ONLINE)
    for dataset in load_datasets(None, None):
        assert_loaded(dataset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--datasets fashion_mnist", "fashion_mnist cannot be downloaded: "),  # no stand-in
        ("--datasets cifar", "cifar is neither mnist, fashion_mnist nor digits: pass --data"),
        ("--data-dir mnist", "mnist/mnist is not a folder; --data-dir is the one above mnist/"),
        ("--data-dir . --datasets a/letters b/letters", "two data sets have one name: name each"),
    ],
)
def test_what_is_not_there_is_one_line_before_training(monkeypatch, arguments, message):
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", OFFLINE)
    for folder in ("mnist", "a/letters", "b/letters"):
        write_folder(folder)
    with one_line(message):
        run_main(*arguments.split())
    assert not Path("plots").exists()


def test_any_folder_is_measured_read_again_and_drawn_whatever_it_is_called():
    """Also from within, and beside the digits."""
    for name in ("007", "NA", "a$b_$"):
        write_folder(f"data/{name}")
    sets = ("--data-dir", "data/007", "--datasets", ".", "../NA", "../a$b_$/", "digits")
    options = (*TINY, "--methods", "weight", "--seeds", 0, *sets)
    run_main(*options, draw=["accuracy"])
    tables = {path: path.read_text() for path in Path("plots").glob("*.csv")}
    assert {path.stem for path in tables} == {"007", "NA", "a$b_$", "digits"}
    run_main(*options)
    for path, table in tables.items():
        assert path.read_text() == table and Path(f"plots/{path.stem}-accuracy.png").exists()
        assert all(row.startswith(f"{path.stem},") for row in table.splitlines()[1:])
        assert (",12-50-20-10," in table) == (path.stem != "digits")


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="no real data beside this checkout")
def test_the_real_files_are_read():
    mnist, fashion_mnist = load_datasets(None, SHARED / "data")
    assert mnist.train_images.shape == fashion_mnist.train_images.shape == (60000, 784)
    assert np.bincount(mnist.test_labels)[:4].tolist() == [980, 1135, 1032, 1010]
    assert set(np.bincount(fashion_mnist.test_labels)) == {1000}
    assert np.count_nonzero(np.max(mnist.train_images, axis=0) == 0) == 67  # always black
