import numpy as np
import onnx
import pytest

from passes import LiftConstants, run_passes
from tests.numerics import Array, assert_same_outputs, operators, parse, run


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1.5, -2.0}", np.array([1.5, -2.0], np.float32)),
        ("value = int64[1] {7}", np.array([7], np.int64)),
        ("value_float = 2.5", np.array(2.5, np.float32)),
        ("value_floats = [1.0, 2.0]", np.array([1, 2], np.float32)),
        ("value_int = 3", np.array(3, np.int64)),
        ("value_ints = [3, 4]", np.array([3, 4], np.int64)),
        ('value_string = "a"', np.array("a", object)),
        ('value_strings = ["a", "bc"]', np.array(["a", "bc"], object)),
    ],
)
def test_every_form_of_constant(attribute: str, expected: Array) -> None:
    model = parse(f"""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x) => (float[2] y, int64[n] s)
    {{ y = Relu(x)  k = Constant<{attribute}>()  s = Shape(k) }}
    """)
    result, changes = run_passes(model, [LiftConstants()])
    assert changes == {"lift-constants": 1}
    assert operators(result) == ["Relu", "Shape"]
    [lifted] = result.graph.initializer
    assert lifted.name == "k"
    value = onnx.numpy_helper.to_array(lifted)
    assert value.dtype == expected.dtype
    np.testing.assert_array_equal(value.astype(str), expected.astype(str))
    assert_same_outputs(model, result)


def test_constants_of_types_that_numpy_lacks_keep_their_bits() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 19]>
    net (float[2] x) => (float[2] y) { k = Identity(x)  y = Add(x, k) }
    """)
    for number in (onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT8E4M3FNUZ):
        tensor = onnx.helper.make_tensor("t", number, [2], [1.0, 2.0])
        node = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
        cast = onnx.helper.make_node("Cast", ["c"], ["k"], to=onnx.TensorProto.FLOAT)
        other = onnx.ModelProto()
        other.CopyFrom(model)
        del other.graph.node[0]
        other.graph.node.insert(0, cast)
        other.graph.node.insert(0, node)
        result, changes = run_passes(other, [LiftConstants()])
        assert changes == {"lift-constants": 1}
        assert result.graph.initializer[0].data_type == number
        assert_same_outputs(other, result)


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        ("", np.zeros((2, 3), np.float32)),
        ("<value = float[1] {2.5}>", np.full((2, 3), 2.5, np.float32)),
        ("<value = int64[1] {4}>", np.full((2, 3), 4, np.int64)),
    ],
)
def test_constant_of_constant_shape(fill: str, expected: Array) -> None:
    model = parse(f"""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x) => (float[2] y, int64[2] n)
    {{ y = Relu(x)  s = Constant<value_ints = [2, 3]>()  k = ConstantOfShape{fill}(s)
       n = Shape(k) }}
    """)
    result, changes = run_passes(model, [LiftConstants()])
    assert changes == {"lift-constants": 2}
    [lifted] = result.graph.initializer
    assert lifted.name == "k"
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(lifted), expected)
    assert_same_outputs(model, result)


def test_a_constant_of_an_empty_shape_is_one_number() -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[2] x) => (float[2] y)
        { k = ConstantOfShape<value = float[1] {3.0}>(s)  y = Mul(x, k) }
        """,
        s=np.zeros(0, np.int64),
    )
    result, _ = run_passes(model, [LiftConstants()])
    assert onnx.numpy_helper.to_array(result.graph.initializer[0]).shape == ()
    assert_same_outputs(model, result)


def test_a_computed_shape_and_a_huge_one_stay() -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[n] x) => (float[m] y, float[a, b] z)
        { s = Shape(x)  y = ConstantOfShape(s)  w = ConstantOfShape(huge)  z = Identity(w) }
        """,
        huge=np.array([1 << 20, 1 << 20], np.int64),
    )
    result, changes = run_passes(model, [LiftConstants()])
    assert changes == {"lift-constants": 0}
    assert operators(result) == operators(model)


def test_a_constant_that_is_a_graph_output_stays() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x) => (float[2] y, float[1] k)
    { k = Constant<value = float[1] {3.0}>()  y = Mul(x, k) }
    """)
    result, changes = run_passes(model, [LiftConstants()])
    assert changes == {"lift-constants": 0}
    assert result == model


def test_a_sparse_constant_stays_and_keeps_its_value() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[3] x) => (float[3] y) { k = Identity(x)  y = Mul(x, k) }
    """)
    sparse = onnx.helper.make_sparse_tensor(
        onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [4.0]),
        onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [1], [2]),
        [3],
    )
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Constant", [], ["k"], sparse_value=sparse))
    result, changes = run_passes(model, [LiftConstants()])
    assert changes == {"lift-constants": 0}
    assert result == model
    [y] = run(result, {"x": np.ones(3, np.float32)})
    np.testing.assert_array_equal(y, [0, 0, 4])
