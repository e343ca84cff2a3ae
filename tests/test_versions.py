"""Operator sets and file versions of hardened files."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.errors import ModelError
from proact_onnx.model import load_model, opset
from proact_onnx.rewrite import prepare
from proact_onnx.versions import convert_opset, trim_ir_version
from tests.numerics import assert_same_outputs, operators, parse, random_feed, run, run_reference

WEIGHTS = {
    "w": np.random.default_rng(0).standard_normal((3, 2, 3, 3)).astype(np.float32),
    "v": np.random.default_rng(1).standard_normal((12, 4)).astype(np.float32),
}


def network(version: int) -> onnx.ModelProto:
    return parse(
        f"""<ir_version: 8, opset_import: ["": {version}]>
        g (float[N, 2, 4, 4] x) => (float[N, 4] y)
        {{ c = Conv(x, w)  a = Relu(c)  f = Flatten<axis = 1>(a)  h = Gemm(f, v, b)
           s = Sigmoid(h)  y = Add(s, h) }}""",
        **WEIGHTS,
        b=np.arange(4, dtype=np.float32),
    )


@pytest.mark.parametrize("version", [22, 18, 14, 13, 12, 11, 9, 7])
def test_operators_that_changed_only_in_their_types_go_back(version: int) -> None:
    model = network(18)
    converted = convert_opset(model, version)
    assert opset(converted) == version
    assert operators(converted) == operators(model)
    assert_same_outputs(model, converted)
    assert opset(model) == 18


@pytest.mark.parametrize("version", [13, 11])
def test_the_example_goes_back(version: int, digits_dir: Path) -> None:
    model = prepare(load_model(digits_dir / "digits.onnx")).model
    converted = convert_opset(model, version)
    onnx.checker.check_model(converted, full_check=True)
    feed = random_feed(model)
    np.testing.assert_allclose(
        run_reference(converted, feed)[0], run(model, feed)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("body", "older", "reason"),
    [
        ("y = Softmax(x)", 12, "Softmax means something else in opset 12"),
        (
            "z = Unsqueeze(x, axes)  y = AveragePool<kernel_shape = [2], ceil_mode = 1>(z)",
            18,
            "AveragePool means something else in opset 18",
        ),
        ("y = Mish(x)", 17, "opset 17 has no Mish"),
        ("y = LayerNormalization(x, x)", 16, "opset 16 has no LayerNormalization"),
        ("y = ReduceMean(x, axes)", 17, "ReduceMean takes 1 inputs in opset 17"),
        ("y = Gelu<approximate = 'tanh'>(x)", 19, "opset 19 has no Gelu"),
        ("y = Flatten<axis = -1>(x)", 10, "Flatten counts axes from the front in opset 10"),
        ("s = Shape<start = 1>(x)  y = Cast<to = 1>(s)", 14, "has no attribute 'start'"),
    ],
)
def test_what_older_sets_cannot_say(body: str, older: int, reason: str) -> None:
    text = body.replace("'", '"')
    model = parse(f"""<ir_version: 8, opset_import: ["": 20]> g (float[2, 3] x) => (float y)
    {{ axes = Constant<value = int64[1] {{1}}>()  {text} }}""")
    with pytest.raises(ModelError, match=r"has opset 20 and cannot be converted") as raised:
        convert_opset(model, older)
    assert reason in str(raised.value)
    assert f"export it again at opset {older}" in str(raised.value)


def test_an_attribute_at_its_default_is_left_out() -> None:
    model = parse("""<ir_version: 8, opset_import: ["": 15]> g (float[2, 3] x) => (int64[A] y)
    { y = Shape<start = 0>(x) }""")
    converted = convert_opset(model, 13)
    assert not converted.graph.node[0].attribute
    assert_same_outputs(model, converted)


def test_branches_are_converted_too() -> None:
    model = parse("""<ir_version: 8, opset_import: ["": 20]> g (bool b, float[2] x) => (float[2] y)
    { y = If(b) <then_branch = t () => (float[2] p) { p = Mish(x) },
                 else_branch = e () => (float[2] q) { q = Relu(x) }> }""")
    with pytest.raises(ModelError, match="opset 17 has no Mish"):
        convert_opset(model, 17)


def test_types_that_an_older_operator_does_not_take() -> None:
    model = parse("""<ir_version: 8, opset_import: ["": 14]> g (int32[2] x) => (int32[2] y)
    { y = Relu(x) }""")
    with pytest.raises(ModelError, match="cannot be converted to 13"):
        convert_opset(model, 13)


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        (18, 10, 8),
        (17, 8, 8),
        (20, 10, 9),
        (13, 13, 7),
        (11, 6, 6),
        (8, 6, 4),
        (8, 3, 3),
        (9, 3, 4),
    ],
)
def test_the_file_version_is_no_newer_than_needed(version: int, before: int, after: int) -> None:
    model = network(version)
    model.ir_version = before
    if before < 4:
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in model.graph.initializer
        )
    trim_ir_version(model)
    assert model.ir_version == after
    assert len(model.graph.input) == (4 if after < 4 else 1)
    onnx.checker.check_model(model)


def test_defaults_that_callers_override_stay() -> None:
    model = network(8)
    model.ir_version = 6
    stored = model.graph.initializer[0]
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(stored.name, stored.data_type, stored.dims)
    )
    trim_ir_version(model)
    assert model.ir_version == 4
    assert len(model.graph.input) == 2


def test_pooling_goes_back_where_it_means_the_same() -> None:
    model = parse("""<ir_version: 8, opset_import: ["": 20]>
    g (float[1, 2, 6] x) => (float[1, 2, 3] y)
    { y = AveragePool<kernel_shape = [2], strides = [2], ceil_mode = 0>(x) }""")
    assert_same_outputs(model, convert_opset(model, 11))


@pytest.mark.parametrize("version", [11, 13])
def test_a_recent_export_goes_back(version: int, shared_dir: Path) -> None:
    model = prepare(load_model(shared_dir / "models" / "c10_resnet20_dynamo_op20.onnx")).model
    converted = convert_opset(model, version)
    trim_ir_version(converted)
    feed = random_feed(model)
    np.testing.assert_allclose(
        run_reference(converted, feed)[0], run(model, feed)[0], rtol=1e-3, atol=1e-4
    )


def test_zeros_of_a_shape_decide_about_reshape() -> None:
    text = """<ir_version: 8, opset_import: ["": 14]> g (float[2, 3] x) => (float[A, B] y)
    { y = Reshape<allowzero = 1>(x, s) }"""
    plain = parse(text, s=np.array([3, -1]))
    converted = convert_opset(plain, 13)
    assert_same_outputs(plain, converted)
    with pytest.raises(ModelError, match="Reshape has no attribute 'allowzero' in opset 13"):
        convert_opset(parse(text, s=np.array([0, 3])), 13)
