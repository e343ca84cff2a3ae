"""What no output depends on is removed, and nodes stand in topological order."""

import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from passes.base import Pass, PostconditionError


class Cleanup(Pass):
    """Remove dead nodes and sort the rest.

    1. Nodes that no graph output depends on are removed, with the initializers only they read.
    2. Nodes are sorted if, and only if, one reads a tensor that a later one writes.

    Subgraphs and functions are left alone.
    """

    name = "cleanup"

    def call(self, graph: gs.Graph) -> int:
        """Clean up; counts removed nodes, and one for a changed order."""
        before = len(graph.nodes)
        with G_LOGGER.suppress():
            graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
            removed = before - len(graph.nodes)
            if _is_sorted(graph):
                return removed
            graph.toposort(recurse_subgraphs=False, recurse_functions=False)
        return removed + 1

    def ensures(self, graph: gs.Graph) -> None:
        """Nodes must stand in order.

        Raises:
            PostconditionError: If they do not.
        """
        if not _is_sorted(graph):
            raise PostconditionError("the nodes are not in topological order")


def _is_sorted(graph: gs.Graph) -> bool:
    later = {tensor.name for node in graph.nodes for tensor in node.outputs} - {""}
    for node in graph.nodes:
        read = {tensor.name for tensor in node.inputs}
        for subgraph in node.subgraphs(recursive=True):
            read.update(tensor.name for inner in subgraph.nodes for tensor in inner.inputs)
            read.difference_update(t.name for inner in subgraph.nodes for t in inner.outputs)
        if read & later:
            return False
        later.difference_update(tensor.name for tensor in node.outputs)
    return True
