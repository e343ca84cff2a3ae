"""The images and labels of one source, as they are stored."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their labels; the arrays are shared, not copied, and must not be changed.

    Attributes:
        images: ``[N, ...]`` as stored: integers or floats, in any layout; for a model with several
            inputs records ``[N]`` with a field for each (`proact_onnx.data.inputs`).
        labels: Class index of each image, ``[N]``, or ``None`` where the source has none.
        source: Where the images came from, for messages and provenance.

    Raises:
        DataError: If there are no images, if they are not numbers, or if the labels are not one
            integer for each image.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    source: str

    def __post_init__(self) -> None:
        records = self.images.dtype.names is not None
        if self.images.dtype.kind not in "uif" and not records:
            raise DataError(
                f"the images of {self.source} are of type {self.images.dtype}: store them as "
                "integers or floats"
            )
        if self.images.ndim < 2 and not records:
            raise DataError(
                f"the images of {self.source} have shape {self.images.shape}: store them with one "
                "axis for the images and at least one for what each holds"
            )
        if self.images.size == 0:
            raise DataError(
                f"{self.source} holds no image data (shape {self.images.shape}): give a source "
                "with at least one image"
            )
        if self.labels is None:
            return
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "ui":
            raise DataError(
                f"the labels of {self.source} have type {self.labels.dtype} and shape "
                f"{self.labels.shape}: give one integer class index for each image"
            )
        if len(self.labels) != len(self.images):
            raise DataError(
                f"{self.source} has {len(self.images)} images but {len(self.labels)} labels: give "
                "one for each image"
            )
        object.__setattr__(self, "labels", self.labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: npt.ArrayLike) -> "Dataset":
        """Return the images at ``indices``, in that order, with their labels.

        Args:
            indices: Integers in ``[0, N)``; an index may occur more than once.

        Raises:
            DataError: If there are no indices.
            IndexError: If an index lies outside the dataset.
        """
        chosen = np.asarray(indices, dtype=np.intp)
        labels = None if self.labels is None else self.labels[chosen]
        return Dataset(self.images[chosen], labels, self.source)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, over type, shape and bytes of the images and of the labels.

        Of data for several inputs, names, types and bytes of all of them count.

        Two datasets with the same digest hold the same data; the source is not part of it.
        """
        digest = hashlib.sha256()
        for array in (self.images, self.labels):
            if array is None:
                digest.update(b"none;")
                continue
            digest.update(f"{_spell_type(array.dtype)}{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def _spell_type(dtype: np.dtype[Any]) -> str:
    """Spell a type; of records with several fields, the names and types of all of them."""
    return str(dtype.descr) if dtype.names and len(dtype.names) > 1 else dtype.str


def split_disjoint(dataset: Dataset, sizes: Sequence[int], seed: int) -> list[Dataset]:
    """Draw random subsets that share no image.

    Args:
        dataset: What to draw from.
        sizes: Number of images of each subset; what they leave over is in none.
        seed: The same seed gives the same subsets, in the same order.

    Returns:
        One dataset for each size, its images in random order.

    Raises:
        DataError: If a size is below one, or the sizes exceed the number of images.
    """
    if any(size < 1 for size in sizes):
        raise DataError(
            f"cannot draw subsets of sizes {list(sizes)} from {dataset.source}: each needs at "
            "least one image"
        )
    if sum(sizes) > len(dataset):
        raise DataError(
            f"{dataset.source} has {len(dataset)} images, too few for disjoint subsets of "
            f"{' + '.join(map(str, sizes))} = {sum(sizes)}: give more images, or ask for fewer"
        )
    order = np.random.default_rng(seed).permutation(len(dataset))
    ends = np.cumsum(sizes)
    return [dataset.take(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def class_indices(stored: npt.NDArray[Any], source: str) -> npt.NDArray[np.int64]:
    """Bring stored labels into the form of :attr:`Dataset.labels`.

    Args:
        stored: Integers of shape ``[N]`` or ``[N, 1]``, or exactly one-hot rows ``[N, K]`` of
            any number type.
        source: Where the labels came from, for the message.

    Raises:
        DataError: If the labels are of another type or shape, or their rows not one-hot.
    """
    if stored.ndim == 2 and stored.shape[1] > 1 and stored.dtype.kind in "buif":
        hot = stored == 1
        if not (np.all(hot.sum(axis=1) == 1) and np.all(hot | (stored == 0))):
            raise DataError(
                f"the labels of {source} have shape {stored.shape} but are not one-hot (one 1 and "
                "otherwise 0 in each row): give one class index for each image"
            )
        return np.nonzero(hot)[1].astype(np.int64)
    if stored.ndim == 2 and stored.shape[1] == 1:
        stored = stored[:, 0]
    if stored.ndim != 1 or stored.dtype.kind not in "ui":
        raise DataError(
            f"the labels of {source} have type {stored.dtype} and shape {stored.shape}: give one "
            "integer class index for each image"
        )
    return stored.astype(np.int64)


def check_labels(dataset: Dataset, classes: int) -> None:
    """Check that every label is a class of the model.

    Args:
        dataset: A dataset with or without labels; without, there is nothing to check.
        classes: Number of classes the model tells apart.

    Raises:
        DataError: If a label lies outside ``[0, classes)``; the first is named.
    """
    if dataset.labels is None:
        return
    outside = np.flatnonzero((dataset.labels < 0) | (dataset.labels >= classes))
    if outside.size:
        raise DataError(
            f"label {dataset.labels[outside[0]]} of image {outside[0]} of {dataset.source} is no "
            f"class of the model, which has {classes} (0 to {classes - 1}): give the labels this "
            "model was trained with"
        )
