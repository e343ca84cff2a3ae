"""Rules that pick values by position, and padding."""

import torch
import torch.nn.functional as F  # noqa: N812 (the name PyTorch's own documentation uses)
from torch import Tensor

from proact_onnx.mirror.rule import Node, Operation, RuleTable
from proact_onnx.mirror.windows import padding_list

RULES = RuleTable()


def _select(x: Tensor, axis: int, positions: list[int]) -> Tensor:
    return x.index_select(axis, torch.tensor(positions, dtype=torch.int64, device=x.device))


@RULES.rule("Slice", 1)
def slice_(node: Node) -> Operation:
    """Compile Slice; starts and ends beyond the input are clamped, steps may be negative."""
    read_starts = node.integers("starts", 1)
    read_ends = node.integers("ends", 2)
    read_axes = node.integers("axes", 3)
    read_steps = node.integers("", 4)

    def run(x: Tensor, *settings: Tensor | None) -> Tensor:
        starts = read_starts(settings) or ()
        ends = read_ends(settings) or ()
        axes = read_axes(settings) or range(len(starts))
        steps = read_steps(settings) or (1,) * len(starts)
        window = [slice(None)] * x.dim()
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if step > 0:
                window[axis] = slice(start, end, step)
            else:
                positions = range(*slice(start, end, step).indices(x.shape[axis]))
                x = _select(x, axis, list(positions))
        return x[tuple(window)]

    return run


@RULES.rule("Gather", 1)
def gather(node: Node) -> Operation:
    """Compile Gather along one axis, by indices of any rank, negative ones from the end."""
    before = node.integer("axis", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        where: list[slice | Tensor] = [slice(None)] * (before % x.dim())
        return x[(*where, indices.long())]

    return run


@RULES.rule("GatherElements", 11)
def gather_elements(node: Node) -> Operation:
    """Compile GatherElements, negative indices counting from the end."""
    axis = node.integer("axis", 0)
    return lambda x, indices: torch.gather(x, axis, indices.long() % x.shape[axis])


def _mirrored(mode: str, position: int, size: int) -> int:
    """Position in an axis of ``size`` that padding at ``position`` outside of it copies."""
    if mode == "wrap":
        return position % size
    if mode == "edge":
        return min(max(position, 0), size - 1)
    period = max(2 * (size - 1), 1)
    return min(position % period, period - position % period) if size > 1 else 0


@RULES.rule("Pad", 2)
def pad(node: Node) -> Operation:
    """Compile Pad of any axes, with a constant or by copying the input; negative pads crop."""
    mode = node.text("mode", "constant")
    read_pads = node.integers("pads", 1)
    read_value = node.numbers("value", 2)
    read_axes = node.integers("", 3)

    def run(x: Tensor, *settings: Tensor | None) -> Tensor:
        pads = read_pads(settings) or ()
        half = len(pads) // 2
        begins, ends = [0] * x.dim(), [0] * x.dim()
        for index, axis in enumerate(read_axes(settings) or range(half)):
            begins[axis], ends[axis] = pads[index], pads[half + index]
        if mode == "constant":
            (value,) = read_value(settings) or (0.0,)
            return F.pad(x, padding_list(begins, ends), value=value)
        for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            if begin or end:
                size = x.shape[axis]
                reach = range(-begin, size + end)
                x = _select(x, axis, [_mirrored(mode, position, size) for position in reach])
        return x

    return run
