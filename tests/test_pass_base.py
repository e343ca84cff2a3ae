import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from passes import Cleanup, LiftConstants, Pass, PassError, PreconditionError, run_passes
from tests.numerics import assert_same_outputs, operators, parse, run

MODEL = """
<ir_version: 8, opset_import: ["": 17, "com.example": 3], producer_name: "exporter",
 producer_version: "1.2", domain: "org.example", model_version: 7, doc_string: "a model",
 metadata_props: ["licence": "none", "task": "classify"]>
net (float[batch, 4] x, float[4, 3] w) => (float[batch, 3] y, float[batch, 4] plain)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] z = {7, 8, 9}>
{
  plain = Abs(x)
  b = Constant<value = float[3] {1.0, -2.0, 3.0}>()
  h = MatMul(plain, w)
  y = Add(h, b)
}
"""


def documented() -> onnx.ModelProto:
    model = parse(MODEL)
    graph = model.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="graph", value="1")
    graph.node[2].name = "product"
    graph.node[2].doc_string = "a node"
    graph.node[2].metadata_props.add(key="node", value="2")
    graph.initializer[0].doc_string = "a weight"
    graph.input[0].doc_string = "an input"
    graph.value_info.add().CopyFrom(
        onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["batch", 3], "a sum")
    )
    note = graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    return model


def test_no_pass_changes_nothing_but_the_unread_initializer() -> None:
    model = documented()
    expected = documented()
    del expected.graph.initializer[1]
    result, changes = run_passes(model, [])
    assert changes == {}
    assert result == expected
    assert model == documented(), "the caller's model must not be written to"


def test_everything_around_the_change_survives() -> None:
    model = documented()
    result, changes = run_passes(model, [LiftConstants(), Cleanup()])
    assert changes == {"lift-constants": 1, "cleanup": 0}
    assert result.graph.node[1] == model.graph.node[2]
    assert list(result.metadata_props) == list(model.metadata_props)
    assert list(result.opset_import) == list(model.opset_import)
    assert [t.name for t in result.graph.initializer] == ["w", "b"]
    assert result.graph.initializer[0] == model.graph.initializer[0]
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)
    assert_same_outputs(model, result)


def test_dynamic_extents_keep_their_names() -> None:
    result, _ = run_passes(documented(), [LiftConstants()])
    assert result.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert result.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_new_initializers_become_inputs_before_ir_version_4() -> None:
    model = parse(MODEL)
    model.ir_version = 3
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [3]))
    result, _ = run_passes(model, [LiftConstants()])
    assert [info.name for info in result.graph.input] == ["x", "w", "b"]
    assert_same_outputs(model, result)


def test_an_unread_input_keeps_its_default() -> None:
    model = parse(MODEL)
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [3]))
    result, _ = run_passes(model, [LiftConstants()])
    assert [info.name for info in result.graph.input] == ["x", "w", "z"]
    assert [t.name for t in result.graph.initializer] == ["w", "z", "b"]
    feed = {"x": np.ones((2, 4), np.float32)}
    np.testing.assert_array_equal(run(result, feed)[0], run(model, feed)[0])


SUBGRAPH = """
<ir_version: 8, opset_import: ["": 17]>
net (float[2] x, bool c) => (float[2] y)
<float[2] outer = {10.0, 20.0}>
{
  t = Relu(x)
  k = Constant<value = float[2] {1.0, 2.0}>()
  y = If(c) <
    then_branch = yes () => (float[2] a) <float[2] inner = {5.0, 6.0}> {
      p = Add(t, outer)
      q = Add(p, k)
      a = Add(q, inner)
    },
    else_branch = no () => (float[2] b) { b = Sub(t, outer) }
  >
}
"""


@pytest.mark.parametrize("condition", [True, False])
def test_outer_tensors_that_only_subgraphs_read_stay_outside(condition: bool) -> None:
    model = parse(SUBGRAPH)
    result, changes = run_passes(model, [LiftConstants(), Cleanup()])
    assert changes["lift-constants"] == 1
    assert {t.name for t in result.graph.initializer} == {"outer", "k"}
    branches = {a.name: a.g for a in result.graph.node[1].attribute}
    assert [t.name for t in branches["then_branch"].initializer] == ["inner"]
    onnx.checker.check_model(result, full_check=True)
    feed = {"x": np.array([-1, 3], np.float32), "c": np.array(condition)}
    np.testing.assert_array_equal(run(result, feed)[0], run(model, feed)[0])


def test_types_that_are_not_tensors_survive() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x, optional(float[2]) unused) => (seq(float[2]) s)
    { h = Relu(x)  s = SequenceConstruct(h, h) }
    """)
    result, _ = run_passes(model, [Cleanup()])
    assert result == model


def test_functions_survive() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17, "local": 1]>
    net (float[2] x) => (float[2] y) { y = local.twice(x) }
    <domain: "local", opset_import: ["": 17]>
    twice (a) => (b) { b = Add(a, a) }
    """)
    result, _ = run_passes(model, [Cleanup()])
    assert result == model


class Picky(Pass):
    name = "picky"

    def requires(self, graph: gs.Graph) -> None:
        raise PreconditionError("node 'n' has no soul")

    def call(self, graph: gs.Graph) -> int:
        return 0


def test_an_error_names_the_pass_and_what_ran_before() -> None:
    with pytest.raises(
        PreconditionError, match=r"pass 'picky' \(after cleanup\): node 'n'"
    ) as info:
        run_passes(documented(), [Cleanup(), Picky()])
    assert isinstance(info.value, PassError)


def test_counts_of_a_repeated_pass_add_up() -> None:
    _, changes = run_passes(documented(), [LiftConstants(), LiftConstants()])
    assert changes == {"lift-constants": 1}


def test_attributes_that_graphsurgeon_does_not_know_survive() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[2] x) => (float[2] y)
    { o = Optional<type = float[2]>()  h = OptionalHasElement(o)  i = Cast<to = 1>(h)
      y = Add(x, i) }
    """)
    result, _ = run_passes(model, [Cleanup()])
    assert operators(result) == ["Optional", "OptionalHasElement", "Cast", "Add"]
    assert result == model
