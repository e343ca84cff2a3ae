"""Weights that a model keeps in files beside it, read from its own folder only."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import external_data_helper

from proact_onnx.errors import ModelError
from proact_onnx.messages import subgraphs


def load_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Read the weights that a model keeps in other files.

    Args:
        model: The model; its tensors are filled in place.
        path: Where the model was read from.

    Raises:
        ModelError: If a file is missing, cut off, unreadable, or lies outside the model's folder,
            also by way of a link.
    """
    folder = path.parent.resolve()
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        where = f"the external data of {tensor.name!r} in {path}, {location!r},"
        target = (folder / location).resolve()
        if not location or not target.is_relative_to(folder):
            raise ModelError(f"{where} lies outside the model's folder: move it beside the model")
        if not target.is_file():
            raise ModelError(f"{where} is missing: copy the file beside the model")
        try:
            end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        except ValueError as error:
            raise ModelError(
                f"{where} cannot be read, because its offset or length is not a number: export "
                "the model again"
            ) from error
        if end > target.stat().st_size:
            raise ModelError(f"{where} is cut off: copy the file again")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{where} cannot be read: {' '.join(str(error).split())}") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for subgraph in subgraphs(node):
        yield from _graph_tensors(subgraph)
