"""Rules for Resize and Upsample: nearest and linear interpolation, one axis after another."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from proact_onnx.mirror.rule import Node, Operation, RuleTable

RULES = RuleTable()

# From (output positions, scale, input extent, output extent) to positions in the input.
COORDINATES: dict[str, Callable[[Tensor, float, int, int], Tensor]] = {
    "align_corners": lambda at, scale, old, new: at * ((old - 1) / max(new - 1, 1)),
    "asymmetric": lambda at, scale, old, new: at / scale,
    "half_pixel": lambda at, scale, old, new: (at + 0.5) / scale - 0.5,
    "half_pixel_symmetric": lambda at, scale, old, new: (
        old / 2 * (1 - new / (scale * old)) + (at + 0.5) / scale - 0.5
    ),
    "pytorch_half_pixel": lambda at, scale, old, new: (
        (at + 0.5) / scale - 0.5 if new > 1 else at * 0
    ),
}

# From (position in the input, scale) to that of the nearest value.
ROUNDINGS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "ceil": lambda at, scale: torch.ceil(at),
    "floor": lambda at, scale: torch.floor(at),
    "round_prefer_ceil": lambda at, scale: torch.floor(at + 0.5),
    "round_prefer_floor": lambda at, scale: torch.ceil(at - 0.5),
}


def _interpolation(
    node: Node, mode: str, coordinate: str, round_off: Callable[[Tensor, float], Tensor]
) -> Callable[[Tensor, int, float, int], Tensor]:
    """Give the function that resizes one axis to a new extent by a scale."""
    if mode not in ("nearest", "linear"):
        raise node.unsupported(f"with mode '{mode}'")
    if coordinate not in COORDINATES:
        raise node.unsupported(f"with coordinate_transformation_mode '{coordinate}'")
    if node.integer("antialias", 0):
        raise node.unsupported("with antialias = 1")
    locate = COORDINATES[coordinate]

    def positions(x: Tensor, axis: int, scale: float, extent: int) -> Tensor:
        # Single precision, as runtimes compute it: a rounding decides which value is nearest.
        at = torch.arange(extent, dtype=torch.float32, device=x.device)
        return locate(at, scale, x.shape[axis], extent)

    def nearest(x: Tensor, axis: int, scale: float, extent: int) -> Tensor:
        at = round_off(positions(x, axis, scale, extent), scale).long()
        return x.index_select(axis, at.clamp(0, x.shape[axis] - 1))

    def linear(x: Tensor, axis: int, scale: float, extent: int) -> Tensor:
        last = x.shape[axis] - 1
        at = positions(x, axis, scale, extent).clamp(0, last)
        below = at.long()
        weight = (at - below).to(x.dtype).reshape(-1, *[1] * (x.dim() - 1 - axis))
        low = x.index_select(axis, below)
        high = x.index_select(axis, (below + 1).clamp(max=last))
        return low + (high - low) * weight

    return nearest if mode == "nearest" else linear


def _round_by_direction(at: Tensor, scale: float) -> Tensor:
    # The first versions name no rounding; ONNX Runtime takes this one.
    return torch.ceil(at) if scale < 1 else torch.floor(at)


def _extent(size: int, scale: float) -> int:
    return int(np.float32(scale) * np.float32(size))


@RULES.rule("Upsample", 7)
@RULES.rule("Resize", 10)
def scale_by_factors(node: Node) -> Operation:
    """Compile Upsample and the first Resize, which know scales and one coordinate mode."""
    resize = _interpolation(node, node.text("mode", "nearest"), "asymmetric", _round_by_direction)
    read_scales = node.numbers("scales", 1)

    def run(x: Tensor, *settings: Tensor | None) -> Tensor:
        for axis, scale in enumerate(read_scales(settings) or ()):
            if scale != 1:
                x = resize(x, axis, scale, _extent(x.shape[axis], scale))
        return x

    return run


def _uniform(policy: str, sizes: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Extents that keep the aspect ratio within (or around) the wanted ones."""
    ratios = [want / size for size, want in zip(sizes, wanted, strict=True)]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [int(ratio * size + 0.5) for size in sizes]


@RULES.rule("Resize", 11)
def resize(node: Node) -> Operation:
    """Compile Resize by scales or to sizes, of all axes or those given."""
    resize_axis = _interpolation(
        node,
        node.text("mode", "nearest"),
        node.text("coordinate_transformation_mode", "half_pixel"),
        ROUNDINGS[node.text("nearest_mode", "round_prefer_floor")],
    )
    only = node.sizes("axes")
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    read_scales = node.numbers("", 2)
    read_sizes = node.integers("", 3)

    def run(x: Tensor, *settings: Tensor | None) -> Tensor:
        axes = [axis % x.dim() for axis in only or range(x.dim())]
        old = [x.shape[axis] for axis in axes]
        scales, new = read_scales(settings), read_sizes(settings)
        if scales:
            new = tuple(_extent(size, scale) for size, scale in zip(old, scales, strict=True))
        elif new and policy != "stretch":
            new = tuple(_uniform(policy, old, new))
        for index, (axis, extent) in enumerate(zip(axes, new or old, strict=True)):
            scale = scales[index] if scales else extent / old[index]
            if scale != 1 or extent != old[index]:
                x = resize_axis(x, axis, scale, extent)
        return x

    return run
