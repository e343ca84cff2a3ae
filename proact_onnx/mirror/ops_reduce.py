"""Rules for reductions over axes."""

from collections.abc import Callable

import torch
from torch import Tensor

from proact_onnx.mirror.rule import Node, Operation, Rule, RuleTable

RULES = RuleTable()

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep)
    return x


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    # A vector norm has a gradient at zero, which the root of a sum of squares lacks.
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x.square(), axes, keep),
}


def _reduction(reduction: Reduction) -> Rule:
    def rule(node: Node) -> Operation:
        read_axes = node.integers("axes", 1)
        keep = bool(node.integer("keepdims", 1))
        leave = bool(node.integer("noop_with_empty_axes", 0))

        def run(x: Tensor, *settings: Tensor | None) -> Tensor:
            axes = read_axes(settings)
            if not axes:
                # Without axes every one is reduced, or none: then only what the operator does to
                # each value (a square, a logarithm) is left, which an added axis of one gives.
                if leave:
                    return reduction(x.unsqueeze(0), (0,), False)
                axes = tuple(range(x.dim()))
            return reduction(x, axes, keep) if axes else reduction(x.unsqueeze(0), (0,), False)

        return run

    return rule


for _op, _reduce in REDUCTIONS.items():
    RULES.rule(_op, 1)(_reduction(_reduce))


def _extreme(search: Callable[..., Tensor]) -> Rule:
    def rule(node: Node) -> Operation:
        axis = node.integer("axis", 0)
        keep = bool(node.integer("keepdims", 1))
        if not node.integer("select_last_index", 0):
            return lambda x: search(x, axis, keep)
        return lambda x: x.shape[axis] - 1 - search(x.flip(axis), axis, keep)

    return rule


RULES.rule("ArgMax", 1)(_extreme(torch.argmax))
RULES.rule("ArgMin", 1)(_extreme(torch.argmin))


@RULES.rule("CumSum", 11)
def cum_sum(node: Node) -> Operation:
    """Compile CumSum, forward or backward, with or without the value itself."""
    read_axis = node.integers("", 1)
    backward = bool(node.integer("reverse", 0))
    exclusive = bool(node.integer("exclusive", 0))

    def run(x: Tensor, *settings: Tensor | None) -> Tensor:
        (axis,) = read_axis(settings) or (0,)
        values = x.flip(axis) if backward else x
        total = torch.cumsum(values, axis, dtype=x.dtype)
        if exclusive:
            total = total - values
        return total.flip(axis) if backward else total

    return run
