"""Which values pass a bound, counted by hand."""

import numpy as np
import onnx
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.coverage import Unprotected, coverage
from proact_onnx.report import coverage_line, unprotected_lines
from tests.numerics import parse

W = np.ones((4, 4), np.float32)


@pytest.mark.parametrize(
    ("body", "values", "bounded", "by_nature"),
    [
        # Behind the last bound lie the four logits alone.
        ("h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, w)", 12, 8, 0),
        # A skip connection carries the layer's output past the bound.
        ("h = MatMul(x, w)  r = Relu(h)  y = Add(r, h)", 12, 4, 0),
        ("h = MatMul(x, w)  s = Sigmoid(h)  y = MatMul(s, w)", 12, 0, 8),
        ("h = MatMul(x, w)  s = Sigmoid(h)  r = Relu(h)  y = Mul(s, r)", 16, 4, 8),
        # What is computed from weights alone is no value of an image.
        ("v = MatMul(w, w)  h = MatMul(x, v)  y = Relu(h)", 8, 8, 0),
        # A shape carries no values.
        ("h = Relu(x)  n = Shape(h)  z = ConstantOfShape(n)  y = Neg(z)", 8, 0, 0),
    ],
)
def test_shares(body: str, values: int, bounded: int, by_nature: int) -> None:
    model = parse(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x) => (float[N, 4] y) {{ {body} }}
        """,
        w=W,
    )
    onnx.checker.check_model(model, full_check=True)
    found = coverage(model, find_activations(model))
    assert found.values == values
    assert found.bounded == pytest.approx(bounded / values)
    assert found.by_nature == pytest.approx(by_nature / values)
    assert coverage(model, []).bounded == 0


def test_linear_layers_close_what_activations_leave_open() -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x) => (float[N, 4] y)
        { h = MatMul(x, w)  r = Relu(h)  s = Add(r, h)  y = MatMul(s, w) }
        """,
        w=W,
    )
    assert coverage(model, find_activations(model)).bounded == 0.25
    everything = coverage(model, find_activations(model, linear=True))
    assert everything.bounded == 1.0
    assert coverage_line(everything).startswith("100 % of the 16 values of an image pass a bound")


def test_lines() -> None:
    left = [Unprotected(f"s{n}", "Sigmoid", "why") for n in range(5)]
    left.append(Unprotected("r", "Relu", "it lies in a subgraph of 'i'"))
    assert unprotected_lines(left) == [
        "not protected: s0, s1, s2 and 2 more (Sigmoid), why",
        "not protected: r (Relu), it lies in a subgraph of 'i'",
    ]
