import numpy as np
import onnx
import pytest

from passes import lift_subgraphs, nested_graphs
from tests.numerics import Array, operators, parse, run, run_reference

BRANCHES = """
<ir_version: 8, opset_import: ["": 17]>
net (float[2] x, bool c) => (float[2] y)
<float[2] outer = {10.0, 20.0}>
{
  t = Relu(x)
  y = If(c) <
    then_branch = yes () => (float[2] a) <float[2] w = {5.0, 6.0}> {
      k = Constant<value = float[2] {1.0, 2.0}>()
      p = Add(t, k)
      q = Add(p, w)
      a = Add(q, outer)
    },
    else_branch = no () => (float[2] b) <float[2] w = {7.0, 8.0}> {
      k = Constant<value_floats = [3.0, 4.0]>()
      p = Sub(t, k)
      b = If(c) <
        then_branch = inner () => (float[2] q) { q = Neg(p) },
        else_branch = other () => (float[2] q) { q = Mul(p, w) }
      >
    }
  >
}
"""
X = {"x": np.array([-1, 3], np.float32)}


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def names_inside(model: onnx.ModelProto) -> list[str]:
    return [n for g in nested_graphs(model.graph) for node in g.node for n in node.output]


@pytest.mark.parametrize("ir_version", [3, 8])
def test_constants_of_branches_move_to_the_main_graph(ir_version: int) -> None:
    model = parse(BRANCHES)
    model.ir_version = ir_version
    if ir_version < 4:
        model.graph.input.append(onnx.helper.make_tensor_value_info("outer", 1, [2]))
    before = model.SerializeToString()
    lifted, changes = lift_subgraphs(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(lifted, full_check=True)
    # Two weights, two constant nodes; w, k, p of the other branch, and q twice.
    assert changes == 2 + 2 + 5
    assert not any(graph.initializer for graph in nested_graphs(lifted.graph))
    assert "Constant" not in {n.op_type for g in nested_graphs(lifted.graph) for n in g.node}
    found = {name: values.tolist() for name, values in stored(lifted).items()}
    assert found == {
        "outer": [10, 20],
        "w": [5, 6],
        "k": [1, 2],
        "w_2": [7, 8],
        "k_2": [3, 4],
    }
    names = names_inside(lifted)
    assert len(set(names)) == len(names)
    assert names[:3] == ["p", "q", "a"], "the first of a name keeps it"
    for condition in (True, False):
        feed = X | {"c": np.array(condition)}
        # A runtime takes no initializers of subgraphs from files as old as IR version 3.
        [expected] = run(parse(BRANCHES), feed)
        np.testing.assert_array_equal(run(lifted, feed)[0], expected)
        np.testing.assert_array_equal(run_reference(lifted, feed)[0], expected)


def test_lifting_again_changes_nothing() -> None:
    once, _ = lift_subgraphs(parse(BRANCHES))
    again, changes = lift_subgraphs(once)
    assert (again, changes) == (once, 0)


def test_a_model_without_subgraphs_is_returned_as_it_is() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x) => (float[2] y) { k = Constant<value_float = 1.0>()  y = Add(x, k) }
    """)
    same, changes = lift_subgraphs(model)
    assert same is model
    assert changes == 0


GIVEN_OUT = """
<ir_version: 8, opset_import: ["": 17]>
net (float[2] x, bool c) => (float[2] y)
{
  y = If(c) <
    then_branch = yes () => (float[2] a) { a = Constant<value = float[2] {1.0, 2.0}>() },
    else_branch = no () => (float[2] b) <float[2] b = {5.0, 6.0}> { u = Neg(x) }
  >
}
"""


def test_constants_that_a_branch_gives_out() -> None:
    """ONNX Runtime refuses a branch whose output is a tensor of the main graph."""
    model = parse(GIVEN_OUT)
    lifted, _ = lift_subgraphs(model)
    onnx.checker.check_model(lifted, full_check=True)
    assert {name: v.tolist() for name, v in stored(lifted).items()} == {
        "a/constant": [1, 2],
        "b/constant": [5, 6],
    }
    for condition, expected in ((True, [1, 2]), (False, [5, 6])):
        feed = X | {"c": np.array(condition)}
        np.testing.assert_array_equal(run(lifted, feed)[0], np.float32(expected))
        np.testing.assert_array_equal(run_reference(lifted, feed)[0], np.float32(expected))


LOOP = """
<ir_version: 8, opset_import: ["": 17]>
net (float[2] x, int64 n) => (float[2] y, float[m, 2] z)
{
  i = Neg(x)
  y, z = Loop(n, go, i) <body = turn (int64 i, bool c, float[2] v) =>
      (bool d, float[2] w, float[2] v2) {
    d = Identity(c)
    k = Constant<value = float[2] {1.0, 2.0}>()
    w = Add(v, k)
    v2 = Mul(w, k)
  }>
}
"""


def test_what_a_body_is_given_keeps_apart_from_the_main_graph() -> None:
    """The counter of the turns has the name of a tensor of the main graph."""
    model = parse(LOOP, go=np.array(True))
    lifted, changes = lift_subgraphs(model)
    assert changes == 2
    assert operators(lifted) == ["Neg", "Loop"]
    [body] = nested_graphs(lifted.graph)
    assert [info.name for info in body.input] == ["i_2", "c", "v"]
    feed = X | {"n": np.array(3)}
    k = np.float32([1, 2])
    y, z = run(lifted, feed)
    np.testing.assert_array_equal(y, 3 * k - X["x"])
    np.testing.assert_array_equal(z, [(turn * k - X["x"]) * k for turn in (1, 2, 3)])
