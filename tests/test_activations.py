import numpy as np
import onnx
import pytest

from proact_onnx.activations import Activation, find_activations, tensor_types
from proact_onnx.coverage import Unprotected, unprotected
from proact_onnx.functions import Sides
from proact_onnx.model import THRESHOLD_SUFFIX
from proact_onnx.thresholds import FIXED_GRANULARITIES, threshold_shape
from tests.numerics import parse


def test_names_shapes_and_the_last() -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 8, 8] x) => (float[N, 2] y)
        {
          c = Conv<pads = [1, 1, 1, 1]>(x, w)
          [first] a = Relu(c)
          p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)
          f = Flatten(p)
          r = Relu(f)
          y = Gemm(r, v)
        }
        """,
        w=np.zeros((4, 3, 3, 3), np.float32),
        v=np.zeros((64, 2), np.float32),
    )
    assert find_activations(model) == [
        Activation("first", "Relu", "a", (4, 8, 8), is_last=False),
        Activation("r", "Relu", "r", (64,), is_last=True),
    ]


CLIP = """
<ir_version: 7, opset_import: ["": {opset}]>
net (float[N, 3] x) => (float[N, 3] y) {{ y = Clip{call} }}
"""
BOUNDS = {"zero": np.float32(0), "six": np.float32(6), "one": np.float32(1)}


@pytest.mark.parametrize(
    ("opset", "call", "found"),
    [
        (10, "<min = 0.0, max = 6.0>(x)", Sides.RECTIFIED),
        (10, "<max = 6.0>(x)", Sides.BOTH),
        (10, "<min = 0.0>(x)", Sides.RECTIFIED),
        (10, "<min = 1.0, max = 6.0>(x)", Sides.RECTIFIED),
        (10, "<min = -1.0, max = 6.0>(x)", Sides.BOTH),
        (11, "(x, zero, six)", Sides.RECTIFIED),
        (13, "(x, zero, six)", Sides.RECTIFIED),
        (13, "(x, one, six)", Sides.RECTIFIED),
        (13, "(x, , six)", Sides.BOTH),
        (13, "(x, zero)", Sides.RECTIFIED),
    ],
)
def test_clip(opset: int, call: str, found: Sides) -> None:
    model = parse(CLIP.format(opset=opset, call=call), **BOUNDS)
    assert [(a.op, a.sides) for a in find_activations(model)] == [("Clip", found)]


def test_two_branches_may_both_be_last() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
    { a = Relu(x)  b = Relu(a)  n = Neg(a)  c = Relu(n)  y = Exp(b)  z = Exp(c) }
    """)
    assert [(a.tensor, a.is_last) for a in find_activations(model)] == [
        ("a", False),
        ("b", True),
        ("c", True),
    ]


def test_a_skip_around_the_last_activation_does_not_make_the_earlier_one_last() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 4] x) => (float[N, 4] y) { a = Relu(x)  b = Relu(a)  y = Add(a, b) }
    """)
    assert [a.is_last for a in find_activations(model)] == [False, True]


SUBGRAPH = """
<ir_version: 8, opset_import: ["": 17]>
net (float[4] x, bool c) => (float[4] y)
{
  a = Relu(x)
  h = If(c) <
    then_branch = t () => (float[4] p) { p = Relu(a) },
    else_branch = f () => (float[4] q) { q = Neg(x) }
  >
  [tail] y = Relu(h)
}
"""


def test_those_in_subgraphs_stand_where_the_subgraph_does() -> None:
    found = find_activations(parse(SUBGRAPH))
    assert [(a.name, a.owner, a.is_last) for a in found] == [
        ("a", "", False),
        ("p", "If", False),
        ("tail", "", True),
    ]
    for granularity in FIXED_GRANULARITIES:
        assert threshold_shape(found[1], granularity) == ()


def test_what_cannot_be_given_out_of_a_subgraph_is_left_out() -> None:
    """There is no way to see the values of a SequenceMap's body, nor before opset 9."""
    old = parse(SUBGRAPH.replace("17", "8"))
    assert [a.name for a in find_activations(old)] == ["a", "tail"]
    mapped = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[4] x) => (seq(float[4]) y)
    {
      s = SequenceConstruct(x, x)
      [all] y = SequenceMap(s) <body = b (float[4] v) => (float[4] w) { w = Relu(v) }>
    }
    """)
    assert find_activations(mapped) == []
    reason = "it lies in a subgraph of 'all' that cannot be profiled"
    assert unprotected(mapped) == [Unprotected("w", "Relu", reason)]


def test_integers_in_subgraphs_are_no_activations() -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (int64[4] x, bool c) => (int64[4] y)
        {
          y = If(c) <
            then_branch = t () => (int64[4] p) { p = Relu(x) },
            else_branch = f () => (int64[4] q) { q = Clip(x, , six) }
          >
        }
        """,
        six=np.int64(6),
    )
    assert find_activations(model) == []
    assert unprotected(model) == []


def test_a_domain_that_is_not_the_standard_is_left_out() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17, "com.example": 1]>
    net (float[4] x) => (float[4] y) { y = com.example.Relu(x) }
    """)
    assert find_activations(model) == []


def test_bounds_that_are_there_already_are_left_out() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[4] x) => (float[4] y) { r = Relu(x)  y = Clip(r, zero, t) }
    """)
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "y/hyrelu/relu"
    model.graph.node[1].input[2] = f"y{THRESHOLD_SUFFIX}"
    for name in ("zero", f"y{THRESHOLD_SUFFIX}"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), name))
    assert find_activations(model) == []


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("N, 3, H, 8", (3, None, 8)), ("1, 3, 8, 8", (3, 8, 8)), ("N, 5", (5,)), ("5", ())],
)
def test_open_extents(shape: str, expected: tuple[int | None, ...]) -> None:
    model = parse(f"""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}
    """)
    [activation] = find_activations(model)
    assert activation.shape == expected


def test_shapes_are_followed_through_computed_shapes() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 3, 8, 8] x) => (float[N, M] y)
    <int64[1] zero = {0}, int64[1] one = {1}, int64[1] rest = {-1}>
    {
      s = Shape(x)  n = Slice(s, zero, one)  t = Concat<axis = 0>(n, rest)
      f = Reshape(x, t)  y = Relu(f)
    }
    """)
    [activation] = find_activations(model)
    assert activation.shape == (192,)


def test_inference_that_fails_keeps_what_the_model_states() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 3] x) => (float[N, M] y) <float[N, 7] r>
    { c = Concat<axis = 9>(x, x)  r = Relu(c)  y = Exp(r) }
    """)
    assert find_activations(model)[0].shape == (7,)
    assert "r" in tensor_types(model)


def test_large_weights_are_no_hindrance() -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 100] x) => (float[N, M] y) { h = MatMul(x, w)  y = Relu(h) }
        """,
        w=np.zeros((100, 90), np.float32),
    )
    assert find_activations(model)[0].shape == (90,)
