"""Bounds made of convolutions: what they compute, and what they are made of."""

import numpy as np
import onnx
import onnxruntime
import pytest

from passes import Form, InsertHyReLU, RescaleWeights, Site, run_passes
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


def test_a_convolution_takes_the_threshold_into_its_bias() -> None:
    counts = {
        case: operators(tent(built(body), BY_CHANNEL)).count("Conv")
        for case, body in BODIES.items()
    }
    # One for the falling side, and one that shifts where no convolution can.
    assert counts == {
        "input": 2,
        "convolution": 2,
        "no bias": 2,
        "shortcut": 3,
        "shortcut before": 3,
        "pooled": 3,
    }


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


def test_onnx_runtime_keeps_it_in_its_blocked_layout(tmp_path) -> None:
    weight = normal(16, 16, 3, 3)
    text = f"""{HEAD} net (float[N, 16, 8, 8] x) => (float[N, 16, 4, 4] y)
    {{ a = Conv(x, v)  h = Relu(a)  c = Conv(h, w)  y = Relu(c) }}"""
    model = parse(text, v=weight, w=weight)
    limit = np.ones((1, 16, 1, 1), np.float32)
    sites = [Site(name, limit, f"{name}/hyrelu/threshold", (16, 6, 6)) for name in ("h", "y")]
    reorders = {}
    for form in (Form.HARD, Form.TENT):
        bounded, _ = run_passes(model, [RescaleWeights(), InsertHyReLU(sites, form)])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        onnxruntime.InferenceSession(
            bounded.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found = operators(onnx.load(tmp_path / "optimised.onnx"))
        reorders[form] = sum(op in ("ReorderInput", "ReorderOutput") for op in found)
        assert form is Form.HARD or set(found) == {"Conv", "ReorderInput", "ReorderOutput"}
    assert reorders == {Form.HARD: 4, Form.TENT: 2}
