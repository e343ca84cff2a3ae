"""Bounds made of convolutions: what they compute, and what they are made of."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from passes import Form, InsertHyReLU, RescaleWeights, Sharing, Site, run_passes
from tests.numerics import Array, operators, parse, run, run_reference

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
GENERATOR = np.random.default_rng(0)
LIMITS = np.array([0.5, 1.0, 2.0], np.float32)


def normal(*shape: int) -> Array:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def network(body: str, **weights: Array) -> onnx.ModelProto:
    return parse(
        f"{HEAD} net (float[N, 3, 6, 6] x) => (float[N, 3, 6, 6] y) {{ {body} }}", **weights
    )


def tent(
    model: onnx.ModelProto, threshold: Array, *before: RescaleWeights, extents: object = (3, 6, 6)
) -> onnx.ModelProto:
    site = Site("y", threshold, "y/hyrelu/threshold", extents)
    result, _ = run_passes(model, [*before, InsertHyReLU([site], Form.TENT)])
    onnx.checker.check_model(result, full_check=True)
    return result


def expected(value: Array, threshold: Array) -> Array:
    rectified = np.maximum(value, 0)
    return np.maximum(np.minimum(rectified, 2 * threshold - rectified), 0)


BY_CHANNEL = LIMITS.reshape(1, 3, 1, 1)
W, B = normal(3, 3, 1, 1), normal(3)
BODIES = {
    "input": "y = Relu(x)",
    "convolution": "a = Conv(x, w, b)  y = Relu(a)",
    "no bias": "a = Conv(x, w)  y = Relu(a)",
    "shortcut": "a = Conv(x, w, b)  s = Add(a, x)  y = Relu(s)",
    "shortcut before": "a = Conv(x, w, b)  s = Add(x, a)  y = Relu(s)",
    "pooled": "a = Conv(x, w, b)  "
    "p = MaxPool<kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]>(a)  y = Relu(p)",
}


def built(body: str) -> onnx.ModelProto:
    held = {name: value for name, value in {"w": W, "b": B}.items() if f" {name}" in body}
    return network(body, **held)


@pytest.mark.parametrize("compute", [run, run_reference], ids=["onnxruntime", "reference"])
@pytest.mark.parametrize("threshold", [BY_CHANNEL, np.float32(1.0)], ids=["channel", "layer"])
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("case", BODIES)
def test_rises_to_the_threshold_and_falls_behind_it(
    case: str, rescaled: bool, threshold: Array, compute: object
) -> None:
    model = built(BODIES[case])
    before = [RescaleWeights()] if rescaled and "Conv" in BODIES[case] else []
    bounded = tent(model, np.asarray(threshold), *before)
    feed = {"x": 2 * normal(2, 3, 6, 6)}
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    value = model.graph.node[-1].input[0]
    if value != "x":
        exposed.graph.output[0].name = value
        del exposed.graph.node[-1]
        [shown] = run_reference(exposed, feed)
    else:
        shown = feed["x"]
    [y] = compute(bounded, feed)
    wanted = expected(shown, threshold)
    assert (wanted == 0).any()
    assert (wanted == np.maximum(shown, 0)).any()
    assert ((wanted > 0) & (wanted < shown)).any()
    np.testing.assert_allclose(y, wanted, atol=4e-6)


@pytest.mark.parametrize("rescaled", [False, True])
def test_a_convolution_takes_the_threshold_into_its_bias(rescaled: bool) -> None:
    before = [RescaleWeights()] if rescaled else []
    counts = {
        case: operators(tent(built(body), BY_CHANNEL, *before)).count("Conv")
        for case, body in BODIES.items()
    }
    # One for the falling side, which divides by the scales too, and one that shifts where no
    # convolution can; the division is then a third.
    further = 1 if rescaled else 0
    assert counts == {
        "input": 2,
        "convolution": 2,
        "no bias": 2,
        "shortcut": 3 + further,
        "shortcut before": 3 + further,
        "pooled": 3 + further,
    }


def test_a_transposed_convolution_is_divided_before_its_tent() -> None:
    model = network("a = ConvTranspose(x, w, b)  y = Relu(a)", w=W, b=B)
    bounded = tent(model, BY_CHANNEL, RescaleWeights())
    assert operators(bounded).count("Conv") == 2
    feed = {"x": 2 * normal(2, 3, 6, 6)}
    [a] = run_reference(network("y = ConvTranspose(x, w, b)", w=W, b=B), feed)
    np.testing.assert_allclose(run(bounded, feed)[0], expected(a, BY_CHANNEL), atol=4e-6)


def test_a_product_that_something_else_reads_is_divided_before_the_tent() -> None:
    """Whoever looks at the enlarged sums of a layer finds them where they were."""
    rescaled, _ = run_passes(built(BODIES["convolution"]), [RescaleWeights()])
    shown = onnx.helper.make_tensor_value_info("a/rescale/product", 1, ["N", 3, 6, 6])
    rescaled.graph.output.append(shown)
    feed = {"x": 2 * normal(2, 3, 6, 6)}
    bounded = tent(rescaled, BY_CHANNEL)
    assert operators(bounded).count("Conv") == 3
    np.testing.assert_array_equal(run(bounded, feed)[1], run(rescaled, feed)[1])
    [a] = run(network("y = Conv(x, w, b)", w=W, b=B), feed)
    np.testing.assert_allclose(run(bounded, feed)[0], expected(a, BY_CHANNEL), atol=4e-6)


DENSE = {
    "plain": "a = Gemm(x, w, b)",
    "transposed": "a = Gemm<transB: int = 1>(x, w, b)",
    "no bias": "a = Gemm(x, w)",
    "alpha": "a = Gemm<alpha: float = 0.5>(x, w, b)",
}
DENSE_W, DENSE_B, BY_NEURON = normal(4, 4), normal(4), np.array([[0.5, 1, 2, 4]], np.float32)


def dense(body: str) -> onnx.ModelProto:
    held = {"w": DENSE_W, "b": DENSE_B} if " b" in body else {"w": DENSE_W}
    text = f"{HEAD} net (float[N, 4] x) => (float[N, 4] y) {{ {body}  y = Relu(a) }}"
    return parse(text, **held)


def preactivation(body: str, feed: dict[str, Array]) -> Array:
    model = dense(body)
    del model.graph.node[-1]
    model.graph.output[0].name = "a"
    return run_reference(model, feed)[0]


@pytest.mark.parametrize("compute", [run, run_reference], ids=["onnxruntime", "reference"])
@pytest.mark.parametrize("threshold", [BY_NEURON, np.float32(1.0)], ids=["neuron", "layer"])
@pytest.mark.parametrize("sharing", [None, *Sharing])
@pytest.mark.parametrize("case", DENSE)
def test_a_dense_layer_has_a_tent_of_its_own(
    case: str, sharing: Sharing | None, threshold: Array, compute: object
) -> None:
    before = [] if sharing is None else [RescaleWeights(sharing)]
    bounded = tent(dense(DENSE[case]), np.asarray(threshold), *before, extents=(4,))
    feed = {"x": 2 * normal(32, 4)}
    wanted = expected(preactivation(DENSE[case], feed), threshold)
    assert (wanted == 0).any()
    np.testing.assert_allclose(compute(bounded, feed)[0], wanted, atol=4e-6)
    divided = ["Div"] if before else []
    assert operators(bounded)[-5 - len(divided) :] == [
        "Gemm", "LeakyRelu", *divided, "Sub", "ThresholdedRelu", "Relu"
    ]  # fmt: skip


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e30])
@pytest.mark.parametrize("rescaled", [False, True])
def test_a_dense_tent_contains_nan_too(rescaled: bool, value: float) -> None:
    before = [RescaleWeights()] if rescaled else []
    bounded = tent(dense(DENSE["plain"]), BY_NEURON, *before, extents=(4,))
    x = np.ones((2, 4), np.float32)
    x[1, 2] = value
    for compute in (run, run_reference):
        [y] = compute(bounded, {"x": x})
        assert (y[1] == 0).all()
        alone = compute(bounded, {"x": np.ones((1, 4), np.float32)})[0]
        np.testing.assert_allclose(y[0], alone[0], atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "a = Gemm<beta: float = 2.0>(x, w, b)  y = Relu(a)",
        "a = MatMul(x, w)  y = Relu(a)",
        "a = Gemm(x, w, b)  s = Add(a, x)  y = Relu(s)",
        "a = Gemm(x, w, b)  y = Clip(a, zero, six)",
    ],
)
def test_behind_other_dense_values_the_ramp_stands(body: str) -> None:
    held = {"w": DENSE_W, "b": DENSE_B, "zero": np.float32(0), "six": np.float32(6)}
    held = {name: np.asarray(v) for name, v in held.items() if f" {name}" in body}
    model = parse(f"{HEAD} net (float[N, 4] x) => (float[N, 4] y) {{ {body} }}", **held)
    bounded = tent(model, BY_NEURON, extents=(4,))
    assert operators(bounded)[-5:] == ["Add", "Sub", "Max", "Min", "ThresholdedRelu"]
    feed = {"x": 2 * normal(8, 4)}
    np.testing.assert_allclose(
        run(bounded, feed)[0], expected(run(model, feed)[0], BY_NEURON), atol=4e-6
    )


@pytest.mark.parametrize("fault", [0.0, -1e-3, 0.3, 7.0, 1e30, np.inf])
@pytest.mark.parametrize("layer", ["Conv", "Gemm"])
def test_a_faulty_scale_still_scales_the_product_alone(layer: str, fault: float) -> None:
    """What a tent does to ``(s / s') x + b``: the same whether it divides before or behind."""
    if layer == "Conv":
        model, threshold, extents = built(BODIES["convolution"]), BY_CHANNEL, (3, 6, 6)
        feed, bias = {"x": normal(2, 3, 6, 6)}, B.reshape(1, 3, 1, 1)
        [product] = run_reference(network("y = Conv(x, w)", w=W), feed)
    else:
        model, threshold, extents = dense(DENSE["plain"]), BY_NEURON, (4,)
        feed, bias = {"x": normal(8, 4)}, DENSE_B
        product = preactivation(DENSE["no bias"], feed)
    bounded = tent(model, threshold, RescaleWeights(), extents=extents)
    tensor = next(t for t in bounded.graph.initializer if t.name == "a/rescale/scale")
    scale = onnx.numpy_helper.to_array(tensor).copy()
    before = scale.reshape(-1)[1]
    scale.reshape(-1)[1] = fault
    tensor.CopyFrom(onnx.numpy_helper.from_array(scale, tensor.name))
    counted = np.clip(abs(fault), 1 / 64, 2**14)
    product[:, 1] *= before / counted
    wanted = expected(product + bias, threshold)
    for compute in (run, run_reference):
        np.testing.assert_allclose(compute(bounded, feed)[0], wanted, atol=4e-6)


def test_a_value_that_something_else_reads_is_not_shifted() -> None:
    text = f"""{HEAD} net (float[N, 3, 6, 6] x) => (float[N, 3, 6, 6] z)
    {{ a = Conv(x, w, b)  y = Relu(a)  z = Add(y, a) }}"""
    model = parse(text, w=W, b=B)
    feed = {"x": 2 * normal(2, 3, 6, 6)}
    [a] = run(network("y = Conv(x, w, b)", w=W, b=B), feed)
    [z] = run(tent(model, BY_CHANNEL), feed)
    np.testing.assert_allclose(z, expected(a, BY_CHANNEL) + a, atol=4e-6)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 3.4e38, -3.4e38, 1e30])
def test_contains_what_a_fault_may_bring(value: float) -> None:
    x = np.ones((1, 3, 6, 6), np.float32)
    x[0, 1, 2, 3] = value
    bounded = tent(built(BODIES["input"]), BY_CHANNEL * 4)
    for compute in (run, run_reference):
        [y] = compute(bounded, {"x": x})
        assert y[0, 1, 2, 3] == 0
        assert (np.delete(y.reshape(-1), 36 + 15) == 1).all()


def test_a_threshold_that_a_fault_made_negative_lets_nothing_pass() -> None:
    bounded = tent(built(BODIES["convolution"]), -BY_CHANNEL)
    assert (run(bounded, {"x": 100 * normal(2, 3, 6, 6)})[0] == 0).all()


def test_relu6_is_bounded_behind_its_own_bound() -> None:
    model = network("a = Conv(x, w, b)  y = Clip(a, zero, six)", w=W, b=B,
                    zero=np.float32(0), six=np.float32(6))  # fmt: skip
    bounded = tent(model, BY_CHANNEL)
    feed = {"x": 2 * normal(2, 3, 6, 6)}
    [clipped] = run(model, feed)
    np.testing.assert_allclose(run(bounded, feed)[0], expected(clipped, BY_CHANNEL), atol=4e-6)


@pytest.mark.parametrize(
    ("threshold", "extents"),
    [
        (np.ones((1, 3, 6, 6), np.float32), (3, 6, 6)),
        (np.ones((1, 3), np.float32), (3,)),
        (np.float32(1), (None, 6, 6)),
        (np.float32(1), ()),
    ],
)
def test_where_no_channels_share_a_threshold_the_ramp_stands(
    threshold: Array, extents: tuple[int | None, ...]
) -> None:
    model = parse(f"{HEAD} net (float[N, a, b, c] x) => (float[N, a, b, c] y) {{ y = Relu(x) }}")
    bounded = tent(model, np.asarray(threshold), extents=extents)
    assert operators(bounded) == ["Relu", "Add", "Sub", "Max", "Min", "ThresholdedRelu"]


def optimised_operators(model: onnx.ModelProto, path: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return operators(onnx.load(path))


def test_onnx_runtime_keeps_it_in_its_blocked_layout(tmp_path: Path) -> None:
    weight = normal(16, 16, 3, 3)
    text = f"""{HEAD} net (float[N, 16, 8, 8] x) => (float[N, 16, 4, 4] y)
    {{ a = Conv(x, v)  h = Relu(a)  c = Conv(h, w)  y = Relu(c) }}"""
    model = parse(text, v=weight, w=weight)
    limit = np.ones((1, 16, 1, 1), np.float32)
    sites = [Site(name, limit, f"{name}/hyrelu/threshold", (16, 6, 6)) for name in ("h", "y")]
    found = {}
    for form in (Form.HARD, Form.TENT):
        bounded, _ = run_passes(model, [RescaleWeights(), InsertHyReLU(sites, form)])
        found[form] = optimised_operators(bounded, tmp_path / "optimised.onnx")
    # LeakyRelu is computed within the layer, Relu within the one convolution behind it.
    assert sorted(found[Form.TENT]) == ["Conv"] * 4 + ["ReorderInput", "ReorderOutput"]
    assert sum(op.startswith("Reorder") for op in found[Form.HARD]) == 4
    largest = [
        np.abs(onnx.numpy_helper.to_array(tensor)).max()
        for tensor in onnx.load(tmp_path / "optimised.onnx").graph.initializer
    ]
    # Weights stay enlarged in its memory.
    assert sum(value > 2**14 for value in largest) >= 2


def test_onnx_runtime_computes_leakyrelu_within_a_gemm(tmp_path: Path) -> None:
    bounded = tent(dense(DENSE["plain"]), BY_NEURON, RescaleWeights(), extents=(4,))
    found = optimised_operators(bounded, tmp_path / "optimised.onnx")
    assert found == ["FusedGemm", "Div", "Sub", "ThresholdedRelu", "Relu"]
