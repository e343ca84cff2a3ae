import numpy as np
import pytest

from passes import NormalizeActivations, run_passes
from tests.numerics import Array, assert_same_outputs, operators, parse


def net(body: str, opset: int, **weights: Array) -> str:
    return f"""
    <ir_version: 7, opset_import: ["": {opset}]>
    net (float[N, 3] x) => (float[N, 3] y) {{ {body} }}
    """


ZERO = np.float32(0)


@pytest.mark.parametrize(
    ("body", "opset", "weights"),
    [
        ("y = Clip<min = 0.0>(x)", 9, {}),
        ("y = Clip<min = 0.0, max = 3.4028234663852886e+38>(x)", 10, {}),
        ("y = Clip(x, zero)", 11, {"zero": ZERO}),
        ("y = Clip(x, zero, )", 13, {"zero": ZERO}),
        ("y = Clip(x, zero, top)", 13, {"zero": ZERO, "top": np.float32(np.inf)}),
        ("y = Clip(x, zero, top)", 13, {"zero": ZERO, "top": np.finfo(np.float32).max}),
        ("y = Max(x, zero)", 9, {"zero": ZERO}),
        ("y = Max(zero, x)", 13, {"zero": ZERO}),
        ("y = Max(x, zero)", 13, {"zero": np.zeros((1, 1), np.float32)}),
    ],
)
def test_spellings_of_relu(body: str, opset: int, weights: dict[str, Array]) -> None:
    model = parse(net(body, opset), **weights)
    model.graph.node[0].name = "act"
    result, changes = run_passes(model, [NormalizeActivations()])
    assert changes == {"normalize-activations": 1}
    [node] = result.graph.node
    assert (node.op_type, node.name, list(node.input)) == ("Relu", "act", ["x"])
    assert not node.attribute
    assert_same_outputs(model, result)


@pytest.mark.parametrize(
    ("body", "opset", "weights"),
    [
        ("y = Clip<min = 0.0, max = 6.0>(x)", 9, {}),
        ("y = Clip<max = 6.0>(x)", 9, {}),
        ("y = Clip(x, zero, six)", 13, {"zero": ZERO, "six": np.float32(6)}),
        ("y = Clip(x, low)", 13, {"low": np.float32(-1)}),
        ("y = Clip(x, , six)", 13, {"six": np.float32(6)}),
        ("y = Clip(x)", 13, {}),
        ("y = Max(x, low)", 13, {"low": np.float32(0.5)}),
        ("y = Max(x, low)", 13, {"low": np.zeros(3, np.float32)}),
        ("y = Max(x, zero, zero)", 13, {"zero": ZERO}),
        ("y = Max(x, x)", 13, {}),
        ("low = ReduceMin<keepdims = 0>(x) y = Clip(x, low)", 13, {}),
    ],
)
def test_what_is_no_relu_stays(body: str, opset: int, weights: dict[str, Array]) -> None:
    model = parse(net(body, opset), **weights)
    result, changes = run_passes(model, [NormalizeActivations()])
    assert changes == {"normalize-activations": 0}
    assert operators(result) == operators(model)


def test_a_zero_that_raises_the_rank_stays() -> None:
    model = parse(
        """
        <ir_version: 7, opset_import: ["": 13]>
        net (float[3] x) => (float[1, 3] y) { y = Max(x, zero) }
        """,
        zero=np.zeros((1, 1), np.float32),
    )
    result, changes = run_passes(model, [NormalizeActivations()])
    assert changes == {"normalize-activations": 0}
    assert_same_outputs(model, result)


def test_an_integer_clip_stays() -> None:
    model = parse(
        """
        <ir_version: 7, opset_import: ["": 13]>
        net (int64[3] x) => (int64[3] y) { y = Clip(x, zero) }
        """,
        zero=np.int64(0),
    )
    assert run_passes(model, [NormalizeActivations()])[1] == {"normalize-activations": 0}
