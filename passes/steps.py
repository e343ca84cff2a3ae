"""The nodes that one edit adds to a graph, in order, with names under a common prefix."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from passes.edits import unique_name

Attribute = int | float | list[int]


@dataclass
class Steps:
    """New nodes and the constants they read.

    Attributes:
        prefix: How the names of nodes and tensors begin.
        dtype: Type of the numbers.
        taken: Names that exist already.
        constants: Constants that several edits share, by what they are.
        nodes: What computes with the data.
        folded: What computes with constants alone; runtimes do it once, when they load the model.
    """

    prefix: str
    dtype: np.dtype[np.floating]
    taken: set[str]
    constants: dict[str, gs.Constant]
    nodes: list[gs.Node] = field(default_factory=list)
    folded: list[gs.Node] = field(default_factory=list)

    def name(self, role: str) -> str:
        """Name a new tensor or node."""
        return unique_name(self.prefix + role, self.taken)

    def add(self, op: str, inputs: list[gs.Tensor], role: str) -> gs.Variable:
        """Append a node; returns what it writes."""
        output = gs.Variable(self.name(role))
        self.finish(op, inputs, output)
        return output

    def finish(
        self, op: str, inputs: list[gs.Tensor], output: gs.Tensor, **attributes: Attribute
    ) -> None:
        """Append a node that writes an existing tensor."""
        self.nodes.append(gs.Node(op, self.name(op), attributes, inputs=inputs, outputs=[output]))

    def fold(
        self, op: str, inputs: list[gs.Tensor], role: str, name: str | None = None
    ) -> gs.Variable:
        """Append a node that computes with constants alone; returns what it writes."""
        output = gs.Variable(self.name(role), dtype=self.dtype)
        name = self.name(op) if name is None else unique_name(name, self.taken)
        self.folded.append(gs.Node(op, name, inputs=inputs, outputs=[output]))
        return output

    def take_over(self, node: gs.Node, written: gs.Tensor, role: str) -> gs.Variable:
        """Make a node write a new tensor; its old one, with all its readers, is free."""
        value = gs.Variable(self.name(role), dtype=written.dtype, shape=written.shape)
        # Assigning the slot of the outputs leaves the readers of the old tensor where they are.
        node.outputs[next(i for i, t in enumerate(node.outputs) if t is written)] = value
        return value

    def constant(self, role: str, value: float) -> gs.Constant:
        """A number that all edits of one type share."""
        return self._shared(f"hyrelu/{role}/{self.dtype}", np.asarray(value, self.dtype))

    def extents(self, values: Sequence[int]) -> gs.Constant:
        """A shape, as Reshape and Expand read it."""
        spelled = "x".join(map(str, values))
        return self._shared(f"hyrelu/extents/{spelled}", np.asarray(values, np.int64))

    def _shared(self, key: str, values: np.typing.NDArray[np.generic]) -> gs.Constant:
        if key not in self.constants:
            self.constants[key] = gs.Constant(unique_name(key, self.taken), values)
        return self.constants[key]
