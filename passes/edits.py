"""Small edits on a graphsurgeon graph, written around the library's equality rules.

Nodes compare deeply and tensors compare by name, and neither can be hashed, so everything here
identifies objects with ``is``.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs


def label(node: gs.Node) -> str:
    """Name a node in a message: operator and name, or its first output where it has no name."""
    if node.name:
        return f"{node.op} {node.name!r}"
    written = next((tensor.name for tensor in node.outputs if not tensor.is_empty()), "")
    return f"{node.op} that writes {written!r}"


def in_default_domain(node: gs.Node) -> bool:
    """Tell whether a node's operator is one of the ONNX standard's own."""
    return node.domain in (None, "", "ai.onnx")


def is_among(tensor: gs.Tensor, tensors: Iterable[gs.Tensor]) -> bool:
    """Tell whether this very tensor is one of ``tensors``."""
    return any(other is tensor for other in tensors)


def input_at(node: gs.Node, index: int) -> gs.Tensor | None:
    """Return a node's input, or ``None`` where an optional input was left out."""
    if index >= len(node.inputs) or node.inputs[index].is_empty():
        return None
    return node.inputs[index]


def position(graph: gs.Graph, node: gs.Node) -> int:
    """Index of this very node in the graph."""
    return next(index for index, other in enumerate(graph.nodes) if other is node)


def tensor_names(graph: gs.Graph) -> set[str]:
    """Names of every tensor of the graph and of its subgraphs."""
    names = set(graph.tensors())
    for subgraph in graph.subgraphs(recursive=True):
        names.update(subgraph.tensors())
    return names


def unique_name(wanted: str, taken: set[str]) -> str:
    """Return ``wanted``, with a number behind it where it is taken; the result becomes taken."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def redirect(consumers: Iterable[gs.Node], old: gs.Tensor, new: gs.Tensor) -> None:
    """Make every input of ``consumers`` that reads ``old`` read ``new``."""
    for node in list(consumers):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new


def scalar(tensor: gs.Tensor | None) -> np.generic | None:
    """Value of a constant that holds a single element; ``None`` for anything else."""
    if not isinstance(tensor, gs.Constant) or int(np.prod(tensor.shape)) != 1:
        return None
    values: npt.NDArray[np.generic] = tensor.values
    element: np.generic = values.reshape(-1)[0]
    return element


def subgraph_tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """Every tensor that a node inside a subgraph reads, those of the outer graph included."""
    for subgraph in graph.subgraphs(recursive=True):
        for node in subgraph.nodes:
            yield from node.inputs
        yield from subgraph.outputs
