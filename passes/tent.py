"""The tent: a bound made of convolutions, which runtimes compute in blocks of channels."""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.edits import in_default_domain, input_at, is_among, subgraph_tensors
from passes.steps import Steps

# Of an activation, without its batch axis: channels, and one to convolve along.
_FEWEST_AXES = 2


@dataclass(frozen=True)
class Channels:
    """How an activation is laid out.

    Attributes:
        count: How many channels it has, C.
        axes: How many axes stand behind that of the channels.
    """

    count: int
    axes: int


def channels_of(threshold: gs.Constant, extents: tuple[int | None, ...]) -> Channels | None:
    """Find the channels along which a bound can be made of convolutions.

    Args:
        threshold: One number, or one for each value that has its own.
        extents: Of the activation without its batch axis.

    Returns:
        The channels; None if values with a common threshold form none, or have a type that ONNX
        Runtime does not convolve (float64).
    """
    if len(extents) < _FEWEST_AXES or extents[0] is None or threshold.dtype == np.float64:
        return None
    channels = Channels(extents[0], len(extents) - 1)
    by_channel = (1, channels.count, *[1] * channels.axes)
    return channels if tuple(threshold.shape) in ((), by_channel) else None


def write_tent(
    steps: Steps,
    graph: gs.Graph,
    value: gs.Tensor,
    threshold: gs.Constant,
    channels: Channels,
    bounded: gs.Tensor,
) -> tuple[gs.Tensor, gs.Node | None]:
    """Write ``max(0, lambda - |x - lambda|)``: x from 0 to lambda, falling to 0 at 2 lambda.

    ``|x - lambda|`` is LeakyRelu with slope -1. The subtraction goes into the bias of the
    convolution that computes x; elsewhere, as behind the sum with a shortcut, it is a depthwise
    convolution of extent 1, as ``lambda - |...|`` is: runtimes compute LeakyRelu within a
    convolution, and not behind a sum. The weights 1 and -1 of these belong to the program, and
    lambda is stored once.

    Args:
        steps: Takes the nodes.
        graph: The graph.
        value: x: what is bounded, or what the Relu reads that is bounded.
        threshold: lambda: one number, or ``[1, C, 1, ...]``.
        channels: Those of x.
        bounded: What to write.

    Returns:
        ``x - lambda``, and the convolution that ``steps.folded`` must stand before; None if it may
        stand anywhere before ``steps.nodes``.
    """
    flatten = "Reshape" if threshold.shape else "Expand"
    limits = steps.fold(flatten, [threshold, steps.extents([channels.count])], "limits")
    shifted, distance, below = (
        gs.Variable(steps.name(role), dtype=bounded.dtype, shape=bounded.shape)
        for role in ("shifted", "distance", "below")
    )
    source = _source(graph, value, channels)
    if source is None:
        _depthwise(steps, value, 1.0, steps.fold("Neg", [limits], "shift"), shifted, channels)
    else:
        _lower_bias(steps, source, limits)
        source.outputs = [shifted]
    steps.finish("LeakyRelu", [shifted], distance, alpha=-1.0)
    _depthwise(steps, distance, -1.0, limits, below, channels)
    steps.finish("Relu", [below], bounded)
    return shifted, source


def _source(graph: gs.Graph, value: gs.Tensor, channels: Channels) -> gs.Node | None:
    """Find the convolution that writes a value for one reader, and can shift it by its bias."""
    if not _is_private(graph, value) or not _shifts_channels(value.inputs[0], channels):
        return None
    found: gs.Node = value.inputs[0]
    return found


def _is_private(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Tell whether a node of this graph computes a tensor, for one reader only."""
    hidden = is_among(tensor, graph.outputs) or is_among(tensor, subgraph_tensors(graph))
    return bool(tensor.inputs) and len(tensor.outputs) == 1 and not hidden


def _shifts_channels(node: gs.Node, channels: Channels) -> bool:
    if node.op != "Conv" or not in_default_domain(node):
        return False
    weight = node.inputs[1]
    if isinstance(weight, gs.Constant):
        return weight.shape[0] == channels.count and len(weight.shape) == channels.axes + 2
    # A depthwise convolution whose weights are computed has as many channels as groups.
    kernel = node.attrs.get("kernel_shape", [])
    return node.attrs.get("group", 1) == channels.count and len(kernel) == channels.axes


def _lower_bias(steps: Steps, convolution: gs.Node, limits: gs.Tensor) -> None:
    """Subtract the thresholds from what a convolution adds."""
    bias = input_at(convolution, 2)
    owner = convolution.name or convolution.outputs[0].name
    if bias is None:
        lowered = steps.fold("Neg", [limits], "shift")
    else:
        # The name says that a bias is read here, and of which layer.
        lowered = steps.fold("Sub", [bias, limits], "bias", f"{owner}/hyrelu/Sub")
    convolution.inputs = [*convolution.inputs[:2], lowered]


def _depthwise(
    steps: Steps,
    value: gs.Tensor,
    weight: float,
    bias: gs.Tensor,
    result: gs.Tensor,
    channels: Channels,
) -> None:
    """Multiply all channels by one weight, and add a bias to each."""
    shape = steps.extents([channels.count, *[1] * (channels.axes + 1)])
    one = steps.constant("one" if weight > 0 else "minus_one", weight)
    kernel = steps.fold("Expand", [one, shape], "kernel")
    extents = [1] * channels.axes
    steps.finish("Conv", [value, kernel, bias], result, group=channels.count, kernel_shape=extents)
