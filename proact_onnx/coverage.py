"""What bounds leave open: functions without one, and values that reach the outputs past all."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx

from proact_onnx.activations import Activation, tensor_shapes
from proact_onnx.functions import find_functions, is_function
from proact_onnx.messages import node_reads, subgraphs
from proact_onnx.model import FLOAT_TYPES

# They look at the shape of a tensor and not at its values.
_SHAPE_READERS = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Unprotected:
    """An activation function that hardening leaves as it is.

    Attributes:
        name: The node's name, or its output's where the node has none.
        op: Its operator.
        reason: Why it is left.
    """

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Where the values of one image are bounded.

    Attributes:
        values: Elements of all floating-point tensors on ways from the input to the outputs,
            weights and what follows from them left out. Extents that the model leaves open count as
            one.
        bounded: Share of them that pass a bound on every way to the outputs, itself included.
        by_nature: Share of the others that pass a bound, or a function whose values lie in a
            narrow range by nature.
    """

    values: int
    bounded: float
    by_nature: float


def unprotected(model: onnx.ModelProto) -> list[Unprotected]:
    """List the activation functions that hardening leaves as they are.

    Args:
        model: A prepared model; nodes in topological order.
    """
    found = []
    for function in find_functions(model):
        if function.is_narrow:
            name = model.graph.node[function.nodes[-1]].name or function.output
            span = f"{function.lowest:g} to {function.highest:g}"
            reason = f"its values lie within {span} by nature, NaN aside"
            found.append(Unprotected(name, function.op, reason))
    for node in model.graph.node:
        for subgraph in subgraphs(node):
            found += _inside(subgraph, node.name or node.op_type)
    return found


def coverage(model: onnx.ModelProto, bounded: Sequence[Activation]) -> Coverage:
    """Find which values pass a bound.

    Args:
        model: A prepared model without bounds; nodes in topological order.
        bounded: What is bounded, or is to be.
    """
    own = {activation.tensor for activation in bounded}
    functions = {f.output for f in find_functions(model) if f.is_narrow}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            functions.update(node.output)
    sizes = _sizes(model)
    total, past_own, past_any = (
        sum(sizes[name] for name in _reaching(model, points) if name in sizes)
        for points in (set(), own, own | functions)
    )
    scale = max(1, total)
    return Coverage(total, (total - past_own) / scale, (past_own - past_any) / scale)


def _sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Elements for one image of the tensors that depend on it, by name."""
    constant = {tensor.name for tensor in model.graph.initializer}
    shapes = tensor_shapes(model)
    found = {}
    for node in model.graph.node:
        reads = node_reads(node)
        if reads <= constant:
            constant.update(node.output)
            continue
        for name in node.output:
            known = shapes.get(name)
            if known is not None and known.type in FLOAT_TYPES:
                found[name] = math.prod(extent or 1 for extent in known.shape)
    return found


def _reaching(model: onnx.ModelProto, points: Collection[str]) -> set[str]:
    """Tensors from which values reach the outputs without passing one of some points."""
    found = {info.name for info in model.graph.output} - set(points)
    for node in reversed(model.graph.node):
        if node.op_type not in _SHAPE_READERS and not found.isdisjoint(node.output):
            found |= node_reads(node) - set(points)
    return found


def _inside(graph: onnx.GraphProto, owner: str) -> Iterator[Unprotected]:
    for node in graph.node:
        if is_function(node):
            reason = f"it lies in a subgraph of {owner!r}"
            yield Unprotected(node.name or node.output[0], node.op_type, reason)
        for subgraph in subgraphs(node):
            yield from _inside(subgraph, owner)
