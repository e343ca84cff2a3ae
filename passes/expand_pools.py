"""Pooling of codes becomes pooling of numbers between codes and codes."""

import numpy as np
import onnx_graphsurgeon as gs

from passes.base import Pass
from passes.edits import position, tensor_names, unique_name

_POOLS = {
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
}


class ExpandPools(Pass):
    """Write ``QLinearAveragePool`` and ``QLinearGlobalAveragePool`` as what they stand for.

    A pool of codes becomes::

        codes -> DequantizeLinear -> AveragePool -> QuantizeLinear -> codes

    with the scales and zero points that they read. ONNX Runtime's kernels refuse unusual scales by
    throwing in a worker thread, which may end the whole process, and faults make scales unusual.
    Pools of a channels-last layout stay.
    """

    name = "expand-pools"

    def call(self, graph: gs.Graph) -> int:
        """Expand every match."""
        taken = tensor_names(graph)
        expanded = 0
        for node in list(graph.nodes):
            if node.op not in _POOLS or node.attrs.get("channels_last", 0):
                continue
            x, x_scale, x_zero, y_scale, y_zero = node.inputs[:5]
            codes = node.outputs[0]
            values, pooled = (
                gs.Variable(unique_name(f"{codes.name}/{end}", taken), np.float32)
                for end in ("values", "pooled")
            )
            at = position(graph, node)
            attributes = {key: at for key, at in node.attrs.items() if key != "channels_last"}
            node.inputs.clear()
            node.outputs.clear()
            nodes = [
                gs.Node("DequantizeLinear", values.name, {}, [x, x_scale, x_zero], [values]),
                gs.Node(_POOLS[node.op], node.name, attributes, [values], [pooled]),
                gs.Node("QuantizeLinear", pooled.name, {}, [pooled, y_scale, y_zero], [codes]),
            ]
            graph.nodes[at : at + 1] = nodes
            expanded += 1
        return expanded
