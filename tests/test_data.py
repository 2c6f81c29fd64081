"""Where the images come from, as they lie on people's disks, and what is wrong with them."""

import gzip
import socket
import struct

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, assert_one_line, files_in, read_rows

import network_pruning
from network_pruning import UserError, load_dataset, load_datasets

keras = tf.keras
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


IMAGES = idx_bytes(ARRAYS[0])


def write_folder(folder, arrays=ARRAYS, name="{}", packed=False):
    """Write the four IDX files of a data set; `name` makes a file's name from the official one."""
    for official, array in zip(NAMES, arrays):
        path = folder / name.format(official)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))


def changed(index, array):
    """The arrays of a data set with one of them replaced."""
    return [*ARRAYS[:index], array, *ARRAYS[index + 1 :]]


def assert_loaded(dataset):
    """A data set is that of ARRAYS, in the form in which it is used."""
    brightest = ARRAYS[0].max()
    np.testing.assert_allclose(dataset.train_images, ARRAYS[0].reshape(20, 12) / brightest)
    np.testing.assert_allclose(dataset.test_images, ARRAYS[2].reshape(10, 12) / brightest)
    np.testing.assert_array_equal(dataset.train_targets, np.eye(10)[ARRAYS[1]])
    np.testing.assert_array_equal(dataset.test_labels, ARRAYS[3])
    assert dataset.train_images.dtype == dataset.train_targets.dtype == tf.float32


# --------------------------------------------------------------------------------- IDX files


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["{}", "{}.gz"])  # whatever the name says
def test_files_named_as_mnist_names_them_are_read_packed_or_not(tmp_path, name, packed):
    write_folder(tmp_path / "mnist", name=name, packed=packed)
    assert_loaded(load_dataset("mnist", tmp_path))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("{}", "-idx", ".idx"),  # as some archives unpack
        ("{0}/{0}", "", ""),  # a folder of the file's name, as Kaggle packs
        ("MNIST/raw/{}", "", ""),  # torchvision
        ("emnist-letters-{}.gz", "t10k", "test"),
        ("{}", "", ""),
    ],
    ids=["dot", "kaggle", "torchvision", "emnist", "plain"],
)
def test_files_are_found_by_what_their_names_say(tmp_path, name, old, new):
    write_folder(tmp_path / "mine", name=name)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.rename(path.with_name(path.name.replace(old, new)))
    (tmp_path / "mine" / "._train-images-idx3-ubyte").write_bytes(b"of a Mac")
    (tmp_path / "mine" / "README").write_text("train images")
    assert_loaded(load_dataset("mine", tmp_path))


def test_a_packed_file_beside_the_unpacked_one_counts_as_one(tmp_path):
    write_folder(tmp_path / "mine")
    write_folder(tmp_path / "mine", name="{}.gz", packed=True)
    assert_loaded(load_dataset("mine", tmp_path))


def test_where_none_or_several_fit_what_was_found_is_listed(tmp_path):
    write_folder(tmp_path / "mine")
    write_folder(tmp_path / "mine" / "other", [array + 1 for array in ARRAYS])
    with pytest.raises(
        UserError, match="needs one file of training images.*found there: other/train-im"
    ):
        load_dataset("mine", tmp_path)
    write_folder(tmp_path / "half", ARRAYS[:2])
    with pytest.raises(
        UserError, match="one file of test images.*found there: train-images-idx3-ubyte, "
    ):
        load_dataset("half", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="one file of training images.*found there: no files"):
        load_dataset("empty", tmp_path)


def test_a_folder_that_cannot_be_read_is_named_with_the_reason(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"absent \(--data-dir\) is not a folder"):
        load_datasets(["digits"], tmp_path / "absent")
    with pytest.raises(UserError, match=r"absent \(in --data-dir\) cannot be read: No such file"):
        load_dataset("absent", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file \(in --data-dir\) cannot be read: Not a directory"):
        load_dataset("file", tmp_path)

    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(network_pruning.os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        load_dataset("mine", tmp_path)


def test_links_to_folders_and_files_are_followed_and_one_to_a_folder_above_is_no_trap(tmp_path):
    write_folder(tmp_path / "elsewhere" / "raw")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").symlink_to(tmp_path / "elsewhere")
    assert_loaded(load_dataset("mine", tmp_path / "data"))
    (tmp_path / "data" / "below").mkdir()
    (tmp_path / "data" / "below" / "raw").symlink_to(tmp_path / "elsewhere" / "raw")
    for loop in ("loop", "loops"):
        (tmp_path / "data" / "below" / loop).symlink_to(tmp_path / "data" / "below")
    assert_loaded(load_dataset("below", tmp_path / "data"))
    (tmp_path / "data" / "files").mkdir()
    for name in NAMES:  # as caches keep files, under a name of its content
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "elsewhere" / "raw" / name).rename(tmp_path / "blobs" / name[::-1])
        (tmp_path / "data" / "files" / name).symlink_to(tmp_path / "blobs" / name[::-1])
    assert_loaded(load_dataset("files", tmp_path / "data"))


@pytest.mark.parametrize(
    "name", ["mnist (1)", "e\u0301te\u0301", "\u624b\u3000\u66f8", "-x", "a.b", "$x^$"]
)
@pytest.mark.filterwarnings("error:Glyph")
def test_a_data_set_may_have_any_name_that_a_folder_has(run_main, tmp_path, name):
    write_folder(tmp_path / "data" / name)
    options = ("--data-dir", "data", *TINY[2:], "--methods", "weight", "--seeds", 0)
    done = run_main(*options, f"--datasets={name}/", draw=name == "$x^$")
    assert done.returncode == 0, done.stderr
    assert {row["dataset"] for row in read_rows(tmp_path / "plots" / f"{name}.csv")} == {name}


def test_labels_are_the_distinct_ones_of_training(tmp_path):
    """EMNIST's letters are 1 to 26, and 26 classes."""
    letters = changed(1, ARRAYS[1] + 1)
    letters[3] = ARRAYS[3] + 1
    write_folder(tmp_path / "letters", letters)
    assert_loaded(load_dataset("letters", tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "IDX file: it does not begin like"),
        (gzip.compress(IMAGES)[:-20], "ended before the end-of-stream"),
        (gzip.compress(IMAGES)[:99] + bytes(4) + gzip.compress(IMAGES)[103:], "CRC check"),
        (b"\1" + IMAGES[1:], "it does not begin like"),
        (b"\0\0\x0d\3" + IMAGES[4:], "it does not begin like"),
        (IMAGES[:10], "buffer"),
        (IMAGES[:-1], "cannot reshape array of size 239 into shape (20,4,3)"),
        (IMAGES + b"\0", "cannot reshape array of size 241"),
    ],
    ids=["empty", "truncated", "corrupt", "magic", "type", "header", "short", "long"],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, content, message):
    write_folder(tmp_path / "mnist")
    path = tmp_path / "mnist" / NAMES[0]
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_dataset("mnist", tmp_path)
    assert str(caught.value).startswith(f"{path} cannot be read")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(1, ARRAYS[1][:-1]), r"training labels \(19,\)"),
        (changed(3, ARRAYS[3][:-1]), r"test labels \(9,\)"),
        (changed(3, ARRAYS[3] + 1), r"test labels that the training labels lack: \[10\]"),
        (
            changed(1, np.zeros(20, np.uint8)),
            r"training labels of one class, \[0\]; two are needed",
        ),
        (changed(2, np.ones((10, 3, 4), np.uint8)), r"test images \(10, 3, 4\)"),
        (changed(0, ARRAYS[0][:0]), r"training images \(0, 4, 3\)"),
        (changed(2, ARRAYS[2][:0]), r"test images \(0, 4, 3\)"),
        (changed(0, 0 * ARRAYS[0]), "not all black"),
        (changed(0, ARRAYS[1]), r"training images \(20,\)"),
        (changed(1, ARRAYS[0]), r"training labels \(20, 4, 3\)"),
    ],
    ids=(
        ["counts", "test-counts", "labels", "one-class", "shape", "empty-training", "empty-test"]
        + ["black", "labels-as-images", "images-as-labels"]
    ),
)
def test_files_that_do_not_fit_each_other_are_named(tmp_path, arrays, message):
    write_folder(tmp_path / "mine", arrays)
    with pytest.raises(UserError, match=f"^mine: .*{message}"):
        load_dataset("mine", tmp_path)


def test_bad_data_end_the_command_with_one_line_before_any_training(run_main, tmp_path):
    write_folder(tmp_path / "data" / "mnist", changed(1, ARRAYS[1][:-1]))
    done = run_main("--data-dir", "data", "--datasets", "mnist")
    assert_one_line(
        done, "error: mnist: not images [n, height, width], not all black, and n labels: "
    )
    assert files_in(tmp_path / "plots") == []


# ------------------------------------------------------------------------------- which data set


@pytest.fixture
def no_download(monkeypatch):
    """Let every download fail, as it does without a network."""

    def fail():
        raise Exception("URL fetch failure on\nhttps://example.org: no route to host")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", fail)


def test_a_data_dir_without_names_means_both_data_sets(tmp_path, no_download):
    write_folder(tmp_path / "mnist")
    write_folder(tmp_path / "fashion_mnist")
    assert [d.name for d in load_datasets(None, tmp_path)] == ["mnist", "fashion_mnist"]


def test_without_a_data_dir_both_are_downloaded_by_keras(monkeypatch):
    for name in ("mnist", "fashion_mnist"):
        load_data = lambda: (ARRAYS[:2], ARRAYS[2:])  # noqa: E731
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", load_data)
    for dataset in load_datasets(None, None):
        assert_loaded(dataset)


def test_where_nothing_is_named_the_digits_stand_in_and_that_is_said(no_download, capsys):
    [dataset] = load_datasets(None, None)
    assert dataset.name == "digits"
    assert dataset.train_images.shape == (1437, 64) and dataset.test_images.shape == (360, 64)
    assert np.max(dataset.train_images) == 1 and set(dataset.test_labels) == set(range(10))
    said = capsys.readouterr().err
    assert "no route to host" in said and "Using scikit-learn's digits instead" in said


def test_one_that_cannot_be_downloaded_leaves_the_other_alone(no_download, monkeypatch, capsys):
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: (ARRAYS[:2], ARRAYS[2:]))
    assert [dataset.name for dataset in load_datasets(None, None)] == ["mnist"]
    assert "fashion_mnist is unavailable: download failed" in capsys.readouterr().err


def test_digits_work_beside_a_data_dir_that_has_no_folder_of_that_name(tmp_path):
    write_folder(tmp_path / "mine")
    assert [d.name for d in load_datasets(["mine", "digits"], tmp_path)] == ["mine", "digits"]


def test_the_most_frequent_class_is_that_of_the_test_set(tmp_path):
    labels = changed(3, np.array([1] * 7 + [0, 2, 3], np.uint8))
    write_folder(tmp_path / "mine", labels)
    assert load_dataset("mine", tmp_path).majority_accuracy == 0.7


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_data_set_that_was_named_is_never_replaced(name, no_download, run_main, tmp_path):
    done = run_main("--datasets", name)
    assert_one_line(done, f"error: {name} is unavailable: download failed")
    # where to get the files by hand, under which names, and how they are read then
    told = ("delete an interrupted download", *NAMES, "https://github.com/", f"DIR/{name}")
    for part in (*told, "--data-dir DIR"):
        assert part in done.stderr
    assert done.stderr.count("\n") == 1
    assert files_in(tmp_path / "plots") == []


def test_any_folder_in_the_format_of_mnist_is_a_data_set(run_main, tmp_path):
    """Also one called digits; with as many classes as there are labels."""
    write_folder(tmp_path / "data" / "digits", changed(1, np.arange(20, dtype=np.uint8)))
    options = ("--data-dir", "data", *TINY, "--seeds", 0, "--refit-images", 0)
    assert run_main(*options).returncode == 0
    rows = read_rows(tmp_path / "plots" / "digits.csv")
    assert rows[0]["layer_sizes"] == "12-50-20-20"


def test_the_real_files_are_read(real_data):
    for dataset in load_datasets(None, real_data):
        assert dataset.train_images.shape == (60000, 784)
        assert dataset.test_images.shape == (10000, 784)
        assert set(np.bincount(dataset.test_labels)) == (
            {1000}
            if dataset.name == "fashion_mnist"
            else {980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009}
        )


# -------------------------------------------------------------------------------------- downloads


def test_a_silent_server_does_not_hang_the_download(monkeypatch):
    timeouts = []
    load_data = lambda: timeouts.append(socket.getdefaulttimeout())  # noqa: E731
    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    with pytest.raises(UserError):
        load_dataset("mnist", None)
    assert timeouts == [network_pruning.DOWNLOAD_TIMEOUT] and socket.getdefaulttimeout() is None
