"""Images and labels in NumPy files: ``.npz`` archives and single ``.npy`` arrays."""

import zipfile
import zlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import NpzFile

from proact_onnx.data.dataset import Dataset, class_indices
from proact_onnx.data.decoding import Size, decode_images
from proact_onnx.data.inputs import bundle
from proact_onnx.data.parts import PARTS, Part, choose_part
from proact_onnx.data.reading import reading
from proact_onnx.errors import DataError

Array = npt.NDArray[Any]

IMAGE_KEYS = ("images", "image", "x", "data")
LABEL_KEYS = ("labels", "label", "y", "targets", "target")

# Before the name of a model's input that could be taken for images.
_INPUT = "input:"
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    KeyError,
    # An archive with a password, a compression method of another program, an absurd shape.
    RuntimeError,
    MemoryError,
)


def read_npz(path: Path, part: Part | None = None, size: Size | None = None) -> Dataset:
    """Read images, and labels where there are any, from an ``.npz`` archive.

    Keys are compared without regard to case. Images are ``images``, ``image``, ``x`` or ``data``
    and labels ``labels``, ``label``, ``y``, ``targets`` or ``target``, the first that is there;
    archives with parts put ``train`` or ``test`` before or after, as in ``x_train`` or
    ``test_images``. Compressed image files stand one after another in a byte array ``jpeg``, the
    i-th from ``offsets[i]`` to ``offsets[i + 1]``, with their ``labels``.

    Where there are no images under these keys, all other arrays are inputs of a model by their
    names. An input that is named like images is stored with ``input:`` before its name, and so are
    all others then.

    Args:
        path: The archive; pickled content is never read.
        part: ``"train"`` or ``"test"`` for an archive with parts.
        size: Height and width to decode compressed images to; arrays keep their size.

    Raises:
        DataError: If the archive is damaged, holds no images under these keys, holds both parts
            and none is asked for, or lacks the part asked for.
    """
    with _open_archive(path) as archive:
        keys = {key.lower(): key for key in archive}
        if "jpeg" in keys and "offsets" in keys:
            chosen = choose_part((), part, path)
            data, offsets = (_member(archive, keys[key], path) for key in ("jpeg", "offsets"))
            images: Array = _decode_jpeg(data, offsets, path, size)
        elif (inputs := _inputs(archive, part)) is not None:
            chosen = None
            images = bundle({n: _member(archive, k, path) for n, k in inputs.items()}, str(path))
        else:
            chosen = _choose_part(keys, part, path)
            images = _find(archive, keys, _with_part(IMAGE_KEYS, chosen), "images", path)
        label_keys = _with_part(LABEL_KEYS, chosen)
        labels = None
        if _first(keys, label_keys) is not None:
            labels = class_indices(_find(archive, keys, label_keys, "labels", path), str(path))
    return Dataset(images, labels, f"{path} ({chosen})" if chosen else str(path))


def read_npz_labels(path: Path) -> Array:
    """Read the labels of an ``.npz`` archive, in the form they are stored in.

    Raises:
        DataError: If the archive is damaged or holds no labels under a known key.
    """
    with _open_archive(path) as archive:
        keys = {key.lower(): key for key in archive}
        return _find(archive, keys, LABEL_KEYS, "labels", path)


def read_npy(path: Path) -> Array:
    """Read the array of an ``.npy`` file.

    Raises:
        DataError: If the file is damaged, or holds Python objects.
    """
    with reading(path, "a NumPy array of numbers", *_DAMAGE):
        array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path} is an archive of arrays: name it .npz")
    return array


def _open_archive(path: Path) -> NpzFile:
    with reading(path, "a NumPy archive of numbers", *_DAMAGE):
        archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, NpzFile):
        raise DataError(f"{path} is a single array, not an archive: name it .npy")
    return archive


def _member(archive: NpzFile, key: str, path: Path) -> Array:
    with reading(path, "a NumPy archive of numbers", *_DAMAGE):
        member = archive[key]
    if not isinstance(member, np.ndarray):
        raise DataError(f"{key!r} in {path} is no array: store it with numpy.savez")
    return member


def _find(
    archive: NpzFile, keys: Mapping[str, str], wanted: tuple[str, ...], what: str, path: Path
) -> Array:
    key = _first(keys, wanted)
    if key is None:
        raise DataError(
            f"{path} holds no {what} under a known key (it has "
            f"{', '.join(keys.values()) or 'no array'}): store them as {what!r}"
        )
    return _member(archive, key, path)


def _choose_part(keys: Mapping[str, str], wanted: Part | None, path: Path) -> Part | None:
    if wanted is None and _first(keys, IMAGE_KEYS) is not None:
        return None
    divided: list[Part] = [
        part for part in PARTS if _first(keys, _with_part(IMAGE_KEYS, part)) is not None
    ]
    return choose_part(divided, wanted, path)


def _with_part(keys: tuple[str, ...], part: Part | None) -> tuple[str, ...]:
    if part is None:
        return keys
    return tuple(name for key in keys for name in (f"{key}_{part}", f"{part}_{key}"))


def _inputs(archive: NpzFile, part: Part | None) -> dict[str, str] | None:
    """Keys by name of a model input; None where the archive holds images."""
    marked = {key.removeprefix(_INPUT): key for key in archive if key.startswith(_INPUT)}
    if marked:
        return marked
    lower = [key.lower() for key in archive]
    images = {name for part in (None, *PARTS) for name in _with_part(IMAGE_KEYS, part)}
    unnamed = not lower or any(key.startswith("arr_") for key in lower)
    if part is not None or unnamed or not images.isdisjoint(lower):
        return None
    labels = {name for part in (None, *PARTS) for name in _with_part(LABEL_KEYS, part)}
    return {key: key for key in archive if key.lower() not in labels} or None


def _first(keys: Mapping[str, str], wanted: tuple[str, ...]) -> str | None:
    return next((keys[key] for key in wanted if key in keys), None)


def _decode_jpeg(data: Array, offsets: Array, path: Path, size: Size | None) -> Array:
    if data.ndim != 1 or data.dtype != np.uint8:
        raise DataError(
            f"'jpeg' in {path} has type {data.dtype} and shape {data.shape}: store the content of "
            "the image files as one row of uint8"
        )
    if offsets.ndim != 1 or offsets.dtype.kind not in "ui":
        raise DataError(
            f"'offsets' in {path} has type {offsets.dtype} and shape {offsets.shape}: store one "
            "row of integers"
        )
    bounds = offsets.astype(np.int64)
    if len(bounds) < 2 or bounds[0] < 0 or bounds[-1] > len(data) or np.any(np.diff(bounds) <= 0):
        raise DataError(
            f"'offsets' in {path} do not rise within the {len(data)} bytes of 'jpeg': store N + 1 "
            "of them, image i lying between offsets i and i + 1"
        )
    files = [data[start:end].tobytes() for start, end in pairwise(bounds)]
    return decode_images(files, lambda index: f"image {index} of {path}", size)
