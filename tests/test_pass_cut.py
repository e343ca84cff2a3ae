"""Cutting graphs: where a tensor carries everything, and what lies on either side of it."""

import numpy as np
import onnx
import pytest

from passes import CutPoint, PreconditionError, data_flow, part_between
from tests.numerics import operators, parse, random_feed, run

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def network(body: str, outputs: str = "float[N, 4] y", **stored: np.ndarray) -> onnx.ModelProto:
    return parse(f"{HEADER} net (float[N, 4] x) => ({outputs}) {{ {body} }}", **stored)


def chain() -> onnx.ModelProto:
    return network(
        "a = MatMul (x, w1)  b = Relu (a)  c = Add (b, b1)  y = MatMul (c, w2)",
        w1=weights(4, 6),
        b1=weights(6),
        w2=weights(6, 4),
    )


def points(model: onnx.ModelProto) -> list[str]:
    return [point.tensor for point in data_flow(model).cut_points]


def info(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def test_a_chain_can_be_cut_everywhere_but_at_its_output() -> None:
    flow = data_flow(chain())
    assert flow.cut_points == (CutPoint("a", 0), CutPoint("b", 1), CutPoint("c", 2))
    assert flow.nodes == (0, 1, 2, 3)
    assert flow.first_uses == {"w1": 0, "b1": 2, "w2": 3}


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        ("a = Relu(x) b = Abs(a) c = Add(a, b) y = Neg(c)", "float[N, 4] y", ["a", "c"]),
        ("a = Relu(x) b = Abs(x) c = Concat <axis = 1> (a, b) y = Neg(c)", "float[N, 8] y", ["c"]),
        ("a = Relu(x) b = Abs(a) y = Add(x, b)", "float[N, 4] y", []),
        ("a = Relu(x) y = Neg(a) z = Abs(a)", "float[N, 4] y, float[N, 4] z", ["a"]),
        ("a = Relu(x) z = Neg(a) b = Abs(a) y = Neg(b)", "float[N, 4] y, float[N, 4] z", ["a"]),
        ("a = Relu(x) b = Abs(a) y = Neg(b)", "float[N, 4] y, float[N, 4] a", []),
        ("a = Relu(x) d = Neg(x) y = Abs(a)", "float[N, 4] y", ["a"]),
        ("a = Relu(x) s = Shape(x) b = Abs(a) y = Reshape(b, s)", "float[N, 4] y", []),
        ("a, b = Split <axis = 1> (x) c = Mul(a, b) y = Neg(c)", "float[N, 2] y", ["c"]),
    ],
    ids=[
        "skip connection",
        "branches",
        "skip from the input",
        "two heads",
        "a head in the middle",
        "an inner output",
        "a dead node",
        "the shape of the input",
        "two outputs of a node",
    ],
)
def test_a_cut_tensor_carries_everything_alone(
    body: str, outputs: str, expected: list[str]
) -> None:
    assert points(network(body, outputs)) == expected


def test_what_a_branch_captures_is_read_there() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x) => (float[N, 4] y) {
            a = Relu (x)
            b = Abs (a)
            c = If (flag) <
                then_branch = one () => (float[N, 4] d) { d = Mul (a, w) },
                else_branch = two () => (float[N, 4] e) { e = Neg (b) }
            >
            y = Add (b, c)
        }""",
        flag=np.array(True),
        w=weights(4),
    )
    flow = data_flow(model)
    assert [point.tensor for point in flow.cut_points] == ["a"]
    assert flow.first_uses == {"flag": 2, "w": 2}
    part = part_between(model, info("a", "N", 4))
    assert {tensor.name for tensor in part.graph.initializer} == {"flag", "w"}
    x = weights(3, 4)
    np.testing.assert_array_equal(
        run(part, {"a": np.maximum(x, 0)})[0], run(model, {"x": x})[0], strict=True
    )


def test_a_parameter_counts_where_its_value_first_meets_the_data() -> None:
    """Through nodes that compute with parameters alone, wherever they stand."""
    model = network(
        "t = Transpose (w1) a = Relu (x) b = MatMul (a, shared) c = MatMul (b, t) "
        "y = MatMul (c, shared)",
        w1=weights(4, 4),
        shared=weights(4, 4),
        unread=weights(2),
    )
    flow = data_flow(model)
    assert flow.first_uses == {"shared": 2, "w1": 3}
    assert flow.nodes == (1, 2, 3, 4)
    part = part_between(model, info("b", "N", 4))
    assert operators(part) == ["Transpose", "MatMul", "MatMul"]
    assert {tensor.name for tensor in part.graph.initializer} == {"w1", "shared"}


@pytest.mark.parametrize("tensor", ["a", "b", "c"])
@pytest.mark.parametrize("batch", ["N", 3])
def test_the_parts_compute_what_the_whole_does(tensor: str, batch: int | str) -> None:
    model = chain()
    if batch == 3:
        for edge in (model.graph.input[0], model.graph.output[0]):
            edge.type.tensor_type.shape.dim[0].dim_value = 3
    place = info(tensor, batch, 6)
    before, behind = part_between(model, None, place), part_between(model, place)
    for part in (before, behind):
        onnx.checker.check_model(part, full_check=True)
    assert [edge.name for edge in behind.graph.input] == [tensor]
    assert behind.graph.input[0] == place
    assert behind.graph.output == model.graph.output
    assert operators(before) + operators(behind) == operators(model)
    assert not {t.name for t in before.graph.initializer} & {
        t.name for t in behind.graph.initializer
    }
    feed = random_feed(model, batch=3)
    [inner] = run(before, feed)
    np.testing.assert_array_equal(run(behind, {tensor: inner})[0], run(model, feed)[0])


def test_a_part_can_begin_and_end_inside() -> None:
    model = chain()
    part = part_between(model, info("a", "N", 6), info("c", "N", 6))
    onnx.checker.check_model(part, full_check=True)
    assert operators(part) == ["Relu", "Add"]
    a = weights(2, 6)
    bias = onnx.numpy_helper.to_array(model.graph.initializer[1])
    np.testing.assert_array_equal(run(part, {"a": a})[0], np.maximum(a, 0) + bias)


def test_what_stands_around_the_graph_is_kept_and_the_model_is_not_changed() -> None:
    model = chain()
    model.producer_name = "somebody"
    model.metadata_props.add(key="made", value="long ago")
    model.graph.doc_string = "a chain"
    model.graph.value_info.extend([info("a", "N", 6), info("c", "N", 6)])
    before = model.SerializeToString()
    part = part_between(model, info("b", "N", 6))
    assert model.SerializeToString() == before
    assert part.producer_name == "somebody"
    assert part.metadata_props == model.metadata_props
    assert part.opset_import == model.opset_import
    assert part.ir_version == model.ir_version
    assert part.graph.doc_string == "a chain"
    assert [value.name for value in part.graph.value_info] == ["c"]


def test_parameters_that_are_inputs_as_well_stay_inputs() -> None:
    model = chain()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    assert points(model) == ["a", "b", "c"]
    part = part_between(model, info("b", "N", 6))
    assert [edge.name for edge in part.graph.input] == ["b", "b1", "w2"]
    onnx.checker.check_model(part, full_check=True)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("b", None, "tensor 'b' is no place to cut: 'x' is needed beside it"),
        ("nowhere", None, "tensor 'nowhere' is no place to cut: 'x' is needed beside it"),
        ("y", None, "tensor 'y' is an output of the graph"),
        ("c", "a", "tensor 'c' is no place to cut: 'x' is needed beside it"),
        (None, "nowhere", "no output is to be computed through tensor 'nowhere'"),
    ],
)
def test_refuses(start: str | None, end: str | None, message: str) -> None:
    model = network("a = Relu (x)  b = Abs (a)  c = Add (a, b)  y = Neg (c)")
    ends = [None if name is None else info(name, "N", 4) for name in (start, end)]
    with pytest.raises(PreconditionError) as caught:
        part_between(model, *ends)
    assert str(caught.value) == message
