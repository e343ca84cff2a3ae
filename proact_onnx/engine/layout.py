"""Where the parameters of a model lie once ONNX Runtime has optimised its graph.

Optimisers reorder weights, as blocked convolutions do. Their layout is found by optimising the
model a second time, with parameters whose bit patterns are their own indices. Integers have too few
bit patterns for that; quantised operators read their weights as stored, so these must lie unchanged
under their own name.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from proact_onnx.engine.session import Indices
from proact_onnx.messages import with_values

Optimise = Callable[[onnx.ModelProto], onnx.ModelProto]
# Buffers that hold a parameter, each with the position of every element of the parameter (None
# where the layout is the stored one).
Places = list[tuple[str, npt.NDArray[np.signedinteger[Any]] | None]]

# Index i is written as the float whose bit pattern is this base plus i: 1.0 and upwards, far from
# zeros, subnormals and NaNs that an optimiser might treat specially.
_PROBE_BASE = 0x3F800000
# Elements looked at together.
_BLOCK = 1 << 20
_PROBE_LIMIT = 0x7F800000 - _PROBE_BASE


class LayoutError(Exception):
    """The optimised graph does not hold every parameter as stored; the message says why."""


def find_places(
    model: onnx.ModelProto, optimised: onnx.ModelProto, parameters: list[str], optimise: Optimise
) -> Mapping[str, Places]:
    """Find where each element of each parameter lies in the optimised graph.

    Args:
        model: The model, every parameter an initializer.
        optimised: What ``optimise`` makes of it.
        parameters: Names of the parameters.
        optimise: Rewrites a model without calculating with its parameters.

    Raises:
        LayoutError: If a parameter is not in the optimised graph as it is stored, or is neither
            float32 nor an integer.
    """
    stored = {t.name: t for t in model.graph.initializer if t.name in set(parameters)}
    floats = [t for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT]
    places = _probe(model, optimised, floats, optimise) if floats else {}
    kept = {tensor.name: tensor for tensor in optimised.graph.initializer}
    for name, tensor in stored.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tensor.data_type == onnx.TensorProto.FLOAT:
            continue
        if dtype.kind not in "iu":
            raise LayoutError(f"parameter {name!r} is stored as {dtype}")
        if name not in kept or not _same(kept[name], tensor):
            raise LayoutError(f"the optimiser changes parameter {name!r}")
        places[name] = [(name, None)]
    return places


def _same(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    return (
        one.data_type == other.data_type
        and one.dims == other.dims
        and numpy_helper.to_array(one).tobytes() == numpy_helper.to_array(other).tobytes()
    )


def _probe(
    model: onnx.ModelProto,
    optimised: onnx.ModelProto,
    parameters: list[onnx.TensorProto],
    optimise: Optimise,
) -> dict[str, Places]:
    """Find the places of float32 parameters."""
    names = [tensor.name for tensor in parameters]
    sizes = [math.prod(tensor.dims) for tensor in parameters]
    starts = np.cumsum([0, *sizes])
    if starts[-1] > _PROBE_LIMIT:
        raise LayoutError("the model has too many parameters to number them")
    numbers = {
        tensor.name: np.arange(start, start + size, dtype=np.uint32)
        .view(np.float32)
        .reshape(tensor.dims)
        for tensor, start, size in zip(parameters, starts + _PROBE_BASE, sizes, strict=False)
    }
    probe = with_values(model, numbers)
    del numbers
    probed = optimise(probe)
    del probe
    twins = _match(probed, optimised)
    before = {tensor.name: tensor for tensor in optimised.graph.initializer}
    places: dict[str, Places] = {name: [] for name in names}
    for tensor in probed.graph.initializer:
        twin = before.get(twins.get(tensor.name, ""))
        # A constant that is no parameter may hold numbers like those that mark parameters.
        if twin is None or tensor.data_type != onnx.TensorProto.FLOAT or _same(tensor, twin):
            continue
        for owner, (positions, count) in _positions(numpy_helper.to_array(tensor), starts).items():
            if count != len(positions) or (positions < 0).any():
                raise LayoutError(
                    "the optimiser calculates with parameters, or splits them, as with "
                    f"{names[owner]!r}"
                )
            stored_order = np.array_equal(positions, np.arange(count, dtype=positions.dtype))
            places[names[owner]].append((twin.name, None if stored_order else positions))
    for name, found in places.items():
        if not found:
            raise LayoutError(f"the optimiser leaves no trace of parameter {name!r}")
    return places


def _positions(
    marked: npt.NDArray[np.float32], starts: Indices
) -> dict[int, tuple[npt.NDArray[np.signedinteger[Any]], int]]:
    """Find where the numbers in a tensor lie.

    Returns:
        By the parameter that they belong to: for each of its elements the position of its number,
        -1 where there is none; and how many of its numbers there are.
    """
    patterns = marked.reshape(-1).view(np.uint32)
    # A model has as many of these as parameters: half the width is half the memory.
    narrow = np.int32 if marked.size <= np.iinfo(np.int32).max else np.int64
    positions: dict[int, npt.NDArray[np.signedinteger[Any]]] = {}
    counts: Counter[int] = Counter()
    for start in range(0, len(patterns), _BLOCK):
        indices = patterns[start : start + _BLOCK].astype(np.int64) - _PROBE_BASE
        # Blocked layouts pad with zeros, which lie outside the numbered range.
        numbered = np.flatnonzero((indices >= 0) & (indices < starts[-1]))
        for owner, held in _by_owner(indices, numbered, starts):
            if owner not in positions:
                positions[owner] = np.full(starts[owner + 1] - starts[owner], -1, narrow)
            positions[owner][indices[held] - starts[owner]] = start + held
            counts[owner] += len(held)
    return {owner: (found, counts[owner]) for owner, found in positions.items()}


def _by_owner(indices: Indices, numbered: Indices, starts: Indices) -> list[tuple[int, Indices]]:
    """Divide the numbered elements of a tensor among the parameters that the numbers belong to."""
    if not len(numbered):
        return []
    found = indices[numbered]
    lowest, highest = np.searchsorted(starts, [found.min(), found.max()], side="right") - 1
    if lowest == highest:
        return [(int(lowest), numbered)]
    owners = np.searchsorted(starts, found, side="right") - 1
    return [(int(owner), numbered[owners == owner]) for owner in np.unique(owners)]


def _match(probed: onnx.ModelProto, optimised: onnx.ModelProto) -> dict[str, str]:
    """Pair the tensors of two optimised graphs that differ in the names the optimiser makes up.

    It may also write the nodes of parallel branches in another order, from one time to the next.
    So both graphs are followed from their outputs, which keep their names, to what these read.

    Returns:
        Names in the optimised graph by names in the probed one.

    Raises:
        LayoutError: If the graphs differ in anything else.
    """
    ours, theirs = (
        {name: node for node in model.graph.node for name in node.output if name}
        for model in (probed, optimised)
    )
    twins: dict[str, str] = {}
    pairs = [
        (mine.name, other.name)
        for mine, other in zip(probed.graph.output, optimised.graph.output, strict=True)
    ]
    same = len(probed.graph.node) == len(optimised.graph.node)
    while pairs and same:
        mine, other = pairs.pop()
        if mine in twins:
            same = twins[mine] == other
            continue
        twins[mine] = other
        node, twin = ours.get(mine), theirs.get(other)
        if node is None or twin is None:
            same = node is twin
        else:
            same = _signature(node) == _signature(twin)
            inputs = zip(node.input, twin.input, strict=False)
            pairs += [*inputs, *zip(node.output, twin.output, strict=False)]
    if not same or len(set(twins.values())) < len(twins):
        raise LayoutError("the optimiser treats the graph differently for other values")
    return twins


def _signature(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return (node.domain, node.op_type, len(node.input), len(node.output), *attributes)
