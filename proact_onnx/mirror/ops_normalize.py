"""Rules for normalizations, all with the statistics of inference."""

import torch
import torch.nn.functional as F  # noqa: N812 (the name PyTorch's own documentation uses)
from torch import Tensor

from proact_onnx.mirror.rule import Node, Operation, RuleTable

RULES = RuleTable()


@RULES.rule("BatchNormalization", 7)
def batch_normalization(node: Node) -> Operation:
    """Compile BatchNormalization with its stored mean and variance, even in a training export."""
    node.keep_first_output()
    if not node.integer("spatial", 1):
        raise node.unsupported("with spatial = 0")
    epsilon = node.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)

    return run


@RULES.rule("InstanceNormalization", 6)
def instance_normalization(node: Node) -> Operation:
    """Compile InstanceNormalization: each channel of each image by its own statistics."""
    epsilon = node.number("epsilon", 1e-5)
    return lambda x, scale, bias: torch.group_norm(x, x.shape[1], scale, bias, epsilon)


@RULES.rule("GroupNormalization", 21)
def group_normalization(node: Node) -> Operation:
    """Compile GroupNormalization with a scale and a bias for each channel."""
    epsilon = node.number("epsilon", 1e-5)
    groups = node.integer("num_groups", 1)
    return lambda x, scale, bias: torch.group_norm(x, groups, scale, bias, epsilon)


@RULES.rule("LayerNormalization", 17)
def layer_normalization(node: Node) -> Operation:
    """Compile LayerNormalization over the axes from ``axis`` on."""
    axis = node.integer("axis", -1)
    epsilon = node.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        normalized = F.layer_norm(x, x.shape[axis:], eps=epsilon) * scale
        return normalized if bias is None else normalized + bias

    def run_with_statistics(
        x: Tensor, scale: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        axes = tuple(range(axis % x.dim(), x.dim()))
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return run(x, scale, bias), mean, (variance + epsilon).rsqrt()

    return run_with_statistics if len(node.outputs) > 1 else run


@RULES.rule("RMSNormalization", 23)
def rms_normalization(node: Node) -> Operation:
    """Compile RMSNormalization over the axes from ``axis`` on."""
    axis = node.integer("axis", -1)
    epsilon = node.number("epsilon", 1e-5)
    return lambda x, scale: F.rms_norm(x, list(x.shape[axis:]), eps=epsilon) * scale


@RULES.rule("LpNormalization", 1)
def lp_normalization(node: Node) -> Operation:
    """Compile LpNormalization along one axis."""
    axis = node.integer("axis", -1)
    order = node.integer("p", 2)

    def run(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, order, axis, keepdim=True)
        return torch.where(norm == 0, torch.zeros_like(x), x / norm)

    return run


@RULES.rule("LRN", 1)
def local_response_normalization(node: Node) -> Operation:
    """Compile LRN across an odd number of channels, the only one ONNX Runtime takes."""
    alpha = node.number("alpha", 1e-4)
    beta = node.number("beta", 0.75)
    bias = node.number("bias", 1.0)
    size = node.integer("size", 1)
    if size % 2 == 0:
        raise node.unsupported(f"with even size {size}")
    return lambda x: F.local_response_norm(x, size, alpha, beta, bias)
