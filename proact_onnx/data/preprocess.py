"""From stored images to what a model takes: size, layout, scale, mean and deviation, type."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.data.decoding import Size, resize_planes
from proact_onnx.data.layout import Arrangement, Layout, arrange, spell
from proact_onnx.errors import DataError, SettingsError

BLOCK_VALUES = 1 << 18
"""Values prepared at a time: few enough that the result is the only large copy, and for a cache."""


@dataclass(frozen=True)
class Preprocessing:
    """How stored values become the model's input: ``(value * scale - mean) / std``.

    Mean and deviation are in units after scaling, as in torchvision's ``Normalize``: with uint8
    images and the default scale they refer to values from 0 to 1.

    Attributes:
        layout: Layout of the stored images.
        scale: Multiplied with every stored value. By default 1/255 for uint8 images and 1 for
            floats; 1 for a model that takes integers.
        mean: One value, or one for each channel in the order they are stored.
        std: One value above zero, or one for each channel.
        resize: Height and width to bring the images to, bilinear with antialiasing as in Pillow.

    Raises:
        SettingsError: If a value is not a finite number, ``scale`` or ``std`` is not above zero,
            or ``resize`` is below one pixel.
    """

    layout: Layout = Layout.AUTO
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Size | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise SettingsError(f"scale is {self.scale}: give a finite number above zero")
        if not self.mean or not all(map(math.isfinite, self.mean)):
            raise SettingsError(
                f"mean is {self.mean}: give one finite number, or one for each channel"
            )
        if not self.std or not all(math.isfinite(value) and value > 0 for value in self.std):
            raise SettingsError(
                f"std is {self.std}: give one finite number above zero, or one for each channel"
            )
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1):
            raise SettingsError(f"resize is {self.resize}: give a height and a width in pixels")


def prepare(
    images: npt.NDArray[Any],
    preprocessing: Preprocessing,
    input_shape: Sequence[int | None],
    input_dtype: npt.DTypeLike,
) -> npt.NDArray[Any]:
    """Bring images into the form a model takes.

    Args:
        images: ``[N, ...]``: ``[N, C, H, W]``, ``[N, H, W, C]``, grey ``[N, H, W]``, ``[N, C, L]``
            or ``[N, features]``, integers or finite floats.
        preprocessing: Size, layout and arithmetic. Values are worked out in float32, in float64
            for models that take float64 or integers.
        input_shape: Shape of the model's input, batch axis first; ``None`` where it is free. The
            batch extent is not looked at.
        input_dtype: Type of the model's input. For an integer type values are rounded.

    Returns:
        A new C-contiguous array ``[N, *input_shape[1:]]`` of type ``input_dtype``.

    Raises:
        DataError: If the images are not finite numbers, do not fit the model's input, do not have
            as many channels as ``mean`` and ``std``, or leave the range of ``input_dtype``.
    """
    dtype = np.dtype(input_dtype)
    if dtype.kind not in "uif":
        raise DataError(
            f"the model's input has type {dtype}, which is no number that images can be given in: "
            "choose a model with a float or integer input"
        )
    if images.dtype.kind not in "uif":
        raise DataError(f"images of type {images.dtype} are no numbers: give integers or floats")
    if images.ndim < 2 or images.size == 0:
        raise DataError(f"images of shape {images.shape} hold no image data: give at least one")
    arrangement = arrange(
        images.shape[1:], preprocessing.layout, input_shape[1:], preprocessing.resize
    )
    scale = _scale(preprocessing, images.dtype, dtype)
    working = np.dtype(np.float64 if dtype.kind in "ui" or dtype == np.float64 else np.float32)
    mean = _per_channel("mean", preprocessing.mean, arrangement, working)
    std = _per_channel("std", preprocessing.std, arrangement, working)

    prepared = np.empty((len(images), *arrangement.shape), dtype)
    block = max(1, BLOCK_VALUES // max(math.prod(images.shape[1:]), math.prod(arrangement.shape)))
    for start in range(0, len(images), block):
        stored = images[start : start + block]
        _check_finite(stored, start, "holds NaN or infinite values: repair or remove it")
        arranged = _arranged(stored, arrangement, preprocessing.resize)
        # What overflows is found in the result and reported with the image's index.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            values = arranged.astype(working, order="C")
            values *= working.type(scale)
            values -= mean
            values /= std
            if dtype.kind in "ui":
                _check_range(np.rint(values, out=values), dtype, start)
            target = prepared[start : start + block]
            target[...] = values.reshape(target.shape)
        _check_finite(
            target, start, f"leaves the range of {dtype} when prepared: check scale, mean and std"
        )
    return prepared


def _scale(preprocessing: Preprocessing, stored: np.dtype[Any], wanted: np.dtype[Any]) -> float:
    if preprocessing.scale is not None:
        return preprocessing.scale
    if stored.kind == "f" or wanted.kind in "ui":
        return 1.0
    if stored == np.uint8:
        return 1.0 / 255.0
    raise DataError(
        f"images of type {stored} have no customary range: say with --scale what to multiply "
        "them with"
    )


def _per_channel(
    name: str, values: tuple[float, ...], arrangement: Arrangement, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """The values, shaped to broadcast against transposed images ``[N, ...]``."""
    array = np.asarray(values, dtype)
    if len(values) == 1:
        return array
    if arrangement.channel_axis is None:
        raise DataError(
            f"{name} has {len(values)} values but the images ({spell(arrangement.stored)}) have no "
            "channels: give one value"
        )
    channels = arrangement.stored[arrangement.channel_axis]
    if len(values) != channels:
        raise DataError(
            f"{name} has {len(values)} values but the images ({spell(arrangement.stored)}) have "
            f"{channels} channels: give one value, or one for each channel"
        )
    shape = [1] * (len(arrangement.axes) + 1)
    shape[1 + arrangement.axes.index(arrangement.channel_axis)] = channels
    return array.reshape(shape)


def _arranged(
    stored: npt.NDArray[Any], arrangement: Arrangement, size: Size | None
) -> npt.NDArray[Any]:
    images = stored.reshape(len(stored), *arrangement.stored)
    if size is not None and arrangement.channel_axis is not None:
        planes = np.moveaxis(images, 1 + arrangement.channel_axis, 1)
        if planes.shape[2:] != size:
            planes = resize_planes(planes, size)
        images = np.moveaxis(planes, 1, 1 + arrangement.channel_axis)
    return images.transpose(0, *(1 + axis for axis in arrangement.axes))


def _check_finite(values: npt.NDArray[Any], start: int, complaint: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        whole = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        raise DataError(f"image {start + int(np.argmin(whole))} {complaint}")


def _check_range(values: npt.NDArray[Any], dtype: np.dtype[Any], start: int) -> None:
    limits = np.iinfo(dtype)
    inside = (values >= limits.min) & (values <= limits.max)
    if not inside.all():
        first = int(np.argmin(inside.reshape(len(values), -1).all(axis=1)))
        raise DataError(
            f"image {start + first} leaves the range of {dtype} when prepared, "
            f"{limits.min} to {limits.max}: check scale, mean and std"
        )
