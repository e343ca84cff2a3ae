"""Rules for activation functions and the softmax family."""

import torch
import torch.nn.functional as F  # noqa: N812 (the name PyTorch's own documentation uses)
from torch import Tensor

from proact_onnx.mirror.rule import Node, Operation, RuleTable

RULES = RuleTable()

RULES.plain(
    {
        ("HardSwish", 14): F.hardswish,
        ("Mish", 18): F.mish,
        ("Relu", 6): torch.relu,
        ("Sigmoid", 6): torch.sigmoid,
        ("Softplus", 1): F.softplus,
        ("Softsign", 1): F.softsign,
        ("Tanh", 6): torch.tanh,
    }
)


@RULES.rule("Celu", 12)
def celu(node: Node) -> Operation:
    """Compile Celu."""
    alpha = node.number("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


@RULES.rule("Clip", 6)
def clip_attributes(node: Node) -> Operation:
    """Compile Clip with its bounds as attributes."""
    low = node.number("min", float("-inf"))
    high = node.number("max", float("inf"))
    return lambda x: torch.clamp(x, low, high)


@RULES.rule("Clip", 11)
def clip(node: Node) -> Operation:
    """Compile Clip with its bounds as optional scalar inputs."""

    def run(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        return x if low is None and high is None else torch.clamp(x, low, high)

    return run


@RULES.rule("Elu", 6)
def elu(node: Node) -> Operation:
    """Compile Elu."""
    alpha = node.number("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


@RULES.rule("Gelu", 20)
def gelu(node: Node) -> Operation:
    """Compile Gelu, exact or with the tanh approximation."""
    approximate = node.text("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@RULES.rule("HardSigmoid", 6)
def hard_sigmoid(node: Node) -> Operation:
    """Compile HardSigmoid: ``clamp(alpha * x + beta, 0, 1)``."""
    alpha = node.number("alpha", 0.2)
    beta = node.number("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


@RULES.rule("LeakyRelu", 6)
def leaky_relu(node: Node) -> Operation:
    """Compile LeakyRelu."""
    alpha = node.number("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


@RULES.rule("PRelu", 7)
def prelu(node: Node) -> Operation:
    """Compile PRelu; the slope broadcasts to the input by NumPy's rules."""
    return lambda x, slope: torch.where(x < 0, slope * x, x)


@RULES.rule("Selu", 6)
def selu(node: Node) -> Operation:
    """Compile Selu with its two constants."""
    alpha = node.number("alpha", 1.67326319217681884765625)
    gamma = node.number("gamma", 1.05070102214813232421875)
    return lambda x: gamma * F.elu(x, alpha)


@RULES.rule("Shrink", 9)
def shrink(node: Node) -> Operation:
    """Compile Shrink: values within ``lambd`` of zero become zero, others move by ``bias``."""
    lambd = node.number("lambd", 0.5)
    bias = node.number("bias", 0.0)

    def run(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))

    return run


@RULES.rule("Swish", 24)
def swish(node: Node) -> Operation:
    """Compile Swish: ``x * sigmoid(alpha * x)``."""
    alpha = node.number("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


@RULES.rule("ThresholdedRelu", 10)
def thresholded_relu(node: Node) -> Operation:
    """Compile ThresholdedRelu."""
    alpha = node.number("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


@RULES.rule("Softmax", 1)
def softmax_flattened(node: Node) -> Operation:
    """Compile the old Softmax, which runs over all axes from ``axis`` on as one."""
    axis = node.integer("axis", 1)
    return lambda x: F.softmax(x.flatten(axis), dim=-1).reshape(x.shape)


@RULES.rule("LogSoftmax", 1)
def log_softmax_flattened(node: Node) -> Operation:
    """Compile the old LogSoftmax, which runs over all axes from ``axis`` on as one."""
    axis = node.integer("axis", 1)
    return lambda x: F.log_softmax(x.flatten(axis), dim=-1).reshape(x.shape)


@RULES.rule("Softmax", 13)
def softmax(node: Node) -> Operation:
    """Compile Softmax over one axis."""
    axis = node.integer("axis", -1)
    return lambda x: F.softmax(x, dim=axis)


@RULES.rule("LogSoftmax", 13)
def log_softmax(node: Node) -> Operation:
    """Compile LogSoftmax over one axis."""
    axis = node.integer("axis", -1)
    return lambda x: F.log_softmax(x, dim=axis)
