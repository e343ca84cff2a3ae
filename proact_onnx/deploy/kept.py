"""Which stored numbers survive when a program rewrites a model."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.deploy.base import Array
from proact_onnx.faults import Kind, fault_space

# Of no consequence: the parameters of a model do not depend on how wide a word is.
_WIDTH = 32


def parameter_kinds(model: onnx.ModelProto) -> Mapping[str, Kind]:
    """Names of a model's weights, biases, thresholds and scales, in order, with their kinds."""
    return {p.name: p.kind for p in fault_space(model, _WIDTH).parameters}


def kept_parameters(
    model: onnx.ModelProto, rewritten: onnx.ModelProto, names: Iterable[str]
) -> Mapping[str, str | None]:
    """Find each parameter of a model among the initializers of what was made of it.

    A parameter is kept if some initializer has the same numbers in any order: programs transpose
    weights, and cut them into blocks that they fill up with zeros, so zeros do not count.

    Args:
        model: The model.
        rewritten: What a program made of it.
        names: The parameters to look for.

    Returns:
        By parameter, the name of the initializer, the parameter's own if possible; None where the
        numbers are gone.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    by_count: dict[int, list[tuple[str, Array]]] = {}
    for tensor in rewritten.graph.initializer:
        numbers = _numbers(tensor)
        by_count.setdefault(numbers.size, []).append((tensor.name, numbers))
    found: dict[str, str | None] = {}
    for name in names:
        wanted = _numbers(stored[name])
        same = [
            c for c, numbers in by_count.get(wanted.size, []) if np.array_equal(numbers, wanted)
        ]
        # Zeros everywhere may be left out, for they change nothing.
        found[name] = name if name in same or not wanted.size else next(iter(same), None)
    return found


def _numbers(tensor: onnx.TensorProto) -> Array:
    """The numbers of an initializer that are not zero, in ascending order."""
    values = numpy_helper.to_array(tensor)
    return np.sort(values[values != 0], axis=None)
