from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.errors import ModelError
from proact_onnx.model import load_model, opset
from proact_onnx.rewrite import Form, expose, insert, prepare, threshold_name
from proact_onnx.thresholds import Thresholds
from proact_onnx.versions import convert_opset
from tests.numerics import (
    Array,
    assert_same_outputs,
    operators,
    parse,
    random_feed,
    run,
    run_reference,
)

# The newest opset that ONNX Runtime 1.24, the oldest supported, runs.
NEWEST_IN_RUNTIME = 23


def thresholds(**values: object) -> Thresholds:
    return Thresholds({name: np.asarray(value, np.float32) for name, value in values.items()})


def tiny_net(version: int, dtype: type = np.float32, batch: str = "N") -> onnx.ModelProto:
    """Convolution, Relu, Gemm, Relu, Gemm: readable at every opset."""
    generator = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        return generator.normal(size=shape).astype(dtype)

    name = {np.float16: "float16", np.float32: "float", np.float64: "double"}[dtype]
    return parse(
        f"""
        <ir_version: 7, opset_import: ["": {version}], metadata_props: ["made": "by hand"]>
        net ({name}[{batch}, 2, 4, 4] x) => ({name}[{batch}, 3] y)
        {{
          [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w)
          [relu1] a = Relu(c)
          f = Flatten(a)
          [fc1] g = Gemm(f, v, b)
          [relu2] r = Relu(g)
          [fc2] y = Gemm(r, u, d)
        }}
        """,
        w=weight(3, 2, 3, 3),
        v=weight(48, 5),
        b=weight(5),
        u=weight(5, 3),
        d=weight(3),
    )


def forward(weights: dict[str, Array], x: Array, first: Array, second: Array) -> Array:
    """The tiny net with hard bounds, in numpy."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    a = np.maximum(np.einsum("nchwij,ocij->nohw", windows, weights["w"]), 0)
    a = np.where(a <= first, a, 0).reshape(len(x), -1)
    r = np.maximum(a @ weights["v"] + weights["b"], 0)
    return np.where(r <= second, r, 0) @ weights["u"] + weights["d"]


LIMITS = {
    "a": np.array([0.7, 1.5, 3.0], np.float32).reshape(1, 3, 1, 1),
    "r": np.array([[0.5, 2, 4, 8, 16]], np.float32),
}


@pytest.mark.parametrize("version", range(7, onnx.defs.onnx_opset_version() + 1))
def test_insert_at_every_opset(version: int) -> None:
    model = tiny_net(version)
    inserted = insert(model, thresholds(**LIMITS))
    assert inserted.raised_opset == (9 if version < 9 else None)
    assert opset(inserted.model) == max(version, 9)
    onnx.checker.check_model(inserted.model, full_check=True)
    feed = random_feed(model)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    expected = forward(weights, feed["x"], LIMITS["a"], LIMITS["r"])
    computations = [run_reference] + ([run] if version <= NEWEST_IN_RUNTIME else [])
    for compute in computations:
        [y] = compute(inserted.model, feed)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", [7, 8])
def test_raising_the_opset_keeps_names_and_metadata(version: int) -> None:
    model = tiny_net(version)
    raised = convert_opset(model, 9)
    assert list(raised.metadata_props) == list(model.metadata_props)
    assert [n.name for n in raised.graph.node] == [n.name for n in model.graph.node]
    assert [n.output for n in raised.graph.node] == [n.output for n in model.graph.node]
    assert {t.name for t in raised.graph.initializer} == {t.name for t in model.graph.initializer}
    assert raised.ir_version == model.ir_version
    assert_same_outputs(model, raised)


def test_saturate_needs_opset_8_only() -> None:
    assert insert(tiny_net(8), thresholds(a=1.0), Form.SATURATE).raised_opset is None
    assert insert(tiny_net(7), thresholds(a=1.0), Form.SATURATE).raised_opset == 8


def test_an_opset_that_cannot_be_raised() -> None:
    model = parse("""
    <ir_version: 3, opset_import: ["": 8]>
    net (float[1, 1, 2, 2] x) => (float[1, 1, A, B] y)
    { u = Upsample<mode = "nearest">(x)  y = Relu(u) }
    """)
    with pytest.raises(ModelError, match="form 'hard' needs opset 9: the model has opset 8 and"):
        insert(model, thresholds(y=1.0))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_thresholds_take_the_activations_type(dtype: type) -> None:
    model = tiny_net(17, dtype)
    inserted = insert(model, thresholds(a=1e30, r=1e30)).model
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in inserted.graph.initializer}
    value = stored[threshold_name("a")]
    assert value.dtype == dtype
    # Behind float16 a larger threshold would become infinite, and let infinity through.
    assert value == (np.finfo(np.float16).max if dtype is np.float16 else np.float32(1e30))
    feed = random_feed(model)
    # ONNX Runtime has no convolution in double precision.
    np.testing.assert_array_equal(run_reference(inserted, feed), run_reference(model, feed))


@pytest.mark.parametrize("batch", ["N", "2"])
def test_the_batch_stays_as_it_is(batch: str) -> None:
    model = tiny_net(17, batch=batch)
    inserted = insert(model, thresholds(**LIMITS)).model
    assert inserted.graph.input == model.graph.input
    assert inserted.graph.output == model.graph.output


def test_no_thresholds_change_nothing() -> None:
    model = tiny_net(17)
    assert insert(model, thresholds()).model == model


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("c", 1.0, "tensor 'c' is not an activation of the model"),
        ("a", np.nan, "the threshold of activation 'a' is not finite"),
        ("a", np.inf, "the threshold of activation 'a' is not finite"),
        ("a", np.ones(3), r"thresholds of shape \(3,\) do not fit activation 'a'"),
        ("a", np.ones((1, 4, 1, 1)), r"shape \(1, 4, 1, 1\) do not fit activation 'a'"),
        ("r", np.ones((2, 5)), r"shape \(2, 5\) do not fit activation 'r', .* \(1, 5\)"),
    ],
)
def test_insert_refuses(tensor: str, value: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        insert(tiny_net(17), thresholds(**{tensor: value}))


def test_a_hardened_model_is_not_hardened_again() -> None:
    hardened = insert(tiny_net(17), thresholds(a=1.0, r=1.0)).model
    assert find_activations(hardened) == []
    with pytest.raises(ModelError, match="'a' is not an activation of the model"):
        insert(hardened, thresholds(a=1.0))


def test_bfloat16_is_bounded_in_its_own_type() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (bfloat16[N, 2] x) => (bfloat16[N, 2] y) { y = Relu(x) }
    """)
    inserted = insert(model, thresholds(y=1.0)).model
    assert {t.data_type for t in inserted.graph.initializer} == {onnx.TensorProto.BFLOAT16}


def test_smooth_slope_reaches_the_graph() -> None:
    relative = insert(tiny_net(17), thresholds(a=2.0), Form.SMOOTH, slope=7.0).model
    absolute = insert(
        tiny_net(17), thresholds(a=2.0), Form.SMOOTH, slope=7.0, relative_slope=False
    ).model
    for model in (relative, absolute):
        values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        assert values["hyrelu/slope/float32"] == np.float32(7)
    assert "Div" in operators(relative)
    assert "Div" not in operators(absolute)


EVERYTHING = """
<ir_version: 8, opset_import: ["": 17, "local": 1], doc_string: "doc">
net (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)
{
  k = Constant<value = float[1] {0.5}>()
  h = local.scaled(x, k)
  c = Conv(h, w)
  n = BatchNormalization(c, s, t, m, v)
  dead = Exp(n)
  z = Constant<value_float = 0.0>()
  a = Max(z, n)
  y = Clip(a, z)
}
<domain: "local", opset_import: ["": 17]>
scaled (p, q) => (r) { two = Constant<value = float[1] {2.0}>()  d = Mul(q, two)  r = Mul(p, d) }
"""


def everything() -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    weights = {name: generator.uniform(0.5, 2, 2).astype(np.float32) for name in "stmv"}
    return parse(EVERYTHING, w=generator.normal(size=(2, 2, 1, 1)).astype(np.float32), **weights)


def test_prepare() -> None:
    model = everything()
    prepared = prepare(model)
    assert prepared.changes == {
        "lift-constants": 3,
        "normalize-activations": 2,
        "fold-batchnorm": 1,
        "cleanup": 1,
    }
    assert prepared.refusals == ()
    assert operators(prepared.model) == ["Mul", "Mul", "Conv", "Relu", "Relu"]
    assert not prepared.model.functions
    assert prepared.model.doc_string == "doc"
    assert not prepared.model.graph.value_info
    assert model == everything(), "the caller's model must not be written to"
    assert_same_outputs(model, prepared.model, 1e-6)


def test_prepare_without_folding() -> None:
    prepared = prepare(everything(), fold_batchnorm=False)
    assert "BatchNormalization" in operators(prepared.model)
    assert "fold-batchnorm" not in prepared.changes
    assert_same_outputs(everything(), prepared.model)


def test_prepare_reports_what_it_could_not_fold() -> None:
    model = everything()
    model.graph.output.append(onnx.helper.make_tensor_value_info("c", 1, ["N", 2, 4, 4]))
    [refusal] = prepare(model).refusals
    assert refusal.reason == "the output 'c' of Conv that writes 'c' is a graph output"


def test_prepare_twice_changes_nothing() -> None:
    once = prepare(everything()).model
    again = prepare(once)
    assert set(again.changes.values()) == {0}
    assert again.model == once


def test_an_error_of_a_pass_becomes_a_model_error() -> None:
    with pytest.raises(
        ModelError, match=r"pass 'expose-tensors' .* the graph has no tensor 'nope'"
    ):
        expose(tiny_net(17), ["nope"])


def test_expose_infers_types() -> None:
    model = tiny_net(17)
    result = expose(model, ["r", "a", "y"])
    assert [info.name for info in result.graph.output] == ["y", "r", "a"]
    onnx.checker.check_model(result, full_check=True)
    _, r, a = run(result, random_feed(model))
    assert (r.shape, a.shape) == ((2, 5), (2, 3, 4, 4))


def test_resnet20(shared_dir: Path) -> None:
    model = load_model(shared_dir / "models" / "c10_resnet20_torchscript_op17.onnx")
    prepared = prepare(model).model
    assert_same_outputs(model, prepared)
    activations = find_activations(prepared)
    assert len(activations) == 19
    limits = {a.tensor: np.ones((1, *a.shape), np.float32) for a in activations}
    bounded = insert(prepared, Thresholds(limits)).model
    outputs = run(expose(bounded, [a.tensor for a in activations]), random_feed(bounded))
    assert all(values.max() <= 1.0 and values.min() >= 0.0 for values in outputs[1:])
