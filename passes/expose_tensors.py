"""Inner tensors become graph outputs, so that a runtime can be asked for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from passes.base import Pass, PreconditionError
from passes.edits import is_among


@dataclass
class ExposeTensors(Pass):
    """Append tensors to the graph's outputs; the original outputs stay first.

    A tensor that is a graph output already is left where it stands. One of unknown rank becomes
    an output without a shape, which runtimes take and ONNX's checker does not.

    Attributes:
        tensors: Names, in the order wanted.
    """

    tensors: Sequence[str]
    name: str = "expose-tensors"

    def requires(self, graph: gs.Graph) -> None:
        """Check that the tensors exist and have a type.

        Raises:
            PreconditionError: If one does not.
        """
        known = graph.tensors()
        for name in self.tensors:
            if name not in known:
                raise PreconditionError(f"the graph has no tensor {name!r}")
            if known[name].dtype is None:
                raise PreconditionError(
                    f"tensor {name!r} has no known type: run shape inference first"
                )

    def call(self, graph: gs.Graph) -> int:
        """Expose every tensor that is not an output yet."""
        known = graph.tensors()
        changed = 0
        for name in self.tensors:
            if not is_among(known[name], graph.outputs):
                graph.outputs.append(known[name])
                changed += 1
        return changed
