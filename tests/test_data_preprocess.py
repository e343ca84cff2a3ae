import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proact_onnx.data import preprocess
from proact_onnx.data.layout import Layout
from proact_onnx.data.preprocess import Preprocessing, prepare
from proact_onnx.data.sources import load_dataset
from proact_onnx.errors import DataError, SettingsError

RNG = np.random.default_rng(9)
COLOUR = RNG.integers(0, 256, (5, 3, 6, 7), np.uint8)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def reference(
    images: np.ndarray, scale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray:
    """``(x * scale - mean) / std`` of NCHW images, value by value in float64."""
    result = np.empty(images.shape)
    for index, value in np.ndenumerate(images):
        channel = index[1] if len(mean) > 1 else 0
        result[index] = (float(value) * scale - mean[channel]) / std[channel]
    return result


@pytest.mark.parametrize("stored", ["nchw", "nhwc"])
@pytest.mark.parametrize("wanted", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-14), (np.float16, 2e-3)]
)
def test_arithmetic_and_layout(stored: str, wanted: str, dtype: type, tolerance: float) -> None:
    images = COLOUR if stored == "nchw" else COLOUR.transpose(0, 2, 3, 1)
    shape = (None, 3, 6, 7) if wanted == "nchw" else (None, 6, 7, 3)
    prepared = prepare(images, Preprocessing(mean=MEAN, std=STD), shape, dtype)
    assert prepared.dtype == dtype
    assert prepared.flags.c_contiguous
    expected = reference(COLOUR, 1 / 255, MEAN, STD)
    if wanted == "nhwc":
        expected = expected.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(prepared, expected, rtol=tolerance, atol=tolerance)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Preprocessing(mean=MEAN, std=STD, resize=(9, 4))
    whole = prepare(COLOUR, options, (None, 3, 9, 4), np.float32)
    monkeypatch.setattr(preprocess, "BLOCK_VALUES", 300)
    np.testing.assert_array_equal(prepare(COLOUR, options, (None, 3, 9, 4), np.float32), whole)


@pytest.mark.parametrize(
    ("images", "dtype", "scale"),
    [
        (COLOUR, np.float32, 1 / 255),
        (COLOUR.astype(np.float64), np.float32, 1.0),
        (COLOUR.astype(np.float16), np.float32, 1.0),
        (COLOUR, np.uint8, 1.0),
    ],
)
def test_default_scale(images: np.ndarray, dtype: type, scale: float) -> None:
    prepared = prepare(images, Preprocessing(), (1, 3, 6, 7), dtype)
    np.testing.assert_allclose(prepared, COLOUR * scale, rtol=1e-6)


def test_other_integers_need_a_scale() -> None:
    wide = COLOUR.astype(np.int32) * 100
    with pytest.raises(
        DataError, match=r"images of type int32 have no customary range: .* --scale"
    ):
        prepare(wide, Preprocessing(), (1, 3, 6, 7), np.float32)
    prepared = prepare(wide, Preprocessing(scale=0.01), (1, 3, 6, 7), np.float32)
    np.testing.assert_allclose(prepared, COLOUR, rtol=1e-6)


def test_integer_input_is_rounded_and_bounded() -> None:
    centred = prepare(COLOUR, Preprocessing(mean=(128,)), (1, 3, 6, 7), np.int8)
    np.testing.assert_array_equal(centred, COLOUR.astype(int) - 128)
    halved = prepare(COLOUR, Preprocessing(scale=0.5), (1, 3, 6, 7), np.uint8)
    np.testing.assert_array_equal(halved, np.round(COLOUR / 2))
    bright = np.full((3, 1, 2, 2), 100, np.uint8)
    bright[1, 0, 1, 1] = 128
    with pytest.raises(DataError, match=r"image 1 leaves the range of int8 .* -128 to 127"):
        prepare(bright, Preprocessing(), (1, 1, 2, 2), np.int8)


def test_grey_images_get_a_channel() -> None:
    grey = COLOUR[:, 0]
    prepared = prepare(grey, Preprocessing(mean=(0.5,), std=(0.25,)), (None, 1, 6, 7), np.float32)
    expected = reference(COLOUR[:, :1], 1 / 255, (0.5,), (0.25,))
    np.testing.assert_allclose(prepared, expected, rtol=1e-5, atol=1e-6)
    flat = prepare(grey, Preprocessing(scale=1), (None, 42), np.float32)
    np.testing.assert_array_equal(flat, grey.reshape(5, 42))


def test_colour_is_flattened_in_the_order_stored() -> None:
    nhwc = np.ascontiguousarray(COLOUR.transpose(0, 2, 3, 1))
    options = Preprocessing(layout=Layout.NHWC, mean=MEAN, std=STD)
    prepared = prepare(nhwc, options, (None, 126), np.float32)
    expected = reference(COLOUR, 1 / 255, MEAN, STD).transpose(0, 2, 3, 1).reshape(5, 126)
    np.testing.assert_allclose(prepared, expected, rtol=2e-6, atol=2e-6)


def test_series_and_vectors() -> None:
    series = RNG.standard_normal((4, 3, 20))
    prepared = prepare(series, Preprocessing(mean=MEAN, std=STD), (None, 3, 20), np.float64)
    np.testing.assert_allclose(prepared, reference(series, 1, MEAN, STD), rtol=1e-12)
    vectors = RNG.standard_normal((4, 8)).astype(np.float32)
    prepared = prepare(vectors, Preprocessing(), (None, 8), np.float32)
    np.testing.assert_array_equal(prepared, vectors)
    assert not np.shares_memory(prepared, vectors)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resize_of_bytes_is_pillows(channels: int) -> None:
    images = RNG.integers(0, 256, (2, channels, 9, 8), np.uint8)
    resized = prepare(
        images, Preprocessing(scale=1, resize=(5, 12)), (1, channels, 5, 12), np.float32
    )
    for image, result in zip(images, resized, strict=True):
        for plane, found in zip(image, result, strict=True):
            expected = Image.fromarray(plane).resize((12, 5), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(found, np.asarray(expected))


def test_resize_of_colour_equals_resizing_the_image() -> None:
    nhwc = np.ascontiguousarray(COLOUR.transpose(0, 2, 3, 1))
    resized = prepare(nhwc, Preprocessing(scale=1, resize=(4, 9)), (1, 4, 9, 3), np.float32)
    expected = Image.fromarray(nhwc[0]).resize((9, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resized[0], np.asarray(expected))


def triangle_weights(source: int, target: int) -> np.ndarray:
    """Bilinear resampling as a matrix: a triangle as wide as the coarser of the two grids."""
    ratio = source / target
    width = max(ratio, 1.0)
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * ratio
        for column in range(source):
            weights[row, column] = max(0.0, 1 - abs(column + 0.5 - centre) / width)
    return weights / weights.sum(axis=1, keepdims=True)


def test_resize_of_floats_matches_the_triangle_filter() -> None:
    image = RNG.standard_normal((1, 1, 11, 8))
    resized = prepare(image, Preprocessing(resize=(5, 13)), (1, 1, 5, 13), np.float32)
    expected = triangle_weights(11, 5) @ image[0, 0] @ triangle_weights(8, 13).T
    np.testing.assert_allclose(resized[0, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_values_that_are_not_finite(
    value: float, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "BLOCK_VALUES", 300)
    images = COLOUR.astype(np.float32)
    images[3, 2, 1, 0] = value
    with pytest.raises(DataError, match="image 3 holds NaN or infinite values"):
        prepare(images, Preprocessing(), (1, 3, 6, 7), dtype)


@pytest.mark.parametrize(
    ("images", "options", "dtype"),
    [
        (np.full((2, 4), 1e300), Preprocessing(), np.float32),
        (np.full((2, 4), 1e5), Preprocessing(), np.float16),
        (np.full((2, 4), 1.0), Preprocessing(std=(1e-60,)), np.float32),
    ],
)
def test_overflow_is_reported(images: np.ndarray, options: Preprocessing, dtype: type) -> None:
    with pytest.raises(DataError, match="image 0 leaves the range of float"):
        prepare(images, options, (None, 4), dtype)


@pytest.mark.parametrize(
    ("images", "options", "shape", "message"),
    [
        (COLOUR, Preprocessing(mean=(0.1, 0.2)), (1, 3, 6, 7),
         r"mean has 2 values but the images \(3x6x7\) have 3 channels"),
        (COLOUR, Preprocessing(std=(1, 2, 3, 4)), (1, 3, 6, 7), "std has 4 values"),
        (np.ones((2, 8)), Preprocessing(mean=(1, 2)), (1, 8), "have no channels: give one value"),
        (COLOUR[:0], Preprocessing(), (1, 3, 6, 7), "hold no image data"),
        (np.ones(3), Preprocessing(), (1,), "hold no image data"),
        (COLOUR > 5, Preprocessing(), (1, 3, 6, 7), "images of type bool are no numbers"),
        (COLOUR, Preprocessing(), (1, 3, 12, 14),
         "images of shape 3x6x7 do not fit the model's input 3x12x14: .* --resize"),
    ],
)  # fmt: skip
def test_refused(
    images: np.ndarray, options: Preprocessing, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(images, options, shape, np.float32)


def test_model_that_takes_no_numbers() -> None:
    with pytest.raises(DataError, match="the model's input has type bool"):
        prepare(COLOUR, Preprocessing(), (1, 3, 6, 7), np.bool_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": (1.0, 0.0)}, r"std is \(1.0, 0.0\)"),
        ({"std": (-1.0,)}, "std is"),
        ({"std": ()}, "std is"),
        ({"std": (float("nan"),)}, "std is"),
        ({"mean": ()}, "mean is"),
        ({"mean": (float("inf"),)}, "mean is"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"resize": (0, 5)}, r"resize is \(0, 5\)"),
        ({"resize": (5,)}, r"resize is \(5,\)"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Preprocessing(**options)  # type: ignore[arg-type]


def test_the_result_is_the_only_large_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "BLOCK_VALUES", 1 << 14)
    images = RNG.integers(0, 256, (500, 32, 32, 3), np.uint8)
    tracemalloc.start()
    try:
        prepared = prepare(images, Preprocessing(mean=MEAN, std=STD), (1, 3, 32, 32), np.float16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * prepared.nbytes


def test_trained_network_keeps_its_published_accuracy(shared_dir: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    dataset = load_dataset(shared_dir / "data" / "cifar10" / "test.npz").take(range(256))
    options = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    session = onnxruntime.InferenceSession(
        shared_dir / "models" / "c10_resnet20_torchscript_op17.onnx",
        providers=["CPUExecutionProvider"],
    )
    images = prepare(dataset.images, options, (None, 3, 32, 32), np.float32)
    predicted = session.run(None, {"input": images})[0].argmax(axis=1)
    assert np.mean(predicted == dataset.labels) > 0.88
