"""A bound behind every activation: the paper's HyReLU, in the forms that can be deployed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.base import Pass
from passes.edits import position, tensor_names
from passes.forms import (
    GATE_END,
    LESS_OR_EQUAL,
    Form,
    ensure_thresholds,
    require_opset,
    require_thresholds,
)
from passes.monitor import Bound
from passes.steps import Steps
from passes.tent import Channels, channels_of, write_dense_tent, write_tent


@dataclass(frozen=True)
class Site:
    """One activation to bound.

    Attributes:
        tensor: The activation's output; the bounded value takes over this name.
        threshold: Finite thresholds in the activation's own floating-point type, of a shape that
            broadcasts against it: ``()``, ``[1, C, 1, 1]``, ``[1, C, H, W]`` or ``[1, N]``.
        threshold_name: Name of the initializer that stores them.
        extents: Of the activation without its batch axis, where they are known; the tent needs
            the number of channels.
    """

    tensor: str
    threshold: npt.NDArray[np.floating]
    threshold_name: str
    extents: tuple[int | None, ...] = ()


@dataclass
class InsertHyReLU(Pass):
    """Put a bound behind activations whose output is never negative (Relu, Clip from 0).

    The paper's Eq. (5) reads ``max{0, x [1 - sigmoid(k (lambda - x))]}``. Its sign is wrong: with
    k > 0 that passes what lies above the threshold and kills what lies below. The function meant,
    and the one written here, is ``max(0, x * sigmoid(k * (lambda - x)))`` with k > 0. All forms
    bound ``r = max(0, x)``, so a convolution and its Relu stay neighbours:

    1. hard, ``r`` where ``r <= lambda``, else 0. ``Where(LessOrEqual(r, lambda), r, 0)``; before
       opset 12, which brought LessOrEqual, ``Where(Less(r, lambda'), r, 0)`` with lambda' the
       next number above lambda, which is the same function.
    2. smooth, ``r * sigmoid(z)`` where ``z > -16``, else 0, with ``z = k (lambda - r)``, or
       ``z = k (lambda - r) / |lambda|`` for a slope relative to the threshold. The absolute value
       matters only when a fault has made lambda negative: without it everything would pass.
    3. saturate, ``min(r, lambda)``: ``Clip`` for a single threshold from opset 11 on, because
       runtimes merge it into the convolution, ``Min`` otherwise. A NaN passes on some runtimes,
       and so does a threshold that a fault made negative.
    4. ramp, ``m = min(r, max(2 lambda - r, 0))`` where ``m > 0``, else 0: the identity up to
       lambda, and falling from there to 0 at 2 lambda. ``ThresholdedRelu(m)`` with alpha 0, for it
       alone turns NaN into 0; or, for float64, which ONNX Runtime has no ThresholdedRelu for,
       ``Where(Less(0, m), m, 0)`` with ``m = min(r, 2 lambda - r)``. Rounding is monotone, so
       ``2 lambda - r`` is never below lambda where r is not above it, and such values pass
       unchanged to the last bit.
    5. tent, the same function, as ``max(0, lambda - |x - lambda|)``, see `passes.tent`: in
       convolutions where x has channels that share a threshold, and behind a Gemm. Elsewhere, and
       in float64, the ramp stands. It passes values up to rounding in units of lambda, and in
       convolutions a NaN passes.

    Infinity gives 0 in all but saturate. So does NaN in hard, smooth and ramp, for no comparison
    with NaN holds.

    The activation writes a new tensor ``<tensor>/hyrelu/relu``, and the bound writes the original
    name, so that every reader and every graph output, also inside subgraphs, follows.

    Attributes:
        sites: The activations to bound.
        form: Which form.
        slope: k of the smooth form.
        relative_slope: Whether k counts in units of 1/lambda.
        bounds: The bounds that were written, in the order of the sites.
    """

    sites: Sequence[Site]
    form: Form = Form.HARD
    slope: float = 20.0
    relative_slope: bool = True
    name: str = "insert-hyrelu"
    bounds: list[Bound] = field(default_factory=list, init=False)
    _constants: dict[str, gs.Constant] = field(default_factory=dict, init=False)

    def requires(self, graph: gs.Graph) -> None:
        """Check opset, tensors and thresholds.

        Raises:
            PreconditionError: If the opset is too old for the form, a tensor is not written by a
                node, a threshold is not finite, or its name is taken.
        """
        require_opset(graph, self.form)
        require_thresholds(
            graph, [(site.tensor, site.threshold, site.threshold_name) for site in self.sites]
        )

    def call(self, graph: gs.Graph) -> int:
        """Bound every site."""
        self._constants.clear()
        self.bounds.clear()
        taken = tensor_names(graph)
        taken.update(node.name for node in graph.nodes)
        producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
        for site in self.sites:
            self._insert(graph, producers[site.tensor], site, taken)
        return len(self.sites)

    def ensures(self, graph: gs.Graph) -> None:
        """Every threshold must stand in the graph.

        Raises:
            PostconditionError: If one does not.
        """
        ensure_thresholds(graph, [(site.tensor, site.threshold_name) for site in self.sites])

    def _insert(self, graph: gs.Graph, node: gs.Node, site: Site, taken: set[str]) -> None:
        bounded = next(tensor for tensor in node.outputs if tensor.name == site.tensor)
        steps = Steps(f"{site.tensor}/hyrelu/", site.threshold.dtype, taken, self._constants)
        stored = site.threshold
        if self.form is Form.HARD and graph.opset < LESS_OR_EQUAL:
            stored = np.nextafter(stored, np.asarray(np.inf, stored.dtype))
        threshold = gs.Constant(site.threshold_name, np.asarray(stored))
        channels = channels_of(threshold, site.extents) if self.form is Form.TENT else None
        if channels is not None:
            shifted = self._write_tent(graph, node, bounded, threshold, channels, steps)
            if shifted is not None:
                bound = Bound(site.tensor, shifted.name, site.threshold_name, shifted=True)
                self.bounds.append(bound)
                return
        rectified = steps.take_over(node, bounded, "relu")
        write: Callable[[Steps, gs.Graph, gs.Tensor, gs.Tensor, gs.Tensor], None] = {
            Form.HARD: _hard,
            Form.SMOOTH: self._smooth,
            Form.SATURATE: _saturate,
            Form.RAMP: _ramp,
            Form.TENT: _ramp,
        }[self.form]
        write(steps, graph, rectified, threshold, bounded)
        after = position(graph, node) + 1
        graph.nodes[after:after] = steps.nodes
        self.bounds.append(Bound(site.tensor, rectified.name, site.threshold_name))

    def _write_tent(
        self,
        graph: gs.Graph,
        node: gs.Node,
        bounded: gs.Tensor,
        threshold: gs.Constant,
        channels: Channels,
        steps: Steps,
    ) -> gs.Tensor | None:
        # The tent rectifies by itself.
        replaced = node.op == "Relu"
        if channels.axes:
            value = node.inputs[0] if replaced else steps.take_over(node, bounded, "relu")
            shifted, source = write_tent(steps, graph, value, threshold, channels, bounded)
        else:
            value = node.inputs[0]
            dense = replaced and write_dense_tent(steps, graph, value, threshold, channels, bounded)
            if not dense:
                return None
            shifted, source = dense
        after = position(graph, node) + 1
        graph.nodes[after:after] = steps.nodes
        before = position(graph, source or node)
        graph.nodes[before:before] = steps.folded
        if replaced:
            node.inputs, node.outputs = [], []
            del graph.nodes[position(graph, node)]
        return shifted

    def _smooth(
        self,
        steps: Steps,
        graph: gs.Graph,
        rectified: gs.Tensor,
        threshold: gs.Tensor,
        bounded: gs.Tensor,
    ) -> None:
        slope = steps.constant("slope", self.slope)
        if self.relative_slope:
            slope = steps.add("Div", [slope, steps.add("Abs", [threshold], "magnitude")], "slope")
        below = steps.add("Sub", [threshold, rectified], "below")
        scaled = steps.add("Mul", [slope, below], "scaled")
        gate = steps.add("Sigmoid", [scaled], "gate")
        gated = steps.add("Mul", [rectified, gate], "gated")
        inside = steps.add("Less", [steps.constant("gate_end", GATE_END), scaled], "inside")
        steps.finish("Where", [inside, gated, steps.constant("zero", 0.0)], bounded)


def _hard(
    steps: Steps,
    graph: gs.Graph,
    rectified: gs.Tensor,
    threshold: gs.Tensor,
    bounded: gs.Tensor,
) -> None:
    compare = "Less" if graph.opset < LESS_OR_EQUAL else "LessOrEqual"
    inside = steps.add(compare, [rectified, threshold], "inside")
    steps.finish("Where", [inside, rectified, steps.constant("zero", 0.0)], bounded)


def _saturate(
    steps: Steps,
    graph: gs.Graph,
    rectified: gs.Tensor,
    threshold: gs.Tensor,
    bounded: gs.Tensor,
) -> None:
    if graph.opset >= 11 and not threshold.shape:
        steps.finish("Clip", [rectified, steps.constant("zero", 0.0), threshold], bounded)
    else:
        steps.finish("Min", [rectified, threshold], bounded)


def _ramp(
    steps: Steps,
    graph: gs.Graph,
    rectified: gs.Tensor,
    threshold: gs.Tensor,
    bounded: gs.Tensor,
) -> None:
    # Runtimes compute the sum of the two constants once, when they load the model.
    end = steps.add("Add", [threshold, threshold], "end")
    falling = steps.add("Sub", [end, rectified], "falling")
    zero = steps.constant("zero", 0.0)
    if steps.dtype == np.float64:
        lower = steps.add("Min", [rectified, falling], "lower")
        positive = steps.add("Less", [zero, lower], "positive")
        steps.finish("Where", [positive, lower, zero], bounded)
    else:
        # Of minus infinity OpenVINO and TVM make NaN.
        limited = steps.add("Max", [falling, zero], "limited")
        lower = steps.add("Min", [rectified, limited], "lower")
        steps.finish("ThresholdedRelu", [lower], bounded, alpha=0.0)
