"""Counts of values out of bounds, against numpy."""

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from passes import AddMonitor, Bound, Form, InsertHyReLU, PreconditionError, Site, run_passes
from proact_onnx.faults import fault_space
from tests.numerics import Array, operators, parse, run, run_reference
from tests.test_pass_insert_hyrelu import BITE, bounded, relu_net

RUNTIMES = pytest.mark.parametrize(
    "compute", [run, run_reference], ids=["onnxruntime", "reference"]
)
BOUND = Bound("y", "y/hyrelu/relu", "y/hyrelu/threshold")


def monitored(model: onnx.ModelProto, *bounds: Bound, output: str = "counts") -> onnx.ModelProto:
    watched = bounds or (BOUND,)
    result, changes = run_passes(model, [AddMonitor(watched, output)])
    assert changes == {"add-monitor": len(watched)}
    onnx.checker.check_model(result, full_check=True)
    return result


def outside(x: Array, threshold: object) -> Array:
    """By image, how many values do not lie at or below the threshold once rectified."""
    stopped = ~(np.maximum(x, 0) <= np.asarray(threshold, x.dtype))
    return stopped.reshape(len(x), -1).sum(axis=1, keepdims=True)


@RUNTIMES
@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("opset", [12, 13, 17, 22])
@pytest.mark.parametrize(
    "threshold",
    [2.0, 0.0, -1.0, [[0.0, 1, 2, 3, 4, 5, 6, 7]]],
    ids=["scalar", "zero", "negative", "neuron"],
)
def test_counts_are_those_of_numpy(
    compute: object, form: Form, opset: int, threshold: object
) -> None:
    hardened = bounded(relu_net(opset), threshold, form)
    plain, [same, counts] = (
        compute(hardened, {"x": BITE}),
        compute(monitored(hardened), {"x": BITE}),
    )
    np.testing.assert_array_equal(counts, outside(BITE, threshold))
    assert counts.dtype == np.float32
    np.testing.assert_array_equal(same.view(np.uint32), plain[0].view(np.uint32))


@pytest.mark.parametrize("form", list(Form))
def test_infinity_and_nan_count_and_minus_infinity_does_not(form: Form) -> None:
    x = np.array([[np.nan, np.inf, -np.inf, -np.nan, 1, 9, 2, 3]], np.float32)
    model = monitored(bounded(relu_net(), 2.0, form))
    for optimise in (False, True):
        assert run(model, {"x": x}, optimise)[1].tolist() == [[5]]


@pytest.mark.parametrize("fault", [np.nan, -np.inf, np.inf, -0.5])
def test_a_corrupt_threshold_counts_what_does_not_lie_below_it(fault: float) -> None:
    model = monitored(bounded(relu_net(), 2.0))
    [stored] = [t for t in model.graph.initializer if t.name == "y/hyrelu/threshold"]
    stored.CopyFrom(onnx.numpy_helper.from_array(np.float32(fault), stored.name))
    counts = run(model, {"x": BITE})[1]
    np.testing.assert_array_equal(counts, outside(BITE, fault))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("form", [Form.HARD, Form.SATURATE, Form.RAMP])
def test_every_type_is_counted_in_float32(dtype: type, form: Form) -> None:
    name = {np.float16: "float16", np.float32: "float", np.float64: "double"}[dtype]
    model = monitored(bounded(relu_net(dtype=name), 2.0, form, dtype))
    x = np.clip(BITE.astype(np.float64), -6e4, 6e4).astype(dtype)
    for compute in (run, run_reference):
        counts = compute(model, {"x": x})[1]
        assert counts.dtype == np.float32
        np.testing.assert_array_equal(counts, outside(x, dtype(2)))


TWO_LAYERS = """<ir_version: 8, opset_import: ["": 17]>
net (float[{batch}, 2, 6, 6] x) => (float[{batch}, 5] y) {{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    f = Flatten (r)
    h = Gemm (f, w2, b2)
    s = Relu (h)
    y = MatMul (s, w3)
}}"""
SHAPES = {"w1": (3, 2, 3, 3), "b1": (3,), "w2": (108, 7), "b2": (7,), "w3": (7, 5)}


def two_layers(batch: str = "N") -> tuple[onnx.ModelProto, InsertHyReLU]:
    """A network with a threshold a channel behind its convolution, and one a neuron after it."""
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in SHAPES.items()}
    channels = np.array([1.0, 3.0, 6.0], np.float32).reshape(1, 3, 1, 1)
    neurons = rng.uniform(5, 20, (1, 7)).astype(np.float32)
    step = InsertHyReLU(
        [Site("s", neurons, "s/hyrelu/threshold"), Site("r", channels, "r/hyrelu/threshold")]
    )
    hardened, _ = run_passes(parse(TWO_LAYERS.format(batch=batch), **weights), [step])
    return hardened, step


def noise(count: int) -> Array:
    return np.random.default_rng(1).standard_normal((count, 2, 6, 6)).astype(np.float32) * 2


@pytest.mark.parametrize("count", [1, 3, 8])
def test_every_layer_has_a_column_and_every_image_a_row(count: int) -> None:
    hardened, step = two_layers()
    assert {bound.tensor for bound in step.bounds} == {"r", "s"}
    bounds = sorted(step.bounds, key=lambda bound: bound.tensor)
    watched = monitored(hardened, *bounds)
    x = noise(count)
    inner = onnx.ModelProto()
    inner.CopyFrom(hardened)
    for bound in bounds:
        inner.graph.output.append(onnx.ValueInfoProto(name=bound.compared))
    [y, r, s] = run(inner, {"x": x})
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in hardened.graph.initializer}
    expected = np.hstack(
        [outside(v, stored[b.threshold]) for v, b in zip((r, s), bounds, strict=True)]
    )
    assert expected.any()
    for optimise in (False, True):
        same, counts = run(watched, {"x": x}, optimise)
        np.testing.assert_array_equal(counts, expected)
        plain = run(hardened, {"x": x}, optimise)[0]
        np.testing.assert_array_equal(same.view(np.uint32), plain.view(np.uint32))
    np.testing.assert_array_equal(y, run(hardened, {"x": x})[0])


@pytest.mark.parametrize(("batch", "extent"), [("N", "N"), ("4", 4)])
def test_the_batch_axis_is_as_open_as_the_models_own(batch: str, extent: object) -> None:
    hardened, step = two_layers(batch)
    first, counts = monitored(hardened, *step.bounds).graph.output
    assert first == hardened.graph.output[0]
    dims = counts.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == [extent, 2]
    assert counts.name == "counts"


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("opset", [12, 17])
def test_no_fault_site_is_added_moved_or_renamed(form: Form, opset: int) -> None:
    hardened = bounded(relu_net(opset), [[1.0] * 8], form)
    watched = monitored(hardened)
    assert fault_space(watched, 32) == fault_space(hardened, 32)
    before = {tensor.name for tensor in hardened.graph.initializer}
    added = [t for t in watched.graph.initializer if t.name not in before]
    # The axis to sum over, where it is no attribute.
    assert [onnx.numpy_helper.to_array(t).tolist() for t in added] == ([[1]] if opset > 12 else [])


def test_the_hard_form_compares_once() -> None:
    assert operators(monitored(bounded(relu_net(), 2.0))) == [
        *("Relu", "LessOrEqual", "Where"),
        *("Not", "Flatten", "Cast", "ReduceSum", "Concat"),
    ]
    assert operators(monitored(bounded(relu_net(), 2.0, Form.SATURATE))) == [
        *("Relu", "Clip"),
        *("LessOrEqual", "Not", "Flatten", "Cast", "ReduceSum", "Concat"),
    ]


def test_a_threshold_that_is_computed_can_be_watched() -> None:
    """Forms may store a threshold in another shape than the activation's."""
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2, 3] x) => (float[N, 2, 3] y) {
            column = Unsqueeze (stored, axis)
            r = Relu (x)
            y = Min (r, column)
        }""",
        stored=np.array([0.5, 1.0], np.float32),
        axis=np.array([1], np.int64),
    )
    x = np.random.default_rng(2).standard_normal((4, 2, 3)).astype(np.float32)
    counts = run(monitored(model, Bound("y", "r", "column")), {"x": x})[1]
    np.testing.assert_array_equal(counts, outside(x, [[0.5], [1.0]]))
    assert counts.any()


def test_what_a_preactivation_exceeds_can_be_watched() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 8] v) => (float[N, 8] y) {
            x = Identity (v)
            away = Sub (x, limit)
            size = Abs (away)
            rest = Sub (limit, size)
            y = Relu (rest)
        }""",
        limit=np.float32(2),
    )
    counts = run(monitored(model, Bound("y", "x", "limit")), {"v": BITE})[1]
    np.testing.assert_array_equal(counts, outside(BITE, 2.0))


@RUNTIMES
@pytest.mark.parametrize("form", ["hard", "clamp"])
def test_bounds_from_both_sides(compute: object, form: str) -> None:
    """A bound that compares from both sides itself is not asked again."""
    hard = "below = LessOrEqual (v, upper) inside = And (above, below) y = Where (inside, v, zero)"
    written = f"above = LessOrEqual (lower, v) {hard}"
    if form == "clamp":
        written = "raised = Max (v, lower) y = Min (raised, upper)"
    model = parse(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 8] x) => (float[N, 8] y) {{ v = Identity (x) {written} }}""",
        upper=np.float32(2),
        lower=np.full((1, 8), -1.5, np.float32),
        **({"zero": np.float32(0)} if form == "hard" else {}),
    )
    watched = monitored(model, Bound("y", "v", "upper", lower="lower"))
    assert operators(watched).count("LessOrEqual") == 2
    assert operators(watched).count("And") == 1
    stopped = ~((BITE <= 2) & (BITE >= -1.5))
    counts = compute(watched, {"x": BITE})[1]
    np.testing.assert_array_equal(counts, stopped.sum(axis=1, keepdims=True))


@RUNTIMES
def test_a_difference_from_the_threshold_is_compared_with_zero(compute: object) -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 8] x) => (float[N, 8] y) {
            shifted = Sub (x, limit)
            size = Abs (shifted)
            rest = Sub (limit, size)
            y = Relu (rest)
        }""",
        limit=np.full((1, 8), 2, np.float32),
    )
    watched = monitored(model, Bound("y", "shifted", "limit", shifted=True))
    np.testing.assert_array_equal(compute(watched, {"x": BITE})[1], [[0], [6]])
    assert fault_space(watched, 32) == fault_space(model, 32)


@pytest.mark.parametrize(
    ("bounds", "output", "reason"),
    [
        ([], "counts", "no bound to watch"),
        ([Bound("y", "gone", BOUND.threshold)], "counts", "no node writes a tensor 'gone'"),
        ([Bound("gone", BOUND.compared, BOUND.threshold)], "counts", "writes a tensor 'gone'"),
        ([Bound("y", BOUND.compared, "gone")], "counts", "the graph has no tensor 'gone'"),
        ([Bound("y", BOUND.compared, BOUND.threshold, "low")], "counts", "no tensor 'low'"),
        ([BOUND], "x", "the name 'x' is taken"),
        ([BOUND], "y/hyrelu/relu", "is taken"),
    ],
)
def test_refusals(bounds: list[Bound], output: str, reason: str) -> None:
    with pytest.raises(PreconditionError, match=reason):
        run_passes(bounded(relu_net(), 2.0), [AddMonitor(bounds, output)])


def test_an_opset_without_the_comparison_is_refused() -> None:
    with pytest.raises(PreconditionError, match="needs opset 12 or newer, and the graph has 11"):
        run_passes(bounded(relu_net(11), 2.0), [AddMonitor([BOUND], "counts")])


def test_a_graph_of_no_known_batch_gets_an_open_one() -> None:
    model = bounded(relu_net(), 2.0)
    step = AddMonitor([BOUND], "counts")
    graph = gs.import_onnx(model)
    graph.inputs[0].shape = None
    step.call(graph)
    assert graph.outputs[-1].shape == [None, 1]


@pytest.mark.parametrize("form", list(Form))
def test_the_optimiser_changes_neither_outputs_nor_counts(form: Form, digits_dir: Path) -> None:
    """The runtime merges convolution and Clip, unless a monitor reads between them."""
    model = onnx.load(digits_dir / "digits.onnx")
    relus = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    sites = [Site(name, np.float32(0.75), f"{name}/hyrelu/threshold") for name in relus]
    step = InsertHyReLU(sites, form)
    hardened, _ = run_passes(model, [step])
    watched = monitored(hardened, *step.bounds)
    [info] = model.graph.input
    with np.load(digits_dir / "test.npz") as data:
        images = data["images"][:64].astype(np.float32) / 16
    x = images.reshape(len(images), *(d.dim_value for d in info.type.tensor_type.shape.dim[1:]))
    plain = run(hardened, {info.name: x}, optimise=True)[0]
    same, counts = run(watched, {info.name: x}, optimise=True)
    if form is Form.SATURATE:
        np.testing.assert_allclose(same, plain, rtol=0, atol=1e-6 * np.abs(plain).max())
    else:
        np.testing.assert_array_equal(same.view(np.uint32), plain.view(np.uint32))
    np.testing.assert_allclose(counts, run(watched, {info.name: x})[1], atol=1)
    assert counts[:, :-1].any(axis=0).all()
