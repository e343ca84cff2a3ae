"""Exact percentiles of activations over a data set, without keeping the values."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.engine.session import Provider, Session
from proact_onnx.errors import ModelError
from proact_onnx.rewrite import expose
from proact_onnx.thresholds import FloatArray, Thresholds, shared_axes


class Percentile:
    """A percentile of several groups of values that arrive in parts.

    Only values that can still be among the highest are kept, so a high percentile of many values
    costs little memory; the result is that of ``numpy.percentile`` on all values at once.

    Args:
        percentile: From 0 to 100.
        total: Values that each group will have.
    """

    def __init__(self, percentile: float, total: int) -> None:
        place = percentile / 100.0 * (total - 1)
        below = math.floor(place)
        self._fraction = place - below
        self._kept = total - below
        self._highest: FloatArray | None = None

    def add(self, values: FloatArray) -> None:
        """Take in more values, ``[groups, n]``."""
        if self._highest is not None:
            if len(values) == 1 and self._highest.shape[1] == self._kept:
                # Nearly all of a layer's values are out of the question.
                values = values[:, values[0] > self._highest.min()]
            values = np.concatenate([self._highest, values], axis=1)
        if values.shape[1] > self._kept:
            values = np.partition(values, -self._kept, axis=1)[:, -self._kept :]
        self._highest = np.array(values, np.float32)

    def result(self) -> FloatArray:
        """The percentile of each group, ``[groups]``, once all values are there.

        Raises:
            ValueError: If no values came.
        """
        if self._highest is None:
            raise ValueError("a percentile needs values")
        lowest = np.partition(self._highest, range(min(2, self._kept)), axis=1)[:, :2]
        low, high = lowest[:, 0].astype(np.float64), lowest[:, -1].astype(np.float64)
        return np.asarray(low + self._fraction * (high - low), np.float32)


def profile_percentiles(
    model: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    images: npt.NDArray[Any],
    percentile: float,
    arguments: tuple[Provider, int, int],
    progress: Callable[[int], None] = lambda images: None,
    two_sided: Collection[str] = (),
) -> Thresholds:
    """Find a percentile of the values that share a threshold, over all images.

    Args:
        model: A prepared model.
        shapes: By activation output, the shape of its thresholds.
        images: Preprocessed images, ``[N, ...]``.
        percentile: From 0 to 100; the further from 100, the more values are kept.
        arguments: Provider, threads and batch size.
        progress: Called after each batch with the number of images in it.
        two_sided: Activation outputs of which the percentile from below is wanted, too: what lies
            below as large a share of the values as above the percentile.

    Returns:
        By activation output, float32 of the shape given.

    Raises:
        ModelError: If the first axis of an activation is not the batch.
    """
    session = Session(expose(model, list(shapes)), *arguments)
    upper: dict[str, Percentile] = {}
    lower: dict[str, Percentile] = {}
    sizes = session.calls(images).sizes(len(images))
    for size, batch in zip(sizes, session.stream(images, list(shapes)), strict=True):
        for (tensor, shape), values in zip(shapes.items(), batch, strict=True):
            if len(values) != size:
                raise ModelError(
                    f"tensor {tensor!r} of shape {list(values.shape)} does not have the batch as "
                    "its first axis, so its percentiles are not known: use --method ranger"
                )
            extents = values.shape[1:]
            shared = [0, *(axis + 1 for axis in shared_axes(shape, extents))]
            own = [axis for axis in range(values.ndim) if axis not in shared]
            groups = math.prod(values.shape[axis] for axis in own)
            total = len(images) * values[0].size // groups
            grouped = values.transpose(*own, *shared).reshape(groups, -1)
            upper.setdefault(tensor, Percentile(percentile, total)).add(grouped)
            if tensor in two_sided:
                lower.setdefault(tensor, Percentile(percentile, total)).add(-grouped)
        progress(size)
    return Thresholds(
        {tensor: found.result().reshape(shapes[tensor]) for tensor, found in upper.items()},
        {tensor: -found.result().reshape(shapes[tensor]) for tensor, found in lower.items()},
    )
