"""Weights that a model keeps in files beside it, read from its own folder only."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import external_data_helper

from proact_onnx.errors import ModelError
from proact_onnx.messages import subgraphs, without_weights

# Elements of the largest initializer that stays in the message. Some runtimes want the inputs that
# describe shapes there.
_LARGEST_INLINE = 1024
# Offsets are whole pages, so that runtimes can map the file.
_ALIGNMENT = 4096


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


def write_with_external_data(model: onnx.ModelProto, path: Path, location: str) -> None:
    """Write a model with its large initializers in a file of their own.

    They are written one by one, so that no second copy of the model is made.

    Args:
        model: Model with its weights in memory; it is not changed.
        path: Where to write the model.
        location: Name of the file in the same folder for the weights.
    """
    light = without_weights(model, largest=_LARGEST_INLINE)
    inline = {tensor.name: tensor for tensor in light.graph.initializer}
    inputs = {info.name for info in model.graph.input}
    kept = [info for info in light.graph.input if info.name in inputs]
    del light.graph.input[:], light.graph.initializer[:]
    light.graph.input.extend(kept)
    with (path.parent / location).open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor.name in inline:
                light.graph.initializer.append(inline[tensor.name])
                continue
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            offset = file.tell()
            file.write(_content(tensor))
            stub = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type)
            stub.dims.extend(tensor.dims)
            if tensor.HasField("doc_string"):
                stub.doc_string = tensor.doc_string
            stub.metadata_props.extend(tensor.metadata_props)
            stub.data_location = onnx.TensorProto.EXTERNAL
            entries = {"location": location, "offset": offset, "length": file.tell() - offset}
            for key, value in entries.items():
                stub.external_data.add(key=key, value=str(value))
    path.write_bytes(light.SerializeToString())


def _content(tensor: onnx.TensorProto) -> bytes:
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    return onnx.numpy_helper.to_array(tensor).tobytes()


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
