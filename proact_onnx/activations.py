"""The activations of a graph: what is hardened, and in which order."""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx

from proact_onnx.messages import extents, node_reads, without_weights
from proact_onnx.model import FLOAT_TYPES, HYRELU, THRESHOLD_SUFFIX, is_threshold, opset

# Shapes are computed from small tensors only: the inputs of Reshape, Slice, Resize and their kind.
_LARGEST_SHAPE_INPUT = 4096


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
    """

    name: str
    op: str
    tensor: str
    shape: tuple[int | None, ...]
    is_last: bool
    granularity: str | None = None


def find_activations(model: onnx.ModelProto) -> list[Activation]:
    """List the activations that can be bounded, in topological order.

    These are Relu nodes, and Clip nodes with a constant lower bound of 0 and an upper bound, such
    as ReLU6. Other spellings of Relu are found after `proact_onnx.rewrite.prepare`. Activations
    inside subgraphs, ones that are bounded already, and the bounds themselves are left out.

    Args:
        model: The model; nodes in topological order.
    """
    shapes = _shapes_without_batch(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: list[Activation] = []
    # Tensors from which an activation can still be reached, going from the outputs backwards.
    leading: set[str] = set()
    for node in reversed(model.graph.node):
        is_activation = _is_bounded_below(node, constants, opset(model))
        is_last = leading.isdisjoint(node.output)
        is_bound = any(HYRELU in name for name in (node.output[0], *node.input[:1]))
        if is_activation and not is_bound:
            found.append(
                Activation(
                    name=node.name or node.output[0],
                    op=node.op_type,
                    tensor=node.output[0],
                    shape=shapes.get(node.output[0], ()),
                    is_last=is_last,
                )
            )
        if is_activation or not is_last:
            leading |= node_reads(node)
    return found[::-1]


def activation_outputs(model: onnx.ModelProto) -> list[str]:
    """Name the outputs of all activations, bounded ones included, in topological order.

    Hardening keeps these names, so a model and its hardened file have the same.

    Args:
        model: The model; nodes in topological order.
    """
    wanted = {activation.tensor for activation in find_activations(model)}
    wanted |= {
        tensor.name.removesuffix(THRESHOLD_SUFFIX)
        for tensor in model.graph.initializer
        if is_threshold(tensor.name)
    }
    return [name for node in model.graph.node for name in node.output if name in wanted]


def tensor_types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Types and shapes of the graph's tensors, as far as they can be inferred.

    What the model states is kept where inference fails.
    """
    return _infer(without_weights(model, largest=_LARGEST_SHAPE_INPUT))


def _shapes_without_batch(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Shapes of the tensors, each without its first axis.

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
    found: list[dict[str, tuple[int | None, ...]]] = []
    for size in (1, 2) if open_batches else (0,):
        for dim in open_batches:
            dim.dim_value = size
        found.append({name: extents(info)[1:] for name, info in _infer(light).items()})
    return {
        name: tuple(a if a == b else None for a, b in zip(shape, found[-1][name], strict=True))
        for name, shape in found[0].items()
        if len(shape) == len(found[-1].get(name, ()))
    }


def _infer(light: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    # An operator that inference stumbles over leaves what the exporter has written down.
    with suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        light = onnx.shape_inference.infer_shapes(light, strict_mode=False, data_prop=True)
    graph = light.graph
    return {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}


def _is_bounded_below(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], version: int
) -> bool:
    """Tell whether the node is Relu, or Clip from a constant 0 to some upper bound."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip":
        return False
    if version < 11:
        bounds = {attribute.name: attribute.f for attribute in node.attribute}
        return bounds.get("min") == 0.0 and "max" in bounds
    if len(node.input) < 3 or not node.input[2] or is_threshold(node.input[2]):
        return False
    lower = constants.get(node.input[1])
    if lower is None or lower.data_type not in FLOAT_TYPES:
        return False
    return bool(np.all(onnx.numpy_helper.to_array(lower) == 0))
