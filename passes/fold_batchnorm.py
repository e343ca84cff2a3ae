"""A BatchNormalization behind a linear layer becomes part of the layer's weights."""

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from passes.base import Pass, PostconditionError
from passes.edits import in_default_domain, input_at, is_among, label, tensor_names, unique_name
from passes.linear import LINEAR, Array, along_output


@dataclass(frozen=True)
class Refusal:
    """A node that a pass leaves as it is, and why.

    Attributes:
        node: The node, as a message names it.
        reason: One clause, such as ``its weight 'w' is shared with another node``.
    """

    node: str
    reason: str


class _NotFoldableError(Exception):
    """Carries the reason of a refusal."""


@dataclass
class FoldBatchnorm(Pass):
    """Fold ``BatchNormalization(linear(x))`` into the weight and bias of the linear layer.

    With ``f = scale / sqrt(var + epsilon)`` per output channel, computed in float64:

    1. Conv, weight ``[M, C/g, ...]``: ``W' = f W`` along axis 0, ``b' = f (b - mean) + B``.
    2. ConvTranspose, weight ``[C, M/g, ...]``: the same, output channel ``g_i * M/g + m`` being
       column ``m`` of the weight's group ``g_i``.
    3. Gemm, ``alpha A B + beta C``: ``B' = f B`` along the output axis (0 with ``transB``),
       ``C' = f C + (B - f mean) / beta``.

    The linear node then writes the BatchNormalization's output. Weight and bias keep their names;
    a bias that did not exist is called ``<weight>.bias``. A BatchNormalization *before* a linear
    layer is not folded, for zero padding makes that inexact.

    It refuses, with a reason, unless weight, bias and all four statistics are constants that no
    caller may override, weight and bias are used by this node alone, the linear output has no
    other reader, inference mode is on, and the folded numbers are finite.

    Attributes:
        refusals: After ``call``: the nodes that stay, with their reasons.
    """

    refusals: list[Refusal] = field(default_factory=list)
    name: str = "fold-batchnorm"

    def call(self, graph: gs.Graph) -> int:
        """Fold every match; the others are listed in ``refusals``."""
        self.refusals.clear()
        taken = tensor_names(graph)
        folded: list[gs.Node] = []
        for node in graph.nodes:
            if node.op != "BatchNormalization" or not in_default_domain(node):
                continue
            try:
                _fold(graph, node, taken)
            except _NotFoldableError as reason:
                self.refusals.append(Refusal(label(node), str(reason)))
            else:
                folded.append(node)
        gone = {id(node) for node in folded}
        graph.nodes = [node for node in graph.nodes if id(node) not in gone]
        return len(folded)

    def ensures(self, graph: gs.Graph) -> None:
        """Every BatchNormalization left must have a reason.

        Raises:
            PostconditionError: If one has none.
        """
        left = sum(
            node.op == "BatchNormalization" and in_default_domain(node) for node in graph.nodes
        )
        if left != len(self.refusals):
            raise PostconditionError(f"{left} nodes left, but {len(self.refusals)} refusals")


def _fold(graph: gs.Graph, node: gs.Node, taken: set[str]) -> None:
    linear = _linear_before(graph, node)
    _check_inference(node, graph.opset)
    statistics = []
    for index, role in enumerate(("scale", "bias", "mean", "variance"), start=1):
        statistics.append(_constant(graph, node.inputs[index], role).astype(np.float64))
    scale, shift, mean, variance = statistics
    weight = linear.inputs[1]
    weight_value = _constant(graph, weight, "weight", owner=linear)
    bias = input_at(linear, 2)
    bias_value = (
        np.zeros(1) if bias is None else _constant(graph, bias, "bias", owner=linear)
    ).astype(np.float64)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        new_weight = weight_value.astype(np.float64) * along_output(linear, weight_value, factor)
        offset = shift - factor * mean
        if linear.op == "Gemm":
            offset = offset / _beta(linear, bias)
        new_bias = factor * bias_value + offset
        stored_weight = new_weight.astype(weight_value.dtype)
        stored_bias = new_bias.astype(weight_value.dtype)
    if not (np.isfinite(stored_weight).all() and np.isfinite(stored_bias).all()):
        raise _NotFoldableError(f"the folded weight {weight.name!r} would not be finite")
    weight.values = stored_weight
    if bias is None:
        added = gs.Constant(unique_name(f"{weight.name}.bias", taken), stored_bias)
        linear.inputs = [*linear.inputs[:2], added]
    else:
        bias.values = stored_bias
    output = node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    linear.outputs = [output]


def _linear_before(graph: gs.Graph, node: gs.Node) -> gs.Node:
    source = node.inputs[0]
    if len(source.inputs) != 1 or source.inputs[0].op not in LINEAR:
        raise _NotFoldableError(
            f"its input {source.name!r} is not the output of a Conv, ConvTranspose or Gemm"
        )
    linear = source.inputs[0]
    if len(source.outputs) != 1:
        raise _NotFoldableError(f"the output {source.name!r} of {label(linear)} has other readers")
    if is_among(source, graph.outputs):
        raise _NotFoldableError(f"the output {source.name!r} of {label(linear)} is a graph output")
    return linear


def _check_inference(node: gs.Node, opset: int) -> None:
    written = [tensor for tensor in node.outputs if not tensor.is_empty()]
    if node.attrs.get("training_mode", 0) or len(written) > 1:
        raise _NotFoldableError("it runs in training mode")
    if opset < 9 and not node.attrs.get("spatial", 1):
        raise _NotFoldableError("it normalises every element by itself (spatial=0)")


def _constant(graph: gs.Graph, tensor: gs.Tensor, role: str, owner: gs.Node | None = None) -> Array:
    """Values of a constant; with an owner, one that no other node may read."""
    if not isinstance(tensor, gs.Constant):
        raise _NotFoldableError(f"its {role} {tensor.name!r} is not a constant")
    if is_among(tensor, graph.inputs):
        raise _NotFoldableError(
            f"its {role} {tensor.name!r} is a graph input, which may be overridden"
        )
    if owner is not None:
        if len(tensor.outputs) != 1:
            raise _NotFoldableError(f"its {role} {tensor.name!r} is shared with another node")
        if is_among(tensor, graph.outputs):
            raise _NotFoldableError(f"its {role} {tensor.name!r} is a graph output")
    value: Array = tensor.values
    if value.dtype not in (np.float16, np.float32, np.float64):
        raise _NotFoldableError(f"its {role} {tensor.name!r} has type {value.dtype}")
    return value


def _beta(linear: gs.Node, bias: gs.Tensor | None) -> float:
    beta = float(linear.attrs.get("beta", 1.0))
    if beta == 0.0:
        raise _NotFoldableError(f"{label(linear)} has beta 0, so a bias would have no effect")
    return beta
