"""The largest and smallest values of tensors inside subgraphs become outputs of the main graph."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from passes.base import PreconditionError
from passes.edits import unique_name
from passes.roundtrip import OVERRIDABLE_SINCE_IR, names_in, node_graphs
from passes.subgraphs import nested_graphs

# The first opset with IsNaN, and with a Scan that has no axis for a batch.
EXTREMES_OPSET = 9
# What is given out: one float32 number.
_TYPE = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Extremes:
    """Outputs, float32 ``[1]``, with the extremes of a tensor inside a subgraph.

    They cover every turn of every loop in one run of the model.

    Attributes:
        highest: Name of the output with the largest value: infinity if one is NaN, minus infinity
            if the subgraph was not run.
        lowest: Name of the output with the negative of the smallest value, likewise.
    """

    highest: str
    lowest: str


def expose_extremes(
    model: onnx.ModelProto, tensors: Collection[str]
) -> tuple[onnx.ModelProto, dict[str, Extremes]]:
    """Give out the largest and the smallest value of tensors inside subgraphs.

    A subgraph that writes tensor ``v`` computes ``max(v)`` and ``max(-v)``, of shape [1], and hands
    them outwards:

    1. Every branch of an If gets them as further outputs; in those that do not compute ``v`` they
       are minus infinity.
    2. The body of a Loop or Scan gives them out in every turn, and behind the node stands the
       largest of all turns, minus infinity if there were none.

    Further outputs stand behind those that were there, in subgraphs as in the main graph.

    Args:
        model: The model, no two tensors of which have one name, wherever they are (see
            `passes.lift_subgraphs`); it is not changed.
        tensors: Names of floating-point tensors that nodes write in the branches of If and the
            bodies of Loop and Scan, at any depth.

    Returns:
        The model, and by tensor what gives its extremes, in the order of the graph.

    Raises:
        PreconditionError: If the opset is too old, or a tensor is not such a one.
    """
    version = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if version < EXTREMES_OPSET:
        raise PreconditionError(
            f"extremes inside subgraphs need opset {EXTREMES_OPSET}, and the graph has {version}"
        )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    # From then on initializers need not be inputs.
    result.ir_version = max(model.ir_version, OVERRIDABLE_SINCE_IR)
    writer = _Writer(result, tensors)
    found = writer.hand_out(result.graph, inside=False)
    missing = [tensor for tensor in tensors if tensor not in found]
    if missing:
        raise PreconditionError(f"no If, Loop or Scan has a tensor {missing[0]!r} inside")
    for extremes in found.values():
        for name in (extremes.highest, extremes.lowest):
            result.graph.output.append(helper.make_tensor_value_info(name, _TYPE, [1]))
    return result, found


class _Writer:
    def __init__(self, model: onnx.ModelProto, tensors: Collection[str]) -> None:
        self._tensors = tensors
        self._taken = names_in(model.graph)
        for subgraph in nested_graphs(model.graph):
            self._taken |= names_in(subgraph)

        def stored(values: np.typing.NDArray[np.generic], role: str) -> str:
            name = self._name(role)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
            return name

        self._nothing = stored(np.array([-np.inf], np.float32), "nothing")
        self._infinity = stored(np.array([np.inf], np.float32), "infinity")
        self._flat = stored(np.array([-1], np.int64), "flat")

    def hand_out(self, graph: onnx.GraphProto, *, inside: bool = True) -> dict[str, Extremes]:
        """Make a graph compute the extremes of what is wanted in it, and below."""
        found = {}
        written = [name for node in graph.node for name in node.output]
        for node in list(graph.node):
            if node.op_type == "If":
                found.update(self._from_branches(node))
            elif node.op_type in ("Loop", "Scan"):
                for tensor, turns in self._from_turns(node).items():
                    found[tensor] = Extremes(
                        self._largest(graph, turns.highest), self._largest(graph, turns.lowest)
                    )
        for tensor in written if inside else ():
            if tensor in self._tensors:
                found[tensor] = self._extremes(graph, tensor)
        return found

    def _from_branches(self, node: onnx.NodeProto) -> dict[str, Extremes]:
        branches = [(branch, self.hand_out(branch)) for branch in node_graphs(node)]
        found = {}
        for tensor in dict.fromkeys(name for _, inner in branches for name in inner):
            for branch, inner in branches:
                # A branch cannot give out an outer tensor as it is.
                own = inner.get(tensor) or Extremes(
                    self._add(branch, "Identity", [self._nothing], "nothing"),
                    self._add(branch, "Identity", [self._nothing], "nothing"),
                )
                _give_out(branch, own)
            found[tensor] = self._receive(node)
        return found

    def _from_turns(self, node: onnx.NodeProto) -> dict[str, Extremes]:
        [body] = node_graphs(node)
        # The first output of a Loop's body tells whether it goes on.
        unread = len(body.output) - (node.op_type == "Loop") - len(node.output)
        inner = self.hand_out(body)
        if inner:
            node.output.extend(self._name("unread") for _ in range(unread))
        found = {}
        for tensor, own in inner.items():
            _give_out(body, own)
            found[tensor] = self._receive(node)
            for attribute in node.attribute:
                if attribute.name in ("scan_output_axes", "scan_output_directions"):
                    attribute.ints.extend([0, 0])
        return found

    def _extremes(self, graph: onnx.GraphProto, tensor: str) -> Extremes:
        values = self._add(graph, "Cast", [tensor], "values", to=_TYPE)
        undefined = self._add(graph, "IsNaN", [values], "undefined")
        values = self._add(graph, "Where", [undefined, self._infinity, values], "values")
        negative = self._add(graph, "Neg", [values], "negative")
        return Extremes(self._largest(graph, values), self._largest(graph, negative))

    def _largest(self, graph: onnx.GraphProto, tensor: str) -> str:
        """The largest element of a tensor, which may have none."""
        flat = self._add(graph, "Reshape", [tensor, self._flat], "flat")
        values = self._add(graph, "Concat", [self._nothing, flat], "values", axis=0)
        return self._add(graph, "ReduceMax", [values], "largest", keepdims=1)

    def _add(
        self, graph: onnx.GraphProto, op: str, inputs: list[str], role: str, **attributes: Any
    ) -> str:
        output = self._name(role)
        graph.node.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def _receive(self, node: onnx.NodeProto) -> Extremes:
        names = [self._name(role) for role in ("highest", "lowest")]
        node.output.extend(names)
        return Extremes(*names)

    def _name(self, role: str) -> str:
        return unique_name(f"extremes/{role}", self._taken)


def _give_out(subgraph: onnx.GraphProto, extremes: Extremes) -> None:
    for name in (extremes.highest, extremes.lowest):
        subgraph.output.append(helper.make_tensor_value_info(name, _TYPE, [1]))
