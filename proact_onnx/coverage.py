"""What bounds leave open: functions without one, and values that reach the outputs past all."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from proact_onnx.activations import Activation, find_activations, tensor_shapes, tensor_types
from proact_onnx.functions import Function, find_functions, find_inner_functions
from proact_onnx.messages import node_reads
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
            weights and what follows from them left out, and those inside subgraphs. Extents that
            the model leaves open count as one.
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
            found.append(Unprotected(name, function.op, _within(function)))
    return found + _unprotected_inside(model)


def never_run(activation: Activation) -> Unprotected:
    """Describe an activation inside a subgraph that calibration has not run."""
    reason = f"no calibration sample runs the subgraph of {activation.owner!r} that it lies in"
    return Unprotected(activation.name, activation.op, reason)


def _unprotected_inside(model: onnx.ModelProto) -> list[Unprotected]:
    inner = find_inner_functions(model)
    if not inner:
        return []
    bounded = {activation.tensor for activation in find_activations(model)}
    types = tensor_types(model, inside=True)
    found = []
    for each in inner:
        function = each.function
        info = types.get(function.output)
        is_float = info is None or info.type.tensor_type.elem_type in FLOAT_TYPES
        if function.is_bounded or function.output in bounded or not is_float:
            continue
        reason = f"it lies in a subgraph of {each.owner!r} that cannot be profiled"
        if function.is_narrow:
            reason = _within(function)
        found.append(Unprotected(each.name, function.op, reason))
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


def _within(function: Function) -> str:
    span = f"{function.lowest:g} to {function.highest:g}"
    return f"its values lie within {span} by nature, NaN aside"
