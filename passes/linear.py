"""Where the output channels of linear layers lie in their weights."""

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

Array = npt.NDArray[np.floating]
LINEAR = ("Conv", "ConvTranspose", "Gemm")


def along_output(linear: gs.Node, weight: Array, factor: Array) -> Array:
    """Shape factors so that they broadcast along a weight's output axis.

    Args:
        linear: A Conv, ConvTranspose, Gemm or MatMul that reads the weight as its second input.
        weight: The weight: ``[M, C/g, ...]``, ``[C, M/g, ...]``, ``[K, N]`` (``[N, K]`` with
            ``transB``) or ``[..., K, N]``.
        factor: One number, or one an output channel, whatever its shape.
    """
    if not factor.ndim:
        return factor
    if linear.op == "ConvTranspose":
        # Output channel g_i * M/g + m is column m of the weight's group g_i.
        groups = linear.attrs.get("group", 1)
        per_input = factor.reshape(groups, 1, -1).repeat(weight.shape[0] // groups, axis=1)
        return per_input.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    shape = [1] * weight.ndim
    shape[_output_axis(linear, weight)] = -1
    return factor.reshape(shape)


def largest_by_channel(linear: gs.Node, weight: Array) -> Array:
    """Find the largest magnitude among the weights of each output channel.

    Returns:
        ``[M]``; 0 for a channel without weights. Arguments as in `along_output`.
    """
    magnitude = np.abs(weight)
    if linear.op == "ConvTranspose":
        grouped = magnitude.reshape(linear.attrs.get("group", 1), -1, *weight.shape[1:])
        found: Array = grouped.max(axis=(1, *range(3, grouped.ndim)), initial=0).reshape(-1)
        return found
    axis = _output_axis(linear, weight)
    others = tuple(other for other in range(weight.ndim) if other != axis)
    found = magnitude.max(axis=others, initial=0)
    return np.asarray(found)


def _output_axis(linear: gs.Node, weight: Array) -> int:
    if linear.op == "Conv" or (linear.op == "Gemm" and linear.attrs.get("transB", 0)):
        return 0
    return weight.ndim - 1
