"""Rules for convolutions and matrix products."""

import torch
import torch.nn.functional as F  # noqa: N812 (the name PyTorch's own documentation uses)
from torch import Tensor

from proact_onnx.mirror.rule import Node, Operation, RuleTable
from proact_onnx.mirror.windows import Window, padding_list, share

RULES = RuleTable()

RULES.plain({("MatMul", 1): torch.matmul})

# By the weight's number of axes.
CONVOLUTIONS = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}
TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


@RULES.rule("Conv", 1)
def conv(node: Node) -> Operation:
    """Compile a convolution of one, two or three spatial axes."""
    window = Window.of(node)
    strides, dilations = window.strides or 1, window.dilations or 1
    groups = node.integer("group", 1)
    pads = window.symmetric

    if pads is not None:

        def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            convolve = CONVOLUTIONS[weight.dim()]
            return convolve(x, weight, bias, strides, pads, dilations, groups)

        return run

    def run_padded(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        begins, ends = window.padding(x.shape[2:], weight.shape[2:])
        convolve = CONVOLUTIONS[weight.dim()]
        if begins == ends:
            return convolve(x, weight, bias, strides, begins, dilations, groups)
        padded = F.pad(x, padding_list(begins, ends))
        return convolve(padded, weight, bias, strides, 0, dilations, groups)

    return run_padded


@RULES.rule("ConvTranspose", 1)
def conv_transpose(node: Node) -> Operation:
    """Compile a transposed convolution: the full one, then cropped to the output asked for."""
    window = Window.of(node)
    strides, dilations = window.strides or 1, window.dilations or 1
    groups = node.integer("group", 1)
    extra = node.sizes("output_padding")
    wanted = node.sizes("output_shape")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        spatial = x.shape[2:]
        full = TRANSPOSED[weight.dim()](x, weight, None, strides, 0, extra or 0, groups, dilations)
        if wanted is not None or window.auto_pad.startswith("SAME"):
            steps = window.steps(len(spatial))
            target = wanted or tuple(s * step for s, step in zip(spatial, steps, strict=True))
            totals = [have - want for have, want in zip(full.shape[2:], target, strict=True)]
            begins, ends = share(totals, odd_first=window.auto_pad != "SAME_UPPER")
        else:
            begins, ends = window.padding(spatial, weight.shape[2:])
        if any(begins) or any(ends):
            full = F.pad(full, [-pad for pad in padding_list(begins, ends)])
        return full if bias is None else full + bias.reshape(-1, *[1] * len(spatial))

    return run


@RULES.rule("Gemm", 7)
def gemm(node: Node) -> Operation:
    """Compile ``alpha * A @ B + beta * C``, A and B transposed as asked, C left out at will."""
    alpha = node.number("alpha", 1.0)
    beta = node.number("beta", 1.0)
    flip_a = bool(node.integer("transA", 0))
    flip_b = bool(node.integer("transB", 0))

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.t() if flip_a else a
        b = b.t() if flip_b else b
        if c is None:
            return alpha * (a @ b)
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return run


@RULES.rule("Einsum", 12)
def einsum(node: Node) -> Operation:
    """Compile Einsum."""
    equation = node.text("equation", "")
    return lambda *operands: torch.einsum(equation, *operands)
