import numpy as np
import onnx
import pytest

from passes import lift_subgraphs, nested_graphs, take_branches
from tests.numerics import operators, parse, run, run_reference

CHOICE = """
<ir_version: 8, opset_import: ["": {opset}]>
net ({inputs}) => (float[a, b] y)
{{
  {condition}
  h = If(c) <
    then_branch = yes () => (float[n, m] p) <float[2] w = {{1.0, 2.0}}>
      {{ q = Relu(x)  p = Add(q, w) }},
    else_branch = no () => (float[n, m] p) {{ q = Neg(x)  p = Mul(q, q) }}
  >
  y = Abs(h)
}}
"""
# How a script squeezes an axis if its extent is 1.
SQUEEZE = """
s = Shape(x)
i = Constant<value = int64[1] {1}>()
e = Gather(s, i)
two = Constant<value_ints = [2]>()
c = Equal(e, two)
"""
RANK = """
s = Shape(x)
n = Size(s)
two = Constant<value_int = 2>()
e = Equal(n, two)
d = Not(e)
c = Cast<to = 9>(d)
"""


def choice(condition: str, inputs: str = "float[N, 2] x", opset: int = 17) -> onnx.ModelProto:
    model = parse(CHOICE.format(condition=condition, inputs=inputs, opset=opset))
    return lift_subgraphs(model)[0]


def branch_taken(model: onnx.ModelProto) -> str | None:
    """What became of the If, in words; the model computes the same."""
    taken, changes = take_branches(model)
    onnx.checker.check_model(taken, full_check=True)
    feed = {"x": np.float32([[1, -2], [3, 4]])}
    for evaluate in (run, run_reference):
        np.testing.assert_array_equal(evaluate(taken, feed)[0], run(model, feed)[0])
    if "If" in operators(taken):
        assert changes == 0
        assert taken is model
        return None
    assert changes == 1
    assert not any(nested_graphs(taken.graph))
    return "then" if "Relu" in operators(taken) else "else"


@pytest.mark.parametrize("opset", [11, 13, 17, 20])
@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        ("c = Constant<value = bool {1}>()", "then"),
        ("c = Constant<value = bool[1] {0}>()", "else"),
        (SQUEEZE, "then"),
        (SQUEEZE.replace("[2]", "[1]"), "else"),
        (RANK, "else"),
    ],
)
def test_conditions_that_are_known(opset: int, condition: str, taken: str) -> None:
    if opset < 12 and "value_int" in condition:
        condition = condition.replace("value_ints = [2]", "value = int64[1] {2}")
        condition = condition.replace("value_ints = [1]", "value = int64[1] {1}")
        condition = condition.replace("value_int = 2", "value = int64 {2}")
    assert branch_taken(choice(condition, opset=opset)) == taken


@pytest.mark.parametrize(
    "condition",
    [
        # An extent that the model leaves open.
        SQUEEZE.replace("{1}", "{0}"),
        # Data.
        "m = ReduceMax<keepdims = 0>(x)  z = Constant<value = float {0.0}>()  c = Greater(m, z)",
        # A stored parameter, which a fault may change.
        "a = Constant<value = float {1.0}>()  z = Constant<value = float {0.0}>()  c = Less(a, z)",
        "a = Constant<value = float {1.0}>()  c = Cast<to = 9>(a)",
        "a = Constant<value = int8 {1}>()  c = Cast<to = 9>(a)",
        # Rounded on the way.
        "a = Constant<value = int64 {1}>()  f = Cast<to = 1>(a)  c = Cast<to = 9>(f)",
    ],
)
def test_conditions_that_are_not(condition: str) -> None:
    assert branch_taken(choice(condition)) is None


def test_a_condition_that_callers_may_override() -> None:
    model = choice("n = Not(c)", "float[N, 2] x, bool c")
    stored = onnx.numpy_helper.from_array(np.array(True), "c")
    model.graph.initializer.append(stored)
    assert take_branches(model) == (model, 0)
    del model.graph.input[1]
    assert take_branches(model)[1] == 1


def test_what_a_file_states_of_inner_tensors_is_not_relied_on() -> None:
    """The exporter wrote the shape of the example; the data decides how many rows there are."""
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x) => (float[n] y) <int64[1, 1] rows>
    {
      rows = NonZero(x)
      s = Shape(rows)
      i = Constant<value = int64[1] {1}>()
      e = Gather(s, i)
      one = Constant<value = int64[1] {1}>()
      c = Equal(e, one)
      y = If(c) <
        then_branch = yes () => (float[n] p) { p = Neg(x) },
        else_branch = no () => (float[n] q) { q = Abs(x) }
      >
    }
    """)
    assert take_branches(model) == (model, 0)


CHAIN = """
<ir_version: 8, opset_import: ["": 17]>
net (float[1, 2] x, int64 n) => (float[a] y, float[a] same, float[2] z)
{
  one = Constant<value = int64[1] {1}>()
  first = Constant<value = int64[1] {0}>()
  s = Shape(x)
  e = Gather(s, first)
  c = Equal(e, one)
  h, again = If(c) <
    then_branch = squeezed () => (float[k] p, float[k] p2) {
      p = Squeeze(x, first)
      g = If(c) <
        then_branch = inner () => (float[k] q) { q = Relu(p) },
        else_branch = other () => (float[k] q2) { q2 = Neg(p) }
      >
      p2 = Neg(g)
    },
    else_branch = kept () => (float[j, l] r, float[j, l] r2) { r = Identity(x)  r2 = Neg(x) }
  >
  shape = Shape(h)
  rank = Size(shape)
  wanted = Constant<value = int64 {1}>()
  flat = Equal(rank, wanted)
  y = If(flat) <
    then_branch = is_flat () => (float[k] t) { t = Abs(h) },
    else_branch = is_not () => (float[k] u) { u = ReduceMax<axes = [0], keepdims = 0>(h) }
  >
  same = Add(again, y)
  go = Constant<value = bool {1}>()
  z = Loop(n, go, h) <body = turn (int64 i, bool b, float[2] v) => (bool d, float[2] w) {
    d = Identity(b)
    w = If(flat) <
      then_branch = doubled () => (float[2] m) { m = Add(v, v) },
      else_branch = halved () => (float[2] o) { o = Neg(v) }
    >
  }>
}
"""


def test_ifs_that_others_hide_or_hold() -> None:
    """The rank of h is known once the first If is gone; one lies in its branch, one in a loop."""
    model, _ = lift_subgraphs(parse(CHAIN))
    taken, changes = take_branches(model)
    assert changes == 4
    onnx.checker.check_model(taken, full_check=True)
    assert "If" not in operators(taken)
    [body] = nested_graphs(taken.graph)
    assert [node.op_type for node in body.node] == ["Identity", "Add"]
    assert [info.name for info in taken.graph.output] == ["y", "same", "z"]
    feed = {"x": np.float32([[1, -2]]), "n": np.array(3)}
    for evaluate in (run, run_reference):
        y, same, z = evaluate(taken, feed)
        np.testing.assert_array_equal(y, [1, 2])
        np.testing.assert_array_equal(same, [0, 2])
        np.testing.assert_array_equal(z, [8, -16])


def test_an_output_that_is_given_out_twice_or_is_not_the_branchs_own() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x) => (float[2] y, float[2] z, float[2] o)
    {
      c = Constant<value = bool {1}>()
      y, z, o = If(c) <
        then_branch = yes () => (float[2] p, float[2] p, float[2] x) { p = Neg(x) },
        else_branch = no () => (float[2] q, float[2] r, float[2] s)
          { q = Abs(x)  r = Abs(x)  s = Abs(x) }
      >
    }
    """)
    taken, changes = take_branches(model)
    assert changes == 1
    onnx.checker.check_model(taken, full_check=True)
    x = np.float32([1, -2])
    for value, expected in zip(run(taken, {"x": x}), (-x, -x, x), strict=True):
        np.testing.assert_array_equal(value, expected)
