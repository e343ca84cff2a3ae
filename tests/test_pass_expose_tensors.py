import numpy as np
import onnx
import pytest

from passes import ExposeTensors, PreconditionError, run_passes
from tests.numerics import parse, run

NET = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 2] x) => (float[N, 2] y)
<float[N, 2] a, float[N, 2] b> { a = Relu(x)  b = Neg(a)  y = Abs(b)  c = Neg(y) }
"""


def test_exposes_in_the_order_asked_behind_the_outputs() -> None:
    model = parse(NET)
    result, changes = run_passes(model, [ExposeTensors(["b", "a"])])
    assert changes == {"expose-tensors": 2}
    assert [info.name for info in result.graph.output] == ["y", "b", "a"]
    onnx.checker.check_model(result, full_check=True)
    x = np.array([[-1, 2]], np.float32)
    y, b, a = run(result, {"x": x})
    np.testing.assert_array_equal(a, np.maximum(x, 0))
    np.testing.assert_array_equal(b, -np.maximum(x, 0))
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_an_output_is_not_repeated() -> None:
    result, changes = run_passes(parse(NET), [ExposeTensors(["y"])])
    assert changes == {"expose-tensors": 0}
    assert result == parse(NET)


def test_the_stated_type_is_used() -> None:
    model = parse(NET)
    model.graph.value_info[0].doc_string = "after Relu"
    result, _ = run_passes(model, [ExposeTensors(["a"])])
    assert result.graph.output[1] == model.graph.value_info[0]
    assert [info.name for info in result.graph.value_info] == ["b"]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("nowhere", "the graph has no tensor 'nowhere'"),
        ("c", "tensor 'c' has no known type: run shape inference first"),
    ],
)
def test_refuses(tensor: str, message: str) -> None:
    with pytest.raises(PreconditionError, match=message):
        run_passes(parse(NET), [ExposeTensors([tensor])])
