import numpy as np
import onnx
import pytest

from passes import BoundedSite, Form, InsertBounds, PreconditionError, run_passes
from tests.numerics import Array, operators, parse, run, run_reference

SPECIAL = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-30, -0.0, 0.0]
K = 20.0
RUNTIMES = pytest.mark.parametrize(
    "compute",
    [run, lambda model, feed: run(model, feed, True), run_reference],
    ids=["written", "optimised", "reference"],
)
LIMITS = pytest.mark.parametrize(
    ("lower", "upper"),
    [(-1.5, 2.0), (0.0, 2.0), (-1.5, 0.0), ([[-1.5] * 8], [[2.0] * 8]), (None, 2.0)],
    ids=["scalars", "no negative", "no positive", "neurons", "above"],
)


def values() -> Array:
    """Values around the thresholds and what faults make of others, [37, 8]."""
    x = np.linspace(-6, 6, 36 * 8, dtype=np.float32).reshape(36, 8)
    return np.concatenate([np.float32([SPECIAL]), x])


def network(opset: int = 17, dtype: str = "float", op: str = "Neg") -> onnx.ModelProto:
    return parse(f"""
    <ir_version: 8, opset_import: ["": {opset}]>
    net ({dtype}[N, 8] x) => ({dtype}[N, 8] y) {{ n = Neg(x)  y = {op}(n) }}
    """)


def bounded(
    model: onnx.ModelProto, lower: object, upper: object, form: Form, dtype: type = np.float32
) -> onnx.ModelProto:
    below = None if lower is None else np.asarray(lower, dtype)
    site = BoundedSite("y", np.asarray(upper, dtype), "y/hyrelu/threshold", below, "y/hyrelu/lower")
    result, changes = run_passes(model, [InsertBounds([site], form, K)])
    assert changes == {"insert-bounds": 1}
    onnx.checker.check_model(result, full_check=True)
    return result


def expected(form: Form, x: Array, lower: object, upper: object) -> Array:
    """Both sides by themselves, as formulas on float64."""
    v, high = np.asarray(x, np.float64), np.asarray(upper, np.float64)
    low = np.asarray(-np.inf if lower is None else lower, np.float64)
    inside = (v >= low) & (v <= high)
    with np.errstate(all="ignore"):
        limit = np.where((v < 0) & np.isfinite(low), -low, high)
        reach = np.abs(v) if lower is not None else v
        z = K / np.abs(limit) * (limit - reach)
        found = {
            Form.HARD: np.where(inside, v, 0),
            Form.SATURATE: np.minimum(np.maximum(v, low), high),
            Form.SMOOTH: np.where(z > -16, v / (1 + np.exp(-z)), 0),
            Form.RAMP: np.where(
                inside, v, np.sign(v) * np.maximum(2 * limit - np.abs(v), 0) * np.isfinite(v)
            ),
        }[form]
    return np.where(np.isnan(found) | (np.isnan(v) & (form is not Form.SATURATE)), 0, found)


@RUNTIMES
@LIMITS
@pytest.mark.parametrize("opset", [10, 11, 12, 16, 22])
@pytest.mark.parametrize("form", list(Form)[:4])
def test_forms(compute: object, lower: object, upper: object, opset: int, form: Form) -> None:
    x = values()
    if form is Form.SATURATE:
        x[0, 0] = 1.0  # NaN passes on some runtimes.
    if form is Form.SMOOTH and lower is None:
        x[0, 2] = 1.0  # Nothing that ends at a floor is minus infinity.
    [y] = compute(bounded(network(opset), lower, upper, form), {"x": x})
    wanted = expected(form, x, lower, upper)
    if lower is None and form is Form.HARD:
        wanted[0, 2] = -np.inf
    exact = form in (Form.HARD, Form.SATURATE)
    np.testing.assert_allclose(y, wanted, rtol=0 if exact else 2e-5, atol=0 if exact else 2e-6)


@pytest.mark.parametrize("form", [Form.HARD, Form.RAMP])
def test_what_lies_inside_passes_to_the_last_bit(form: Form) -> None:
    generator = np.random.default_rng(0)
    limits = np.exp(generator.uniform(-20, 20, (2, 1, 8))).astype(np.float32)
    x = generator.uniform(-1, 1, size=(5000, 8)).astype(np.float32)
    x = np.where(x < 0, x * limits[0], x * limits[1])
    x[0], x[1] = -limits[0], limits[1]
    [y] = run(bounded(network(), -limits[0], limits[1], form), {"x": x})
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    ("opset", "form", "written"),
    [
        (9, Form.HARD, ["Less", "Less", "And", "Where"]),
        (12, Form.HARD, ["LessOrEqual", "LessOrEqual", "And", "Where"]),
        (8, Form.SATURATE, ["Max", "Min"]),
        (11, Form.SATURATE, ["Clip"]),
    ],
)
def test_operators(opset: int, form: Form, written: list[str]) -> None:
    assert operators(bounded(network(opset), -1.0, 1.0, form)) == ["Neg", "Neg", *written]


CLIP = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 8] x) => (float[N, 8] y) { n = Neg(x)  y = Clip(n, low, high) }
"""


@pytest.mark.parametrize(
    ("lower", "upper", "interval"),
    [(-1.5, 4.0, (-1.5, 4.0)), (-7.0, 9.0, (-2.0, 6.0)), (None, 4.0, (-2.0, 4.0))],
)
def test_a_clip_is_tightened_in_place(
    lower: float | None, upper: float, interval: tuple[float, float]
) -> None:
    model = parse(CLIP, low=np.float32(-2), high=np.float32(6))
    result = bounded(model, lower, upper, Form.SATURATE)
    assert operators(result) == ["Neg", "Clip"]
    x = values()[1:]
    np.testing.assert_array_equal(run(result, {"x": x})[0], np.clip(-x, *interval))


def test_a_clip_is_left_where_a_threshold_has_a_shape() -> None:
    model = parse(CLIP, low=np.float32(-2), high=np.float32(6))
    result = bounded(model, [[-1.0] * 8], [[3.0] * 8], Form.SATURATE)
    assert operators(result) == ["Neg", "Clip", "Max", "Min"]
    x = values()[1:]
    np.testing.assert_array_equal(run(result, {"x": x})[0], np.clip(-x, -1, 3))


@pytest.mark.parametrize("form", [Form.HARD, Form.SMOOTH, Form.RAMP])
@pytest.mark.parametrize(("lower", "upper"), [(-2.0, -30000.0), (30000.0, 2.0), (9.0, -9.0)])
def test_thresholds_that_a_fault_moved_across_zero_let_nothing_large_pass(
    form: Form, lower: float, upper: float
) -> None:
    model = bounded(network(), -1.0, 1.0, form)
    stored = {"y/hyrelu/threshold": upper, "y/hyrelu/lower": lower}
    for tensor in model.graph.initializer:
        if tensor.name in stored:
            faulty = onnx.numpy_helper.from_array(np.float32(stored[tensor.name]), tensor.name)
            tensor.CopyFrom(faulty)
    [y] = run(model, {"x": values()})
    assert np.abs(y).max() <= 4.0


@pytest.mark.parametrize("form", list(Form)[:4])
@pytest.mark.parametrize(("name", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_other_types(form: Form, name: str, dtype: type) -> None:
    model = bounded(network(dtype=name), [[-1.5] * 8], [[2.0] * 8], form, dtype)
    assert {t.data_type for t in model.graph.initializer} == {
        onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    }
    x = values()[1:].astype(dtype)
    [y] = run(model, {"x": x})
    assert y.dtype == dtype
    wanted = expected(form, x, -1.5, 2.0)
    np.testing.assert_allclose(y, wanted, rtol=2e-2 if dtype is np.float16 else 1e-9, atol=4e-3)


def test_readers_and_outputs_follow_and_the_value_keeps_type_and_shape() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 8] x) => (float[N, 8] y, float[N, 8] z) { y = Neg(x)  z = Neg(y) }
    """)
    result = bounded(model, -1.0, 2.0, Form.HARD)
    assert [info.name for info in result.graph.output] == ["y", "z"]
    stated = {info.name: info.type for info in result.graph.value_info}
    assert stated["y/hyrelu/value"] == model.graph.output[0].type
    y, z = run(result, {"x": values()})
    np.testing.assert_array_equal(z, -y)
    assert (y.min(), y.max()) == (pytest.approx(-1, abs=0.05), pytest.approx(2, abs=0.05))


@pytest.mark.parametrize(
    ("opset", "form", "site", "message"),
    [
        (8, Form.HARD, {}, "form 'hard' needs opset 9 or newer, and the graph has 8"),
        (17, Form.HARD, {"tensor": "m"}, "no node writes a tensor 'm'"),
        (17, Form.HARD, {"upper_name": "x"}, "the name 'x' is taken"),
        (17, Form.HARD, {"lower_name": "t"}, "the name 't' is taken"),
        (17, Form.HARD, {"upper": np.float32(np.inf)}, "a threshold of 'y' is not finite"),
        (17, Form.HARD, {"upper": np.float32(-1)}, "of 'y' lies on the wrong side of zero"),
        (17, Form.HARD, {"lower": np.float32(1)}, "of 'y' lies on the wrong side of zero"),
    ],
)
def test_refuses(opset: int, form: Form, site: dict[str, object], message: str) -> None:
    limits = {"upper": np.float32(1), "lower": np.float32(-1)}
    fields = {"tensor": "y", "upper_name": "t", "lower_name": "l", **limits, **site}
    with pytest.raises(PreconditionError, match=message):
        run_passes(network(opset), [InsertBounds([BoundedSite(**fields)], form)])
