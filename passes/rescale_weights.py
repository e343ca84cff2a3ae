"""Weights stored enlarged by powers of two, and the product divided back in the graph."""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
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
from passes.undo import FACTOR, KERNEL

# The largest factor on a weight: sums of enlarged products must stay far from the end of float32,
# and no flip changes a weight of Q15.16 that is enlarged by it by more than 2^-5.
MOST_BITS = 20
# How the name of every stored scale ends.
SCALE_SUFFIX = "/rescale/scale"
# How the name of every second copy of a bias ends.
COPY_SUFFIX = "/rescale/copy"
# The lowest opset that has Where.
RESCALE_OPSET = 9


@dataclass(frozen=True)
class Range:
    """The numbers that a memory format stores best.

    Attributes:
        bits: Enlarged numbers stay below 2^bits.
        digits: How many binary digits a fixed-point format has for magnitudes; scales must be
            multiples of its last one.
    """

    bits: int = 15
    digits: int = 31

    @property
    def most(self) -> int:
        """Exponent of the largest factor."""
        return min(MOST_BITS, self.digits - 1)

    @property
    def unit(self) -> float:
        """What a scale is stored in, so that the largest lies just within the range."""
        return float(2.0 ** (self.bits - 1 - self.most))

    @property
    def largest(self) -> float:
        """The largest scale, as it is stored."""
        return float(2.0 ** (self.bits - 1))


class Sharing(StrEnum):
    """What shares a factor."""

    TENSOR = "tensor"
    CHANNEL = "channel"


@dataclass(frozen=True)
class StoredLayer:
    """A linear layer that can be rescaled.

    Attributes:
        output: The tensor it writes.
        weight: Name of the stored weight.
        words: Number of stored weights.
        largest: Largest magnitude among the weights of each output channel, ``[M]``.
        bias: Name of a bias that can be stored enlarged; None if it has none.
        biases: The bias's values; empty if it has none.
    """

    output: str
    weight: str
    words: int
    largest: Array
    bias: str | None
    biases: Array


class _NotRescalableError(Exception):
    """Carries the reason of a refusal."""


@dataclass
class RescaleWeights(Pass):
    """Let weights and biases fill the range of the memory format.

    A flip of bit k changes a word of Q15.16 by 2^(k - 16), whatever the word stands for. A weight
    that is stored as ``s w`` changes by 2^(k - 16) / s. So ``y = linear(x, w) + b`` becomes::

        y = linear(x, s w) / s + (t b) / t

    with ``s = 2^e`` for each output channel, or for the tensor, and e from 0 to 20 the largest that
    keeps ``s |w|`` below 2^15; ``t`` is the same for the whole bias. Powers of two change no digit
    of any product, sum or quotient. Stored are ``s w``, ``t b``, ``s / 64`` and ``t / 64``, and the
    graph takes ``min(max(|stored|, 1/64), 2^14) * 64`` for a scale: from 1 to 2^20, whatever a
    fault made of the stored one. Other formats have other numbers for 15, 20 and 64, see `Range`:
    in floating point, where the largest weight of a channel comes to lie from 0.5 to 1, exponents
    have ones in all places but the first, so that few flips enlarge a weight. A scale is stored as
    a divisor because it is then a large number: as a factor 1 / s it would lie in the last places
    of a word, where any flip of a higher bit is a huge change. A scale that a whole tensor shares
    is stored three times, and their median counts, because a flip would hit all that share it.
    Biases may be stored twice; of two copies the one nearer to zero counts, because the flips that
    matter make numbers large. Such a bias stays below half of the range, so that a flip of the
    sign, too, takes it further from zero, in two's complement.

    1. Behind Conv and ConvTranspose, grouped ones included, the division and the bias are one
       depthwise convolution of extent 1, with weights 1 / s. Runtimes compute these once, when they
       load the model, and stay in the layout of their convolutions.
    2. Gemm, and MatMul with a stored right-hand side, are followed by Div. A Gemm adds its bias
       enlarged, ``(linear(x, s w) + s (t b) / t) / s``.
    3. An Add of a constant behind a layer without a bias is its bias; it stays where it is.
    4. What comes last of these writes the layer's original output name.

    It refuses, with a reason, where the weight is not a finite float32 or float64 constant of this
    layer alone, or where a caller may override it. Float16 is refused because the enlarged sums
    could leave its range. A bias of which the same is true stays as it is stored.

    Attributes:
        sharing: What shares a factor. With ``channel``, biases are stored twice.
        by_tensor: Names of weights that share one factor and of biases that are stored once,
            whatever ``sharing`` says.
        range: What enlarged numbers are to fill.
        refusals: After ``call``: the layers with stored weights that stay, with their reasons.
        biases: After ``call``: the layers that are rescaled, but whose bias stays as it is stored,
            with their reasons.
        scales: After ``call``: the names of the initializers that store the scales of weights.
    """

    sharing: Sharing = Sharing.CHANNEL
    by_tensor: Collection[str] = ()
    range: Range = field(default_factory=Range)
    refusals: list[Refusal] = field(default_factory=list)
    biases: list[Refusal] = field(default_factory=list)
    scales: list[str] = field(default_factory=list)
    name: str = "rescale-weights"

    def requires(self, graph: gs.Graph) -> None:
        """Check that the graph is not rescaled yet.

        Raises:
            PreconditionError: If it stores a scale, or its opset is below 9.
        """
        if graph.opset < RESCALE_OPSET:
            raise PreconditionError(
                f"rescaling needs opset {RESCALE_OPSET} or newer, and the graph has {graph.opset}"
            )
        found = sorted(name for name in tensor_names(graph) if name.endswith(SCALE_SUFFIX))
        if found:
            raise PreconditionError(f"the graph holds {found[0]!r}: it is rescaled already")

    def call(self, graph: gs.Graph) -> int:
        """Rescale every layer that allows it; the others are listed in ``refusals``."""
        self.refusals.clear()
        self.biases.clear()
        self.scales.clear()
        rewriter = _Rewriter(graph, self._shared_by, self.range)
        for node in _stored_layers(graph):
            try:
                scale = rewriter.rescale(node)
            except _NotRescalableError as reason:
                self.refusals.append(Refusal(label(node), str(reason)))
            else:
                self.scales += [scale] if scale else []
        self.biases += rewriter.biases
        graph.nodes = rewriter.nodes()
        return len(self.scales)

    def _shared_by(self, name: str) -> Sharing:
        return Sharing.TENSOR if name in self.by_tensor else self.sharing

    def ensures(self, graph: gs.Graph) -> None:
        """Every scale must stand in the graph.

        Raises:
            PostconditionError: If one does not.
        """
        tensors = graph.tensors()
        for name in self.scales:
            if not isinstance(tensors.get(name), gs.Constant):
                raise PostconditionError(f"the scale {name!r} was not inserted")


@dataclass
class SurveyLayers(Pass):
    """List the layers that `RescaleWeights` can rescale; the graph stays as it is.

    Attributes:
        layers: After ``call``: the layers, in topological order.
    """

    layers: list[StoredLayer] = field(default_factory=list)
    name: str = "survey-layers"

    def call(self, graph: gs.Graph) -> int:
        """Fill ``layers``."""
        rewriter = _Rewriter(graph, lambda name: Sharing.CHANNEL, Range())
        self.layers.clear()
        for node in _stored_layers(graph):
            with suppress(_NotRescalableError):
                self.layers.append(rewriter.survey(node))
        return 0


@dataclass(frozen=True)
class _Bias:
    """A stored bias.

    Attributes:
        tensor: The constant.
        values: Its values as they are added, beta of a Gemm included.
        reader: The node that adds it: the layer itself, or an Add behind it.
    """

    tensor: gs.Constant
    values: Array
    reader: gs.Node


class _Rewriter:
    def __init__(self, graph: gs.Graph, shared_by: Callable[[str], Sharing], limits: Range) -> None:
        self._graph = graph
        self._shared_by = shared_by
        self._range = limits
        self._taken = tensor_names(graph) | {node.name for node in graph.nodes}
        self._constants: dict[str, gs.Constant] = {}
        self.biases: list[Refusal] = []
        # By id of a node of the graph: the new nodes before and behind it.
        self._before: dict[int, list[gs.Node]] = {}
        self._behind: dict[int, list[gs.Node]] = {}

    def nodes(self) -> list[gs.Node]:
        """All nodes, the new ones in their places."""
        placed = []
        for node in self._graph.nodes:
            placed += [*self._before.get(id(node), []), node, *self._behind.get(id(node), [])]
        return placed

    def rescale(self, node: gs.Node) -> str | None:
        """Rescale a layer; returns the name of its scale, or None where nothing can be gained."""
        weight = node.inputs[1]
        values = self._weight(node)
        factor = self._factor(self._largest(node, values))
        if (factor == 1).all():
            return None
        bias = self._bias(node)
        if bias is None and input_at(node, 2) is not None and node.attrs.get("beta", 1.0) != 1.0:
            raise _NotRescalableError(f"its bias {node.inputs[2].name!r} is multiplied by beta")
        weight.values = values * along_output(node, values, factor)
        folded: list[gs.Node] = []
        output = node.outputs[0]
        stored_bias = None if bias is None else self._scale_bias(bias, folded)
        product = self._variable(output, "product")
        node.outputs = [product]
        prefix = f"{node.name or output.name}/rescale/"
        own = input_at(node, 2) if node.op in LINEAR else None
        added = stored_bias if bias is not None and bias.reader is node else own
        node.inputs = node.inputs[:2]
        scale, steps = self._scale(prefix, output.name, factor)
        folded += steps
        if node.op in ("Conv", "ConvTranspose"):
            shape = [largest_by_channel(node, values).size, *[1] * (values.ndim - 1)]
            kernel = self._kernel(prefix, output, scale, shape if not factor.ndim else None, folded)
            inputs = [product, kernel] if added is None else [product, kernel, added]
            undo = self._node("Conv", prefix, inputs, output)
            undo.attrs = {"group": shape[0], "kernel_shape": shape[2:]}
        else:
            undo = self._node("Div", prefix, [product, scale], output)
            if added is not None:
                node.attrs.pop("beta", None)
                node.inputs.append(self._enlarged(prefix, output, added, scale, folded))
                self._before[id(node)], folded = folded, []
        self._behind[id(node)] = [*folded, undo]
        return f"{output.name}{SCALE_SUFFIX}"

    def survey(self, node: gs.Node) -> StoredLayer:
        """Describe a layer without changing it."""
        values = self._weight(node)
        bias = self._bias(node)
        return StoredLayer(
            output=node.outputs[0].name,
            weight=node.inputs[1].name,
            words=values.size,
            largest=largest_by_channel(node, values),
            bias=None if bias is None else bias.tensor.name,
            biases=np.zeros(0) if bias is None else bias.values,
        )

    def _weight(self, node: gs.Node) -> Array:
        weight = node.inputs[1]
        values = self._constant(weight, "weight", node)
        if values.ndim < 2:
            raise _NotRescalableError(f"its weight {weight.name!r} is a vector")
        return values

    def _kernel(
        self,
        prefix: str,
        output: gs.Tensor,
        scale: gs.Tensor,
        shape: list[int] | None,
        steps: list[gs.Node],
    ) -> gs.Tensor:
        """The weights 1 / s of a depthwise convolution; a single scale is spread to a shape."""
        kernel = self._variable(output, KERNEL, scale)
        steps.append(self._node("Reciprocal", prefix, [scale], kernel))
        if shape is None:
            return kernel
        name = f"rescale/extents/{'x'.join(map(str, shape))}"
        expanded = self._variable(output, KERNEL, scale)
        extents = self._shared(name, np.array(shape, np.int64))
        steps.append(self._node("Expand", prefix, [kernel, extents], expanded))
        return expanded

    def _enlarged(
        self,
        prefix: str,
        output: gs.Tensor,
        bias: gs.Tensor,
        scale: gs.Tensor,
        steps: list[gs.Node],
    ) -> gs.Tensor:
        """Multiply a bias by what the product that it is added to is divided by."""
        # The name says that a bias is read here, where it is stored as it is.
        owner = bias if isinstance(bias, gs.Constant) else output
        enlarged = self._variable(owner, "enlarged", bias)
        steps.append(self._node("Mul", prefix, [bias, scale], enlarged))
        return enlarged

    def _largest(self, node: gs.Node, weight: Array) -> Array:
        """Largest weights among those that share a factor, of a shape to divide the product by."""
        largest = largest_by_channel(node, weight)
        if self._shared_by(node.inputs[1].name) is Sharing.TENSOR:
            return np.asarray(largest.max(initial=0))
        if node.op in ("Conv", "ConvTranspose"):
            return largest.reshape(-1, *[1] * (weight.ndim - 1))
        return largest

    def _factor(self, largest: Array, headroom: int = 0) -> Array:
        """Powers of two that let numbers of these magnitudes fill the range but for some bits."""
        most = self._range.most
        # largest is below 2^exponent, so 2^(bits - exponent) keeps it within the range.
        exponents = self._range.bits - headroom - np.frexp(largest)[1]
        exponents = np.where(largest > 0, exponents, most)
        return np.asarray(np.ldexp(np.ones((), largest.dtype), np.clip(exponents, 0, most)))

    def _scale_bias(self, bias: _Bias, steps: list[gs.Node]) -> gs.Tensor:
        """Store a bias enlarged; returns what is added in its place."""
        stored = bias.tensor
        twice = self._shared_by(stored.name) is Sharing.CHANNEL
        factor = self._factor(np.abs(bias.values).max(initial=0), headroom=int(twice))
        stored.values = np.asarray(bias.values * factor, bias.values.dtype)
        prefix = f"{bias.reader.name or bias.reader.outputs[0].name}/rescale/bias/"
        scale, undo = self._scale(prefix, stored.name, factor)
        steps += undo
        reading: gs.Tensor = stored
        if twice:
            copy = gs.Constant(f"{stored.name}{COPY_SUFFIX}", np.array(stored.values))
            self._taken.add(copy.name)
            reading = self._nearer_zero(prefix, stored, copy, steps)
        added = self._variable(stored, "bias", stored)
        redirect([bias.reader], stored, added)
        steps.append(self._node("Div", prefix, [reading, scale], added))
        return added

    def _nearer_zero(
        self, prefix: str, one: gs.Tensor, other: gs.Tensor, steps: list[gs.Node]
    ) -> gs.Tensor:
        """Of two copies take, element by element, the one of smaller magnitude."""
        magnitudes: list[gs.Tensor] = []
        for stored in (one, other):
            magnitude = self._variable(stored, "magnitude", stored)
            steps.append(self._node("Abs", prefix, [stored], magnitude))
            magnitudes.append(magnitude)
        smaller = gs.Variable(unique_name(f"{one.name}/rescale/smaller", self._taken))
        chosen = self._variable(one, "chosen", one)
        steps.append(self._node("Less", prefix, magnitudes[::-1], smaller))
        steps.append(self._node("Where", prefix, [smaller, other, one], chosen))
        return chosen

    def _scale(self, prefix: str, owner: str, factor: Array) -> tuple[gs.Tensor, list[gs.Node]]:
        """Store a factor; returns what is to be divided by, and the steps to it."""
        unit, largest = (
            self._shared(f"rescale/{role}/{factor.dtype}", np.asarray(value, factor.dtype))
            for role, value in (("unit", self._range.unit), ("largest", self._range.largest))
        )
        steps: list[gs.Node] = []

        def add(op: str, inputs: list[gs.Tensor], role: str) -> gs.Tensor:
            result = gs.Variable(unique_name(f"{owner}/rescale/{role}", self._taken))
            steps.append(self._node(op, prefix, inputs, result))
            return result

        copies = [
            gs.Constant(f"{owner}{copy}{SCALE_SUFFIX}", np.asarray(factor * unit.values))
            for copy in (("",) if factor.ndim else ("", "/second", "/third"))
        ]
        self._taken.update(copy.name for copy in copies)
        stored: gs.Tensor = copies[0]
        if len(copies) > 1:
            lower, higher = (add(op, copies[:2], "pair") for op in ("Min", "Max"))
            stored = add("Max", [lower, add("Min", [higher, copies[2]], "lower")], "median")
        raised = add("Max", [add("Abs", [stored], "magnitude"), unit], "raised")
        bounded = add("Min", [raised, largest], "bounded")
        return add("Div", [bounded, unit], FACTOR), steps

    def _bias(self, node: gs.Node) -> _Bias | None:
        """The bias of a layer, where it can be stored enlarged."""
        try:
            tensor = input_at(node, 2) if node.op in LINEAR else None
            if tensor is None:
                return self._added_behind(node)
            values = self._constant(tensor, "bias", node)
        except _NotRescalableError as reason:
            self.biases.append(Refusal(label(node), str(reason)))
            return None
        if node.op == "Gemm":
            values = values * values.dtype.type(node.attrs.get("beta", 1.0))
        return _Bias(tensor, values, node)

    def _added_behind(self, node: gs.Node) -> _Bias | None:
        """A constant that the only reader of a layer adds; None where it must stay as it is."""
        output = node.outputs[0]
        if len(output.outputs) != 1 or is_among(output, self._graph.outputs):
            return None
        add = output.outputs[0]
        tensor = next((other for other in add.inputs if other is not output), None)
        if add.op != "Add" or not in_default_domain(add) or not isinstance(tensor, gs.Constant):
            return None
        return _Bias(tensor, self._constant(tensor, "bias", add), add)

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

    def _shared(self, name: str, values: npt.NDArray[Any]) -> gs.Constant:
        """A number of the program that all layers share."""
        if name not in self._constants:
            self._constants[name] = gs.Constant(unique_name(name, self._taken), values)
        return self._constants[name]

    def _variable(self, like: gs.Tensor, role: str, typed: gs.Tensor | None = None) -> gs.Variable:
        name = unique_name(f"{like.name}/rescale/{role}", self._taken)
        if typed is not None:
            return gs.Variable(name, dtype=typed.dtype)
        return gs.Variable(name, dtype=like.dtype, shape=like.shape)

    def _node(self, op: str, prefix: str, inputs: list[gs.Tensor], output: gs.Tensor) -> gs.Node:
        return gs.Node(op, unique_name(prefix + op, self._taken), inputs=inputs, outputs=[output])


def _stored_layers(graph: gs.Graph) -> list[gs.Node]:
    """Linear layers with a constant for a weight."""
    return [
        node
        for node in graph.nodes
        if (node.op == "MatMul" or node.op in LINEAR)
        and in_default_domain(node)
        and len(node.inputs) > 1
        and isinstance(node.inputs[1], gs.Constant)
    ]
