"""From an ONNX model to a graphsurgeon graph and back, without losing anything on the way.

Graphsurgeon's import and export keep nodes, attributes and tensors, and drop the rest: documents
and metadata at every level, attribute kinds it does not know, types that are not tensors, the
order of initializers, and which initializers are graph inputs as well. It also moves an outer
initializer that only a subgraph reads into that subgraph. This module remembers the original
messages and puts them back where a pass left them alone.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from passes.edits import subgraph_tensors

# From this IR version on, an initializer that is also a graph input is a default value that the
# caller may override; before it, every initializer had to be listed as an input.
OVERRIDABLE_SINCE_IR = 4

# Elements from which on an initializer is read where it lies.
_LARGE = 1 << 20


@dataclass(frozen=True)
class ImportedModel:
    """A model taken apart for the passes.

    Attributes:
        original: The caller's model; never written to.
        graph: The graph the passes change. An initializer that callers may override stands in
            ``graph.inputs``.
        nodes: The original's nodes, each with the attributes it came with.
    """

    original: onnx.ModelProto
    graph: gs.Graph
    nodes: tuple[tuple[gs.Node, dict[str, Any]], ...]


def import_model(
    model: onnx.ModelProto, types: Iterable[onnx.ValueInfoProto] = ()
) -> ImportedModel:
    """Import a model for editing; the model itself is not changed.

    Args:
        model: Model with its external data loaded.
        types: Types of tensors that the model leaves open.

    Raises:
        OnnxGraphSurgeonException: If graphsurgeon cannot represent the graph.
    """
    # Graphsurgeon keeps hold of the message it imports, and writes to it.
    scratch, parked = without_large_weights(model)
    scratch.graph.value_info.extend(types)
    # The export cannot write these types, and functions are never edited.
    for info in (*scratch.graph.input, *scratch.graph.output, *scratch.graph.value_info):
        if not info.type.HasField("tensor_type"):
            info.ClearField("type")
    del scratch.functions[:]
    with G_LOGGER.suppress():
        graph = gs.import_onnx(scratch)
    for tensor in (*graph.tensors().values(), *subgraph_tensors(graph)):
        if isinstance(tensor, gs.Constant) and tensor.name in parked:
            tensor.values = LazyValues(parked[tensor.name])
    if model.ir_version >= OVERRIDABLE_SINCE_IR:
        tensors = {tensor.name: tensor for tensor in graph.tensors().values()}
        tensors.update({tensor.name: tensor for tensor in graph.inputs})
        graph.inputs = [tensors[i.name] for i in model.graph.input if i.name in tensors]
    return ImportedModel(model, graph, tuple((node, dict(node.attrs)) for node in graph.nodes))


def export_model(imported: ImportedModel) -> onnx.ModelProto:
    """Build the ONNX model of an edited graph, with everything graphsurgeon drops put back."""
    original, graph = imported.original, imported.graph
    result = _shell(original)
    restored = result.graph
    restored.name = original.graph.name
    restored.metadata_props.extend(original.graph.metadata_props)
    if original.graph.HasField("doc_string"):
        restored.doc_string = original.graph.doc_string
    with G_LOGGER.suppress():
        restored.node.extend(_nodes(imported))
        tensors = graph.tensors()
        restored.sparse_initializer.extend(
            sparse for sparse in original.graph.sparse_initializer if sparse.values.name in tensors
        )
        restored.initializer.extend(_initializers(imported, restored))
        restored.input.extend(_inputs(original, graph, restored))
        infos = {info.name: info for info in (*original.graph.value_info, *original.graph.output)}
        for tensor in graph.outputs:
            restored.output.append(infos.get(tensor.name) or _info(tensor))
        restored.value_info.extend(_value_infos(original, tensors, restored))
    present = names_in(restored)
    restored.quantization_annotation.extend(
        note for note in original.graph.quantization_annotation if note.tensor_name in present
    )
    return result


def captured_names(graph: onnx.GraphProto) -> set[str]:
    """Names of outer tensors that the subgraphs of ``graph`` read."""
    captured: set[str] = set()
    for node in graph.node:
        for subgraph in node_graphs(node):
            captured |= outer_names(subgraph)
    return captured


def outer_names(subgraph: onnx.GraphProto) -> set[str]:
    """Names of tensors that a subgraph reads, or gives out, and that are not its own."""
    read = {name for node in subgraph.node for name in node.input}
    read |= {output.name for output in subgraph.output} | captured_names(subgraph)
    return read - names_in(subgraph, read_too=False) - {""}


def node_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes, such as the branches of an If."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def names_in(graph: onnx.GraphProto, read_too: bool = True) -> set[str]:
    """Names of the tensors of a graph, those of its subgraphs left out.

    Args:
        graph: The graph.
        read_too: Whether names count that its nodes read and nothing in it defines.
    """
    names = {tensor.name for tensor in graph.initializer}
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    names.update(info.name for info in graph.input)
    for node in graph.node:
        names.update(node.output)
        if read_too:
            names.update(node.input)
    return names - {""}


def _shell(model: onnx.ModelProto) -> onnx.ModelProto:
    """Everything of a model but its graph."""
    shell = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if isinstance(value, int | str):
            setattr(shell, field.name, value)
        else:
            getattr(shell, field.name).extend(value)
    return shell


def _info(tensor: gs.Tensor) -> onnx.ValueInfoProto:
    info: onnx.ValueInfoProto = OnnxExporter.export_value_info_proto(tensor, do_type_check=False)
    return info


def _nodes(imported: ImportedModel) -> Iterator[onnx.NodeProto]:
    before = {
        id(node): (proto, attributes)
        for (node, attributes), proto in zip(
            imported.nodes, imported.original.graph.node, strict=True
        )
    }
    for node in imported.graph.nodes:
        if id(node) not in before:
            yield OnnxExporter.export_node(node)
            continue
        proto, attributes = before[id(node)]
        kept = onnx.NodeProto()
        kept.CopyFrom(proto)
        if node.name != proto.name:
            kept.name = node.name
        del kept.input[:]
        kept.input.extend(tensor.name for tensor in node.inputs)
        del kept.output[:]
        kept.output.extend(tensor.name for tensor in node.outputs)
        untouched = node.attrs.keys() == attributes.keys() and all(
            node.attrs[key] is value for key, value in attributes.items()
        )
        if node.op != proto.op_type or not untouched:
            kept.op_type = node.op
            del kept.attribute[:]
            kept.attribute.extend(OnnxExporter.export_attributes(node.attrs))
        yield kept


def _initializers(imported: ImportedModel, restored: onnx.GraphProto) -> list[onnx.TensorProto]:
    original, graph = imported.original, imported.graph
    before = {tensor.name: tensor for tensor in original.graph.initializer}
    sparse = {tensor.values.name for tensor in restored.sparse_initializer}
    constants = {
        name: tensor
        for name, tensor in graph.tensors().items()
        if isinstance(tensor, gs.Constant) and name not in sparse
    }
    written = {name for node in restored.node for name in node.output} | sparse
    written.update(tensor.name for tensor in graph.inputs)
    captured = captured_names(restored) - written
    for tensor in subgraph_tensors(graph):
        if tensor.name in captured and isinstance(tensor, gs.Constant):
            constants.setdefault(tensor.name, tensor)
    found = {name: _exported(tensor) for name, tensor in constants.items()}
    if original.ir_version >= OVERRIDABLE_SINCE_IR:
        # An input that nothing reads keeps its default, or callers would have to feed it.
        for info in original.graph.input:
            if info.name in before:
                found.setdefault(info.name, before[info.name])
    for name in found.keys() & before.keys():
        tensor, source = found[name], before[name]
        if source.HasField("doc_string") and not tensor.doc_string:
            tensor.doc_string = source.doc_string
        if not tensor.metadata_props:
            tensor.metadata_props.extend(source.metadata_props)
    ordered = {name: found[name] for name in before if name in found}
    return list((ordered | found).values())


def without_large_weights(
    model: onnx.ModelProto,
) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """Copy a model with nothing in the place of its large initializers, and return these by name.

    They are read where they lie, so importing takes no second copy of them.
    """
    light = _shell(model)
    parked: dict[str, onnx.TensorProto] = {}
    for field, value in model.graph.ListFields():
        if field.name == "initializer":
            continue
        if isinstance(value, str):
            setattr(light.graph, field.name, value)
        else:
            getattr(light.graph, field.name).extend(value)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) < _LARGE:
            light.graph.initializer.append(tensor)
            continue
        stub = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type)
        stub.dims.extend(tensor.dims)
        parked[tensor.name] = tensor
    return light, parked


def _exported(tensor: gs.Constant) -> onnx.TensorProto:
    values = tensor._values
    if isinstance(values, LazyValues):
        # It may belong to the caller's model, which graphsurgeon would write the name into.
        exported: onnx.TensorProto = values.tensor
        if exported.name != tensor.name:
            exported = onnx.TensorProto()
            exported.CopyFrom(values.tensor)
            exported.name = tensor.name
    else:
        exported = OnnxExporter.export_tensor_proto(tensor)
    return exported


def _inputs(
    original: onnx.ModelProto, graph: gs.Graph, restored: onnx.GraphProto
) -> Iterator[onnx.ValueInfoProto]:
    stored = {tensor.name: tensor for tensor in restored.initializer}
    wanted = {tensor.name for tensor in graph.inputs} | stored.keys()
    before = {info.name for info in original.graph.input}
    for info in original.graph.input:
        if info.name in wanted:
            yield _as_stored(info, stored)
    yield from (_info(tensor) for tensor in graph.inputs if tensor.name not in before)
    if original.ir_version < OVERRIDABLE_SINCE_IR:
        for name, tensor in stored.items():
            if name not in before:
                yield onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)


def _value_infos(
    original: onnx.ModelProto, tensors: dict[str, gs.Tensor], restored: onnx.GraphProto
) -> Iterator[onnx.ValueInfoProto]:
    present = names_in(restored) | captured_names(restored)
    edges = {info.name for info in (*restored.input, *restored.output)}
    stated = {info.name for info in original.graph.value_info}
    stored = {tensor.name: tensor for tensor in restored.initializer}
    for info in original.graph.value_info:
        if info.name in present - edges:
            yield _as_stored(info, stored)
    for name, tensor in tensors.items():
        known = isinstance(tensor, gs.Variable) and tensor.dtype is not None
        if known and name not in stated | edges:
            yield _info(tensor)


def _as_stored(
    info: onnx.ValueInfoProto, stored: dict[str, onnx.TensorProto]
) -> onnx.ValueInfoProto:
    """What a file states of a tensor, corrected where a pass gave an initializer another shape."""
    tensor = stored.get(info.name)
    if tensor is None:
        return info
    corrected = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    same = corrected.type.tensor_type.shape.dim == info.type.tensor_type.shape.dim
    return info if same and info.type.tensor_type.elem_type == tensor.data_type else corrected
