"""Which inputs of quantised operators hold what: integers, scales and zero points."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import onnx


class Role(StrEnum):
    """What an input of a quantised operator holds."""

    VALUES = "values"
    SCALE = "scale"
    ZERO_POINT = "zero point"


@dataclass(frozen=True)
class _Inputs:
    values: frozenset[int]
    scales: frozenset[int]
    zero_points: frozenset[int]


def _inputs(values: set[int], scales: set[int], zero_points: set[int]) -> _Inputs:
    return _Inputs(frozenset(values), frozenset(scales), frozenset(zero_points))


_TWO_OPERANDS = _inputs({0, 3}, {1, 4, 6}, {2, 5, 7})
_ONE_OPERAND = _inputs({0}, {1, 3}, {2, 4})

# Positions of inputs, by operator. Those of the standard's own domain, of ONNX Runtime's
# com.microsoft, and Brevitas' Quant, whose zero point is a float.
_OPERATORS: Mapping[str, _Inputs] = {
    "ConvInteger": _inputs({0, 1}, set(), {2, 3}),
    "DequantizeLinear": _inputs({0}, {1}, {2}),
    "DynamicQuantizeMatMul": _inputs({1}, {2}, {3}),
    "MatMulInteger": _inputs({0, 1}, set(), {2, 3}),
    "MatMulIntegerToFloat": _inputs({0, 1}, {2, 3}, {4, 5}),
    "QGemm": _inputs({0, 3, 6}, {1, 4, 7}, {2, 5, 8}),
    "QLinearAdd": _TWO_OPERANDS,
    "QLinearAveragePool": _ONE_OPERAND,
    "QLinearConv": _inputs({0, 3, 8}, {1, 4, 6}, {2, 5, 7}),
    "QLinearGlobalAveragePool": _ONE_OPERAND,
    "QLinearLeakyRelu": _ONE_OPERAND,
    "QLinearMatMul": _TWO_OPERANDS,
    "QLinearMul": _TWO_OPERANDS,
    "QLinearReduceMean": _ONE_OPERAND,
    "QLinearSigmoid": _ONE_OPERAND,
    "QLinearSoftmax": _ONE_OPERAND,
    "Quant": _inputs(set(), {1}, {2}),
    "QuantizeLinear": _inputs(set(), {1}, {2}),
}


def quantiser_role(node: onnx.NodeProto, position: int) -> Role | None:
    """Return what a quantised operator reads at an input; None for any other input.

    Args:
        node: Any node.
        position: Index of the input.
    """
    if node.op_type == "QLinearConcat":
        # The scale and zero point of the result, then values, scale and zero point of each part.
        order = (Role.SCALE, Role.ZERO_POINT, Role.VALUES)
        return order[position % 3]
    inputs = _OPERATORS.get(node.op_type)
    if inputs is None:
        return None
    if position in inputs.values:
        return Role.VALUES
    if position in inputs.scales:
        return Role.SCALE
    return Role.ZERO_POINT if position in inputs.zero_points else None
