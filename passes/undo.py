"""What divides the product of enlarged weights back: rescaling writes it, tents take it in."""

import onnx_graphsurgeon as gs

from passes.edits import in_default_domain, is_among, subgraph_tensors

# What stands behind "/rescale/" in the name of what a product is divided by, s, and of the weights
# of a convolution that does it, 1 / s. Neither is negative.
FACTOR = "factor"
KERNEL = "kernel"


def only_writer(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor for one reader; None where anything else can see it."""
    hidden = is_among(tensor, graph.outputs) or is_among(tensor, subgraph_tensors(graph))
    if not tensor.inputs or len(tensor.outputs) != 1 or hidden:
        return None
    found: gs.Node = tensor.inputs[0]
    return found


def undone(graph: gs.Graph, node: gs.Node) -> gs.Node | None:
    """The layer whose product a node divides back; None if it is another node.

    Args:
        graph: The graph.
        node: Any node: rescaling divides in a Div, or in a depthwise convolution.
    """
    role = {"Div": FACTOR, "Conv": KERNEL}.get(node.op)
    if role is None or not in_default_domain(node):
        return None
    divides = f"/rescale/{role}" in node.inputs[1].name
    return only_writer(graph, node.inputs[0]) if divides else None
