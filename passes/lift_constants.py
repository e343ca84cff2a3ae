"""Constant and ConstantOfShape nodes become initializers."""

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from passes.base import Pass
from passes.edits import in_default_domain, is_among, redirect

_NUMBERS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class LiftConstants(Pass):
    """Turn nodes that produce a constant into initializers.

    1. ``Constant`` in every form (``value``, ``value_float(s)``, ``value_int(s)``,
       ``value_string(s)``) except ``sparse_value``, which stays a node.
    2. ``ConstantOfShape`` of a constant shape, up to ``MAX_BYTES``; larger ones stay nodes, as
       does a shape with a negative extent.

    The initializer takes the name of the node's output. A node that writes a graph output stays,
    because an output must be written by a node in many runtimes.
    """

    name = "lift-constants"
    # Half of what a protobuf message can hold: a node that builds more is no stored parameter.
    MAX_BYTES = 1 << 30

    def call(self, graph: gs.Graph) -> int:
        """Lift every constant node, in order, so that a lifted shape lifts its reader too."""
        kept: list[gs.Node] = []
        lifted: list[tuple[gs.Node, gs.Constant]] = []
        for node in graph.nodes:
            constant = None
            if in_default_domain(node) and not is_among(node.outputs[0], graph.outputs):
                constant = self._constant(node)
            if constant is None:
                kept.append(node)
                continue
            output = node.outputs[0]
            constant.name = output.name
            redirect(output.outputs, output, constant)
            for subgraph in graph.subgraphs(recursive=True):
                subgraph.outputs = [constant if t is output else t for t in subgraph.outputs]
            lifted.append((node, constant))
        for node, _ in lifted:
            node.inputs.clear()
            node.outputs.clear()
        graph.nodes = kept
        return len(lifted)

    def _constant(self, node: gs.Node) -> gs.Constant | None:
        if node.op == "Constant":
            return _of_constant(node)
        if node.op == "ConstantOfShape":
            return self._of_shape(node)
        return None

    def _of_shape(self, node: gs.Node) -> gs.Constant | None:
        shape = node.inputs[0]
        if not isinstance(shape, gs.Constant):
            return None
        extents = [int(extent) for extent in shape.values.reshape(-1)]
        fill = node.attrs.get("value")
        value = np.zeros(1, np.float32) if fill is None else fill.values.reshape(-1)
        too_large = math.prod(extents) * value.dtype.itemsize > self.MAX_BYTES
        if too_large or any(extent < 0 for extent in extents):
            return None
        return gs.Constant(node.outputs[0].name, np.full(extents, value[0], value.dtype))


def _of_constant(node: gs.Node) -> gs.Constant | None:
    if len(node.attrs) != 1:
        return None
    [(form, value)] = node.attrs.items()
    name = node.outputs[0].name
    if form == "value":
        return value if isinstance(value, gs.Constant) else None
    if form in _NUMBERS:
        return gs.Constant(name, np.asarray(value, _NUMBERS[form]))
    if form in ("value_string", "value_strings"):
        strings = [value] if form == "value_string" else value
        shape = [] if form == "value_string" else [len(strings)]
        tensor = onnx.helper.make_tensor(
            name, onnx.TensorProto.STRING, shape, [string.encode() for string in strings]
        )
        return gs.Constant(name, LazyValues(tensor))
    return None
