import numpy as np
import onnx

from proact_onnx.messages import (
    extents,
    node_reads,
    put_together,
    sort_nodes,
    take_apart,
    without_weights,
)
from tests.numerics import operators, parse

NET = """
<ir_version: 8, opset_import: ["": 17], doc_string: "doc", metadata_props: ["a": "b"]>
net (float[N, 2] x, bool c) => (float[N, 2] y)
{
  t = Relu(x)
  y = If(c) <
    then_branch = yes () => (float[N, 2] p) <float[2] inner = {1, 2}> {
      i = Add(t, inner)  p = Mul(i, outer)
    },
    else_branch = no () => (float[N, 2] q) { q = Neg(x) }
  >
}
"""


def net() -> onnx.ModelProto:
    return parse(NET, outer=np.float32([1, 2]), unread=np.zeros(9, np.float32))


def test_a_node_reads_what_its_subgraphs_capture() -> None:
    model = net()
    assert node_reads(model.graph.node[0]) == {"x"}
    assert node_reads(model.graph.node[1]) == {"c", "t", "outer", "x"}


def test_extents() -> None:
    info = onnx.helper.make_tensor_value_info("x", 1, ["N", 3, None, 0, 5])
    assert extents(info) == (None, 3, None, None, 5)
    assert extents(onnx.ValueInfoProto()) == ()


def test_without_weights_keeps_all_but_the_data_of_large_ones() -> None:
    model = net()
    light = without_weights(model, largest=2)
    assert [t.name for t in light.graph.initializer] == ["outer"]
    assert [info.name for info in light.graph.input] == ["x", "c", "unread"]
    assert extents(light.graph.input[2]) == (9,)
    light.graph.initializer.append(model.graph.initializer[1])
    del light.graph.input[2]
    assert light == model


def test_sort_nodes() -> None:
    model, shuffled = net(), net()
    assert not sort_nodes(shuffled)
    assert shuffled == model
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(model.graph.node))
    assert operators(shuffled) == ["If", "Relu"], "the If captures what Relu writes"
    assert sort_nodes(shuffled)
    assert shuffled == model


def test_a_cycle_is_left_alone() -> None:
    model = net()
    model.graph.node[0].input[0] = "y"
    before = model.SerializeToString(deterministic=True)
    assert not sort_nodes(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_model_taken_apart_is_put_together_again() -> None:
    model = net()
    rest, tensors = take_apart(model)
    assert not onnx.load_model_from_string(rest).graph.initializer
    assert len(tensors) == 2
    assert put_together(rest, tensors) == model
