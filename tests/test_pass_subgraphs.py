import numpy as np
import onnx

from passes import (
    BoundedSite,
    Form,
    InsertBounds,
    NormalizeActivations,
    lift_subgraphs,
    nested_graphs,
    run_in_subgraphs,
)
from tests.numerics import parse, run, run_reference

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
net (float[2] x, bool c) => (float[2] y)
{
  y = If(c) <
    then_branch = yes () => (float[2] a) {
      p = Clip(x, zero)
      a = If(c) <
        then_branch = inner () => (float[2] q) { q = Max(p, zero) },
        else_branch = other () => (float[2] q) { q = Clip(p, zero, six) }
      >
    },
    else_branch = no () => (float[2] b) { m = Add(x, six)  b = LeakyRelu(m) }
  >
}
"""


def model() -> onnx.ModelProto:
    return lift_subgraphs(parse(MODEL, zero=np.float32(0), six=np.float32(6)))[0]


def written(model: onnx.ModelProto) -> dict[str, list[str]]:
    return {g.name: [n.op_type for n in g.node] for g in nested_graphs(model.graph)}


def test_passes_see_constants_of_the_main_graph() -> None:
    before = model()
    result, changes = run_in_subgraphs(before, lambda graph: [NormalizeActivations()])
    onnx.checker.check_model(result, full_check=True)
    assert changes == {"normalize-activations": 2}
    assert written(result) == {
        "yes": ["Relu", "If"],
        "inner": ["Relu"],
        "other": ["Clip"],
        "no": ["Add", "LeakyRelu"],
    }
    assert [t.name for t in result.graph.initializer] == ["zero", "six"]
    for condition in (True, False):
        feed = {"x": np.float32([-2, 8]), "c": np.array(condition)}
        np.testing.assert_array_equal(run(result, feed)[0], run(before, feed)[0])


def test_a_constant_that_is_an_input_may_be_overridden() -> None:
    given = model()
    given.graph.input.append(onnx.helper.make_tensor_value_info("zero", onnx.TensorProto.FLOAT, []))
    _, changes = run_in_subgraphs(given, lambda graph: [NormalizeActivations()])
    assert changes == {"normalize-activations": 0}


def test_subgraphs_without_passes_stay_as_they_are() -> None:
    result, changes = run_in_subgraphs(model(), lambda graph: [])
    assert (result, changes) == (model(), {})


def test_new_initializers_stand_in_the_main_graph() -> None:
    """Both bounds read one zero, and thresholds are found by name from outside."""
    sites = {
        "b": BoundedSite("b", np.float32(7), "b/up", np.float32(-1), "b/low"),
        "p": BoundedSite("p", np.float32(5), "p/up", np.float32(0), "p/low"),
    }

    def steps(graph: onnx.GraphProto) -> list[InsertBounds]:
        here = {name for node in graph.node for name in node.output}
        return [InsertBounds([site], Form.HARD) for name, site in sites.items() if name in here]

    result, changes = run_in_subgraphs(model(), steps)
    onnx.checker.check_model(result, full_check=True)
    assert changes == {"insert-bounds": 2}
    assert not any(graph.initializer for graph in nested_graphs(result.graph))
    names = [tensor.name for tensor in result.graph.initializer]
    assert sorted(names) == sorted(
        ["zero", "six", "b/up", "b/low", "p/up", "p/low", "hyrelu/zero/float32"]
    )
    for condition, expected in ((False, [4, 0]), (True, [0, 0])):
        feed = {"x": np.float32([-2, 8]), "c": np.array(condition)}
        np.testing.assert_array_equal(run(result, feed)[0], np.float32(expected))
        np.testing.assert_array_equal(run_reference(result, feed)[0], np.float32(expected))


def test_a_name_that_the_main_graph_uses_otherwise_gets_a_number() -> None:
    given = model()
    other = onnx.numpy_helper.from_array(np.float32(3), "hyrelu/zero/float32")
    given.graph.initializer.append(other)
    given.graph.node.insert(
        0, onnx.helper.make_node("Add", ["x", "hyrelu/zero/float32"], ["unread"])
    )
    site = BoundedSite("b", np.float32(7), "b/up", np.float32(-1), "b/low")
    result, _ = run_in_subgraphs(
        given, lambda graph: [InsertBounds([site])] if graph.name == "no" else []
    )
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in result.graph.initializer}
    assert stored["hyrelu/zero/float32"] == 3
    assert stored["hyrelu/zero/float32_2"] == 0
    feed = {"x": np.float32([-2, 8]), "c": np.array(False)}
    np.testing.assert_array_equal(run(result, feed)[0], np.float32([4, 0]))
