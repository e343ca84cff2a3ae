"""The nodes that a pass writes for one site, with names under a common prefix."""

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from passes.edits import unique_name


@dataclass
class Steps:
    """The nodes of one bound, in order.

    Attributes:
        prefix: What the names of its nodes and tensors begin with.
        dtype: Type of the constants.
        taken: Names of the graph; new ones are added.
        constants: Numbers that all sites of one type share.
        nodes: The nodes so far.
    """

    prefix: str
    dtype: np.dtype[np.floating]
    taken: set[str]
    constants: dict[str, gs.Constant]
    nodes: list[gs.Node] = field(default_factory=list)

    def add(self, op: str, inputs: list[gs.Tensor], role: str) -> gs.Tensor:
        """Write a node with a new tensor as its output; returns the tensor."""
        output = gs.Variable(unique_name(self.prefix + role, self.taken))
        self.finish(op, inputs, output)
        return output

    def finish(self, op: str, inputs: list[gs.Tensor], output: gs.Tensor) -> None:
        """Write a node with a tensor of the graph as its output."""
        name = unique_name(f"{self.prefix}{op}", self.taken)
        self.nodes.append(gs.Node(op, name, inputs=inputs, outputs=[output]))

    def constant(self, role: str, value: float) -> gs.Constant:
        """A number that all sites of one type share."""
        key = f"hyrelu/{role}/{self.dtype}"
        if key not in self.constants:
            name = unique_name(key, self.taken)
            self.constants[key] = gs.Constant(name, np.asarray(value, self.dtype))
        return self.constants[key]
