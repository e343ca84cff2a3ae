"""Faults in the weights of protected layers, and whether the bounds contain them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.deploy.base import Array
from proact_onnx.messages import node_reads, subgraphs, with_values
from proact_onnx.model import (
    FLOAT_LIMITS,
    FLOAT_TYPES,
    HYRELU,
    LOWER_SUFFIX,
    RESCALE,
    THRESHOLD_SUFFIX,
)

# What is planted; behind float16 the last is the largest finite number.
PLANTED = {"+inf": np.inf, "-inf": -np.inf, "NaN": np.nan, "1e30": 1e30}

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What these tell of a tensor does not depend on its values.
_EXTENTS = ("Shape", "Size")
# Rounding of a bound's own arithmetic.
_MARGIN = 1e-3


@dataclass(frozen=True)
class Bounds:
    """What a hardened model protects.

    Attributes:
        thresholds: By bounded activation of the main graph, in topological order.
        weights: Names of the weights of protected layers: those whose output reaches nothing but
            bounded activations, and no subgraph before them.
        lower: By bounded activation that may be negative, its lower thresholds; of those that the
            function itself bounds from below, the lowest finite number.
    """

    thresholds: Mapping[str, Array]
    weights: tuple[str, ...]
    lower: Mapping[str, Array] = field(default_factory=dict)


def find_bounds(model: onnx.ModelProto) -> Bounds:
    """Find the bounds of a hardened model, and the layers they protect."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node_reads(node):
            readers.setdefault(name, []).append(node)
    written = [name for node in model.graph.node for name in node.output]
    order = {name: place for place, name in enumerate(written)}
    thresholds = {
        name.removesuffix(THRESHOLD_SUFFIX): numpy_helper.to_array(tensor)
        for name, tensor in stored.items()
        if name.endswith(THRESHOLD_SUFFIX) and name.removesuffix(THRESHOLD_SUFFIX) in order
    }
    ends = {info.name for info in model.graph.output}
    weights = [
        node.input[1]
        for node in model.graph.node
        if node.op_type in _LINEAR
        and not _within_bound(node)
        and node.input[1] in stored
        and stored[node.input[1]].data_type in FLOAT_TYPES
        and len(readers[node.input[1]]) == 1
        and _is_protected(node.output[0], readers, thresholds, ends)
    ]
    lower = {
        name: numpy_helper.to_array(stored[f"{name}{LOWER_SUFFIX}"])
        if f"{name}{LOWER_SUFFIX}" in stored
        else np.array(-FLOAT_LIMITS[values.dtype])
        for name, values in thresholds.items()
        if f"{name}{LOWER_SUFFIX}" in stored or f"{name}{HYRELU}value" in order
    }
    ordered = sorted(thresholds.items(), key=lambda item: order[item[0]])
    return Bounds(dict(ordered), tuple(weights), lower)


def plant(model: onnx.ModelProto, weights: Iterable[str], value: float) -> onnx.ModelProto:
    """Copy a model, writing a value over the largest number of each of some weights."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    changed = {}
    for name in weights:
        array = numpy_helper.to_array(stored[name]).copy()
        limit = float(np.finfo(array.dtype).max)
        array.reshape(-1)[np.abs(array).argmax()] = (
            min(value, limit) if np.isfinite(value) else value
        )
        changed[name] = array
    return with_values(model, changed)


def first_leak(outputs: Sequence[Array], hidden: Mapping[str, Array], bounds: Bounds) -> str | None:
    """Name the first bounded activation that is out of its thresholds, or output not finite.

    Args:
        outputs: The outputs of a model with faults.
        hidden: Its bounded activations, in topological order; empty where they are not known.
        bounds: What they are kept to.

    Returns:
        The tensor's name, ``"the outputs"``, or None where everything is contained.
    """
    for name, values in hidden.items():
        lowest, highest = (
            _along(np.abs(ends.get(name, np.zeros(()))).astype(np.float64), values) * (1 + _MARGIN)
            for ends in (bounds.lower, bounds.thresholds)
        )
        # A comparison with NaN does not hold.
        if not ((values >= -lowest) & (values <= highest)).all():
            return name
    if not all(np.isfinite(values).all() for values in outputs if values.dtype.kind == "f"):
        return "the outputs"
    return None


def _along(limit: Array, values: Array) -> Array:
    """Bring thresholds to the axes of an activation; one axis alone is that of the channels."""
    if limit.ndim == 1 and values.ndim > 1:
        return limit.reshape(1, -1, *[1] * (values.ndim - 2))
    return limit


def _within_bound(node: onnx.NodeProto) -> bool:
    """Tell whether a node computes with what a bound computed, and not with the layer's input."""
    return HYRELU in node.input[0]


def _is_protected(
    start: str,
    readers: Mapping[str, list[onnx.NodeProto]],
    thresholds: Mapping[str, Array],
    ends: set[str],
) -> bool:
    """Tell whether every way from a tensor leads to a bounded activation."""
    reached, open_ends = {start}, [start]
    while open_ends:
        tensor = open_ends.pop()
        if tensor in ends:
            return False
        for node in readers.get(tensor, []):
            if node.op_type in _EXTENTS or _is_activation(node, thresholds):
                continue
            if any(subgraphs(node)):
                return False
            # Rescaling divides in a convolution of its own.
            if node.op_type in _LINEAR and RESCALE not in node.input[0]:
                return False
            new = set(node.output) - reached
            reached |= new
            open_ends += new
    return True


def _is_activation(node: onnx.NodeProto, thresholds: Mapping[str, Array]) -> bool:
    """Tell whether a node is, or belongs to, a bounded activation."""
    return any(HYRELU in name or name in thresholds for name in node.output)
