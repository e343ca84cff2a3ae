"""Rules that rearrange a tensor or tell its shape."""

import math

import numpy as np
import torch
from torch import Tensor

from proact_onnx.mirror.rule import Node, Operation, RuleTable

RULES = RuleTable()


@RULES.rule("Shape", 1)
def shape(node: Node) -> Operation:
    """Compile Shape, of all axes or those from ``start`` to ``end``."""
    start = node.integer("start", 0)
    end = node.integer("end", 2**31)
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


@RULES.rule("Size", 1)
def size(node: Node) -> Operation:
    """Compile Size, the number of elements."""
    return lambda x: torch.tensor(x.numel(), device=x.device)


@RULES.rule("Reshape", 5)
def reshape(node: Node) -> Operation:
    """Compile Reshape; a zero copies the extent of the input unless ``allowzero`` is set."""
    read_shape = node.integers("", 1)
    copy_zeros = not node.integer("allowzero", 0)

    def run(x: Tensor, *settings: Tensor | None) -> Tensor:
        target = read_shape(settings) or ()
        if copy_zeros and 0 in target:
            target = tuple(extent or x.shape[axis] for axis, extent in enumerate(target))
        return x.reshape(target)

    return run


@RULES.rule("Flatten", 1)
def flatten(node: Node) -> Operation:
    """Compile Flatten into two axes."""
    axis = node.integer("axis", 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@RULES.rule("Squeeze", 1)
def squeeze(node: Node) -> Operation:
    """Compile Squeeze of the axes given, or of all of extent one."""
    read_axes = node.integers("axes", 1)

    def run(x: Tensor, *settings: Tensor | None) -> Tensor:
        axes = read_axes(settings)
        return x.squeeze() if axes is None else x.squeeze(axes)

    return run


@RULES.rule("Unsqueeze", 1)
def unsqueeze(node: Node) -> Operation:
    """Compile Unsqueeze; the axes count in the output."""
    read_axes = node.integers("axes", 1)

    def run(x: Tensor, *settings: Tensor | None) -> Tensor:
        axes = read_axes(settings) or ()
        rank = x.dim() + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


@RULES.rule("Transpose", 1)
def transpose(node: Node) -> Operation:
    """Compile Transpose, by default to the reverse order of axes."""
    order = node.sizes("perm")
    return lambda x: x.permute(order or tuple(reversed(range(x.dim()))))


@RULES.rule("Concat", 4)
def concat(node: Node) -> Operation:
    """Compile Concat."""
    axis = node.integer("axis", 0)
    return lambda *tensors: torch.cat(tensors, axis)


@RULES.rule("Split", 2)
def split(node: Node) -> Operation:
    """Compile Split into the sizes given, or into equal parts, the last one smaller at need."""
    axis = node.integer("axis", 0)
    read_sizes = node.integers("split", 1)
    parts = len(node.outputs)

    def run(x: Tensor, *settings: Tensor | None) -> tuple[Tensor, ...]:
        sizes = read_sizes(settings)
        if sizes is None:
            return torch.split(x, -(-x.shape[axis] // parts), axis)
        return torch.split(x, list(sizes), axis)

    return run


@RULES.rule("Expand", 8)
def expand(node: Node) -> Operation:
    """Compile Expand; both the input and the shape broadcast."""
    read_shape = node.integers("", 1)

    def run(x: Tensor, *settings: Tensor | None) -> Tensor:
        return x.expand(np.broadcast_shapes(x.shape, read_shape(settings) or ()))

    return run


@RULES.rule("Tile", 6)
def tile(node: Node) -> Operation:
    """Compile Tile."""
    read_repeats = node.integers("", 1)
    return lambda x, *settings: x.repeat(read_repeats(settings) or ())


@RULES.rule("DepthToSpace", 1)
def depth_to_space(node: Node) -> Operation:
    """Compile DepthToSpace, with the block's axes before (DCR) or after (CRD) the channels."""
    block = node.integer("blocksize", 1)
    order = (0, 3, 4, 1, 5, 2) if node.text("mode", "DCR") == "DCR" else (0, 1, 4, 2, 5, 3)
    blocks_first = order[1] == 3

    def run(x: Tensor) -> Tensor:
        batch, depth, height, width = x.shape
        channels = depth // block**2
        axes = (block, block, channels) if blocks_first else (channels, block, block)
        split_up = x.reshape(batch, *axes, height, width).permute(order)
        return split_up.reshape(batch, channels, height * block, width * block)

    return run


@RULES.rule("SpaceToDepth", 1)
def space_to_depth(node: Node) -> Operation:
    """Compile SpaceToDepth, with the block's axes before (DCR) or after (CRD) the channels."""
    block = node.integer("blocksize", 1)
    order = (0, 3, 5, 1, 2, 4) if node.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)

    def run(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows, columns = height // block, width // block
        split_up = x.reshape(batch, channels, rows, block, columns, block)
        return split_up.permute(order).reshape(batch, -1, rows, columns)

    return run
