"""What a pass is, and how a list of passes runs over a model."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import onnx
import onnx_graphsurgeon as gs

from passes.roundtrip import export_model, import_model


class PassError(Exception):
    """Base of every error that a pass raises; the message names the pass."""


class PreconditionError(PassError):
    """The graph is not one the pass can work on."""


class PostconditionError(PassError):
    """The pass left a graph that it must not leave: an error of the pass itself."""


class Pass(Protocol):
    """One rewrite of a graph, in place.

    A pass checks in ``requires`` what it needs, rewrites in ``call``, and checks in ``ensures``
    what it promises. It keeps the names of tensors, nodes and initializers that survive it.

    Attributes:
        name: How messages and counts refer to the pass, such as ``fold-batchnorm``.
    """

    name: str

    def requires(self, graph: gs.Graph) -> None:
        """Check the graph before the rewrite.

        Raises:
            PreconditionError: If the pass cannot work on this graph.
        """
        return

    def call(self, graph: gs.Graph) -> int:
        """Rewrite the graph in place.

        Returns:
            How many times the graph was changed; 0 means that it is as it was.
        """
        ...

    def ensures(self, graph: gs.Graph) -> None:
        """Check the graph after the rewrite.

        Raises:
            PostconditionError: If the result breaks a promise of the pass.
        """
        return


def run_passes(
    model: onnx.ModelProto, passes: Sequence[Pass], types: Iterable[onnx.ValueInfoProto] = ()
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Run passes over a model, in order.

    Names, order of inputs, outputs and initializers, documents, metadata, functions, opset
    imports and the IR version stay as they are; an initializer that nothing reads is gone
    afterwards, unless callers may override it.

    Args:
        model: Model with its external data loaded; it is not changed.
        passes: The passes; a pass may stand in the list more than once.
        types: Types of tensors that the model leaves open, for the passes to know.

    Returns:
        The rewritten model, and by pass name how many times the pass changed the graph.

    Raises:
        PassError: If the graph cannot be imported or exported, or a pass refuses it.
    """
    try:
        imported = import_model(model, types)
    except Exception as error:
        raise PassError(f"the graph cannot be read by onnx-graphsurgeon: {error}") from error
    changes: dict[str, int] = {}
    for step in passes:
        try:
            step.requires(imported.graph)
            count = step.call(imported.graph)
            step.ensures(imported.graph)
        except PassError as error:
            done = ", ".join(changes) or "no other pass"
            raise type(error)(f"pass {step.name!r} (after {done}): {error}") from error
        changes[step.name] = changes.get(step.name, 0) + count
    try:
        return export_model(imported), changes
    except gs.OnnxGraphSurgeonException as error:
        raise PassError(f"the rewritten graph cannot be exported: {error}") from error
