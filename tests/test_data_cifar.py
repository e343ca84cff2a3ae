import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from proact_onnx.data.sources import load_dataset
from proact_onnx.errors import DataError

RNG = np.random.default_rng(11)
PIXELS = RNG.integers(0, 256, (12, 3, 32, 32), np.uint8)
LABELS = RNG.integers(0, 10, 12)
Writer = Callable[[Path, slice], None]


def write_binary10(path: Path, rows: slice) -> None:
    with path.with_suffix(".bin").open("wb") as file:
        for label, image in zip(LABELS[rows], PIXELS[rows], strict=True):
            file.write(bytes([label]) + image.tobytes())


def write_python10(path: Path, rows: slice) -> None:
    batch = {
        b"batch_label": b"training batch",
        b"labels": LABELS[rows].tolist(),
        b"data": PIXELS[rows].reshape(-1, 3072),
        b"filenames": [b"some_image.png"] * len(LABELS[rows]),
    }
    path.write_bytes(pickle.dumps(batch, protocol=2))


def write_binary100(path: Path, rows: slice) -> None:
    with path.with_suffix(".bin").open("wb") as file:
        for label, image in zip(LABELS[rows], PIXELS[rows], strict=True):
            file.write(bytes([label // 5, label + 90]) + image.tobytes())


def write_python100(path: Path, rows: slice) -> None:
    batch = {
        "fine_labels": (LABELS[rows] + 90).tolist(),
        "coarse_labels": (LABELS[rows] // 5).tolist(),
        "data": PIXELS[rows].reshape(-1, 3072),
    }
    path.write_bytes(pickle.dumps(batch, protocol=2))


CIFAR10 = pytest.mark.parametrize("write", [write_binary10, write_python10])
CIFAR100 = pytest.mark.parametrize("write", [write_binary100, write_python100])


@CIFAR10
def test_cifar10_folder(tmp_path: Path, write: Writer) -> None:
    write(tmp_path / "data_batch_2", slice(5, 9))
    write(tmp_path / "data_batch_1", slice(5))
    write(tmp_path / "test_batch", slice(9, 12))
    (tmp_path / "batches.meta").write_bytes(b"names")
    (tmp_path / "readme.html").write_text("<html>")
    train = load_dataset(tmp_path, part="train")
    np.testing.assert_array_equal(train.images, PIXELS[:9])
    np.testing.assert_array_equal(train.labels, LABELS[:9])
    assert train.source == f"{tmp_path} (train)"
    test = load_dataset(tmp_path, part="test")
    np.testing.assert_array_equal(test.images, PIXELS[9:])
    np.testing.assert_array_equal(test.labels, LABELS[9:])
    with pytest.raises(DataError, match="holds a train and a test part"):
        load_dataset(tmp_path)


@CIFAR100
def test_cifar100_folder_has_fine_labels(tmp_path: Path, write: Writer) -> None:
    write(tmp_path / "train", slice(8))
    write(tmp_path / "test", slice(8, 12))
    train = load_dataset(tmp_path, part="train")
    np.testing.assert_array_equal(train.images, PIXELS[:8])
    np.testing.assert_array_equal(train.labels, LABELS[:8] + 90)
    np.testing.assert_array_equal(load_dataset(tmp_path, part="test").labels, LABELS[8:] + 90)


@CIFAR10
def test_one_file(tmp_path: Path, write: Writer) -> None:
    write(tmp_path / "test_batch", slice(3))
    (file,) = tmp_path.iterdir()
    dataset = load_dataset(file)
    np.testing.assert_array_equal(dataset.images, PIXELS[:3])
    assert load_dataset(file, part="test").digest == dataset.digest
    with pytest.raises(DataError, match="only a test part, not a train part"):
        load_dataset(file, part="train")


def test_binary_files_come_before_python_files(tmp_path: Path) -> None:
    write_binary10(tmp_path / "test_batch", slice(2))
    write_python10(tmp_path / "test_batch", slice(5))
    assert len(load_dataset(tmp_path)) == 2


def test_batch_pickled_by_python_2_and_numpy_1(tmp_path: Path) -> None:
    # The opcodes Python 2 wrote: byte strings, and NumPy's names of that time.
    pixels = PIXELS[0].tobytes()
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85"
        b"U\x01btR(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(pixels).to_bytes(4, "little")
        + pixels
        + b"tbU\x06labels]K\x07au."
    )
    (tmp_path / "test_batch").write_bytes(content)
    dataset = load_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.images, PIXELS[:1])
    np.testing.assert_array_equal(dataset.labels, [7])


@CIFAR10
def test_cut_off(tmp_path: Path, write: Writer) -> None:
    write(tmp_path / "test_batch", slice(3))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="cut off"):
        load_dataset(file)


def test_binary_of_another_width(tmp_path: Path) -> None:
    write_binary100(tmp_path / "data_batch_1", slice(2))
    with pytest.raises(DataError, match="6148 bytes, not a multiple of the 3073"):
        load_dataset(tmp_path)


def test_empty_binary(tmp_path: Path) -> None:
    (tmp_path / "test.bin").touch()
    with pytest.raises(DataError, match="has 0 bytes"):
        load_dataset(tmp_path)


def test_binary_with_impossible_label(tmp_path: Path) -> None:
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073) + bytes([10]) + bytes(3072))
    with pytest.raises(DataError, match="label 10 at image 1, which is no class of CIFAR-10"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"labels": [1]},
        {"data": np.zeros((1, 3072), np.uint8)},
        {"data": np.zeros((1, 3072)), "labels": [1]},
        {"data": np.zeros((1, 100), np.uint8), "labels": [1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1]},
    ],
)
def test_pickle_that_is_no_batch(tmp_path: Path, content: object) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match="is not a CIFAR batch"):
        load_dataset(tmp_path)
