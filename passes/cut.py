"""Cutting a graph where a single tensor carries everything that the rest needs of the data.

Between two such tensors lies a part of the network that can be run by itself: what comes before a
tensor t computes it from the data, what comes behind computes the outputs from it. A residual block
has no cut inside, because its skip connection is alive beside every tensor of the block. Nodes that
compute with initializers alone belong to no side; each part takes along those it needs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from passes.base import PreconditionError
from passes.roundtrip import captured_names


@dataclass(frozen=True)
class CutPoint:
    """A place where the graph can be cut.

    Attributes:
        tensor: The only tensor that is needed on the other side.
        position: Index of the node that writes it. Of the nodes that the data passes through,
            those up to this one lie before the cut and all others behind it.
    """

    tensor: str
    position: int


@dataclass(frozen=True)
class DataFlow:
    """How the data passes through a graph.

    Attributes:
        nodes: Indices of the nodes that compute with the data and that an output needs.
        first_uses: By initializer, the index of the first of these nodes that depends on it,
            directly or by way of nodes that compute with initializers alone.
        cut_points: In topological order.
    """

    nodes: tuple[int, ...]
    first_uses: Mapping[str, int]
    cut_points: tuple[CutPoint, ...]


def data_flow(model: onnx.ModelProto, ignored: Collection[str] = ()) -> DataFlow:
    """Follow the data from the inputs to the outputs.

    A tensor is no cut point if it is an output itself, or if an output is written before it.
    Tensors that a subgraph captures count as read by the node that holds the subgraph.

    Args:
        model: The model; nodes in topological order.
        ignored: Outputs of the graph that are not wanted.
    """
    graph = model.graph
    reads = [_reads(node) for node in graph.node]
    outputs = {info.name for info in graph.output}.difference(ignored)
    stored = _stored(graph)
    carrying = {info.name for info in graph.input} - stored
    needed = _needed(graph, reads, outputs)
    # By tensor without data, the initializers that it is computed from.
    origins = {name: {name} for name in stored}
    nodes: list[int] = []
    first_uses: dict[str, int] = {}
    for index in needed:
        behind = set().union(*(origins.get(name, ()) for name in reads[index]))
        if carrying.isdisjoint(reads[index]):
            origins.update(dict.fromkeys(graph.node[index].output, behind))
            continue
        nodes.append(index)
        carrying.update(graph.node[index].output)
        for name in behind:
            first_uses.setdefault(name, index)
    last_reads = {name: index for index in nodes for name in reads[index] & carrying}
    # An output stays alive to the end.
    last_reads.update(dict.fromkeys(outputs, len(graph.node)))
    return DataFlow(tuple(nodes), first_uses, _cut_points(graph, nodes, last_reads, outputs))


def part_between(
    model: onnx.ModelProto,
    start: onnx.ValueInfoProto | None = None,
    end: onnx.ValueInfoProto | Sequence[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    """Take the part of a graph between two tensors.

    Names, documents, metadata, functions, opset imports and the IR version stay as they are; of
    nodes, initializers and stated types, only what the part needs.

    Args:
        model: Model with its external data loaded; it is not changed.
        start: Name, type and shape of the tensor that becomes the only input besides stored
            parameters; without it the graph's own inputs stay.
        end: Name, type and shape of the tensor that becomes the only output, or of several;
            without it the graph's own outputs stay.

    Raises:
        PreconditionError: If an end does not exist, or is not to be computed from ``start`` alone.
    """
    graph = model.graph
    inputs = [] if start is None else [start]
    if end is None:
        end = list(graph.output)
    outputs = [end] if isinstance(end, onnx.ValueInfoProto) else list(end)
    border = {info.name for info in inputs}
    wanted = {info.name for info in outputs}
    if wanted & border:
        raise PreconditionError(f"tensor {min(wanted & border)!r} is an output of the graph")
    kept = set()
    for index in reversed(range(len(graph.node))):
        if not (wanted - border).isdisjoint(graph.node[index].output):
            kept.add(index)
            wanted |= _reads(graph.node[index])
    stored = _stored(graph)
    fed = {info.name for info in graph.input} - stored
    beside = sorted((wanted - border) & fed) if inputs else []
    if beside:
        raise PreconditionError(
            f"tensor {inputs[0].name!r} is no place to cut: {beside[0]!r} is needed beside it"
        )
    written = {name for index in kept for name in graph.node[index].output}
    missing = sorted(wanted - border - written - stored - fed)
    if missing or not border <= wanted:
        name = missing[0] if missing else inputs[0].name
        raise PreconditionError(f"no output is to be computed through tensor {name!r}")
    inputs += [info for info in graph.input if info.name in wanted - border]
    present = wanted | written
    edges = {info.name for info in (*inputs, *outputs)}
    part = onnx.ModelProto()
    part.CopyFrom(model)
    _replace(part.graph.input, inputs)
    _replace(part.graph.output, outputs)
    _replace(part.graph.node, [node for i, node in enumerate(graph.node) if i in kept])
    _filter(part.graph.initializer, lambda tensor: tensor.name in wanted)
    _filter(part.graph.sparse_initializer, lambda tensor: tensor.values.name in wanted)
    _filter(part.graph.value_info, lambda info: info.name in present - edges)
    _filter(part.graph.quantization_annotation, lambda note: note.tensor_name in present)
    return part


def _needed(graph: onnx.GraphProto, reads: list[set[str]], outputs: set[str]) -> list[int]:
    """Indices of the nodes that an output depends on, in order."""
    wanted = set(outputs)
    needed = []
    for index in reversed(range(len(graph.node))):
        if not wanted.isdisjoint(graph.node[index].output):
            needed.append(index)
            wanted |= reads[index]
    return needed[::-1]


def _cut_points(
    graph: onnx.GraphProto, nodes: list[int], last_reads: Mapping[str, int], outputs: set[str]
) -> tuple[CutPoint, ...]:
    live = {info.name for info in graph.input} & last_reads.keys()
    points = []
    for index in nodes:
        live = {name for name in live if last_reads[name] > index}
        live.update(name for name in graph.node[index].output if name in last_reads)
        if len(live) == 1 and live.isdisjoint(outputs):
            points.append(CutPoint(min(live), index))
    return tuple(points)


def _reads(node: onnx.NodeProto) -> set[str]:
    return (set(node.input) | captured_names(onnx.GraphProto(node=[node]))) - {""}


def _stored(graph: onnx.GraphProto) -> set[str]:
    sparse = {tensor.values.name for tensor in graph.sparse_initializer}
    return sparse | {tensor.name for tensor in graph.initializer}


def _replace(field: Any, values: list[Any]) -> None:
    del field[:]
    field.extend(values)


def _filter(field: Any, keep: Callable[[Any], bool]) -> None:
    for index in reversed(range(len(field))):
        if not keep(field[index]):
            del field[index]
