"""What subgraphs store moves to the main graph, and no two tensors have one name."""

from collections.abc import Iterable, Mapping

import onnx

from passes.edits import unique_name
from passes.lift_constants import LiftConstants
from passes.roundtrip import names_in, node_graphs
from passes.subgraphs import nested_graphs, rename_tensors, run_in_subgraphs


def lift_subgraphs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Move constants out of subgraphs, where passes and faults reach them by name.

    1. Tensors of different subgraphs may have the same name: the branches of an If often do. The
       first one keeps it, the others get a number behind it.
    2. Initializers and constant nodes of subgraphs (see `LiftConstants`) become initializers of the
       main graph, which every subgraph sees. A runtime must not be asked to give out an outer
       tensor, so where a subgraph gives out a constant, an Identity stands in between.

    Nothing changes in what the model computes.

    Args:
        model: The model; it is not changed.

    Returns:
        The rewritten model, or the model itself if it has no subgraphs, and how many names and
        constants were changed.

    Raises:
        PassError: If a subgraph cannot be read or written.
    """
    if not any(nested_graphs(model.graph)):
        return model, 0
    result = onnx.ModelProto()
    result.CopyFrom(model)
    taken = names_in(result.graph)
    changed = _name_apart(result.graph, {}, taken)
    for subgraph in nested_graphs(result.graph):
        changed += _give_out_copies(subgraph, taken)
        changed += len(subgraph.initializer)
    result, changes = run_in_subgraphs(result, lambda subgraph: [LiftConstants()])
    return result, changed + changes.get(LiftConstants.name, 0)


def _name_apart(graph: onnx.GraphProto, outer: Mapping[str, str], taken: set[str]) -> int:
    """Rename what the subgraphs of a graph define under a name that is taken; counts names."""
    changed = 0
    for node in graph.node:
        for subgraph in node_graphs(node):
            names = dict(outer)
            for name in _definitions(subgraph):
                names[name] = unique_name(name, taken)
                changed += names[name] != name
            rename_tensors(subgraph, names)
            changed += _name_apart(subgraph, names, taken)
    return changed


def _definitions(graph: onnx.GraphProto) -> Iterable[str]:
    """Names that a graph defines, in order."""
    names = [info.name for info in graph.input]
    names += [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    names += [name for node in graph.node for name in node.output if name]
    return dict.fromkeys(names)


def _give_out_copies(subgraph: onnx.GraphProto, taken: set[str]) -> int:
    """Put an Identity behind every constant that a subgraph gives out; counts them."""
    inputs = {info.name for info in subgraph.input}
    stored = {t.name: t for t in subgraph.initializer if t.name not in inputs}
    changed = 0
    for output in subgraph.output:
        at, constant = 0, f"{output.name}/constant"
        if output.name in stored:
            stored[output.name].name = unique_name(constant, taken)
            constant = stored[output.name].name
        else:
            writers = [i for i, n in enumerate(subgraph.node) if output.name in n.output]
            if not writers or subgraph.node[writers[0]].op_type != "Constant":
                continue
            constant = unique_name(constant, taken)
            subgraph.node[writers[0]].output[0] = constant
            at = writers[0] + 1
        subgraph.node.insert(at, onnx.helper.make_node("Identity", [constant], [output.name]))
        changed += 1
    return changed
