"""CIFAR-10 and CIFAR-100 in the forms they are published in, binary and Python.

Formats as described at https://www.cs.toronto.edu/~kriz/cifar.html: an image is 3072 bytes,
channel by channel, row by row; in the binary form its labels stand before it, one byte each.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.data.dataset import Dataset, class_indices
from proact_onnx.data.parts import Part, choose_part
from proact_onnx.data.pickles import read_pickle
from proact_onnx.data.reading import reading
from proact_onnx.errors import DataError

_PIXELS = 3 * 32 * 32
_NAME = re.compile(r"((?P<train>data_batch\w*|train)|test_batch\w*|test)(?P<binary>\.bin)?")

Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def is_cifar_file(path: Path) -> bool:
    """Whether the file's name is an official one, such as ``data_batch_1.bin`` or ``train``."""
    return _NAME.fullmatch(path.name) is not None


def cifar_files(folder: Path) -> list[Path]:
    """The CIFAR files of a folder in the official order; binary ones where both forms lie there.

    Raises:
        DataError: If the folder cannot be read.
    """
    with reading(folder, "a folder"):
        found = [entry for entry in folder.iterdir() if is_cifar_file(entry) and entry.is_file()]
    binary = [entry for entry in found if entry.suffix]
    return sorted(binary or found, key=lambda file: (len(file.name), file.name))


def read_cifar(files: Sequence[Path], part: Part | None, path: Path) -> Dataset:
    """Read one part of CIFAR-10 or CIFAR-100; of CIFAR-100 the fine labels.

    Args:
        files: At least one file with an official name. Training batches that are not among them
            are left out without complaint, so that one batch is a dataset too.
        part: The part to read; needed when ``files`` hold both.
        path: The file or folder the user named.

    Returns:
        uint8 images ``[N, 3, 32, 32]`` with labels.

    Raises:
        DataError: If a file is damaged or cut off, or the part is not there or not clear.
    """
    by_part: dict[Part, list[Path]] = {}
    for file in files:
        by_part.setdefault(_part(file), []).append(file)
    chosen = choose_part(by_part, part, path)
    assert chosen is not None
    batches = [_read_batch(file) for file in by_part[chosen]]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return Dataset(images, labels, f"{path} ({chosen})" if path.is_dir() else str(path))


def _part(path: Path) -> Part:
    match = _NAME.fullmatch(path.name)
    return "train" if match and match["train"] else "test"


def _read_batch(path: Path) -> Batch:
    return _read_binary(path) if path.suffix else _read_python(path)


def _read_binary(path: Path) -> Batch:
    # CIFAR-10: label, pixels. CIFAR-100: coarse label, fine label, pixels.
    name, label_bytes, classes = ("CIFAR-10", 1, 10) if "batch" in path.name else (
        "CIFAR-100", 2, 100
    )  # fmt: skip
    with reading(path, f"a {name} binary file"):
        content = np.fromfile(path, np.uint8)
    width = label_bytes + _PIXELS
    if content.size == 0 or content.size % width:
        raise DataError(
            f"{path} has {content.size} bytes, not a multiple of the {width} that an image takes "
            f"in a {name} binary file: it is cut off or of another format, so fetch it again"
        )
    rows = content.reshape(-1, width)
    labels = rows[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(
            f"{path} has the label {labels.max()} at image {int(labels.argmax())}, which is no "
            f"class of {name}: it is damaged or of another format, so fetch it again"
        )
    return rows[:, label_bytes:].reshape(-1, 3, 32, 32), labels


def _read_python(path: Path) -> Batch:
    content = read_pickle(path)
    batch: dict[Any, Any] = content if isinstance(content, dict) else {}
    entries = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
    pixels, labels = entries.get("data"), entries.get("labels", entries.get("fine_labels"))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != _PIXELS
        or not isinstance(labels, list | np.ndarray)
        or len(labels) != len(pixels)
    ):
        raise DataError(
            f"{path} is not a CIFAR batch: it needs 'data', uint8 of shape [N, {_PIXELS}], and as "
            "many 'labels' or 'fine_labels', so fetch it again"
        )
    return pixels.reshape(-1, 3, 32, 32), class_indices(np.asarray(labels), str(path))
