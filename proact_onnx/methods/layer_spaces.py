"""Which parameters lie before which activation, for methods that look at one layer at a time."""

from collections.abc import Sequence

import onnx

from proact_onnx.activations import Activation
from proact_onnx.faults import FaultSpace
from proact_onnx.messages import node_reads


def layer_spaces(
    model: onnx.ModelProto, activations: Sequence[Activation], space: FaultSpace
) -> dict[str, FaultSpace]:
    """Divide parameters by the first activation that they reach.

    Args:
        model: The model.
        activations: In topological order.
        space: The parameters.

    Returns:
        By activation output; an activation that no parameter reaches first is absent.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    unclaimed = {parameter.name: parameter for parameter in space.parameters}
    seen: set[str] = set()
    found = {}
    for activation in activations:
        pending, reached = [activation.tensor], set()
        while pending:
            name = pending.pop()
            if name in unclaimed:
                reached.add(name)
            elif name in makers and name not in seen:
                pending.extend(node_reads(makers[name]))
            seen.add(name)
        if reached:
            found[activation.tensor] = FaultSpace(
                tuple(unclaimed.pop(p.name) for p in space.parameters if p.name in reached)
            )
    return found
