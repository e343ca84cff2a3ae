"""The tent: a bound made of what runtimes compute together with the layer in front of it."""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from passes.edits import in_default_domain, input_at, position
from passes.steps import Steps
from passes.undo import only_writer, undone

# Of an activation, without its batch axis: channels, and one to convolve along.
_FEWEST_AXES = 2


@dataclass(frozen=True)
class Channels:
    """How an activation is laid out.

    Attributes:
        count: How many channels it has, C.
        axes: How many axes stand behind that of the channels; none behind a dense layer.
    """

    count: int
    axes: int


def channels_of(threshold: gs.Constant, extents: tuple[int | None, ...]) -> Channels | None:
    """Find the channels along which a tent can be written.

    Args:
        threshold: One number, or one for each value that has its own.
        extents: Of the activation without its batch axis.

    Returns:
        The channels; None if values with a common threshold form none, or have a type that ONNX
        Runtime does not convolve (float64).
    """
    if not extents or extents[0] is None or threshold.dtype == np.float64:
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

    Rescaled weights make ``s x``, with s > 0, and ``|s x - s lambda| = s |x - lambda|``. So the
    division is not computed before it but in the convolution behind it, whose weights are then
    ``-1 / s``.

    Args:
        steps: Takes the nodes.
        graph: The graph.
        value: x: what is bounded, or what the Relu reads that is bounded.
        threshold: lambda: one number, or ``[1, C, 1, ...]``.
        channels: Those of x.
        bounded: What to write.

    Returns:
        ``x - lambda``, or ``s (x - lambda)``, and the convolution that ``steps.folded`` must stand
        before; None if it may stand anywhere before ``steps.nodes``.
    """
    limits = _limits(steps, threshold, channels)
    shifted, distance, below = _between(steps, bounded)
    source = only_writer(graph, value)
    if source is None or not _shifts_channels(source, channels):
        source, kernel = None, _kernel(steps, -1.0, channels)
        one, shift = _kernel(steps, 1.0, channels), steps.fold("Neg", [limits], "shift")
        _depthwise(steps, value, one, shift, shifted, channels)
    else:
        source, kernel = _shift(steps, graph, source, limits, channels)
        source.outputs = [shifted]
    steps.finish("LeakyRelu", [shifted], distance, alpha=-1.0)
    _depthwise(steps, distance, kernel, limits, below, channels)
    steps.finish("Relu", [below], bounded)
    return shifted, source


def write_dense_tent(
    steps: Steps,
    graph: gs.Graph,
    value: gs.Tensor,
    threshold: gs.Constant,
    channels: Channels,
    bounded: gs.Tensor,
) -> tuple[gs.Tensor, gs.Node] | None:
    """Write the tent behind a Gemm, where no convolution can.

    The threshold goes into the Gemm's bias, and LeakyRelu is computed with the Gemm. What is left
    is ``lambda - distance``, where ``distance`` is divided by s if weights are rescaled, and
    ThresholdedRelu with alpha 0 before Relu: the one gives 0 for NaN in ONNX Runtime, the other in
    OpenVINO, where ThresholdedRelu makes NaN of minus infinity.

    Args:
        steps: Takes the nodes.
        graph: The graph.
        value: x, ``[N, C]``: what the Relu reads that is bounded.
        threshold: lambda: one number, or ``[1, C]``.
        channels: Those of x.
        bounded: What to write.

    Returns:
        ``x - lambda``, or ``s (x - lambda)``, and the Gemm that ``steps.folded`` must stand before;
        None, with nothing written, where no Gemm computes x for this reader alone.
    """
    source = only_writer(graph, value)
    layer = None if source is None else undone(graph, source)
    gemm = layer or source
    if gemm is None or gemm.op != "Gemm" or not in_default_domain(gemm):
        return None
    bias = input_at(gemm, 2)
    if bias is not None and gemm.attrs.get("beta", 1.0) != 1.0:
        return None
    limits = _limits(steps, threshold, channels)
    shifted, distance, below = _between(steps, bounded)
    factor = None
    if layer is not None and source is not None:
        factor = source.inputs[1]
        limits = steps.fold("Mul", [limits, factor], "enlarged")
        _replace(graph, source, layer)
    gemm.inputs = [*gemm.inputs[:2], _lowered(steps, gemm, bias, limits)]
    gemm.outputs = [shifted]
    steps.finish("LeakyRelu", [shifted], distance, alpha=-1.0)
    if factor is not None:
        distance = steps.add("Div", [distance, factor], "divided")
    steps.finish("Sub", [threshold, distance], below)
    known = gs.Variable(steps.name("known"), dtype=bounded.dtype, shape=bounded.shape)
    steps.finish("ThresholdedRelu", [below], known, alpha=0.0)
    steps.finish("Relu", [known], bounded)
    return shifted, gemm


def _limits(steps: Steps, threshold: gs.Constant, channels: Channels) -> gs.Tensor:
    """One threshold for each channel, ``[C]``."""
    flatten = "Reshape" if threshold.shape else "Expand"
    return steps.fold(flatten, [threshold, steps.extents([channels.count])], "limits")


def _between(steps: Steps, bounded: gs.Tensor) -> list[gs.Variable]:
    """What is written on the way to the bounded value."""
    return [
        gs.Variable(steps.name(role), dtype=bounded.dtype, shape=bounded.shape)
        for role in ("shifted", "distance", "below")
    ]


def _shift(
    steps: Steps, graph: gs.Graph, source: gs.Node, limits: gs.Tensor, channels: Channels
) -> tuple[gs.Node, gs.Tensor]:
    """Subtract the thresholds in the bias of a convolution.

    Returns:
        The convolution, and the weights that its distance from the thresholds is multiplied by: -1,
        or -1 / s in place of a convolution that divided by s.
    """
    layer = undone(graph, source)
    if layer is None or layer.op != "Conv":
        lowered = _lowered(steps, source, input_at(source, 2), limits)
        source.inputs = [*source.inputs[:2], lowered]
        return source, _kernel(steps, -1.0, channels)
    inverse, bias = source.inputs[1], input_at(source, 2)
    flat = steps.fold("Reshape", [inverse, steps.extents([channels.count])], "inverse")
    enlarged = steps.fold("Div", [_lowered(steps, layer, bias, limits), flat], "enlarged")
    layer.inputs = [*layer.inputs[:2], enlarged]
    _replace(graph, source, layer)
    return layer, steps.fold("Neg", [inverse], "kernel")


def _replace(graph: gs.Graph, undo: gs.Node, layer: gs.Node) -> None:
    """Let a layer stand where its product was divided: behind what follows from the scales."""
    del graph.nodes[position(graph, layer)]
    graph.nodes[position(graph, undo)] = layer
    undo.inputs, undo.outputs = [], []


def _shifts_channels(node: gs.Node, channels: Channels) -> bool:
    if node.op != "Conv" or not in_default_domain(node):
        return False
    weight = node.inputs[1]
    if isinstance(weight, gs.Constant):
        return weight.shape[0] == channels.count and len(weight.shape) == channels.axes + 2
    # A depthwise convolution whose weights are computed has as many channels as groups.
    kernel = node.attrs.get("kernel_shape", [])
    return node.attrs.get("group", 1) == channels.count and len(kernel) == channels.axes


def _lowered(steps: Steps, layer: gs.Node, bias: gs.Tensor | None, limits: gs.Tensor) -> gs.Tensor:
    """Subtract the thresholds from what a layer adds."""
    if bias is None:
        return steps.fold("Neg", [limits], "shift")
    # The name says that a bias is read here, and of which layer.
    owner = layer.name or layer.outputs[0].name
    return steps.fold("Sub", [bias, limits], "bias", f"{owner}/hyrelu/Sub")


def _kernel(steps: Steps, weight: float, channels: Channels) -> gs.Tensor:
    """Weights of a depthwise convolution of extent 1: the same number for every channel."""
    shape = steps.extents([channels.count, *[1] * (channels.axes + 1)])
    one = steps.constant("one" if weight > 0 else "minus_one", weight)
    return steps.fold("Expand", [one, shape], "kernel")


def _depthwise(
    steps: Steps,
    value: gs.Tensor,
    kernel: gs.Tensor,
    bias: gs.Tensor,
    result: gs.Tensor,
    channels: Channels,
) -> None:
    """Multiply each channel by a number of its own, and add a bias to each."""
    extents = [1] * channels.axes
    steps.finish("Conv", [value, kernel, bias], result, group=channels.count, kernel_shape=extents)
