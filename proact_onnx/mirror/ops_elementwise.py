"""Rules for arithmetic, comparison, logic and rounding, value by value with broadcasting."""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from proact_onnx.mirror.rule import Node, Operation, RuleTable

RULES = RuleTable()

RULES.plain(
    {
        ("Abs", 6): torch.abs,
        ("Add", 7): torch.add,
        ("And", 7): torch.logical_and,
        ("Ceil", 6): torch.ceil,
        ("Cos", 7): torch.cos,
        ("Equal", 7): torch.eq,
        ("Erf", 9): torch.erf,
        ("Exp", 6): torch.exp,
        ("Floor", 6): torch.floor,
        ("Greater", 7): torch.gt,
        ("GreaterOrEqual", 12): torch.ge,
        ("IsNaN", 9): torch.isnan,
        ("Less", 7): torch.lt,
        ("LessOrEqual", 12): torch.le,
        ("Log", 6): torch.log,
        ("Mul", 7): torch.mul,
        ("Neg", 6): torch.neg,
        ("Not", 1): torch.logical_not,
        ("Or", 7): torch.logical_or,
        ("Reciprocal", 6): torch.reciprocal,
        ("Round", 11): torch.round,
        ("Sign", 9): torch.sign,
        ("Sin", 7): torch.sin,
        ("Sqrt", 6): torch.sqrt,
        ("Sub", 7): torch.sub,
        ("Tan", 7): torch.tan,
        ("Where", 9): torch.where,
        ("Xor", 7): torch.logical_xor,
    }
)


def _fold(combine: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    return lambda *tensors: reduce(combine, tensors)


def _mean(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors) / len(tensors)


def _divide(x: Tensor, y: Tensor) -> Tensor:
    # Integer division truncates toward zero in ONNX; PyTorch would return floating point.
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def _power(x: Tensor, exponent: Tensor) -> Tensor:
    # The result has the base's type, whatever the exponent's.
    return torch.pow(x, exponent).to(x.dtype)


RULES.plain(
    {
        ("Div", 7): _divide,
        ("Max", 6): _fold(torch.maximum),
        ("Mean", 6): _mean,
        ("Min", 6): _fold(torch.minimum),
        ("Pow", 7): _power,
        ("Sum", 6): _fold(torch.add),
    }
)


@RULES.rule("IsInf", 10)
def is_inf(node: Node) -> Operation:
    """Compile IsInf, of either sign or one."""
    negative = bool(node.integer("detect_negative", 1))
    positive = bool(node.integer("detect_positive", 1))
    if negative and positive:
        return torch.isinf
    if not negative and not positive:
        return lambda x: torch.zeros_like(x, dtype=torch.bool)
    return torch.isposinf if positive else torch.isneginf


@RULES.rule("Mod", 10)
def mod(node: Node) -> Operation:
    """Compile Mod: the sign of the divisor, or with ``fmod`` that of the dividend."""
    return torch.fmod if node.integer("fmod", 0) else torch.remainder
