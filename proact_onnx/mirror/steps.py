"""The nodes of a graph as steps that PyTorch runs in order."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from onnx import ModelProto, NodeProto
from torch import Tensor

from proact_onnx.errors import ModelError
from proact_onnx.mirror.ops import compile_node
from proact_onnx.mirror.rule import Operation


@dataclass(frozen=True)
class Step:
    """One node of the graph, compiled.

    Attributes:
        name: The node's name and operator, for messages.
        operation: Computes the outputs from the inputs.
        inputs: Tensor names, ``""`` for an input left out.
        outputs: Tensor names, ``""`` for an output left out.
        baked: Constants whose values went into the operation.
        reads_shape: It reads the shape of its input and none of its values.
    """

    name: str
    operation: Operation
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    baked: frozenset[str]
    reads_shape: bool

    def run(self, values: Mapping[str, Tensor | None]) -> Iterator[tuple[str, Tensor]]:
        """Compute the outputs by name; what is raised gets a note of the node."""
        try:
            result = self.operation(*[values[name] for name in self.inputs])
        except Exception as error:
            error.add_note(f"while the mirror computed node {self.name}")
            raise
        results = (result,) if isinstance(result, Tensor) else result
        return zip(self.outputs, results, strict=False)


def compile_steps(model: ModelProto, constants: dict[str, Tensor]) -> list[Step]:
    """Compile the nodes of a model without functions of its own.

    Args:
        model: The model.
        constants: The initializers by name; what follows from constants alone is computed and
            added.

    Returns:
        A step for each node, after the steps whose outputs it reads.

    Raises:
        UnsupportedOperatorError: A node has no rule.
        ModelError: A node reads a tensor that nothing computes.
    """
    graph = model.graph
    opsets = {
        "" if entry.domain == "ai.onnx" else entry.domain: entry.version
        for entry in model.opset_import
    }
    consumed = {name for proto in graph.node for name in proto.input}
    consumed.update(value.name for value in graph.output)
    known = {"", *constants, *(value.name for value in graph.input)}
    steps = []
    for proto in _in_order(graph.node, known):
        node, operation = compile_node(proto, opsets, constants, consumed)
        step = Step(
            name=f"{node.name} ({node.op})",
            operation=operation,
            inputs=node.inputs,
            outputs=node.outputs,
            baked=frozenset(node.baked),
            reads_shape=not node.domain and node.op in ("Shape", "Size"),
        )
        steps.append(step)
        if all(name in constants or not name for name in step.inputs):
            with torch.no_grad():
                constants.update(step.run({"": None, **constants}))
    return steps


def _in_order(nodes: Iterable[NodeProto], known: set[str]) -> Iterator[NodeProto]:
    """Nodes so that each follows those it reads from; ONNX Runtime takes any order.

    Raises:
        ModelError: A node reads a tensor that nothing computes.
    """
    waiting = list(nodes)
    while waiting:
        blocked = []
        for proto in waiting:
            if known.issuperset(proto.input):
                known.update(proto.output)
                yield proto
            else:
                blocked.append(proto)
        if len(blocked) == len(waiting):
            missing = next(name for name in blocked[0].input if name not in known)
            raise ModelError(
                f"node '{blocked[0].name}' ({blocked[0].op_type}) reads tensor '{missing}', which "
                "nothing computes: check the model with onnx.checker"
            )
        waiting = blocked
