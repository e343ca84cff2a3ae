"""The fault space: which stored parameters a memory fault can hit."""

import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import onnx
from onnx import numpy_helper

from proact_onnx.errors import SettingsError
from proact_onnx.model import is_threshold

_QUANTISED = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)

# Inputs that describe the computation rather than take part in it: a compiler turns them into
# code, so no memory holds them as parameters. Of these operators, every input but the first,
# unless it is a threshold that hardening stored.
_STRUCTURAL = frozenset({"Clip", "Dropout", "OneHot", "Pad", "Range", "Resize", "Upsample"})

_BIAS_INPUTS: Mapping[str, frozenset[int]] = {
    "Conv": frozenset({2}),
    "ConvTranspose": frozenset({2}),
    "Gemm": frozenset({2}),
    "BatchNormalization": frozenset({2, 3}),
    "InstanceNormalization": frozenset({2}),
    "LayerNormalization": frozenset({2}),
}


class Kind(StrEnum):
    """The role of a stored parameter."""

    WEIGHT = "weight"
    BIAS = "bias"
    THRESHOLD = "threshold"


@dataclass(frozen=True)
class Parameter:
    """One initializer in the fault space.

    Attributes:
        name: Name of the initializer.
        kind: Weight, bias or threshold.
        shape: Its shape.
        layer: Name of the node that reads it first (its output where the node has none).
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    layer: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FaultSpace:
    """An ordered list of parameters, each element a word of ``width`` bits.

    Attributes:
        parameters: In the order of the graph.
        width: Bits of one word.
    """

    parameters: tuple[Parameter, ...]
    width: int

    @property
    def elements(self) -> int:
        """Number of stored words."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def bits(self) -> int:
        """Number of bits that can flip."""
        return self.elements * self.width

    def restrict(self, kinds: Sequence[str] = (), layers: Sequence[str] = ()) -> "FaultSpace":
        """Keep the parameters of some kinds, or of some layers.

        Args:
            kinds: ``weight``, ``bias``, ``threshold``; empty keeps all.
            layers: Shell patterns matched against layer and parameter names; empty keeps all.

        Raises:
            SettingsError: If a kind does not exist or nothing is left.
        """
        unknown = [kind for kind in kinds if kind not in list(Kind)]
        if unknown:
            raise SettingsError(
                f"unknown fault target {unknown[0]!r}: choose among {', '.join(Kind)}"
            )
        kept = [p for p in self.parameters if not kinds or p.kind in kinds]
        if not kept:
            raise SettingsError(
                f"the model stores no parameter of kind {' or '.join(kinds or Kind)}: "
                "choose other --targets, or another model"
            )
        for pattern in layers:
            if not any(_matches(parameter, pattern) for parameter in kept):
                raise SettingsError(
                    f"no parameter to fault matches layer pattern {pattern!r}: "
                    f"'proact-onnx inspect --layers' lists them"
                )
        if layers:
            kept = [p for p in kept if any(_matches(p, pattern) for pattern in layers)]
        return FaultSpace(tuple(kept), self.width)


def fault_space(model: onnx.ModelProto, width: int) -> FaultSpace:
    """List the parameters that the model keeps in memory.

    These are its floating-point initializers and `Constant` nodes (exporters differ in which they
    write), and the thresholds that hardening added. A number without an axis, such as a scale or
    the zero that all bounds write, is an immediate operand of the program; sizes, paddings and
    clip bounds are part of the computation: none of these are in the fault space.

    Args:
        model: Any ONNX model.
        width: Bits of one stored word.

    Returns:
        The fault space, in the order in which the graph first reads its parameters.
    """
    stored = _stored_shapes(model.graph)
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in _walk(model.graph):
        for position, name in enumerate(node.input):
            if name in stored:
                readers[name].append((node, position))
    parameters = []
    for name, uses in readers.items():
        arithmetic = [
            (node, position) for node, position in uses if not _structural(node, position)
        ]
        if arithmetic:
            node, position = arithmetic[0]
            parameters.append(
                Parameter(
                    name, _kind(name, stored[name], node, position), stored[name], _layer(node)
                )
            )
    return FaultSpace(tuple(parameters), width)


def parameter_count(model: onnx.ModelProto) -> int:
    """Number of weights and biases, 8-bit ones included and thresholds left out (Eq. 6)."""
    floats = fault_space(model, 32).parameters
    return quantised_count(model) + sum(p.size for p in floats if p.kind is not Kind.THRESHOLD)


def quantised_count(model: onnx.ModelProto) -> int:
    """Number of weights that are quantised to 8 bits."""
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type in _QUANTISED
    )


def _stored_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    stored = {
        tensor.name: tuple(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type in _FLOATS
    }
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.t.data_type in _FLOATS:
                    stored[node.output[0]] = tuple(attribute.t.dims)
                elif attribute.name == "value_floats":
                    stored[node.output[0]] = (len(attribute.floats),)
        elif node.op_type == "ConstantOfShape":
            shape = _constant_of_shape(graph, node)
            if shape is not None:
                stored[node.output[0]] = shape
    return {
        name: shape
        for name, shape in stored.items()
        if math.prod(shape) > 0 and (shape or is_threshold(name))
    }


def _constant_of_shape(graph: onnx.GraphProto, node: onnx.NodeProto) -> tuple[int, ...] | None:
    value = next((a.t for a in node.attribute if a.name == "value"), None)
    if value is not None and value.data_type not in _FLOATS:
        return None
    for tensor in graph.initializer:
        if tensor.name == node.input[0]:
            return tuple(int(extent) for extent in numpy_helper.to_array(tensor))
    for other in graph.node:
        if other.op_type == "Constant" and other.output[0] == node.input[0]:
            constant = next((a for a in other.attribute if a.name == "value"), None)
            if constant is not None:
                return tuple(int(extent) for extent in numpy_helper.to_array(constant.t).ravel())
    return None


def _walk(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from _walk(body)


def _structural(node: onnx.NodeProto, position: int) -> bool:
    describes = node.op_type in _STRUCTURAL and position > 0
    return describes and not is_threshold(node.input[position])


def _kind(name: str, shape: tuple[int, ...], node: onnx.NodeProto, position: int) -> Kind:
    if is_threshold(name):
        return Kind.THRESHOLD
    if position in _BIAS_INPUTS.get(node.op_type, frozenset()):
        return Kind.BIAS
    if node.op_type == "Add" and math.prod(shape) == max(shape, default=1):
        return Kind.BIAS
    return Kind.WEIGHT


def _layer(node: onnx.NodeProto) -> str:
    return node.name or next(iter(node.output), node.op_type)


def _matches(parameter: Parameter, pattern: str) -> bool:
    return fnmatch.fnmatchcase(parameter.layer, pattern) or fnmatch.fnmatchcase(
        parameter.name, pattern
    )
