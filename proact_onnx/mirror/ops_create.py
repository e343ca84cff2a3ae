"""Rules that make tensors, change their type, or pass them on."""

import torch
from torch import Tensor

from proact_onnx.mirror.rule import Node, Operation, RuleTable
from proact_onnx.mirror.tensors import DTYPES

RULES = RuleTable()

RULES.plain({("Identity", 1): lambda x: x, ("CastLike", 15): lambda x, like: x.to(like.dtype)})


@RULES.rule("Cast", 6)
def cast(node: Node) -> Operation:
    """Compile Cast."""
    to = node.integer("to", 0)
    if to not in DTYPES:
        raise node.unsupported(f"to element type {to}")
    dtype = DTYPES[to]
    return lambda x: x.to(dtype)


# Attributes of Constant, with the element type of the tensor each one makes.
CONSTANT_FORMS = {
    "value": None,
    "value_float": torch.float32,
    "value_floats": torch.float32,
    "value_int": torch.int64,
    "value_ints": torch.int64,
}


@RULES.rule("Constant", 1)
def constant(node: Node) -> Operation:
    """Compile Constant from a dense tensor, a number or a list of numbers."""
    for attribute, dtype in CONSTANT_FORMS.items():
        value = node.value(attribute, dtype)
        if value is not None:
            return lambda: value
    raise node.unsupported("of strings or a sparse tensor")


@RULES.rule("ConstantOfShape", 9)
def constant_of_shape(node: Node) -> Operation:
    """Compile ConstantOfShape, by default of float32 zeros."""
    value = node.value("value")
    fill = torch.zeros(1) if value is None else value

    def run(shape: Tensor) -> Tensor:
        return fill.to(shape.device).reshape(()).repeat(shape.tolist())

    return run


@RULES.rule("Dropout", 7)
def dropout(node: Node) -> Operation:
    """Compile Dropout as inference runs it: nothing is dropped."""
    if len(node.outputs) > 1:
        return lambda x, *settings: (x, torch.ones_like(x, dtype=torch.bool))
    return lambda x, *settings: x


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    bounds = start.item(), limit.item(), delta.item()
    return torch.arange(*bounds, dtype=start.dtype, device=start.device)


RULES.plain({("Range", 11): _range})


@RULES.rule("Trilu", 14)
def trilu(node: Node) -> Operation:
    """Compile Trilu: the upper or lower triangle of each matrix."""
    triangle = torch.triu if node.integer("upper", 1) else torch.tril
    read_diagonal = node.integers("", 1)

    def run(x: Tensor, *settings: Tensor | None) -> Tensor:
        (diagonal,) = read_diagonal(settings) or (0,)
        return triangle(x, diagonal)

    return run
