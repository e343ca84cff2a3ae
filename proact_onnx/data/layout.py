"""Which axis of an image is which, as stored and as the model wants it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from proact_onnx.errors import DataError

USUAL_CHANNELS = (1, 3, 4)
"""Channel counts by which an axis is taken for the channels: grey, RGB, RGB with a fourth."""

Shape = tuple[int, ...]


class Layout(StrEnum):
    """Layout of stored images: where their channel axis is."""

    AUTO = "auto"
    NCHW = "nchw"
    NHWC = "nhwc"


@dataclass(frozen=True)
class Arrangement:
    """The way of one stored image into the model's input; all shapes are without batch axis.

    Attributes:
        stored: Shape to view the image in, with a channel axis where it has height and width.
        channel_axis: The channel axis of ``stored``, or ``None`` for a flat vector.
        axes: Transposition of ``stored``, after resizing.
        shape: Shape of the model's input, to view the transposed image in.
    """

    stored: Shape
    channel_axis: int | None
    axes: Shape
    shape: Shape


def arrange(
    image: Shape, layout: Layout, model_input: Sequence[int | None], resize: Shape | None
) -> Arrangement:
    """Find how a stored image becomes the model's input.

    The axes are told apart by matching the image with the model's input. Where several readings
    match, the one with a usual channel count (1, 3, 4) is taken, and for the model the layout of
    ONNX's own convolutions, NCHW.

    Args:
        image: Shape of one stored image: ``[C, H, W]``, ``[H, W, C]``, ``[H, W]``, ``[C, L]``,
            ``[features]``, or any shape that equals the model's.
        layout: Layout of the stored images; it also decides whether the channels of an image with
            two axes come first or, for NHWC, last.
        model_input: Shape of the model's input without batch axis; ``None`` matches any extent.
        resize: Height and width the image will be resized to before it is transposed.

    Raises:
        DataError: If the image does not fit, or more than one reading of its axes does.
    """
    if len(image) == 3 and len(model_input) == 3:
        return _arrange_channels(image, layout, model_input, resize)
    if len(image) == 2 and len(model_input) == 3:
        return _arrange_channels((1, *image), Layout.NCHW, model_input, resize)
    if len(image) == 2 and len(model_input) == 2 and resize is None:
        channel_axis = 1 if layout is Layout.NHWC else 0
        return _checked(Arrangement(image, channel_axis, (0, 1), image), model_input)
    if len(image) in (2, 3) and len(model_input) in (1, 2):
        return _arrange_fewer_axes(image, layout, model_input, resize)
    if resize is not None:
        raise DataError(
            f"images of shape {spell(image)} have no height and width to resize for the model's "
            f"input {spell(model_input)}: leave out --resize"
        )
    return _checked(Arrangement(image, None, tuple(range(len(image))), image), model_input)


def _arrange_channels(
    image: Shape, layout: Layout, model_input: Sequence[int | None], resize: Shape | None
) -> Arrangement:
    readings = [
        reading for reading in _readings(image, layout, resize) if _fits(reading.shape, model_input)
    ]
    usual = [reading for reading in readings if _channels(reading) in USUAL_CHANNELS] or readings
    if not usual:
        raise _mismatch(image, layout, model_input, resize)
    # `_readings` lists the model's NCHW first; only the stored layout can remain open.
    ties = [reading for reading in usual if _model_is_nchw(reading) == _model_is_nchw(usual[0])]
    if len(ties) > 1:
        raise DataError(
            f"images of shape {spell(image)} fit the model's input {spell(model_input)} both with "
            "channels first and with channels last: say which with --layout nchw or --layout nhwc"
        )
    return ties[0]


def _readings(image: Shape, layout: Layout, resize: Shape | None) -> Iterator[Arrangement]:
    stored_layouts = [Layout.NCHW, Layout.NHWC] if layout is Layout.AUTO else [layout]
    for model_layout in (Layout.NCHW, Layout.NHWC):
        for stored in stored_layouts:
            channel_axis = 0 if stored is Layout.NCHW else 2
            spatial = tuple(axis for axis in range(3) if axis != channel_axis)
            axes = (
                (channel_axis, *spatial)
                if model_layout is Layout.NCHW
                else (*spatial, channel_axis)
            )
            resized = list(image)
            if resize is not None:
                resized[spatial[0]], resized[spatial[1]] = resize
            shape = tuple(resized[axis] for axis in axes)
            yield Arrangement(image, channel_axis, axes, shape)


def _arrange_fewer_axes(
    image: Shape, layout: Layout, model_input: Sequence[int | None], resize: Shape | None
) -> Arrangement:
    """Arrange images for a model without channel axis: flat vectors, or height and width."""
    if len(image) == 2:
        image, layout, known = (1, *image), Layout.NCHW, True
    else:
        known = layout is not Layout.AUTO
    readings = [
        reading
        for reading in _readings(image, layout, resize)
        if _model_is_nchw(reading) and (known or _channels(reading) in USUAL_CHANNELS)
    ]
    if len(readings) != 1:
        raise DataError(
            f"it is not clear which axis of images of shape {spell(image)} holds the channels: "
            "say so with --layout nchw or --layout nhwc"
        )
    reading = readings[0]
    if len(model_input) == 2:
        if _channels(reading) != 1:
            raise _mismatch(image, layout, model_input, resize)
        return _checked(_reshaped(reading, reading.axes, reading.shape[1:]), model_input)
    if _channels(reading) != 1 and not known:
        raise DataError(
            f"the model takes flat vectors ({spell(model_input)}) and in which order it wants the "
            f"channels of images of shape {spell(image)} cannot be told: name the layout they are "
            "stored in with --layout to flatten them in that order"
        )
    # Flattened in the order they are stored in, whichever that is.
    stored_order = tuple(reading.shape[reading.axes.index(axis)] for axis in range(3))
    features = stored_order[0] * stored_order[1] * stored_order[2]
    return _checked(_reshaped(reading, (0, 1, 2), (features,)), model_input)


def _reshaped(reading: Arrangement, axes: Shape, shape: Shape) -> Arrangement:
    return Arrangement(reading.stored, reading.channel_axis, axes, shape)


def _checked(arrangement: Arrangement, model_input: Sequence[int | None]) -> Arrangement:
    if not _fits(arrangement.shape, model_input):
        raise DataError(
            f"images of shape {spell(arrangement.stored)} become {spell(arrangement.shape)}, which "
            f"does not fit the model's input {spell(model_input)}: bring images to its size with "
            "--resize, or give data of its shape"
        )
    return arrangement


def _mismatch(
    image: Shape, layout: Layout, model_input: Sequence[int | None], resize: Shape | None
) -> DataError:
    text = f"images of shape {spell(image)}"
    if resize is not None:
        text += f", resized to {spell(resize)},"
    text += f" do not fit the model's input {spell(model_input)}"
    if len(model_input) == 3 and any(
        _channels(reading) in USUAL_CHANNELS
        and _channels(reading) == model_input[0 if _model_is_nchw(reading) else 2]
        for reading in _readings(image, layout, None)
    ):
        return DataError(f"{text}: bring them to its height and width with --resize")
    if layout is not Layout.AUTO:
        return DataError(f"{text} when read as {layout}: check --layout and --resize")
    return DataError(
        f"{text}: give images with as many channels, or say which axis holds them with --layout"
    )


def _fits(shape: Shape, model_input: Sequence[int | None]) -> bool:
    return len(shape) == len(model_input) and all(
        wanted is None or extent == wanted
        for extent, wanted in zip(shape, model_input, strict=True)
    )


def _channels(arrangement: Arrangement) -> int:
    assert arrangement.channel_axis is not None
    return arrangement.stored[arrangement.channel_axis]


def _model_is_nchw(arrangement: Arrangement) -> bool:
    return arrangement.axes[0] == arrangement.channel_axis


def spell(shape: Sequence[int | None]) -> str:
    """Spell a shape out, as in ``3x32x?``."""
    return "x".join("?" if extent is None else str(extent) for extent in shape)
