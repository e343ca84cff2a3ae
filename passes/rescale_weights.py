"""Weights stored enlarged by powers of two, and the product divided back in the graph."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import onnx_graphsurgeon as gs

from passes.base import Pass, PostconditionError, PreconditionError
from passes.edits import (
    in_default_domain,
    input_at,
    is_among,
    label,
    redirect,
    tensor_names,
    unique_name,
)
from passes.fold_batchnorm import Refusal
from passes.linear import LINEAR, Array, along_output, largest_by_channel

# Enlarged weights stay below 2^15, the range of the paper's Q15.16.
RANGE_BITS = 15
# The largest factor on a weight: sums of enlarged products must stay far from the end of float32,
# and no flip changes a weight enlarged by it by more than 2^-5.
MOST_BITS = 20
# An undo factor is stored divided by this, so that it has a word of its own in the same range.
UNIT = 2.0**6
# A bias is stored divided by this: one that is up to 4 times as large as the weights of its
# channel does not keep these from filling the range.
BIAS_UNIT = 2.0**2
# How the name of every stored scale ends.
SCALE_SUFFIX = "/rescale/scale"
# Gemm may do without a bias from this opset on.
_GEMM_WITHOUT_BIAS = 11


class Sharing(StrEnum):
    """What shares a factor."""

    TENSOR = "tensor"
    CHANNEL = "channel"


class _NotRescalableError(Exception):
    """Carries the reason of a refusal."""


@dataclass
class RescaleWeights(Pass):
    """Let weights and biases fill the range of fixed-point storage.

    A flip of bit k changes a word of Q15.16 by 2^(k - 16), whatever the word stands for. A weight
    that is stored as ``s w`` changes by 2^(k - 16) / s. So ``y = linear(x, w) + b`` becomes::

        y = (linear(x, s w) + 4 * (s b / 4)) / (64 * (s / 64))

    with ``s = 2^e`` for each output channel, or for the tensor, and e from 0 to 20 the largest that
    keeps ``s w`` and ``s b / 4`` below 2^15. Stored are ``s w``, ``s b / 4`` and the scale
    ``s / 64``; the numbers 4 and 64 stand once in the graph. Powers of two change no digit of any
    product or sum. It is a division because the stored scale is then large: as a factor 1 / s it
    would lie in the last places of a word, where any flip of a higher bit is a huge change.

    1. Conv and ConvTranspose, grouped ones included, Gemm and MatMul with a stored right-hand side.
       The bias leaves the layer and is added behind it. Its name stays, and it is reshaped to
       ``[1, C, 1, 1]`` behind a convolution. A Gemm before opset 11 keeps it as an input.
    2. An Add of a constant behind a layer without a bias is its bias.
    3. The division writes the layer's original output name.

    It refuses, with a reason, where the weight or bias is not a finite float32 or float64 constant
    of this layer alone, where a caller may override it, or where a bias has fewer numbers than
    there are factors. Float16 is refused because the enlarged sums could leave its range.

    Attributes:
        sharing: What shares a factor.
        refusals: After ``call``: the layers with stored weights that stay, with their reasons.
        scales: After ``call``: the names of the initializers that store scales.
    """

    sharing: Sharing = Sharing.CHANNEL
    refusals: list[Refusal] = field(default_factory=list)
    scales: list[str] = field(default_factory=list)
    name: str = "rescale-weights"

    def requires(self, graph: gs.Graph) -> None:
        """Check that the graph is not rescaled yet.

        Raises:
            PreconditionError: If it stores a scale.
        """
        found = sorted(name for name in tensor_names(graph) if name.endswith(SCALE_SUFFIX))
        if found:
            raise PreconditionError(f"the graph holds {found[0]!r}: it is rescaled already")

    def call(self, graph: gs.Graph) -> int:
        """Rescale every layer that allows it; the others are listed in ``refusals``."""
        self.refusals.clear()
        self.scales.clear()
        rewriter = _Rewriter(graph, self.sharing)
        for node in list(graph.nodes):
            if not _is_linear(node) or not isinstance(node.inputs[1], gs.Constant):
                continue
            try:
                scale = rewriter.rescale(node)
            except _NotRescalableError as reason:
                self.refusals.append(Refusal(label(node), str(reason)))
            else:
                self.scales += [scale] if scale else []
        graph.nodes = rewriter.nodes()
        return len(self.scales)

    def ensures(self, graph: gs.Graph) -> None:
        """Every scale must stand in the graph.

        Raises:
            PostconditionError: If one does not.
        """
        tensors = graph.tensors()
        for name in self.scales:
            if not isinstance(tensors.get(name), gs.Constant):
                raise PostconditionError(f"the scale {name!r} was not inserted")


@dataclass(frozen=True)
class _Bias:
    """What is added to a layer's product.

    Attributes:
        tensor: The constant.
        values: Its values as they are added, beta of a Gemm included.
        reader: The node that adds it: the layer itself, or an Add behind it.
    """

    tensor: gs.Constant
    values: Array
    reader: gs.Node

    def largest(self, shape: tuple[int, ...]) -> Array:
        """Largest magnitude among the numbers that share a factor, for factors of some shape."""
        # Broadcasting aligns shapes at their ends.
        aligned = (1,) * (self.values.ndim - len(shape)) + shape
        fits = len(aligned) == self.values.ndim and all(
            extent in (1, own) for extent, own in zip(aligned, self.values.shape, strict=True)
        )
        if not fits:
            raise _NotRescalableError(
                f"its bias {self.tensor.name!r} of shape {list(self.values.shape)} does not hold "
                "a number for each factor"
            )
        shared = tuple(axis for axis, extent in enumerate(aligned) if extent == 1)
        found: Array = np.abs(self.values).max(axis=shared, initial=0, keepdims=True)
        return found.reshape(shape)


class _Rewriter:
    def __init__(self, graph: gs.Graph, sharing: Sharing) -> None:
        self._graph = graph
        self._sharing = sharing
        self._taken = tensor_names(graph) | {node.name for node in graph.nodes}
        self._units: dict[str, gs.Constant] = {}
        # By id of a node of the graph: the new nodes before and behind it.
        self._before: dict[int, gs.Node] = {}
        self._behind: dict[int, list[gs.Node]] = {}

    def nodes(self) -> list[gs.Node]:
        """All nodes, the new ones in their places."""
        placed = []
        for node in self._graph.nodes:
            before = self._before.get(id(node))
            placed += [node] if before is None else [before, node]
            placed += self._behind.get(id(node), [])
        return placed

    def rescale(self, node: gs.Node) -> str | None:
        """Rescale a layer; returns the name of its scale, or None where nothing can be gained."""
        weight = node.inputs[1]
        values = self._constant(weight, "weight", node)
        if values.ndim < 2:
            raise _NotRescalableError(f"its weight {weight.name!r} is a vector")
        largest = self._largest(node, values)
        bias = self._bias(node, largest.shape)
        if bias is not None:
            largest = np.maximum(largest, bias.largest(largest.shape) / BIAS_UNIT)
        # largest is below 2^exponent, so 2^(RANGE_BITS - exponent) keeps it within the range.
        bits = np.where(largest > 0, RANGE_BITS - np.frexp(largest)[1], MOST_BITS)
        factor = np.ldexp(np.ones((), values.dtype), np.clip(bits, 0, MOST_BITS))
        if (factor == 1).all():
            return None
        weight.values = values * along_output(node, values, factor)
        return self._undo(node, bias, factor)

    def _largest(self, node: gs.Node, weight: Array) -> Array:
        """Largest weights among those that share a factor, of a shape that meets the output."""
        largest = largest_by_channel(node, weight)
        if self._sharing is Sharing.TENSOR:
            return np.asarray(largest.max(initial=0))
        if node.op in ("Conv", "ConvTranspose"):
            return largest.reshape(1, -1, *[1] * (weight.ndim - 2))
        return largest

    def _undo(self, node: gs.Node, bias: _Bias | None, factor: Array) -> str:
        last = node if bias is None else bias.reader
        output = last.outputs[0]
        owner = node.name or node.outputs[0].name
        if bias is not None:
            last = self._scale_bias(node, bias, factor)
        scaled = last.outputs[0]
        if scaled is output:
            scaled = self._variable(output, "scaled")
            last.outputs = [scaled]
        scale = gs.Constant(f"{output.name}{SCALE_SUFFIX}", np.asarray(factor / UNIT, factor.dtype))
        self._taken.add(scale.name)
        unit = self._unit("unit", UNIT, factor.dtype)
        undone = gs.Variable(unique_name(f"{output.name}/rescale/factor", self._taken))
        self._behind.setdefault(id(node if bias is None else bias.reader), []).extend(
            (
                self._node("Mul", f"{owner}/rescale/Mul", [scale, unit], undone),
                self._node("Div", f"{owner}/rescale/Div", [scaled, undone], output),
            )
        )
        return str(scale.name)

    def _scale_bias(self, node: gs.Node, bias: _Bias, factor: Array) -> gs.Node:
        """Store the bias enlarged; returns the node that adds it."""
        reader = bias.reader
        output = reader.outputs[0]
        owner = reader.name or output.name
        bias.tensor.values = (bias.values * (factor / BIAS_UNIT)).astype(factor.dtype)
        unit = self._unit("bias_unit", BIAS_UNIT, factor.dtype)
        enlarged = gs.Variable(unique_name(f"{output.name}/rescale/bias", self._taken))
        redirect([reader], bias.tensor, enlarged)
        enlarge = self._node("Mul", f"{owner}/rescale/Bias", [bias.tensor, unit], enlarged)
        node.attrs.pop("beta", None)
        if reader is not node or (node.op == "Gemm" and self._graph.opset < _GEMM_WITHOUT_BIAS):
            self._before[id(reader)] = enlarge
            return reader
        product, biased = self._variable(output, "product"), self._variable(output, "scaled")
        node.inputs = node.inputs[:2]
        node.outputs = [product]
        add = self._node("Add", f"{owner}/rescale/Add", [product, enlarged], biased)
        # Behind the layer, so that the graph goes on reading its weight before its bias.
        self._behind[id(node)] = [enlarge, add]
        return add

    def _bias(self, node: gs.Node, factors: tuple[int, ...]) -> _Bias | None:
        tensor = input_at(node, 2) if node.op in LINEAR else None
        if tensor is None:
            return self._added_behind(node, factors)
        values = self._constant(tensor, "bias", node)
        if node.op == "Gemm":
            values = values * values.dtype.type(node.attrs.get("beta", 1.0))
        else:
            values = values.reshape(1, -1, *[1] * (node.inputs[1].values.ndim - 2))
        return _Bias(tensor, values, node)

    def _added_behind(self, node: gs.Node, factors: tuple[int, ...]) -> _Bias | None:
        """A constant that the only reader of a layer adds; None where it must stay as it is."""
        output = node.outputs[0]
        if len(output.outputs) != 1 or is_among(output, self._graph.outputs):
            return None
        add = output.outputs[0]
        tensor = next((other for other in add.inputs if other is not output), None)
        if add.op != "Add" or not in_default_domain(add) or not isinstance(tensor, gs.Constant):
            return None
        try:
            bias = _Bias(tensor, self._constant(tensor, "bias", add), add)
            bias.largest(factors)
        except _NotRescalableError:
            return None
        return bias

    def _constant(self, tensor: gs.Tensor, role: str, owner: gs.Node) -> Array:
        """Values of a constant that this node alone reads."""
        if not isinstance(tensor, gs.Constant):
            raise _NotRescalableError(f"its {role} {tensor.name!r} is not a constant")
        if is_among(tensor, self._graph.inputs):
            raise _NotRescalableError(
                f"its {role} {tensor.name!r} is a graph input, which may be overridden"
            )
        readers = [node for node in tensor.outputs if node is not owner]
        if readers or sum(read is tensor for read in owner.inputs) != 1:
            raise _NotRescalableError(f"its {role} {tensor.name!r} is shared with another node")
        if is_among(tensor, self._graph.outputs):
            raise _NotRescalableError(f"its {role} {tensor.name!r} is a graph output")
        values: Array = tensor.values
        if values.dtype not in (np.float32, np.float64):
            raise _NotRescalableError(f"its {role} {tensor.name!r} has type {values.dtype}")
        if not np.isfinite(values).all():
            raise _NotRescalableError(f"its {role} {tensor.name!r} is not finite")
        return values

    def _unit(self, role: str, value: float, dtype: np.dtype[np.floating]) -> gs.Constant:
        key = f"rescale/{role}/{dtype}"
        if key not in self._units:
            name = unique_name(key, self._taken)
            self._units[key] = gs.Constant(name, np.asarray(value, dtype))
        return self._units[key]

    def _variable(self, like: gs.Tensor, role: str) -> gs.Variable:
        name = unique_name(f"{like.name}/rescale/{role}", self._taken)
        return gs.Variable(name, dtype=like.dtype, shape=like.shape)

    def _node(self, op: str, name: str, inputs: list[gs.Tensor], output: gs.Tensor) -> gs.Node:
        return gs.Node(op, unique_name(name, self._taken), inputs=inputs, outputs=[output])


def _is_linear(node: gs.Node) -> bool:
    known = node.op == "MatMul" or node.op in LINEAR
    return known and in_default_domain(node) and len(node.inputs) > 1
