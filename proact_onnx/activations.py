"""The activations of a graph: what is hardened, and in which order."""

from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import onnx

from proact_onnx.functions import Function, Sides, find_functions, find_inner_functions
from proact_onnx.linear_outputs import LINEAR, linear_outputs
from proact_onnx.messages import extents, nested_graphs, node_reads, without_weights
from proact_onnx.model import FLOAT_TYPES

# Shapes are computed from small tensors only: the inputs of Reshape, Slice, Resize and their kind.
_LARGEST_SHAPE_INPUT = 4096
_INTEGER_TYPES = frozenset(
    {
        onnx.TensorProto.BOOL,
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT16,
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.UINT16,
        onnx.TensorProto.UINT32,
        onnx.TensorProto.UINT64,
    }
)


@dataclass(frozen=True)
class Activation:
    """One activation of the graph, in topological order.

    Attributes:
        name: The node's name, or its output's where the node has none.
        op: ONNX operator, such as ``Relu``.
        tensor: Name of the activation's output; unique, so it identifies the activation.
        shape: Shape of the output without its batch axis; ``None`` for an unknown extent.
        is_last: No other activation lies between this one and the graph's outputs, which makes
            it part of the paper's layer L, the one that feeds the output layer (section V-A).
        granularity: What shares a threshold, where that was decided for each activation by itself.
        sides: From which sides its values are bounded.
        owner: Name of the node in whose subgraph it lies, the outermost one; empty for activations
            of the main graph. Inside subgraphs the shape is not looked at, and thresholds are
            layer-wise.
    """

    name: str
    op: str
    tensor: str
    shape: tuple[int | None, ...]
    is_last: bool
    sides: Sides = Sides.RECTIFIED
    granularity: str | None = None
    owner: str = ""

    @property
    def is_inner(self) -> bool:
        """Whether it lies in a subgraph."""
        return bool(self.owner)

    @property
    def is_linear(self) -> bool:
        """Whether it is the output of a linear layer, and no activation function's."""
        return self.op in LINEAR

    @property
    def two_sided(self) -> bool:
        """Whether it has lower thresholds as well."""
        return self.sides is Sides.BOTH


def find_activations(model: onnx.ModelProto, *, linear: bool = False) -> list[Activation]:
    """List what can be bounded, in topological order.

    These are the activation functions whose values do not lie in a narrow range by nature (see
    `proact_onnx.functions`), those in the branches of If and the bodies of Loop and Scan included;
    and if asked for, outputs of linear layers of the main graph that no such function bounds. Other
    spellings of Relu are found after `proact_onnx.rewrite.prepare`, which also gives tensors inside
    subgraphs the unique names that this needs. Those that are bounded already, and the bounds
    themselves, are left out.

    Args:
        model: The model; nodes in topological order.
        linear: Whether outputs of linear layers count (see `proact_onnx.linear_outputs`).
    """
    functions = find_functions(model)
    nodes = model.graph.node
    last = _last(model, {function.output for function in functions if _counts(function)})
    known = tensor_shapes(model)

    def activation(position: int, op: str, tensor: str, sides: Sides, is_last: bool) -> Activation:
        name = nodes[position].name or tensor
        shape = known[tensor].shape if tensor in known else ()
        return Activation(name, op, tensor, shape, is_last, sides)

    def is_float(tensor: str) -> bool:
        # Indices are clipped and chosen by the same operators.
        return tensor not in known or known[tensor].type not in _INTEGER_TYPES

    found = {
        function.nodes[-1]: activation(
            function.nodes[-1],
            function.op,
            function.output,
            function.sides,
            function.output in last,
        )
        for function in functions
        if function.needs_bound and is_float(function.output)
    }
    if linear:
        bounding = {position for function in functions for position in function.nodes}
        for position, tensor in linear_outputs(model, bounding):
            if is_float(tensor):
                op = nodes[position].op_type
                found[position] = activation(position, op, tensor, Sides.BOTH, False)
    groups = _inner_activations(model)
    for position, outer in found.items():
        groups[position].append(outer)
    return [each for position in sorted(groups) for each in groups[position]]


def _inner_activations(model: onnx.ModelProto) -> dict[int, list[Activation]]:
    """Activations inside subgraphs, by position of the node that holds the subgraph."""
    found: dict[int, list[Activation]] = defaultdict(list)
    functions = [f for f in find_inner_functions(model) if f.is_reachable]
    types = tensor_types(model, inside=True) if functions else {}
    for each in functions:
        function = each.function
        info = types.get(function.output)
        if function.needs_bound and info and info.type.tensor_type.elem_type in FLOAT_TYPES:
            activation = Activation(
                each.name, function.op, function.output, (), False, function.sides
            )
            found[each.position].append(replace(activation, owner=each.owner))
    return found


def activation_outputs(model: onnx.ModelProto) -> list[str]:
    """Name the outputs of all activations of the main graph, bounded ones too, in their order.

    Hardening keeps these names, so a model and its hardened file have the same, linear layers that
    are bounded left out.

    Args:
        model: The model; nodes in topological order.
    """
    return [function.output for function in find_functions(model) if _counts(function)]


def _counts(function: Function) -> bool:
    """Whether a function is one that hardening bounds, or has bounded."""
    return function.needs_bound or function.is_bounded


def _last(model: onnx.ModelProto, outputs: Collection[str]) -> set[str]:
    """Those activations from which no other one can be reached."""
    found: set[str] = set()
    # Tensors from which an activation can still be reached, going from the outputs backwards.
    leading: set[str] = set()
    for node in reversed(model.graph.node):
        leads_on = not leading.isdisjoint(node.output)
        is_activation = any(name in outputs for name in node.output)
        if is_activation and not leads_on:
            found.update(node.output)
        if is_activation or leads_on:
            leading |= node_reads(node)
    return found


def tensor_types(model: onnx.ModelProto, *, inside: bool = False) -> dict[str, onnx.ValueInfoProto]:
    """Types and shapes of the graph's tensors, as far as they can be inferred.

    What the model states is kept where inference fails.

    Args:
        model: The model.
        inside: Whether tensors inside subgraphs are wanted as well, whose names must be unique.
    """
    return _infer(without_weights(model, largest=_LARGEST_SHAPE_INPUT), inside=inside)


class TensorShape(NamedTuple):
    """What is known of a tensor: its shape without the first axis, and its element type."""

    shape: tuple[int | None, ...]
    type: int


def tensor_shapes(model: onnx.ModelProto) -> dict[str, TensorShape]:
    """Shapes of the tensors, each without its first axis, and their types.

    A shape that the graph computes, such as ``x.view(x.size(0), -1)``, can be inferred only for a
    known batch. So an open batch is set to 1 and to 2, and what both agree on is the shape.
    """
    light = without_weights(model, largest=_LARGEST_SHAPE_INPUT)
    stored = {tensor.name for tensor in model.graph.initializer}
    batches = [
        info.type.tensor_type.shape.dim[0]
        for info in light.graph.input
        if info.name not in stored and info.type.tensor_type.shape.dim
    ]
    open_batches = [dim for dim in batches if dim.dim_value <= 0]
    found: list[dict[str, TensorShape]] = []
    for size in (1, 2) if open_batches else (0,):
        for dim in open_batches:
            dim.dim_value = size
        found.append(
            {
                name: TensorShape(extents(info)[1:], info.type.tensor_type.elem_type)
                for name, info in _infer(light).items()
            }
        )
    return {
        name: TensorShape(
            tuple(
                a if a == b else None
                for a, b in zip(known.shape, found[-1][name].shape, strict=True)
            ),
            known.type,
        )
        for name, known in found[0].items()
        if name in found[-1] and len(known.shape) == len(found[-1][name].shape)
    }


def _infer(light: onnx.ModelProto, *, inside: bool = False) -> dict[str, onnx.ValueInfoProto]:
    # An operator that inference stumbles over leaves what the exporter has written down.
    with suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        light = onnx.shape_inference.infer_shapes(light, strict_mode=False, data_prop=True)
    graphs = [light.graph, *(nested_graphs(light.graph) if inside else ())]
    return {
        info.name: info
        for graph in graphs
        for info in (*graph.value_info, *graph.input, *graph.output)
    }
