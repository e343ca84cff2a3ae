"""A monitor: one more output that counts, for every image and layer, what lies out of bounds."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.base import Pass, PostconditionError, PreconditionError
from passes.edits import position, tensor_names, unique_name

# The lowest opset with a comparison that holds at the threshold itself.
MONITOR_OPSET = 12

# Since this opset the axes of a sum are an input.
_AXES_AS_INPUT = 13


@dataclass(frozen=True)
class Bound:
    """A bound that stands in a graph.

    Attributes:
        tensor: The bounded tensor, which names the layer; what is compared comes before it.
        compared: The tensor that is held against the threshold, ``[N, ...]``.
        threshold: Name of the threshold: a tensor that broadcasts against ``compared``.
        lower: Name of the threshold from below; None where there is none.
        shifted: Whether the threshold has been subtracted from ``compared`` already.
    """

    tensor: str
    compared: str
    threshold: str
    lower: str | None = None
    shifted: bool = False


@dataclass
class AddMonitor(Pass):
    """Count the values that are out of bounds, for every image and every bound.

    A value r is out of bounds where ``r <= lambda`` does not hold: above the threshold, infinite
    or NaN. With a lower threshold, it is where ``lambda- <= r <= lambda+`` does not hold; where the
    threshold has been subtracted, it is compared with 0. For each bound::

        inside = LessOrEqual(r, lambda)                               [N, ...]
        count = ReduceSum(Cast(Flatten(Not(inside))), axis 1)         [N, 1], float32

    and the counts, side by side, become the last output of the graph, ``[N, bounds]``. Sums of
    ones in float32 are exact up to 2^24 values an image and layer. A comparison that stands in the
    graph already, as in the hard form from opset 12 on, is used again.

    No parameter is added: thresholds are read where they are stored. The graph's own outputs stay
    first, and the nodes that write them stay as they are.

    Attributes:
        bounds: What to watch: the columns of the output, in this order.
        output: Name of the output.
    """

    bounds: Sequence[Bound]
    output: str
    name: str = "add-monitor"
    _taken: set[str] = field(default_factory=set, init=False)

    def requires(self, graph: gs.Graph) -> None:
        """Check opset, tensors and names.

        Raises:
            PreconditionError: If there is no bound, the opset lacks the comparison, no node writes
                a bounded or compared tensor, a threshold does not exist, or the output's name is
                taken.
        """
        if not self.bounds:
            raise PreconditionError("there is no bound to watch")
        if graph.opset < MONITOR_OPSET:
            raise PreconditionError(
                f"a monitor needs opset {MONITOR_OPSET} or newer, and the graph has {graph.opset}"
            )
        written = {tensor.name for node in graph.nodes for tensor in node.outputs}
        known = graph.tensors()
        for bound in self.bounds:
            for name in (bound.tensor, bound.compared):
                if name not in written:
                    raise PreconditionError(f"no node writes a tensor {name!r}")
            for name in filter(None, (bound.threshold, bound.lower)):
                if name not in known:
                    raise PreconditionError(f"the graph has no tensor {name!r}")
        if self.output in tensor_names(graph):
            raise PreconditionError(f"the name {self.output!r} is taken: choose another output")

    def call(self, graph: gs.Graph) -> int:
        """Watch every bound."""
        self._taken = tensor_names(graph) | {node.name for node in graph.nodes}
        self._taken.add(self.output)
        tensors = graph.tensors()
        axes = None
        if graph.opset >= _AXES_AS_INPUT:
            axes = gs.Constant(unique_name("monitor/axes", self._taken), np.array([1], np.int64))
        counts = [self._watch(graph, tensors, bound, axes) for bound in self.bounds]
        output = gs.Variable(self.output, np.float32, [_batch(graph), len(counts)])
        name = unique_name("monitor/Concat", self._taken)
        graph.nodes.append(gs.Node("Concat", name, {"axis": 1}, inputs=counts, outputs=[output]))
        graph.outputs.append(output)
        return len(counts)

    def ensures(self, graph: gs.Graph) -> None:
        """The counts must be the last output, one column a bound.

        Raises:
            PostconditionError: If they are not.
        """
        last = graph.outputs[-1]
        if last.name != self.output or len(last.inputs[0].inputs) != len(self.bounds):
            raise PostconditionError("the monitor is not the last output")

    def _watch(
        self,
        graph: gs.Graph,
        tensors: dict[str, gs.Tensor],
        bound: Bound,
        axes: gs.Constant | None,
    ) -> gs.Tensor:
        compared, threshold = tensors[bound.compared], tensors[bound.threshold]
        prefix = f"{bound.tensor}/monitor/"
        nodes: list[gs.Node] = []

        def add(op: str, inputs: list[gs.Tensor], role: str, **attributes: object) -> gs.Tensor:
            output = gs.Variable(unique_name(prefix + role, self._taken))
            name = unique_name(prefix + op, self._taken)
            nodes.append(gs.Node(op, name, attributes, inputs=inputs, outputs=[output]))
            return output

        def found_or_added(op: str, inputs: list[gs.Tensor], role: str) -> gs.Tensor:
            return _found(op, inputs) or add(op, inputs, role)

        if bound.shifted:
            name = unique_name(f"{prefix}zero", self._taken)
            threshold = gs.Constant(name, np.zeros((), threshold.dtype))
        inside = found_or_added("LessOrEqual", [compared, threshold], "below")
        if bound.lower is not None:
            above = found_or_added("LessOrEqual", [tensors[bound.lower], compared], "above")
            inside = found_or_added("And", [above, inside], "inside")
        outside = add("Not", [inside], "outside")
        # Makes the rank of the layer known, which need not be.
        flat = add("Flatten", [outside], "flat", axis=1)
        ones = add("Cast", [flat], "ones", to=int(onnx.TensorProto.FLOAT))
        if axes is None:
            count = add("ReduceSum", [ones], "count", axes=[1], keepdims=1)
        else:
            count = add("ReduceSum", [ones, axes], "count", keepdims=1)
        # Behind the bound, which remains the first to read its threshold.
        [bounding] = tensors[bound.tensor].inputs
        start = position(graph, bounding) + 1
        graph.nodes[start:start] = nodes
        return count


def _found(op: str, inputs: list[gs.Tensor]) -> gs.Tensor | None:
    """What an operator gives for some inputs, if a node of the bound computes it already."""
    for node in inputs[0].outputs:
        same = len(node.inputs) == len(inputs)
        if node.op == op and same and all(map(operator.is_, node.inputs, inputs)):
            found: gs.Tensor = node.outputs[0]
            return found
    return None


def _batch(graph: gs.Graph) -> str | int | None:
    """The first extent of the data: as open or as fixed as the model's own."""
    for tensor in graph.inputs:
        if isinstance(tensor, gs.Variable) and tensor.shape:
            extent: str | int | None = tensor.shape[0]
            return extent
    return None
