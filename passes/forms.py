"""The forms a bound is deployed in, and what they all ask of a graph."""

from collections.abc import Iterable
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.base import PostconditionError, PreconditionError
from passes.edits import tensor_names


class Form(StrEnum):
    """How the bound is written into the graph."""

    HARD = "hard"
    SMOOTH = "smooth"
    SATURATE = "saturate"
    RAMP = "ramp"
    TENT = "tent"


# The lowest opset that has every operator a form is made of.
LOWEST_OPSET = {Form.HARD: 9, Form.SMOOTH: 9, Form.SATURATE: 8, Form.RAMP: 10, Form.TENT: 10}
# The first opset with LessOrEqual.
LESS_OR_EQUAL = 12
# Where the smooth gate is cut: sigmoid(-16) is 1.1e-7, one unit in float32's last place.
GATE_END = -16.0


def require_opset(graph: gs.Graph, form: Form) -> None:
    """Check that a graph has the operators of a form.

    Raises:
        PreconditionError: If its opset is too old.
    """
    if graph.opset < LOWEST_OPSET[form]:
        raise PreconditionError(
            f"form {form.value!r} needs opset {LOWEST_OPSET[form]} or newer, and the graph has "
            f"{graph.opset}"
        )


def require_thresholds(
    graph: gs.Graph, thresholds: Iterable[tuple[str, npt.NDArray[np.floating], str]]
) -> None:
    """Check that thresholds can be put into a graph.

    Args:
        graph: The graph.
        thresholds: Of each the tensor it bounds, its values, and the name it is stored under.

    Raises:
        PreconditionError: If a tensor is not written by a node, a threshold is not finite, or its
            name is taken.
    """
    taken = tensor_names(graph)
    written = {tensor.name for node in graph.nodes for tensor in node.outputs}
    for tensor, values, name in thresholds:
        if tensor not in written:
            raise PreconditionError(f"no node writes a tensor {tensor!r}")
        if name in taken:
            raise PreconditionError(f"the name {name!r} is taken: the graph is hardened already")
        if not np.isfinite(values).all():
            raise PreconditionError(f"a threshold of {tensor!r} is not finite")
        taken.add(name)


def ensure_thresholds(graph: gs.Graph, thresholds: Iterable[tuple[str, str]]) -> None:
    """Check that thresholds stand in a graph.

    Args:
        graph: The graph.
        thresholds: Of each the tensor it bounds, and the name it is stored under.

    Raises:
        PostconditionError: If one does not.
    """
    tensors = graph.tensors()
    for tensor, name in thresholds:
        if not isinstance(tensors.get(name), gs.Constant):
            raise PostconditionError(f"a threshold of {tensor!r} was not inserted")
