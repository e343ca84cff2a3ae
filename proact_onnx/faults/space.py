"""The fault space: which stored parameters a memory fault can hit."""

import fnmatch
import functools
import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.errors import SettingsError
from proact_onnx.faults.quantisers import Role, quantiser_role
from proact_onnx.model import HYRELU, RESCALE, is_copy, is_scale, is_threshold

_INTEGERS = (
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.INT32,
)
_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)

# Inputs that describe the computation rather than take part in it: a compiler turns them into
# code, so no memory holds them as parameters. Of these operators, every input but the first,
# unless it is a threshold that hardening stored.
_STRUCTURAL = frozenset({"Clip", "Dropout", "OneHot", "Pad", "Range", "Resize", "Upsample"})

# Where Conv and Gemm read a bias.
_BIAS = 2
_BIAS_INPUTS: Mapping[str, frozenset[int]] = {
    "Conv": frozenset({2}),
    "ConvTranspose": frozenset({2}),
    "Gemm": frozenset({2}),
    "BatchNormalization": frozenset({2, 3}),
    "InstanceNormalization": frozenset({2}),
    "LayerNormalization": frozenset({2}),
    "QGemm": frozenset({6}),
    "QLinearConv": frozenset({8}),
}


class Kind(StrEnum):
    """The role of a stored parameter.

    A ``scale`` divides what rescaled weights enlarged, and hardening adds it; a ``quant-scale`` is
    the step between the integers of a quantised model, and its ``zero-point`` the integer that
    stands for 0.
    """

    WEIGHT = "weight"
    BIAS = "bias"
    THRESHOLD = "threshold"
    SCALE = "scale"
    COPY = "copy"
    QUANT_SCALE = "quant-scale"
    ZERO_POINT = "zero-point"

    @property
    def is_added(self) -> bool:
        """Whether hardening added the parameter; the original model has none of its kind."""
        return self in (Kind.THRESHOLD, Kind.SCALE, Kind.COPY)


@dataclass(frozen=True)
class Parameter:
    """One initializer in the fault space.

    Attributes:
        name: Name of the initializer.
        kind: What it is to the network.
        shape: Its shape.
        layer: Name of the node that reads it first (its output where the node has none).
        width: Bits of one stored word: those of the memory format, or of the type in the file.
        bits: Positions of the bits that can be faulty, ascending; bit 0 is the least significant.
        stored_as: The type in which it is stored whatever the memory format, such as ``int8``, for
            the integers of a quantised model, its scales and zero points; empty for all others.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    layer: str
    width: int
    bits: tuple[int, ...]
    stored_as: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FaultSpace:
    """An ordered list of parameters, each element a word in memory.

    Attributes:
        parameters: In the order of the graph.
    """

    parameters: tuple[Parameter, ...]

    @property
    def elements(self) -> int:
        """Number of stored words."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def bits(self) -> int:
        """Number of bits that can be faulty."""
        return sum(parameter.size * len(parameter.bits) for parameter in self.parameters)

    @functools.cached_property
    def digest(self) -> str:
        """Tells this space from others by the names and bits of its parameters."""
        content = repr([(p.name, p.size, p.bits) for p in self.parameters])
        return hashlib.sha256(content.encode()).hexdigest()

    def restrict(
        self,
        kinds: Sequence[str] = (),
        layers: Sequence[str] = (),
        bits: Collection[int] | None = None,
    ) -> "FaultSpace":
        """Keep the parameters of some kinds, or of some layers, or some of their bits.

        Args:
            kinds: Values of `Kind`; empty keeps all.
            layers: Shell patterns matched against layer and parameter names; empty keeps all.
            bits: Positions of bits, 0 the least significant; None keeps all.

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
            present = ", ".join(dict.fromkeys(p.kind for p in self.parameters)) or "none at all"
            raise SettingsError(
                f"the model stores no parameter of kind {' or '.join(kinds or Kind)} (it has "
                f"{present}): choose other --targets, or another model"
            )
        for pattern in layers:
            if not any(_matches(parameter, pattern) for parameter in kept):
                raise SettingsError(
                    f"no parameter to fault matches layer pattern {pattern!r}: "
                    f"'proact-onnx inspect --layers' lists them"
                )
        if layers:
            kept = [p for p in kept if any(_matches(p, pattern) for pattern in layers)]
        if bits is not None:
            widest = max(parameter.width for parameter in kept)
            kept = [replace(p, bits=tuple(b for b in p.bits if b in bits)) for p in kept]
            kept = [parameter for parameter in kept if parameter.bits]
            if not kept:
                raise SettingsError(
                    f"no stored word has the bits asked for: they are numbered 0 to {widest - 1}, "
                    "0 the least significant"
                )
        return FaultSpace(tuple(kept))


def fault_space(model: onnx.ModelProto, width: int | None) -> FaultSpace:
    """List the parameters that the model keeps in memory.

    These are its floating-point initializers and `Constant` nodes (exporters differ in which they
    write), the integer weights and biases of quantised models with their scales and zero points,
    and the thresholds and scales that hardening added. Another number without an axis, such as the
    zero that all bounds write, is an immediate operand of the program; sizes, paddings and clip
    bounds are part of the computation, and the zero points of 32-bit biases are 0 by definition:
    none of these are in the fault space.

    Args:
        model: Any ONNX model.
        width: Bits of one stored word of a floating-point weight, bias or threshold; None for
            those of its own type. Quantised parameters always have their own.

    Returns:
        The fault space, in the order in which the graph first reads its parameters; the weights of
        a layer come before what rescaling computes its bias from.
    """
    stored = _stored(model.graph)
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in _layers_first(list(_walk(model.graph))):
        for position, name in enumerate(node.input):
            if name in stored and not _structural(node, position, stored[name]):
                readers[name].append((node, position))
    parameters = []
    for name, uses in readers.items():
        node, position = uses[0]
        found = stored[name]
        as_it_is = found.integer or quantiser_role(node, position) is Role.SCALE
        bits = width if width and not as_it_is else 8 * found.dtype.itemsize
        parameters.append(
            Parameter(
                name=name,
                kind=_kind(name, found, node, position),
                shape=found.shape,
                layer=_layer(name, node),
                width=bits,
                bits=tuple(range(bits)),
                stored_as=str(found.dtype) if as_it_is else "",
            )
        )
    return FaultSpace(tuple(parameters))


def parameter_count(model: onnx.ModelProto) -> int:
    """Number of weights and biases, quantised ones included (Eq. 6)."""
    parameters = fault_space(model, None).parameters
    return sum(p.size for p in parameters if p.kind in (Kind.WEIGHT, Kind.BIAS))


def added_count(model: onnx.ModelProto) -> int:
    """Number of thresholds, scales and copies: what protection stores besides (Eq. 6)."""
    parameters = fault_space(model, None).parameters
    return sum(p.size for p in parameters if p.kind.is_added)


class _Stored(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def integer(self) -> bool:
        return self.dtype.kind in "iu"


def _stored(graph: onnx.GraphProto) -> dict[str, _Stored]:
    float32 = np.dtype(np.float32)
    stored = {}
    for tensor in graph.initializer:
        if tensor.data_type in (*_FLOATS, *_INTEGERS):
            stored[tensor.name] = _described(tensor)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                known = attribute.t.data_type in (*_FLOATS, *_INTEGERS)
                if attribute.name == "value" and known:
                    stored[node.output[0]] = _described(attribute.t)
                elif attribute.name == "value_floats":
                    stored[node.output[0]] = _Stored((len(attribute.floats),), float32)
        elif node.op_type == "ConstantOfShape":
            shape = _constant_of_shape(graph, node)
            if shape is not None:
                stored[node.output[0]] = _Stored(shape, float32)
    return {name: found for name, found in stored.items() if math.prod(found.shape) > 0}


def _described(tensor: onnx.TensorProto) -> _Stored:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return _Stored(tuple(tensor.dims), dtype)


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


def _layers_first(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Put layers before the nodes that compute an enlarged bias for them.

    So weights and biases have the same order with rescaling and without, and a fixed number of
    flips hits the same ones.
    """
    written = {name: place for place, node in enumerate(nodes) for name in node.output}

    def ahead(name: str) -> dict[str, int]:
        """What hardening computes a tensor from, itself included, and where."""
        if name not in written or not (HYRELU in name or RESCALE in name):
            return {}
        found = {name: written[name]}
        for read in nodes[written[name]].input:
            found |= ahead(read)
        return found

    places = [(place, 1) for place in range(len(nodes))]
    for place, node in enumerate(nodes):
        if node.op_type in ("Conv", "Gemm") and len(node.input) > _BIAS:
            found = ahead(node.input[_BIAS])
            if any(RESCALE in name for name in found):
                places[place] = (min(found.values()), 0)
    return [nodes[place] for place in sorted(range(len(nodes)), key=places.__getitem__)]


def _structural(node: onnx.NodeProto, position: int, stored: _Stored) -> bool:
    """Tell whether an input describes the computation, or is an operand of the program."""
    name, role = node.input[position], quantiser_role(node, position)
    if stored.integer:
        # All other integers are sizes and axes; a 32-bit zero point belongs to a bias.
        return role is None or (role is Role.ZERO_POINT and stored.dtype.itemsize == 4)
    if not stored.shape:
        return role is None and not (is_threshold(name) or is_scale(name))
    describes = node.op_type in _STRUCTURAL and position > 0
    return describes and not is_threshold(name)


def _kind(name: str, stored: _Stored, node: onnx.NodeProto, position: int) -> Kind:
    if is_threshold(name):
        return Kind.THRESHOLD
    if is_scale(name):
        return Kind.SCALE
    if is_copy(name):
        return Kind.COPY
    role = quantiser_role(node, position)
    if role is Role.SCALE:
        return Kind.QUANT_SCALE
    if role is Role.ZERO_POINT:
        return Kind.ZERO_POINT
    if _reads_bias(name, node):
        return Kind.BIAS
    if position in _BIAS_INPUTS.get(node.op_type, frozenset()):
        return Kind.BIAS
    # Quantisers write biases in the wide integers that products are summed in.
    if node.op_type == "DequantizeLinear" and position == 0 and stored.dtype.itemsize == 4:
        return Kind.BIAS
    vector = math.prod(stored.shape) == max(stored.shape, default=1)
    return Kind.BIAS if node.op_type in ("Add", "QLinearAdd") and vector else Kind.WEIGHT


def _layer(parameter: str, node: onnx.NodeProto) -> str:
    # Hardening reads biases and scales in nodes of its own, which are named after the layer's.
    name = node.name or next(iter(node.output), node.op_type)
    return name.split(HYRELU if _reads_bias(parameter, node) else RESCALE)[0].split(RESCALE)[0]


def _reads_bias(parameter: str, node: onnx.NodeProto) -> bool:
    """Tell whether a node that hardening added reads a bias: to undo its scale, or to shift it."""
    written = str(node.output[0])
    return written.startswith(f"{parameter}{RESCALE}") or written.endswith(f"{HYRELU}bias")


def _matches(parameter: Parameter, pattern: str) -> bool:
    return fnmatch.fnmatchcase(parameter.layer, pattern) or fnmatch.fnmatchcase(
        parameter.name, pattern
    )
