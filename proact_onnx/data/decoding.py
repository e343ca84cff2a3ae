"""Compressed images (PNG, JPEG and what else Pillow reads) to one array."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from proact_onnx.errors import DataError

Size = tuple[int, int]
"""Height and width in pixels."""

_GREY = ("1", "L", "LA", "La")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def decode_images(
    items: Sequence[Path | bytes], name: Callable[[int], str], size: Size | None = None
) -> npt.NDArray[np.uint8]:
    """Decode images of one size into one array.

    All become RGB when one of them has colour. Transparency is dropped, and an orientation noted
    in a camera's metadata is not applied, as in torchvision.

    Args:
        items: Files, or the content of files.
        name: What to call the i-th image in a message.
        size: Resize each image to this height and width (bilinear, with antialiasing); without
            it they must all have one size.

    Returns:
        uint8 ``[N, H, W, 3]``, or ``[N, H, W]`` if all images are grey.

    Raises:
        DataError: If an image cannot be decoded, has more than 8 bits a channel, or has another
            size than the first.
    """
    if not items:
        raise DataError("there are no images to decode: give at least one")
    colour = False
    common = size
    for index, item in enumerate(items):
        with _open(item, name(index)) as image:
            colour = colour or image.mode in _COLOUR
            if image.mode not in _GREY + _COLOUR:
                raise DataError(
                    f"{name(index)} has pixels of type {image.mode!r}, not 8 bits a channel: "
                    "convert it, or store the images as an .npz archive"
                )
            found = (image.height, image.width)
            common = common or found
            if size is None and found != common:
                raise DataError(
                    f"{name(index)} is {found[0]} x {found[1]} pixels but {name(0)} is "
                    f"{common[0]} x {common[1]}: give all images one size with --resize"
                )
    mode = "RGB" if colour else "L"
    height, width = common or (0, 0)
    pixels = np.empty((len(items), height, width) + (3,) * colour, np.uint8)
    for index, item in enumerate(items):
        with _open(item, name(index)) as image:
            decoded = image.convert(mode)
            if decoded.size != (width, height):
                decoded = decoded.resize((width, height), Image.Resampling.BILINEAR)
            pixels[index] = np.asarray(decoded)
    return pixels


def resize_planes(planes: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """Resize two-dimensional planes, bilinear with antialiasing.

    Channels are resized one by one: Pillow would weight the colours of a four-channel image by
    its fourth channel.

    Args:
        planes: ``[..., H, W]``.
        size: The new height and width.

    Returns:
        ``[..., height, width]``, uint8 (rounded) for uint8 planes and float32 for others.
    """
    pixel = np.uint8 if planes.dtype == np.uint8 else np.float32
    height, width = size
    source = planes.reshape(-1, *planes.shape[-2:])
    resized = np.empty((len(source), height, width), pixel)
    for index, plane in enumerate(source):
        image = Image.fromarray(np.ascontiguousarray(plane, dtype=pixel))
        resized[index] = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.reshape(*planes.shape[:-2], height, width)


@contextmanager
def _open(item: Path | bytes, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot decode {name} ({error}): repair or remove it") from error
