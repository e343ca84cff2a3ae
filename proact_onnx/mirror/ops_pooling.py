"""Rules for pools."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (the name PyTorch's own documentation uses)
from torch import Tensor

from proact_onnx.mirror.ops_linear import CONVOLUTIONS
from proact_onnx.mirror.rule import Node, Operation, RuleTable
from proact_onnx.mirror.windows import Sizes, Window, padding_list

RULES = RuleTable()

# By the number of spatial axes.
MAX_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.max_pool1d,
    2: F.max_pool2d,
    3: F.max_pool3d,
}
AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.avg_pool1d,
    2: F.avg_pool2d,
    3: F.avg_pool3d,
}


def _spatial_axes(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


def _global_average_pool(x: Tensor) -> Tensor:
    return x.mean(_spatial_axes(x), keepdim=True)


def _global_max_pool(x: Tensor) -> Tensor:
    return x.amax(_spatial_axes(x), keepdim=True)


RULES.plain(
    {("GlobalAveragePool", 1): _global_average_pool, ("GlobalMaxPool", 1): _global_max_pool}
)


def _kernel(node: Node) -> Sizes:
    kernel = node.sizes("kernel_shape") or ()
    if len(kernel) not in MAX_POOLS:
        raise node.unsupported(f"with {len(kernel)} spatial axes")
    return kernel


def _native_padding(window: Window, kernel: Sizes) -> int | Sizes | None:
    """Padding where PyTorch's pools take it as it is: symmetric, at most half the kernel."""
    pads = window.symmetric
    if isinstance(pads, tuple) and any(
        2 * pad > size for pad, size in zip(pads, kernel, strict=True)
    ):
        return None
    return pads


def _lowest(dtype: torch.dtype) -> float:
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


@RULES.rule("MaxPool", 1)
def max_pool(node: Node) -> Operation:
    """Compile MaxPool; padding never wins."""
    node.keep_first_output()
    kernel, window = _kernel(node), Window.of(node)
    ceil = bool(node.integer("ceil_mode", 0))
    strides, dilations = window.steps(len(kernel)), window.dilations or 1
    pool = MAX_POOLS[len(kernel)]
    pads = _native_padding(window, kernel)
    if pads is not None:
        return lambda x: pool(x, kernel, strides, pads, dilations, ceil)

    def run(x: Tensor) -> Tensor:
        begins, ends = window.padding(x.shape[2:], kernel)
        if ceil:
            extra = window.overhang(x.shape[2:], kernel, begins, ends)
            ends = tuple(end + more for end, more in zip(ends, extra, strict=True))
        padded = F.pad(x, padding_list(begins, ends), value=_lowest(x.dtype))
        return pool(padded, kernel, strides, 0, dilations)

    return run


@RULES.rule("AveragePool", 7)
def average_pool(node: Node) -> Operation:
    """Compile AveragePool; padding counts only with ``count_include_pad``.

    What a window of ceil mode reaches beyond the padding never counts.
    """
    kernel, window = _kernel(node), Window.of(node)
    ceil = bool(node.integer("ceil_mode", 0))
    count_padding = bool(node.integer("count_include_pad", 0))
    strides, rank = window.steps(len(kernel)), len(kernel)
    dilated = any(dilation != 1 for dilation in window.dilations or ())
    pads = _native_padding(window, kernel)
    if pads is not None and not dilated:
        pool = AVERAGE_POOLS[rank]
        return lambda x: pool(x, kernel, strides, pads, ceil, count_padding)

    def mean(x: Tensor) -> Tensor:
        if not dilated:
            return AVERAGE_POOLS[rank](x, kernel, strides)
        taps = x.new_full((1, 1, *kernel), 1 / math.prod(kernel))
        planes = x.flatten(0, 1).unsqueeze(1)
        means = CONVOLUTIONS[rank + 2](planes, taps, None, strides, 0, window.dilations or 1)
        return means.reshape(*x.shape[:2], *means.shape[2:])

    def run(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        begins, ends = window.padding(sizes, kernel)
        extra = window.overhang(sizes, kernel, begins, ends) if ceil else (0,) * rank
        counted = x.new_ones((1, 1, *sizes))
        edge = padding_list(begins, ends)
        beyond = padding_list((0,) * rank, extra)
        weights = mean(F.pad(F.pad(counted, edge, value=float(count_padding)), beyond))
        return mean(F.pad(F.pad(x, edge), beyond)) / weights

    return run
