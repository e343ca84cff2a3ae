"""Passes inside subgraphs: the branches of If, the bodies of Loop and Scan.

A subgraph is edited as a model of its own: what it captures becomes inputs of that model, and
captured constants of few elements its initializers. Its own initializers, and those that a pass
adds, go to the main graph, where everything that looks at stored numbers finds them; subgraphs see
them there.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx

from passes.base import Pass, run_passes
from passes.edits import unique_name
from passes.roundtrip import OVERRIDABLE_SINCE_IR, names_in, node_graphs, outer_names

# Elements up to which passes see the values of a captured constant: limits, axes and extents.
_LARGEST_SEEN = 4096


def nested_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the subgraphs of a graph, each before those within it."""
    for node in graph.node:
        for subgraph in node_graphs(node):
            yield subgraph
            yield from nested_graphs(subgraph)


def rename_tensors(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors in a graph, its subgraphs left out."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    sparse = [each.values for each in graph.sparse_initializer]
    infos = (*graph.input, *graph.output, *graph.value_info)
    for named in (*graph.initializer, *sparse, *infos):
        named.name = names.get(named.name, named.name)
    for note in graph.quantization_annotation:
        note.tensor_name = names.get(note.tensor_name, note.tensor_name)


def run_in_subgraphs(
    model: onnx.ModelProto, steps: Callable[[onnx.GraphProto], Sequence[Pass]]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Run passes over the subgraphs of a model.

    Args:
        model: The model, no two tensors of which have one name, wherever they are (see
            `passes.lift_subgraphs`); it is not changed.
        steps: Gives the passes for a subgraph; without any it stays as it is.

    Returns:
        The rewritten model, or the model itself if it has no subgraphs, and by pass name how many
        times the pass changed a subgraph.

    Raises:
        PassError: If a subgraph cannot be read or written, or a pass refuses it.
    """
    if not any(nested_graphs(model.graph)):
        return model, {}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    taken = names_in(result.graph)
    total: dict[str, int] = {}
    for subgraph in nested_graphs(result.graph):
        chosen = steps(subgraph)
        if not chosen:
            continue
        alone = _as_model(subgraph, result)
        edited, changes = run_passes(alone, chosen)
        for name, count in changes.items():
            total[name] = total.get(name, 0) + count
        outside = {tensor.name for tensor in alone.graph.initializer}
        outside -= {tensor.name for tensor in subgraph.initializer}
        _put_back(edited.graph, subgraph, result, outside, taken)
    return result, total


def _as_model(subgraph: onnx.GraphProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Make a model of a subgraph that gives out what the subgraph does."""
    alone = onnx.ModelProto()
    alone.ir_version = max(model.ir_version, OVERRIDABLE_SINCE_IR)
    alone.opset_import.extend(model.opset_import)
    alone.graph.CopyFrom(subgraph)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = {info.name: info for info in model.graph.input}
    overridable = inputs if model.ir_version >= OVERRIDABLE_SINCE_IR else {}
    for name in sorted(outer_names(subgraph)):
        stored = None if name in overridable else constants.get(name)
        if stored is not None and math.prod(stored.dims) <= _LARGEST_SEEN:
            alone.graph.initializer.append(stored)
        else:
            alone.graph.input.append(inputs.get(name) or onnx.ValueInfoProto(name=name))
    return alone


def _put_back(
    edited: onnx.GraphProto,
    subgraph: onnx.GraphProto,
    model: onnx.ModelProto,
    outside: set[str],
    taken: set[str],
) -> None:
    # What a body is given in each turn must stay its own.
    own = {info.name for info in subgraph.input}
    renamed = {
        tensor.name: _store(model, tensor, taken)
        for tensor in edited.initializer
        if tensor.name not in outside | own
    }
    kept = [tensor for tensor in subgraph.initializer if tensor.name in own]
    del subgraph.node[:], subgraph.initializer[:], subgraph.value_info[:]
    subgraph.initializer.extend(kept)
    for node in edited.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    subgraph.node.extend(edited.node)
    inside = names_in(subgraph, read_too=False)
    subgraph.value_info.extend(info for info in edited.value_info if info.name in inside)


def _store(model: onnx.ModelProto, tensor: onnx.TensorProto, taken: set[str]) -> str:
    """Add an initializer to the main graph, unless it is there; returns its name."""
    graph = model.graph
    if tensor.name in taken and any(known == tensor for known in graph.initializer):
        return str(tensor.name)
    stored = graph.initializer.add()
    stored.CopyFrom(tensor)
    stored.name = unique_name(tensor.name, taken)
    if model.ir_version < OVERRIDABLE_SINCE_IR:
        graph.input.append(
            onnx.helper.make_tensor_value_info(stored.name, stored.data_type, stored.dims)
        )
    return str(stored.name)
