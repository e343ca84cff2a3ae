"""Rules for operators from codes to codes: the standard's and those of ONNX Runtime.

Convolutions and matrix products add up products of whole numbers, which is exact in float32 below
2^24, and scale the sum once, as integer kernels do. All others decode their operands, apply the
rule for the operator of floating-point values, and encode what it gives.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from proact_onnx.mirror import ops_activation, ops_elementwise, ops_pooling
from proact_onnx.mirror.codes import align, centre, encode, wide
from proact_onnx.mirror.ops_linear import conv
from proact_onnx.mirror.rule import MICROSOFT, Node, Operation, Rule, RuleTable

RULES = RuleTable()


@RULES.rule("QLinearConv", 1, MICROSOFT)
@RULES.rule("QLinearConv", 10)
def qlinear_conv(node: Node) -> Operation:
    """Compile QLinearConv; weights have one scale, or one an output channel."""
    _refuse_channels_last(node)
    convolve = _of_one_output(conv(node))

    def run(
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor,
        w: Tensor,
        w_scale: Tensor,
        w_zero: Tensor,
        y_scale: Tensor,
        y_zero: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        taps = centre(w, align(w_zero, w, 0))
        added = None if bias is None else bias.to(taps.dtype)
        sums = convolve(centre(x, x_zero), taps, added)
        return _rescaled(sums, align(_factor(x_scale, w_scale, y_scale), sums, 1), y_zero)

    return run


@RULES.rule("QLinearMatMul", 10)
def qlinear_matmul(node: Node) -> Operation:
    """Compile QLinearMatMul; the second matrix has one scale, or one a column."""

    def run(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor,
        y_scale: Tensor,
        y_zero: Tensor,
    ) -> Tensor:
        sums = torch.matmul(centre(a, a_zero), centre(b, b_zero))
        return _rescaled(sums, _factor(a_scale, b_scale, y_scale), y_zero)

    return run


@RULES.rule("QGemm", 1, MICROSOFT)
def qgemm(node: Node) -> Operation:
    """Compile QGemm: to codes, or without a scale of its result to floating-point values."""
    alpha = node.number("alpha", 1.0)
    flip_a = bool(node.integer("transA", 0))
    flip_b = bool(node.integer("transB", 0))
    if any(node.inputs[7:]):
        _need_zero_point(node, 8)

    def run(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor,
        c: Tensor | None = None,
        y_scale: Tensor | None = None,
        y_zero: Tensor | None = None,
    ) -> Tensor:
        left, right = (a.t() if flip_a else a), (b.t() if flip_b else b)
        sums = centre(left, a_zero) @ centre(right, b_zero)
        if c is not None:
            sums = sums + c
        factor = alpha * a_scale * b_scale
        if y_scale is None or y_zero is None:
            return sums * factor
        return _rescaled(sums, factor / y_scale, y_zero)

    return run


def _decoding(operands: int, rule: Rule) -> Rule:
    """Make a rule for codes from one for floating-point values.

    Args:
        operands: How many inputs, each with its scale and zero point, come before the result's.
        rule: For the operator of floating-point values.
    """

    def compile_decoded(node: Node) -> Operation:
        _refuse_channels_last(node)
        _need_zero_point(node, 3 * operands + 1)
        operation = _of_one_output(rule(node))

        def run(*inputs: Tensor) -> Tensor:
            *parts, scale, zero_point = inputs
            return encode(operation(*_decoded(parts)) / scale, zero_point, zero_point.dtype)

        return run

    return compile_decoded


for _op, _operands, _rule in (
    ("QLinearAdd", 2, ops_elementwise.RULES["", "Add", 7]),
    ("QLinearAveragePool", 1, ops_pooling.RULES["", "AveragePool", 7]),
    ("QLinearGlobalAveragePool", 1, ops_pooling.RULES["", "GlobalAveragePool", 1]),
    ("QLinearLeakyRelu", 1, ops_activation.RULES["", "LeakyRelu", 6]),
    ("QLinearMul", 2, ops_elementwise.RULES["", "Mul", 7]),
    ("QLinearSigmoid", 1, ops_activation.RULES["", "Sigmoid", 6]),
):
    RULES.rule(_op, 1, MICROSOFT)(_decoding(_operands, _rule))


@RULES.rule("QLinearConcat", 1, MICROSOFT)
def qlinear_concat(node: Node) -> Operation:
    """Compile QLinearConcat, whose result's scale and zero point come first."""
    axis = node.integer("axis", 0)

    def run(scale: Tensor, zero_point: Tensor, *parts: Tensor) -> Tensor:
        joined = torch.cat(_decoded(parts), axis)
        return encode(joined / scale, zero_point, zero_point.dtype)

    return run


def _of_one_output(operation: Operation) -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], operation)


def _decoded(parts: Sequence[Tensor]) -> list[Tensor]:
    """Floating-point values of codes, each followed by its scale and its zero point."""
    return [
        centre(codes, zero_point) * scale
        for codes, scale, zero_point in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


def _rescaled(sums: Tensor, factor: Tensor, zero_point: Tensor) -> Tensor:
    return encode(sums * factor, zero_point, zero_point.dtype)


def _factor(one: Tensor, other: Tensor, result: Tensor) -> Tensor:
    """What sums of products of codes are multiplied by, at least in single precision."""
    return one.to(wide(one)) * other / result


def _refuse_channels_last(node: Node) -> None:
    if node.integer("channels_last", 0):
        raise node.unsupported("with its channels last")


def _need_zero_point(node: Node, index: int) -> None:
    """Refuse codes whose type nothing tells."""
    if not any(node.inputs[index:]):
        raise node.unsupported("without a zero point of its result")
