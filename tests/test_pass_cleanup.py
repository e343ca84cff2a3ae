import onnx

from passes import Cleanup, run_passes
from tests.numerics import assert_same_outputs, operators, parse

DEAD = """
<ir_version: 8, opset_import: ["": 17]>
net (float[2] x) => (float[2] y)
<float[2] w = {1, 2}, float[2] unread = {3, 4}, float[2] dead = {5, 6}>
{
  a = Add(x, w)
  b = Mul(x, dead)
  c = Relu(b)
  y = Relu(a)
}
"""


def test_removes_dead_nodes_with_their_initializers() -> None:
    model = parse(DEAD)
    result, changes = run_passes(model, [Cleanup()])
    assert changes == {"cleanup": 2}
    assert operators(result) == ["Add", "Relu"]
    assert [t.name for t in result.graph.initializer] == ["w"]
    assert_same_outputs(model, result)


def test_a_clean_graph_keeps_its_order() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x) => (float[2] y)
    { a = Relu(x)  b = Abs(a)  c = Neg(x)  y = Add(b, c) }
    """)
    result, changes = run_passes(model, [Cleanup()])
    assert changes == {"cleanup": 0}
    assert result == model


def test_sorts_nodes_that_stand_out_of_order() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x) => (float[2] y) { a = Relu(x)  y = Neg(a) }
    """)
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(model.graph.node))
    result, changes = run_passes(shuffled, [Cleanup()])
    assert changes == {"cleanup": 1}
    assert result == model


def test_keeps_what_only_a_subgraph_reads() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x, bool c) => (float[2] y)
    {
      t = Relu(x)
      y = If(c) <
        then_branch = a () => (float[2] p) { p = Neg(t) },
        else_branch = b () => (float[2] q) { q = Abs(x) }
      >
    }
    """)
    result, changes = run_passes(model, [Cleanup()])
    assert changes == {"cleanup": 0}
    assert result == model
