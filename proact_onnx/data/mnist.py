"""MNIST and its relatives in IDX files, plain or compressed with gzip.

The format is described at http://yann.lecun.com/exdb/mnist/: two zero bytes, a byte for the type
(8 for unsigned bytes), one for the number of axes, the extents as big-endian 32-bit integers, and
the values.
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from proact_onnx.data.dataset import Dataset, class_indices
from proact_onnx.data.parts import Part, choose_part
from proact_onnx.data.reading import reading
from proact_onnx.errors import DataError

_NAME = re.compile(r".*(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_UNSIGNED_BYTES = 8


def is_idx_file(path: Path) -> bool:
    """Whether the file's name is that of an IDX file, as in ``t10k-images-idx3-ubyte.gz``."""
    return _NAME.fullmatch(path.name) is not None


def idx_image_files(folder: Path) -> list[Path]:
    """The IDX files of images in a folder, a plain one before its compressed twin.

    Raises:
        DataError: If the folder cannot be read.
    """
    with reading(folder, "a folder"):
        return sorted(
            entry
            for entry in folder.iterdir()
            if is_idx_file(entry) and "images" in entry.name and entry.is_file()
        )


def read_mnist(files: Sequence[Path], part: Part | None, path: Path) -> Dataset:
    """Read one part of MNIST or of a dataset in its form.

    The labels come from the file beside that has ``labels-idx1`` in its name where the images
    have ``images-idx3``; without such a file there are none.

    Args:
        files: At least one IDX file of images, in the order of preference for each part.
        part: The part to read; needed when ``files`` hold both.
        path: The file or folder the user named.

    Returns:
        uint8 images ``[N, H, W]``.

    Raises:
        DataError: If a file is damaged or cut off, or the part is not there or not clear.
    """
    by_part: dict[Part, Path] = {}
    for file in files:
        if (known := _part(file)) is not None:
            by_part.setdefault(known, file)
    chosen = choose_part(by_part, part, path)
    images_file = files[0] if chosen is None else by_part[chosen]
    labels_file = _labels_beside(images_file)
    labels = None if labels_file is None else read_idx_labels(labels_file)
    source = f"{path} ({chosen})" if path.is_dir() and chosen else str(path)
    return Dataset(_read_idx(images_file, axes=3), labels, source)


def read_idx_labels(path: Path) -> npt.NDArray[np.int64]:
    """Read an IDX file of labels.

    Raises:
        DataError: If it is damaged, cut off or no such file.
    """
    return class_indices(_read_idx(path, axes=1), str(path))


def _part(path: Path) -> Part | None:
    if "train" in path.name:
        return "train"
    return "test" if "t10k" in path.name or "test" in path.name else None


def _labels_beside(images: Path) -> Path | None:
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    beside = (images.with_name(name), images.with_name(name + ".gz"))
    return next((file for file in beside if file.is_file()), None)


def _read_idx(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    form = f"an IDX file of {'images' if axes == 3 else 'labels'}"
    opener = gzip.open if path.suffix == ".gz" else open
    with reading(path, form, gzip.BadGzipFile, EOFError, zlib.error), opener(path, "rb") as file:
        header = file.read(4 + 4 * axes)
        if header[:4] != bytes((0, 0, _UNSIGNED_BYTES, axes)) or len(header) != 4 + 4 * axes:
            raise DataError(
                f"{path} begins with {header[:4].hex(' ') or 'nothing'}, not with the "
                f"00 00 08 {axes:02x} of {form} of bytes: name the right file, or fetch it again"
            )
        shape = struct.unpack(f">{axes}I", header[4:])
        content = file.read()
    if len(content) != math.prod(shape):
        raise DataError(
            f"{path} announces {' x '.join(map(str, shape))} values but holds {len(content)} "
            "bytes of them: it is damaged or cut off, so fetch it again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
