"""Other spellings of the rectifier become Relu."""

import numpy as np
import onnx_graphsurgeon as gs

from passes.base import Pass
from passes.edits import in_default_domain, input_at, scalar


class NormalizeActivations(Pass):
    """Write ``max(0, x)`` as Relu, wherever it is spelt otherwise.

    1. ``Clip(x, 0, max)`` without ``max``, or with one that no finite value exceeds.
    2. ``Max(x, 0)`` and ``Max(0, x)``, where the zero is a floating-point constant of one element
       that does not raise the rank of ``x``.

    ``Clip(x, 0, 6)`` stays: its upper bound is part of the network. Node and tensor names stay.
    """

    name = "normalize-activations"

    def call(self, graph: gs.Graph) -> int:
        """Rewrite every match in place."""
        changed = 0
        for node in graph.nodes:
            if not in_default_domain(node):
                continue
            kept = _clipped(node, graph.opset) if node.op == "Clip" else _raised(node)
            if kept is not None:
                node.op = "Relu"
                node.attrs.clear()
                node.inputs = [kept]
                changed += 1
        return changed


def clip_bounds(node: gs.Node, opset: int) -> tuple[float | None, float | None]:
    """Bounds of a Clip node: attributes up to opset 10, inputs from opset 11 on.

    Returns:
        Lower and upper bound. A lower bound that is absent or not a floating-point constant is
        ``None``; an upper bound is infinity where it is absent or no finite value exceeds it, and
        ``None`` where it is not a constant.
    """
    if opset < 11:
        lower = node.attrs.get("min")
        upper = node.attrs.get("max", np.inf)
        return (None if lower is None else float(lower)), _unless_vacuous(np.float32(upper))
    low, high = scalar(input_at(node, 1)), scalar(input_at(node, 2))
    lower = float(low) if isinstance(low, np.floating) else None
    if input_at(node, 2) is None:
        return lower, np.inf
    return lower, (_unless_vacuous(high) if isinstance(high, np.floating) else None)


def _unless_vacuous(bound: np.floating) -> float:
    return np.inf if bound >= np.finfo(bound.dtype).max else float(bound)


def _clipped(node: gs.Node, opset: int) -> gs.Tensor | None:
    return node.inputs[0] if clip_bounds(node, opset) == (0.0, np.inf) else None


def _raised(node: gs.Node) -> gs.Tensor | None:
    if node.op != "Max" or len(node.inputs) != 2:
        return None
    for zero, other in (node.inputs, reversed(node.inputs)):
        value = scalar(zero)
        if not isinstance(value, np.floating) or value != 0 or isinstance(other, gs.Constant):
            continue
        rank = 0 if other.shape is None else len(other.shape)
        if len(zero.shape) <= rank:
            return other
    return None
