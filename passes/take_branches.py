"""An If whose condition is known makes way for the branch that it takes."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from passes.roundtrip import OVERRIDABLE_SINCE_IR, node_graphs, without_large_weights
from passes.subgraphs import nested_graphs, rename_tensors

Array = npt.NDArray[Any]

# What conditions are computed from: no weight, scale or zero point is of these types.
_TYPES = (TensorProto.INT64, TensorProto.BOOL)
_LARGEST = 64
# Operators that hand elements on; of their inputs, all of Concat and the first of the others.
_HANDS_ON = frozenset({"Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
_COMPUTES = frozenset(
    {
        *("Add", "Mul", "Sub", "And", "Not", "Or", "Xor", "Cast"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    }
)


def take_branches(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Put the branch in the place of an If whose condition is the same for every input.

    A condition is known where it is computed, by operators on integers, from stored numbers of
    type int64 and bool and from extents that follow from those of the model's inputs, as when a
    script squeezes an axis only if its extent is 1. Extents that the model leaves open, and what
    files state of tensors between inputs and outputs, are not relied on. Ifs inside subgraphs, and
    those that come to be known when others are gone, are treated alike.

    The nodes of the branch stand where the If stood, and write its outputs. The other branch goes.

    Args:
        model: The model, no two tensors of which have one name, wherever they are (see
            `passes.lift_subgraphs`); it is not changed.

    Returns:
        The rewritten model, or the model itself if there is nothing to do, and the number of Ifs
        that were replaced.
    """
    result, total = model, 0
    while True:
        graphs = [result.graph, *nested_graphs(result.graph)]
        choices = [node for graph in graphs for node in graph.node if node.op_type == "If"]
        known = _Values(result).known if choices else lambda name: None
        if all(_branch(node, known) is None for node in choices):
            return result, total
        copy = onnx.ModelProto()
        copy.CopyFrom(result)
        total += _take(copy.graph, known)
        result = copy


def _take(graph: onnx.GraphProto, known: Callable[[str], Array | None]) -> int:
    taken = 0
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        branch = _branch(node, known)
        if branch is None:
            taken += sum(_take(subgraph, known) for subgraph in node_graphs(node))
            nodes.append(node)
        else:
            taken += 1
            nodes += _branch_nodes(node, branch)
            names = {name for inner in nodes for name in inner.output}
            graph.value_info.extend(info for info in branch.value_info if info.name in names)
    if taken:
        copies = onnx.GraphProto(node=nodes)
        del graph.node[:]
        graph.node.extend(copies.node)
    return taken


def _branch(node: onnx.NodeProto, known: Callable[[str], Array | None]) -> onnx.GraphProto | None:
    """The branch that an If always takes; None if that is not known."""
    if node.op_type != "If" or node.domain not in ("", "ai.onnx"):
        return None
    condition = known(node.input[0])
    if condition is None or condition.size != 1:
        return None
    wanted = "then_branch" if condition.all() else "else_branch"
    branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
    return None if branch.initializer or branch.sparse_initializer else branch


def _branch_nodes(node: onnx.NodeProto, branch: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that write the outputs of an If in its place."""
    written = {name for inner in branch.node for name in inner.output}
    names: dict[str, str] = {}
    copies = []
    for output, info in zip(node.output, branch.output, strict=False):
        if info.name in written and info.name not in names and output:
            names[info.name] = output
        elif output:
            source = names.get(info.name, info.name)
            copies.append(helper.make_node("Identity", [source], [output]))
    for graph in (branch, *nested_graphs(branch)):
        rename_tensors(graph, names)
    return [*branch.node, *copies]


class _Value(NamedTuple):
    """Numbers, and which of them are known."""

    numbers: Array
    known: Array


class _Values:
    """What can be said of integers before a model runs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._opsets = list(model.opset_import)
        self._shapes = _shapes(model)
        graphs = [model.graph, *nested_graphs(model.graph)]
        self._makers = {n: node for g in graphs for node in g.node for n in node.output}
        inputs = {info.name for info in model.graph.input}
        overridable = inputs if model.ir_version >= OVERRIDABLE_SINCE_IR else set[str]()
        self._found: dict[str, _Value | None] = {
            tensor.name: _all_known(numpy_helper.to_array(tensor))
            for tensor in model.graph.initializer
            if _is_whole(tensor) and tensor.name not in overridable
        }

    def known(self, name: str) -> Array | None:
        """Value of a tensor; None if some of it is not known."""
        value = self._value(name)
        return value.numbers if value is not None and value.known.all() else None

    def _value(self, name: str) -> _Value | None:
        if name not in self._found:
            node = self._makers.get(name)
            self._found[name] = None
            if node is not None and node.domain in ("", "ai.onnx"):
                # The reference has no class of its own for what it cannot compute.
                with suppress(Exception):
                    self._found[name] = self._computed(node)
        return self._found[name]

    def _computed(self, node: onnx.NodeProto) -> _Value | None:
        if node.op_type in ("Shape", "Size"):
            return self._extents(node)
        if node.op_type == "Constant":
            return _all_known(self._run(node, {})) if _is_small(node) else None
        if node.op_type not in _HANDS_ON | _COMPUTES:
            return None
        given = {name: self._value(name) for name in node.input if name}
        values = {name: value for name, value in given.items() if value is not None}
        handed_on = set(node.input if node.op_type == "Concat" else node.input[:1])
        if node.op_type in _COMPUTES:
            handed_on = set()
        exact = all(values[name].known.all() for name in values if name not in handed_on)
        if len(values) < len(given) or not exact or not _on_integers(node):
            return None
        numbers = self._run(node, {name: value.numbers for name, value in values.items()})
        if not handed_on:
            return _all_known(numbers)
        marks = {name: v.known if name in handed_on else v.numbers for name, v in values.items()}
        return _Value(numbers, self._run(node, marks))

    def _extents(self, node: onnx.NodeProto) -> _Value | None:
        shape = self._shapes.get(node.input[0])
        if shape is None:
            return None
        numbers = np.array([extent or 0 for extent in shape], np.int64)
        known = np.array([extent is not None for extent in shape], np.bool_)
        if node.op_type == "Size":
            return _all_known(np.array(numbers.prod(), np.int64)) if known.all() else None
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        part = slice(ends.get("start"), ends.get("end"))
        return _Value(numbers[part], known[part])

    def _run(self, node: onnx.NodeProto, inputs: Mapping[str, Array]) -> Array:
        graph = helper.make_graph(
            [node],
            "node",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
                )
                for name, value in inputs.items()
            ],
            [onnx.ValueInfoProto(name=node.output[0])],
        )
        model = helper.make_model(graph, opset_imports=self._opsets)
        [result] = ReferenceEvaluator(model).run(None, dict(inputs))
        return np.asarray(result)


def _all_known(numbers: Array) -> _Value:
    return _Value(numbers, np.ones(numbers.shape, np.bool_))


def _is_whole(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in _TYPES and math.prod(tensor.dims) <= _LARGEST


def _is_small(constant: onnx.NodeProto) -> bool:
    """Tell whether a Constant holds a few integers."""
    [attribute] = constant.attribute
    if attribute.name == "value":
        return _is_whole(attribute.t)
    return attribute.name in ("value_int", "value_ints") and len(attribute.ints) <= _LARGEST


def _on_integers(node: onnx.NodeProto) -> bool:
    """Tell whether a node gives integers: a Cast may round."""
    return node.op_type != "Cast" or all(
        attribute.i in _TYPES for attribute in node.attribute if attribute.name == "to"
    )


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Extents that follow from those of the inputs, None for open ones."""
    bare, _ = without_large_weights(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    graphs = [bare.graph, *nested_graphs(bare.graph)]
    for graph in graphs:
        given = [] if graph is bare.graph else graph.input
        del graph.value_info[:]
        for info in (*given, *graph.output):
            if info.type.HasField("tensor_type"):
                info.type.tensor_type.ClearField("shape")
    with suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        bare = onnx.shape_inference.infer_shapes(bare, strict_mode=False, data_prop=True)
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for graph in (bare.graph, *nested_graphs(bare.graph)):
        for info in (*graph.value_info, *graph.input, *graph.output):
            if info.type.tensor_type.HasField("shape") and info.name not in stored:
                found[info.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else None
                    for dim in info.type.tensor_type.shape.dim
                )
    return found
