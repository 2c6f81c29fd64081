"""Where the images come from, as they lie on people's disks, and what is wrong with them."""

import gzip
import struct

import numpy as np
import pytest
from conftest import TINY, assert_one_line, results

from network_pruning import UserError, keras, load_dataset, load_datasets

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 4, 3), dtype=np.uint8)
CLASSES = np.arange(30, dtype=np.uint8) % 10
ARRAYS = [PIXELS[:20], CLASSES[:20], PIXELS[20:], CLASSES[20:]]
KINDS = ("images-idx3", "labels-idx1")
NAMES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in KINDS]


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
def test_files_are_found_by_what_their_names_say(tmp_path, name, old, new, packed):
    write_folder(tmp_path / "mine", name=name, packed=packed)
    write_folder(tmp_path / "mine", name=f"{name}.gz", packed=True)  # beside it: counts as one
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.rename(path.with_name(path.name.replace(old, new)))
    (tmp_path / "mine" / "._train-images-idx3-ubyte").write_bytes(b"of a Mac")
    (tmp_path / "mine" / "README").write_text("train images")
    assert_loaded(load_dataset("mine", tmp_path))


def test_where_none_or_several_fit_what_was_found_is_listed(tmp_path):
    write_folder(tmp_path / "mine", ARRAYS[:2], name="a/{}")
    with pytest.raises(UserError, match="one IDX file of test images, but has a/train-images.*, a"):
        load_dataset("mine", tmp_path)
    write_folder(tmp_path / "mine", name="b/{}")
    with pytest.raises(UserError, match="one IDX file of training images, but has a/tr.*, b/train"):
        load_dataset("mine", tmp_path)


IMAGES = idx_bytes(ARRAYS[0])


PACKED = gzip.compress(IMAGES)
FLOATS = struct.pack(">HBBI", 0, 0x0D, 1, 1) + bytes(4)
SIGNED = IMAGES.replace(b"\0\0\x08", b"\0\0\x09", 1)
OTHERS = [b"", FLOATS, SIGNED, b"<html>404: not found</html>", b"\x89PNG\r\n" + IMAGES]


@pytest.mark.parametrize(
    "content", [*OTHERS, PACKED[:-20], PACKED[:-12] + bytes(12), IMAGES[:10], IMAGES[:-1]]
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
        (1, ARRAYS[1][:, np.newaxis], r"training labels \(20, 1\)"),
        (3, np.eye(10, dtype=np.uint8), r"test labels \(10, 10\)"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, index, array, message):
    write_folder(tmp_path / "mine", [*ARRAYS[:index], array, *ARRAYS[index + 1 :]])
    with pytest.raises(UserError, match=f"^mine: .*{message}"):
        load_dataset("mine", tmp_path)


def test_a_set_without_images_or_of_one_class_is_refused(tmp_path):
    write_folder(tmp_path / "empty", [*ARRAYS[:2], ARRAYS[2][:0], ARRAYS[3][:0]])
    with pytest.raises(UserError, match=r"^empty: .*test images \(0, 4, 3\), test labels \(0,\)$"):
        load_dataset("empty", tmp_path)
    write_folder(tmp_path / "one", [array if array.ndim > 1 else 0 * array + 7 for array in ARRAYS])
    with pytest.raises(UserError, match="^one: all labels are 7; a classifier needs two classes$"):
        load_dataset("one", tmp_path)


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


def test_if_one_set_cannot_be_downloaded_the_other_is_used(no_download, monkeypatch, capfd):
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", lambda: (ARRAYS[:2], ARRAYS[2:]))
    assert [dataset.name for dataset in load_datasets(None, None)] == ["fashion_mnist"]
    assert capfd.readouterr().err.startswith("mnist cannot be downloaded: ")


def test_without_a_network_the_digits_stand_in_and_three_lines_say_so(no_download, capfd):
    [dataset] = load_datasets(None, None)
    assert dataset.name == "digits"
    assert dataset.train_images.shape == (1437, 64) and dataset.test_images.shape == (360, 64)
    assert np.max(dataset.train_images) == 1 and set(dataset.test_labels) == set(range(10))
    missing, _, instead = capfd.readouterr().err.splitlines()
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
    """Also with other classes, beside the digits, and with a slash at the end."""
    write_folder(tmp_path / "data" / "mine", [array + 3 * (array.ndim == 1) for array in ARRAYS])
    options = (*TINY, "--data-dir", "data", "--datasets", "mine/", "digits", "--seeds", 0)
    assert run_main(*options).returncode == 0
    sizes = [results(name=name)["layer_sizes"][0] for name in ("mine", "digits")]
    assert sizes == ["12-50-20-10", "64-50-20-10"]


@pytest.mark.parametrize("name", ["007", "NA", "a$b$c_", "."])
def test_whatever_a_folder_is_called_it_is_measured_read_and_drawn(run_main, tmp_path, name):
    write_folder(tmp_path / "data" / name)
    options = (*TINY, "--data-dir", "data", "--datasets", name, "--seeds", 0, "--methods", "weight")
    called = name.replace(".", "data")
    tables = []
    for _ in range(2):
        assert run_main(*options, draw=True).returncode == 0
        tables.append((tmp_path / "plots" / f"{called}.csv").read_bytes())
        assert (tmp_path / "plots" / f"{called}-accuracy.png").exists()
    assert tables[0] == tables[1]


def test_two_folders_of_one_name_are_refused_before_any_training(run_main, tmp_path):
    for folder in ("a", "b"):
        write_folder(tmp_path / folder / "letters")
    done = run_main(*TINY, "--data-dir", ".", "--datasets", "a/letters", "b/letters")
    assert_one_line(done, "error: two data sets have the same name: rename a folder")
    assert not (tmp_path / "plots").exists()


def test_the_real_files_are_read(real_data):
    mnist, fashion_mnist = load_datasets(None, real_data)
    for dataset in (mnist, fashion_mnist):
        assert dataset.train_images.shape == (60000, 784)
        assert dataset.test_images.shape == (10000, 784)
    assert np.bincount(mnist.test_labels)[:4].tolist() == [980, 1135, 1032, 1010]
    assert set(np.bincount(fashion_mnist.test_labels)) == {1000}
    assert np.count_nonzero(np.max(mnist.train_images, axis=0) == 0) == 67  # always black
