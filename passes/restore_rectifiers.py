"""Relu that a quantiser took over becomes a node again, between codes and codes."""

import numpy as np
import onnx_graphsurgeon as gs

from passes.base import Pass
from passes.edits import (
    in_default_domain,
    input_at,
    is_among,
    position,
    scalar,
    tensor_names,
    unique_name,
)

# What computes values of either sign, so that a range from 0 on stands for a rectifier.
_LINEAR = frozenset({"Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Sum"})
# Operators that write codes themselves: where they read the scale and zero point of the result.
_QUANTISED_LINEAR = {"QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QGemm": 7}
# The prefix of every tensor and node that is added, behind the name of the codes.
_RECTIFIER = "/rectifier"


class RestoreRectifiers(Pass):
    """Write out the Relu that quantisation folded into the range of a quantiser.

    Where the zero point is the lowest code, such as 0 of uint8, no code stands for a number below
    0: the quantiser rectifies, and static quantisation leaves the Relu out. Codes ``q`` become::

        q -> DequantizeLinear -> Relu -> QuantizeLinear -> q

    with the scale and zero point that they have: ``round((q - z) s / s) + z = q``, so nothing
    changes, and the layers around keep codes for inputs and outputs, as integer kernels want them.

    It is done behind

    1. ``QuantizeLinear`` of what Conv, ConvTranspose, Gemm, MatMul, Add, Sum or
       BatchNormalization writes;
    2. ``QLinearConv``, ``QLinearMatMul``, ``QLinearAdd`` and ``QGemm``;

    if the scale is a constant of one element, the zero point one too, and the codes lead further
    than to a ``DequantizeLinear`` that writes a graph output, as scores do.
    """

    name = "restore-rectifiers"

    def call(self, graph: gs.Graph) -> int:
        """Write out every match."""
        taken = tensor_names(graph)
        names = {node.name for node in graph.nodes}
        restored = 0
        for node in list(graph.nodes):
            quantiser = _rectifying_quantiser(node)
            if quantiser is not None and _leads_on(node.outputs[0], graph):
                _restore(graph, node, quantiser, taken, names)
                restored += 1
        return restored


def _rectifying_quantiser(node: gs.Node) -> tuple[gs.Tensor, gs.Tensor | None] | None:
    """Scale and zero point of the codes that a node writes, if none is negative."""
    if node.op == "QuantizeLinear" and in_default_domain(node):
        producers = node.inputs[0].inputs
        if len(producers) != 1 or producers[0].op not in _LINEAR:
            return None
        at = 1
    elif node.op in _QUANTISED_LINEAR:
        at = _QUANTISED_LINEAR[node.op]
    else:
        return None
    scale, zero_point = input_at(node, at), input_at(node, at + 1)
    if scale is None or scalar(scale) is None:
        return None
    if zero_point is None:
        return scale, None
    code = scalar(zero_point)
    if not isinstance(code, np.integer) or code != np.iinfo(code.dtype).min:
        return None
    return scale, zero_point


def _leads_on(codes: gs.Tensor, graph: gs.Graph) -> bool:
    if is_among(codes, graph.outputs):
        return False
    return any(
        node.op != "DequantizeLinear" or not is_among(node.outputs[0], graph.outputs)
        for node in codes.outputs
    )


def _restore(
    graph: gs.Graph,
    node: gs.Node,
    quantiser: tuple[gs.Tensor, gs.Tensor | None],
    taken: set[str],
    names: set[str],
) -> None:
    codes = node.outputs[0]
    prefix = f"{codes.name}{_RECTIFIER}"
    dtype = np.float32 if quantiser[0].dtype is None else quantiser[0].dtype
    written = gs.Variable(unique_name(f"{prefix}/codes", taken), codes.dtype, codes.shape)
    values, rectified = (
        gs.Variable(unique_name(f"{prefix}{end}", taken), dtype, codes.shape)
        for end in ("/values", "")
    )
    node.outputs = [written]
    parameters = [tensor for tensor in quantiser if tensor is not None]
    # The node that computes what the quantiser rounds: what users know by name.
    layer = node.inputs[0].inputs[0] if node.op == "QuantizeLinear" else node
    nodes = [
        gs.Node(
            "DequantizeLinear",
            unique_name(f"{prefix}/values", names),
            inputs=[written, *parameters],
            outputs=[values],
        ),
        gs.Node(
            "Relu",
            unique_name(f"{layer.name or codes.name}{_RECTIFIER}", names),
            inputs=[values],
            outputs=[rectified],
        ),
        gs.Node(
            "QuantizeLinear",
            unique_name(f"{prefix}/quantiser", names),
            inputs=[rectified, *parameters],
            outputs=[codes],
        ),
    ]
    at = position(graph, node) + 1
    graph.nodes[at:at] = nodes
