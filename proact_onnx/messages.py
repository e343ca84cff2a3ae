"""Questions to ONNX messages that the onnx package leaves open."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper


def extents(info: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Shape of a tensor, ``None`` for an open extent; empty if there is no shape at all."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in info.type.tensor_type.shape.dim
    )


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of a model's initializers, about.

    A message above 2 GiB cannot even be asked for its size.
    """
    return sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
    )


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes, such as the branches of an If."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of the graphs in their attributes."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner.node)


def nested_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a graph, at every depth, each before those within it."""
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield subgraph
            yield from nested_graphs(subgraph)


def node_reads(node: onnx.NodeProto) -> set[str]:
    """Names of the tensors a node depends on, those its subgraphs capture included."""
    read = set(node.input)
    for subgraph in subgraphs(node):
        local = {info.name for info in subgraph.input}
        local.update(tensor.name for tensor in subgraph.initializer)
        read.update(info.name for info in subgraph.output)
        for inner in subgraph.node:
            read |= node_reads(inner)
            local.update(inner.output)
        read -= local
    return read - {""}


def without_weights(model: onnx.ModelProto, largest: int = 0) -> onnx.ModelProto:
    """Copy a model, turning initializers with more than ``largest`` elements into graph inputs.

    Types, shapes and names stay, so the copy can be checked, and its shapes inferred, at no cost.
    """
    initializers = model.graph.initializer
    return weights_as_inputs(
        model, {tensor.name for tensor in initializers if math.prod(tensor.dims) > largest}
    )


def weights_as_inputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Copy a model, turning the named initializers into graph inputs."""
    light = _without_initializers(model)
    inputs = {info.name for info in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in names:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def with_values(model: onnx.ModelProto, values: Mapping[str, npt.NDArray[Any]]) -> onnx.ModelProto:
    """Copy a model, giving some of its initializers other values.

    Overwriting them in a copy would take the memory of both: a message never gives back what its
    fields once took.

    Args:
        model: The model; it is not changed.
        values: By name of an initializer, its new value; shape and type may differ.
    """
    return with_values_from(model, values.get)


def with_values_from(
    model: onnx.ModelProto, value_of: Callable[[str], npt.NDArray[Any] | None]
) -> onnx.ModelProto:
    """Copy a model, asking for the value of one initializer after the other.

    Args:
        model: The model; it is not changed.
        value_of: By name of an initializer, its new value; None to keep the one it has.
    """
    copy = _without_initializers(model)
    for tensor in model.graph.initializer:
        changed = value_of(tensor.name)
        copy.graph.initializer.append(
            tensor if changed is None else numpy_helper.from_array(changed, tensor.name)
        )
    return copy


def take_apart(model: onnx.ModelProto) -> tuple[bytes, list[npt.NDArray[np.uint8]]]:
    """Serialise a model of any size; one message ends at 2 GiB.

    Returns:
        The model without its initializers, and each of these: bytes in arrays, which can be sent
        to other processes without a copy.
    """
    tensors = [tensor.SerializeToString() for tensor in model.graph.initializer]
    return (
        _without_initializers(model).SerializeToString(),
        [np.frombuffer(tensor, np.uint8) for tensor in tensors],
    )


def put_together(rest: bytes, tensors: Sequence[npt.NDArray[np.uint8]]) -> onnx.ModelProto:
    """Undo `take_apart`."""
    model = onnx.ModelProto()
    model.ParseFromString(rest)
    for tensor in tensors:
        model.graph.initializer.append(onnx.TensorProto.FromString(tensor.tobytes()))
    return model


def sort_nodes(model: onnx.ModelProto) -> bool:
    """Put the nodes in topological order, in place.

    Nodes in a cycle, or behind one, leave the order as it is: ONNX's checker reports them.

    Returns:
        Whether the order was changed.
    """
    nodes = list(model.graph.node)
    pending = {name for node in nodes for name in node.output} - {""}
    order: list[int] = []
    waiting = list(range(len(nodes)))
    while waiting:
        blocked = []
        for index in waiting:
            if node_reads(nodes[index]) & pending:
                blocked.append(index)
            else:
                order.append(index)
                pending.difference_update(nodes[index].output)
        if len(blocked) == len(waiting):
            return False
        waiting = blocked
    if order == sorted(order):
        return False
    copies = []
    for index in order:
        copy = onnx.NodeProto()
        copy.CopyFrom(nodes[index])
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return True


def _without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _assign(copy, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _assign(copy.graph, field.name, value)
    return copy


def _assign(message: onnx.ModelProto | onnx.GraphProto, name: str, value: object) -> None:
    target = getattr(message, name)
    if isinstance(value, int | str | bytes):
        setattr(message, name, value)
    elif hasattr(target, "extend"):
        target.extend(value)
    else:
        target.CopyFrom(value)
