import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from proact_onnx.data.sources import load_dataset
from proact_onnx.errors import DataError

RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (7, 28, 28), np.uint8)
LABELS = RNG.integers(0, 10, 7).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(path: Path, array: np.ndarray) -> Path:
    content = idx(array)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_folder(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train-images-idx3-ubyte{suffix}", IMAGES[:4])
    write(tmp_path / f"train-labels-idx1-ubyte{suffix}", LABELS[:4])
    write(tmp_path / f"t10k-images-idx3-ubyte{suffix}", IMAGES[4:])
    write(tmp_path / f"t10k-labels-idx1-ubyte{suffix}", LABELS[4:])
    for part, rows in (("train", slice(4)), ("test", slice(4, 7))):
        dataset = load_dataset(tmp_path, part=part)
        np.testing.assert_array_equal(dataset.images, IMAGES[rows])
        np.testing.assert_array_equal(dataset.labels, LABELS[rows])
    with pytest.raises(DataError, match="holds a train and a test part"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"),
        ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
        ("emnist-letters-images-idx3-ubyte", "emnist-letters-labels-idx1-ubyte"),
    ],
)
def test_labels_are_found_beside_one_file(tmp_path: Path, images: str, labels: str) -> None:
    write(tmp_path / labels, LABELS)
    dataset = load_dataset(write(tmp_path / images, IMAGES))
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)


def test_labels_may_be_given_or_absent(tmp_path: Path) -> None:
    images = write(tmp_path / "t10k-images-idx3-ubyte", IMAGES)
    assert load_dataset(images).labels is None
    (tmp_path / "elsewhere").mkdir()
    labels = write(tmp_path / "elsewhere" / "t10k-labels-idx1-ubyte.gz", LABELS)
    np.testing.assert_array_equal(load_dataset(images, labels).labels, LABELS)


def test_part_of_a_file_without_one(tmp_path: Path) -> None:
    file = write(tmp_path / "letters-images-idx3-ubyte", IMAGES)
    with pytest.raises(DataError, match="holds no parts, not a test part"):
        load_dataset(file, part="test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(LABELS), "begins with 00 00 08 01, not with the 00 00 08 03 of an IDX file of images"),
        (b"\x00\x00\x0d\x03" + bytes(12), "begins with 00 00 0d 03"),
        (b"", "begins with nothing"),
        (idx(IMAGES)[:10], "begins with 00 00 08 03"),
        (idx(IMAGES)[:-1], "7 x 28 x 28 values but holds 5487 bytes"),
        (idx(IMAGES) + b"\x00", "but holds 5489 bytes"),
        (idx(IMAGES[:0]), "holds no image data"),
    ],
)
def test_damaged(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_dataset(file)


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(idx(IMAGES))[:500]])
def test_damaged_gzip(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match="not an IDX file of images, or it is damaged or cut off"):
        load_dataset(file)


def test_labels_of_another_count(tmp_path: Path) -> None:
    write(tmp_path / "t10k-labels-idx1-ubyte", LABELS[:3])
    with pytest.raises(DataError, match="7 images but 3 labels"):
        load_dataset(write(tmp_path / "t10k-images-idx3-ubyte", IMAGES))
