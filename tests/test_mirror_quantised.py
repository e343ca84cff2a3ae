"""Quantised networks in the mirror: the same codes as ONNX Runtime, and gradients through them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from proact_onnx.mirror import Mirror
from tests.mirror_reference import open_session, random_feeds
from tests.numerics import Array, parse, run, run_reference

TYPES = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16}


def quantiser(dtype: str) -> onnx.ModelProto:
    """Codes of a scale of a quarter, zero point 3, and the values they stand for."""
    return parse(
        f"""<ir_version: 10, opset_import: ["": 21]>
        net (float[N] x) => ({dtype}[N] q, float[N] y) <float s = {{0.25}}, {dtype} z = {{3}}>
        {{ q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }}"""
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_every_value_gets_the_code_of_onnx_runtime(dtype: str) -> None:
    """All codes and their surroundings, the halves between them, and what lies far outside."""
    limits = np.iinfo(TYPES[dtype])
    steps = np.arange(4 * limits.min - 40, 4 * limits.max + 40, dtype=np.float32) / 4
    far = np.array([-np.inf, -3e38, -1e9, 1e9, 3e38, np.inf], np.float32)
    x = np.concatenate([steps * np.float32(0.25), far])
    model = quantiser(dtype)
    codes, values = (result.numpy() for result in Mirror(model)(torch.from_numpy(x)))
    expected_codes, expected_values = run(model, {"x": x})
    assert codes.dtype == expected_codes.dtype
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(values, expected_values)
    halves = np.array([-1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    [by_definition, _] = run_reference(model, {"x": halves * np.float32(0.25)})
    assert by_definition.tolist() == (np.array([-2, 0, 0, 2, 2]) + 3).clip(limits.min).tolist()
    found, _ = Mirror(model)(torch.from_numpy(halves * np.float32(0.25)))
    assert found.tolist() == by_definition.tolist()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32"])
def test_every_code_stands_for_the_value_of_onnx_runtime(dtype: str) -> None:
    limits = np.iinfo(dtype)
    generator = np.random.default_rng(0)
    codes = generator.integers(limits.min, limits.max, 4096, dtype, endpoint=True)
    codes[:2] = limits.min, limits.max
    point = "" if dtype == "int32" else ", z"
    model = parse(
        f"""<ir_version: 10, opset_import: ["": 21]>
        net ({dtype}[N] x) => (float[N] y) <float s = {{0.0123}}, {dtype} z = {{100}}>
        {{ y = DequantizeLinear(x, s{point}) }}"""
    )
    [expected] = run(model, {"x": codes})
    np.testing.assert_array_equal(Mirror(model)(torch.from_numpy(codes)).numpy(), expected)


def test_gradient_passes_where_codes_do_not_saturate() -> None:
    """dy/dx of y = DequantizeLinear(QuantizeLinear(x)) is 1 inside the range, 0 outside."""
    scales, points = np.array([0.25, 0.01], np.float32), np.array([0, 200], np.uint8)
    model = parse(
        """<ir_version: 8, opset_import: ["": 13]>
        net (float[N, 2] x) => (float[N, 2] y)
        { q = QuantizeLinear(x, s, z)  t = Transpose<perm=[1,0]>(q)
          d = DequantizeLinear<axis=0>(t, s, z)  y = Transpose<perm=[1,0]>(d) }""",
        s=scales,
        z=points,
    )
    grid = np.linspace(-100, 400, 3001, dtype=np.float32)[:, None]
    x = torch.from_numpy((grid - points) * scales).requires_grad_()
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=x.shape).astype(np.float32))
    (Mirror(model)(x) * weights).sum().backward()
    rounded = np.rint(x.detach().numpy() / scales) + points
    inside = torch.from_numpy((rounded >= 0) & (rounded <= 255))
    assert x.grad is not None
    assert 0.4 < inside.float().mean() < 0.6
    torch.testing.assert_close(x.grad, torch.where(inside, weights, 0.0))


RECTIFIED = """<ir_version: 8, opset_import: ["": 13]>
net (float[N] x) => (float[N] y) <float s = {0.1}, int8 z = {-128}>
{ r = Relu(x)  q = QuantizeLinear(r, s, z)  y = DequantizeLinear(q, s, z) }"""


@pytest.mark.parametrize(("threshold", "learns"), [(7.03, True), (30.0, False)])
def test_a_threshold_in_front_of_a_quantiser_learns_below_the_top_code(
    threshold: float, learns: bool
) -> None:
    """The top code stands for 25.5; what is clamped above it saturates anyway."""
    mirror = Mirror(parse(RECTIFIED))
    bound = torch.tensor(threshold, requires_grad=True)
    mirror.gates["r"] = lambda values: torch.minimum(values, bound)
    x = torch.linspace(-10, 40, 501)
    mirror(x).sum().backward()
    assert bound.grad is not None
    beyond = int((x > threshold).sum())
    assert bound.grad.item() == pytest.approx(beyond if learns else 0.0)
    assert beyond > 50


def test_gradient_of_a_quantised_convolution() -> None:
    """It is that of the convolution with the weights' values, where no code saturates."""
    generator = np.random.default_rng(0)
    weight = generator.integers(-100, 100, (4, 3, 3, 3), np.int8)
    bias = np.array([0, 500, -300, 20], np.int32)
    scales = np.array([0.01, 0.02, 0.005, 0.03], np.float32)
    model = parse(
        """<ir_version: 8, opset_import: ["": 13]>
        net (float[N, 3, 6, 6] x) => (float[N, 4, 3, 3] y) <
          float a = {0.05}, uint8 u = {60}, float c = {0.15}, uint8 e = {128},
          int8[4] v = {0, 0, 0, 0} >
        { q = QuantizeLinear(x, a, u)
          p = QLinearConv<pads=[1,1,1,1], strides=[2,2]>(q, a, u, w, s, v, c, e, b)
          y = DequantizeLinear(p, c, e) }""",
        w=weight,
        s=scales,
        b=bias,
    )
    x = torch.from_numpy(generator.normal(0, 3, (2, 3, 6, 6)).astype(np.float32)).requires_grad_()
    reached = torch.from_numpy(generator.normal(size=(2, 4, 3, 3)).astype(np.float32))
    (Mirror(model)(x) * reached).sum().backward()

    codes = (x.detach() / np.float32(0.05)).round() + 60
    taps, channels = torch.from_numpy(weight).double(), torch.from_numpy(scales)[:, None, None]
    sums = functional.conv2d(
        codes.clamp(0, 255).double() - 60, taps, torch.from_numpy(bias).double(), 2, 1
    )
    inner = (codes >= 0) & (codes <= 255)
    outer = ((sums * channels * 0.05 / 0.15).round() + 128).clamp(0, 255) == (
        (sums * channels * 0.05 / 0.15).round() + 128
    )
    values = taps.float() * channels[..., None]
    expected = inner * functional.conv_transpose2d(
        reached * outer, values, stride=2, padding=1, output_padding=1
    )
    for mask in (inner, outer):
        assert 0.5 < mask.float().mean() < 1
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-5)


# Networks of integer kernels; the mirror adds up the same whole numbers.
INTEGER_KERNELS = {
    "models/c10_tiny_resnet8_int8_qoperator",
    "corpus/grey96_cnn_int8",
    "corpus/shufflenet_v2_int8_qoperator",
}
FLOATING_POINT = ("models/c10_resnet20_int8_qdq", "models/c10_resnet20_int8_qdq_relu")


@pytest.mark.parametrize("optimise", [False, True], ids=["as written", "optimised"])
@pytest.mark.parametrize("name", sorted(INTEGER_KERNELS))
def test_integer_kernels_give_the_same_scores(shared_dir: Path, name: str, optimise: bool) -> None:
    model = onnx.load(shared_dir / f"{name}.onnx")
    [source] = model.graph.input
    feed = random_feeds(open_session(model), images=True)
    if name.startswith("models"):
        feed = {source.name: _photographs(shared_dir, 16)}
    [expected] = run(model, feed, optimise)
    mirror = Mirror(model)
    with torch.no_grad():
        scores = mirror(torch.from_numpy(feed[source.name])).numpy()
    assert len(np.unique(expected)) >= 5
    # Within a thousandth of the distance of two codes.
    step = np.diff(np.unique(expected)).min()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-3 * step)


@pytest.mark.parametrize("name", FLOATING_POINT)
def test_every_quantiser_of_a_network_gives_the_same_codes(shared_dir: Path, name: str) -> None:
    """Each from ONNX Runtime's codes before it, so that differences do not add up.

    Sums in another order differ by rounding: few of them lie so close to half a step.
    """
    model = onnx.load(shared_dir / f"{name}.onnx")
    pictures = (_photographs(shared_dir, 8) / 255 - MEAN) / STD
    quantisers = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, quantisers))
    [_, *expected] = run(exposed, {"input": pictures})
    mirror = Mirror(model)
    known: dict[str, Tensor] = {"input": torch.from_numpy(pictures)}
    total = different = 0
    for codes, reference in zip(quantisers, expected, strict=True):
        with torch.no_grad():
            found = mirror.evaluate(known, [codes])[codes].numpy()
        known[codes] = torch.from_numpy(reference)
        off = np.abs(found - reference)
        assert off.max() <= 1, codes
        different += int((off != 0).sum())
        total += off.size
    assert len(quantisers) > 30
    assert different <= 2e-5 * total


MEAN, STD = (
    np.array(values, np.float32)[:, None, None]
    for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


def _photographs(shared_dir: Path, count: int) -> Array:
    """Test images of CIFAR-10, float32 from 0 to 255."""
    images = np.load(shared_dir / "data" / "cifar10" / "test.npz")["images"]
    return np.asarray(images[:count], np.float32)
