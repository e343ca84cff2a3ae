import numpy as np
import onnx
import pytest

from passes import Form, InsertHyReLU, PreconditionError, Site, run_passes
from tests.numerics import (
    Array,
    assert_same_outputs,
    operators,
    parse,
    random_feed,
    run,
    run_reference,
)

BITE = np.array(
    [
        [-np.inf, -1e30, -2, -0.0, 0, 0.5, 1, 1.5],
        [2, 2.0000002, 3, 1e30, 3.4e38, np.inf, np.nan, 1],
    ],
    np.float32,
)
K = 20.0


def relu_net(opset: int = 17, dtype: str = "float", shape: str = "N, 8") -> onnx.ModelProto:
    return parse(f"""
    <ir_version: 7, opset_import: ["": {opset}]>
    net ({dtype}[{shape}] x) => ({dtype}[{shape}] y) {{ y = Relu(x) }}
    """)


def bounded(
    model: onnx.ModelProto,
    threshold: object,
    form: Form = Form.HARD,
    dtype: type = np.float32,
    **options: object,
) -> onnx.ModelProto:
    site = Site("y", np.asarray(threshold, dtype), "y/hyrelu/threshold")
    result, changes = run_passes(model, [InsertHyReLU([site], form, **options)])
    assert changes == {"insert-hyrelu": 1}
    onnx.checker.check_model(result, full_check=True)
    return result


def hard(x: Array, threshold: object) -> Array:
    return np.where(np.maximum(x, 0) <= threshold, np.maximum(x, 0), 0)


def ramp(x: Array, threshold: object) -> Array:
    """Up with x to the threshold, down to 0 at twice the threshold; 0 for what is not finite."""
    r = np.where(np.isfinite(x), np.maximum(x, 0), 0)
    return np.where(r <= threshold, r, np.maximum(2 * np.asarray(threshold, x.dtype) - r, 0))


def smooth(x: Array, threshold: object, k: object) -> Array:
    """The paper's function with its sign put right, and 0 where the gate is below 1e-7."""
    x64, limit = np.asarray(x, np.float64), np.asarray(threshold, np.float64)
    with np.errstate(all="ignore"):
        z = np.asarray(k) * (limit - x64)
        value = np.maximum(x64 / (1 + np.exp(-z)), 0)
    return np.where((z > -16) & np.isfinite(x64), value, 0)


RUNTIMES = pytest.mark.parametrize(
    "compute", [run, run_reference], ids=["onnxruntime", "reference"]
)
THRESHOLDS = pytest.mark.parametrize(
    "threshold",
    [2.0, 0.0, [[2.0]], [[0.0, 1, 2, 3, 4, 5, 6, 7]], [[1.5] * 8]],
    ids=["scalar", "zero", "one", "neuron", "ones"],
)


@RUNTIMES
@THRESHOLDS
@pytest.mark.parametrize("opset", [9, 11, 12, 15, 16, 22])
def test_hard(compute: object, threshold: object, opset: int) -> None:
    model = bounded(relu_net(opset), threshold)
    compared = "LessOrEqual" if opset >= 12 else "Less"
    assert operators(model) == ["Relu", compared, "Where"]
    [y] = compute(model, {"x": BITE})
    np.testing.assert_array_equal(y, hard(BITE, np.float32(threshold)))


@RUNTIMES
@THRESHOLDS
@pytest.mark.parametrize("opset", [9, 13, 22])
def test_smooth_with_relative_slope(compute: object, threshold: object, opset: int) -> None:
    model = bounded(relu_net(opset), threshold, Form.SMOOTH, slope=K)
    [y] = compute(model, {"x": BITE})
    limit = np.asarray(threshold, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(limit == 0, 0, smooth(BITE, limit, K / limit))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@RUNTIMES
@THRESHOLDS
def test_smooth_with_absolute_slope(compute: object, threshold: object) -> None:
    model = bounded(relu_net(), threshold, Form.SMOOTH, slope=K, relative_slope=False)
    [y] = compute(model, {"x": BITE})
    np.testing.assert_allclose(y, smooth(BITE, threshold, K), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("relative", [True, False])
def test_smooth_tends_to_hard(relative: bool) -> None:
    x = np.linspace(-4, 8, 96, dtype=np.float32).reshape(12, 8)
    x = x[np.abs(x - 2).min(axis=1) > 0.05]
    steep = bounded(relu_net(), 2.0, Form.SMOOTH, slope=1e4, relative_slope=relative)
    np.testing.assert_allclose(run(steep, {"x": x})[0], hard(x, 2.0), atol=1e-6)


@pytest.mark.parametrize("form", [Form.HARD, Form.SMOOTH])
@pytest.mark.parametrize("opset", [9, 17])
def test_the_optimiser_of_onnxruntime_leaves_the_bound_in_place(form: Form, opset: int) -> None:
    model = bounded(relu_net(opset), [[1.5] * 8], form)
    written, optimised = (run(model, {"x": BITE}, optimise)[0] for optimise in (False, True))
    np.testing.assert_allclose(optimised, written, rtol=1e-6)
    assert np.isfinite(optimised).all()


@pytest.mark.parametrize("form", [Form.HARD, Form.SMOOTH])
@pytest.mark.parametrize("relative", [True, False])
def test_a_threshold_that_a_fault_made_negative_lets_nothing_large_pass(
    form: Form, relative: bool
) -> None:
    model = bounded(relu_net(), -2.0, form, relative_slope=relative)
    assert np.abs(run(model, {"x": BITE})[0]).max() < 1e-6


@RUNTIMES
@THRESHOLDS
@pytest.mark.parametrize("opset", [8, 10, 11, 13])
def test_saturate(compute: object, threshold: object, opset: int) -> None:
    model = bounded(relu_net(opset), threshold, Form.SATURATE)
    last = "Clip" if opset >= 11 and np.ndim(threshold) == 0 else "Min"
    assert operators(model) == ["Relu", last]
    finite = np.nan_to_num(BITE, nan=1.0, posinf=np.inf, neginf=-np.inf)
    [y] = compute(model, {"x": finite})
    expected = np.minimum(np.maximum(finite, 0), np.float32(threshold))
    np.testing.assert_array_equal(y, expected)


@RUNTIMES
@THRESHOLDS
@pytest.mark.parametrize("opset", [10, 13, 22])
def test_ramp(compute: object, threshold: object, opset: int) -> None:
    model = bounded(relu_net(opset), threshold, Form.RAMP)
    assert operators(model) == ["Relu", "Add", "Sub", "Max", "Min", "ThresholdedRelu"]
    [y] = compute(model, {"x": BITE})
    np.testing.assert_array_equal(y, ramp(BITE, np.float32(threshold)))


@RUNTIMES
def test_ramp_passes_what_lies_below_the_threshold_to_the_last_bit(compute: object) -> None:
    generator = np.random.default_rng(0)
    limits = np.exp(generator.uniform(-20, 20, (1, 8))).astype(np.float32)
    x = generator.uniform(size=(5000, 8)).astype(np.float32) ** 4 * limits
    x[0], x[1] = limits, np.nextafter(limits, np.float32(0))
    [y] = compute(bounded(relu_net(), limits, Form.RAMP), {"x": x})
    np.testing.assert_array_equal(y, x)


def convolution(channels: int = 16) -> onnx.ModelProto:
    """A 1x1 convolution that hands every channel on, which ONNX Runtime runs in blocks."""
    return parse(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, {channels}, 4, 4] x) => (float[N, {channels}, 4, 4] z)
        {{
          c = Conv <group = {channels}> (x, w)
          y = Relu(c)
          z = Conv <group = {channels}> (y, w)
        }}
        """,
        w=np.ones((channels, 1, 1, 1), np.float32),
    )


@pytest.mark.parametrize("form", [Form.HARD, Form.RAMP])
@pytest.mark.parametrize("channelwise", [False, True])
@pytest.mark.parametrize(
    "compute",
    [run, lambda model, feed: run(model, feed, True), run_reference],
    ids=["written", "optimised", "reference"],
)
def test_what_faults_make_of_a_convolution_is_contained(
    compute: object, channelwise: bool, form: Form
) -> None:
    limits = np.linspace(0.25, 2, 16).reshape(1, 16, 1, 1) if channelwise else np.array(1.5)
    limits = limits.astype(np.float32)
    x = np.broadcast_to(BITE.reshape(1, 1, 4, 4), (2, 16, 4, 4)).copy()
    [y] = compute(bounded(convolution(), limits, form), {"x": x})
    assert np.isfinite(y).all()
    assert (y <= limits).all()
    np.testing.assert_array_equal(y, (hard if form is Form.HARD else ramp)(x, limits))


@pytest.mark.parametrize("threshold", [-2.0, np.finfo(np.float32).min])
@RUNTIMES
def test_ramp_with_a_threshold_that_a_fault_made_negative_passes_nothing(
    compute: object, threshold: float
) -> None:
    [y] = compute(bounded(relu_net(), threshold, Form.RAMP), {"x": BITE})
    assert (y == 0).all()


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize(("name", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_other_types(form: Form, name: str, dtype: type) -> None:
    model = bounded(relu_net(dtype=name), [[2.0] * 8], form, dtype)
    assert {t.data_type for t in model.graph.initializer} == {
        onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    }
    x = np.linspace(-4, 8, 96).reshape(12, 8).astype(dtype)
    [y] = run(model, {"x": x})
    assert y.dtype == dtype
    expected = {
        Form.HARD: hard(x, 2.0),
        Form.SMOOTH: smooth(x, 2.0, K / 2),
        Form.SATURATE: np.clip(x, 0, 2),
        Form.RAMP: ramp(x, 2.0),
        Form.TENT: ramp(x, 2.0),
    }[form]
    np.testing.assert_allclose(y, expected, rtol=2e-2 if dtype is np.float16 else 1e-12, atol=1e-3)


CONVOLUTION = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y, float[N, 2, 4, 4] z, float[N, 2, 4, 4] s)
{
  y = Relu(x)
  z = Neg(y)
  six = Clip(x, zero, top)
  s = Add(six, y)
}
"""
BOUNDS = {"zero": np.float32(0), "top": np.float32(6)}


def test_every_reader_and_output_follows_and_keeps_its_name() -> None:
    model = parse(CONVOLUTION, **BOUNDS)
    limits = np.array([0.5, 1.0], np.float32).reshape(1, 2, 1, 1)
    relu = Site("y", limits, "y/hyrelu/threshold")
    clip = Site("six", np.float32(0.25), "six/hyrelu/threshold")
    result, changes = run_passes(model, [InsertHyReLU([relu, clip])])
    assert changes == {"insert-hyrelu": 2}
    assert [info.name for info in result.graph.output] == ["y", "z", "s"]
    feed = random_feed(model)
    y, z, s = run(result, feed)
    expected = hard(feed["x"], limits)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(z, -expected)
    np.testing.assert_array_equal(s, hard(np.minimum(feed["x"], 6), 0.25) + expected)


def test_one_zero_serves_all_sites_and_thresholds_are_stored_once() -> None:
    model = parse(CONVOLUTION, **BOUNDS)
    sites = [Site(t, np.float32(1), f"{t}/hyrelu/threshold") for t in ("y", "six")]
    result, _ = run_passes(model, [InsertHyReLU(sites, Form.SMOOTH)])
    assert [t.name for t in result.graph.initializer] == [
        "zero",
        "top",
        "y/hyrelu/threshold",
        "hyrelu/slope/float32",
        "hyrelu/gate_end/float32",
        "hyrelu/zero/float32",
        "six/hyrelu/threshold",
    ]
    names = [node.name for node in result.graph.node if node.name]
    assert len(names) == len(set(names))


def test_nodes_stand_right_behind_their_activation() -> None:
    result = bounded(parse(CONVOLUTION, **BOUNDS), 1.0)
    assert operators(result) == ["Relu", "LessOrEqual", "Where", "Neg", "Clip", "Add"]


@pytest.mark.parametrize("form", list(Form))
def test_a_threshold_above_every_value_changes_nothing(form: Form) -> None:
    model = parse(CONVOLUTION, **BOUNDS)
    assert_same_outputs(model, bounded(model, 1e6, form), 1e-6 if form is Form.SMOOTH else 0)


def test_a_subgraph_reads_the_bounded_tensor() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[8] x, bool c) => (float[8] z)
    {
      y = Relu(x)
      z = If(c) <
        then_branch = a () => (float[8] p) { p = Neg(y) },
        else_branch = b () => (float[8] q) { q = Abs(y) }
      >
    }
    """)
    result = bounded(model, 2.0)
    [z] = run(result, {"x": BITE[1], "c": np.array(True)})
    np.testing.assert_array_equal(z, -hard(BITE[1], 2.0))


def test_the_rectified_tensor_keeps_type_and_shape() -> None:
    model = parse(CONVOLUTION, **BOUNDS)
    result = bounded(model, 1.0)
    stated = {info.name: info.type for info in result.graph.value_info}
    assert stated["y/hyrelu/relu"] == model.graph.output[0].type


@pytest.mark.parametrize(
    ("opset", "form", "site", "message"),
    [
        (8, Form.HARD, {}, "form 'hard' needs opset 9 or newer, and the graph has 8"),
        (9, Form.RAMP, {}, "form 'ramp' needs opset 10 or newer, and the graph has 9"),
        (7, Form.SATURATE, {}, "form 'saturate' needs opset 8 or newer, and the graph has 7"),
        (17, Form.HARD, {"tensor": "n"}, "no node writes a tensor 'n'"),
        (17, Form.HARD, {"threshold_name": "x"}, "the name 'x' is taken"),
        (17, Form.HARD, {"threshold": np.float32(np.nan)}, "a threshold of 'y' is not finite"),
    ],
)
def test_refuses(opset: int, form: Form, site: dict[str, object], message: str) -> None:
    fields = {"tensor": "y", "threshold": np.float32(1), "threshold_name": "t", **site}
    with pytest.raises(PreconditionError, match=message):
        run_passes(relu_net(opset), [InsertHyReLU([Site(**fields)], form)])
