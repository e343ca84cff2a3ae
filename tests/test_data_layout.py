import pytest

from proact_onnx.data.layout import Layout, arrange
from proact_onnx.errors import DataError

AUTO, NCHW, NHWC = Layout.AUTO, Layout.NCHW, Layout.NHWC
Extents = tuple[int | None, ...]


@pytest.mark.parametrize(
    ("image", "layout", "model", "axes"),
    [
        ((3, 32, 32), AUTO, (3, 32, 32), (0, 1, 2)),
        ((32, 32, 3), AUTO, (3, 32, 32), (2, 0, 1)),
        ((3, 32, 32), AUTO, (32, 32, 3), (1, 2, 0)),
        ((32, 32, 3), AUTO, (32, 32, 3), (0, 1, 2)),
        ((32, 32, 3), AUTO, (3, None, None), (2, 0, 1)),
        ((32, 32, 3), AUTO, (None, None, 3), (0, 1, 2)),
        ((32, 32, 3), AUTO, (None, None, None), (2, 0, 1)),
        ((28, 28), AUTO, (1, 28, 28), (0, 1, 2)),
        ((28, 28), AUTO, (28, 28, 1), (1, 2, 0)),
        ((3, 4, 4), AUTO, (3, 4, 4), (0, 1, 2)),
        ((12, 8, 8), AUTO, (12, 8, 8), (0, 1, 2)),
        ((8, 8, 12), AUTO, (12, 8, 8), (2, 0, 1)),
        ((32, 32, 32), NHWC, (32, 32, 32), (2, 0, 1)),
        ((3, 32, 3), NHWC, (3, None, None), (2, 0, 1)),
        ((3, 32, 3), NCHW, (3, None, None), (0, 1, 2)),
    ],
)
def test_axes_of_images(
    image: tuple[int, ...], layout: Layout, model: Extents, axes: tuple[int, ...]
) -> None:
    found = arrange(image, layout, model, None)
    assert found.axes == axes
    assert found.shape == tuple(found.stored[axis] for axis in axes)


def test_resized_extents_are_matched() -> None:
    found = arrange((40, 50, 3), AUTO, (3, 32, 16), (32, 16))
    assert (found.axes, found.shape, found.channel_axis) == ((2, 0, 1), (3, 32, 16), 2)


@pytest.mark.parametrize(
    ("image", "layout", "model", "shape"),
    [
        ((28, 28), AUTO, (784,), (784,)),
        ((28, 28, 1), AUTO, (784,), (784,)),
        ((28, 28, 1), AUTO, (28, 28), (28, 28)),
        ((1, 28, 28), AUTO, (28, None), (28, 28)),
        ((3, 4, 5), NCHW, (60,), (60,)),
        ((4, 5, 3), NHWC, (60,), (60,)),
        ((6, 100), AUTO, (6, 100), (6, 100)),
        ((10,), AUTO, (10,), (10,)),
        ((2, 3, 4, 5), AUTO, (2, None, 4, 5), (2, 3, 4, 5)),
    ],
)
def test_other_ranks(
    image: tuple[int, ...], layout: Layout, model: Extents, shape: tuple[int, ...]
) -> None:
    found = arrange(image, layout, model, None)
    assert found.shape == shape
    assert found.axes == tuple(range(len(found.stored))) or 1 in found.stored


@pytest.mark.parametrize(
    ("image", "layout", "model", "resize", "message"),
    [
        ((3, 32, 32), AUTO, (3, 224, 224), None, "3x32x32 do not fit .* 3x224x224: .* --resize"),
        ((32, 32, 3), AUTO, (3, None, 224), None, r"fit the model's input 3x\?x224: .* --resize"),
        ((3, 32, 32), AUTO, (3, 28, 28), (30, 30), "3x32x32, resized to 30x30, do not fit"),
        ((28, 28), AUTO, (3, 28, 28), None, "images of shape 1x28x28 do not fit"),
        ((1, 28, 28), AUTO, (3, 28, 28), None, "as many channels, or .* --layout"),
        ((3, 32, 32), NHWC, (32, 32, 3), None, "when read as nhwc: check --layout"),
        ((3, 32, 3), AUTO, (3, None, None), None, "channels last: say which with --layout"),
        ((3, 32, 32), AUTO, (3072,), None, "order it wants the channels .* --layout"),
        ((10, 32, 32), AUTO, (10240,), None, "not clear which axis .* --layout nchw"),
        ((3, 32, 3), AUTO, (288,), None, "not clear which axis"),
        ((3, 32, 32), AUTO, (32, 32), None, "3x32x32 do not fit the model's input 32x32"),
        ((28, 28), AUTO, (100,), None, "become 784, which does not fit the model's input 100"),
        ((10,), AUTO, (11,), None, "10 become 10, which does not fit the model's input 11"),
        ((10,), AUTO, (10,), (2, 5), "no height and width to resize"),
        ((784,), AUTO, (1, 28, 28), None, "784, which does not fit the model's input 1x28x28"),
        ((6, 100), AUTO, (6, 90), None, "6x100, which does not fit"),
    ],
)
def test_refused(
    image: tuple[int, ...],
    layout: Layout,
    model: Extents,
    resize: tuple[int, int] | None,
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        arrange(image, layout, model, resize)
