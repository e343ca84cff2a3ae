"""What a model consists of, and what protecting it would cost: the answer to ``inspect``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from proact_onnx.activations import Activation, find_activations
from proact_onnx.errors import ModelError
from proact_onnx.faults import Parameter, fault_space, parameter_count
from proact_onnx.messages import subgraphs
from proact_onnx.model import HYRELU, is_scale, is_threshold, load_model, opset
from proact_onnx.rewrite import Refusal, prepare
from proact_onnx.thresholds import Granularity, memory_overhead, threshold_count

# Activation functions other than Relu and Clip; their outputs are not bounded from below by 0, or
# they are bounded from above already.
_OTHER_ACTIVATIONS = frozenset(
    {
        "Celu",
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    }
)


@dataclass(frozen=True)
class Cost:
    """What one granularity would store.

    Attributes:
        granularity: Which.
        thresholds: Number of thresholds; ``None`` where the model leaves a shape open.
        overhead: Memory overhead in per cent of the parameters (Eq. 6); ``None`` likewise, or
            where the model has no parameters.
        reason: Why the figures are missing; empty where they are not.
    """

    granularity: Granularity
    thresholds: int | None
    overhead: float | None
    reason: str


@dataclass(frozen=True)
class Unprotected:
    """An activation function that hardening leaves as it is.

    Attributes:
        name: The node's name, or its output's where the node has none.
        op: Its operator.
        reason: Why it is left.
    """

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """A model at a glance. All figures but the fault space are those of the prepared model.

    Attributes:
        opset: Version of the standard operator set.
        ir_version: Version of the file format.
        producer: Name and version of the exporter; empty if the file does not say.
        activations: What can be hardened, in topological order.
        protected: Tensors that are bounded already.
        rescaled: Number of layers whose weights are stored enlarged.
        parameters: Stored weights and biases, with BatchNormalization folded, which is how the
            paper counts (VGG-16: 14.72 million), and without what hardening added. Weights that
            are quantised to 8 bits count as well.
        stored: The fault space of the file.
        fault_space_bits: Bits of all numbers in the types of the file, thresholds included.
        costs: Thresholds and overhead of each granularity.
        unprotected: Activation functions that hardening leaves as they are.
        unfolded: BatchNormalization nodes that stay, with the reason.
    """

    opset: int
    ir_version: int
    producer: str
    activations: tuple[Activation, ...]
    protected: tuple[str, ...]
    rescaled: int
    parameters: int
    stored: tuple[Parameter, ...]
    fault_space_bits: int
    costs: tuple[Cost, ...]
    unprotected: tuple[Unprotected, ...]
    unfolded: tuple[Refusal, ...]


def inspect_model(path: Path) -> Inspection:
    """Read a model and describe it.

    Raises:
        ModelError: If the file is not a model this tool can work on.
    """
    stored = load_model(path)
    prepared = prepare(stored, restore_rectifiers=True)
    space = fault_space(stored, None)
    model = prepared.model
    activations = find_activations(model)
    parameters = parameter_count(model)
    return Inspection(
        opset=opset(stored),
        ir_version=stored.ir_version,
        producer=f"{stored.producer_name} {stored.producer_version}".strip(),
        activations=tuple(activations),
        protected=tuple(
            tensor.name for tensor in model.graph.initializer if is_threshold(tensor.name)
        ),
        rescaled=sum(is_scale(tensor.name) for tensor in model.graph.initializer),
        parameters=parameters,
        stored=space.parameters,
        fault_space_bits=space.bits,
        costs=tuple(_cost(granularity, activations, parameters) for granularity in Granularity),
        unprotected=tuple(_unprotected(model, activations)),
        unfolded=prepared.refusals,
    )


def _cost(granularity: Granularity, activations: list[Activation], parameters: int) -> Cost:
    try:
        thresholds = threshold_count(activations, granularity)
    except ModelError as error:
        return Cost(granularity, None, None, str(error))
    if not parameters:
        return Cost(granularity, thresholds, None, "the model stores no parameters")
    return Cost(granularity, thresholds, memory_overhead(thresholds, parameters), "")


def _unprotected(model: onnx.ModelProto, activations: list[Activation]) -> Iterator[Unprotected]:
    found = {activation.tensor for activation in activations}
    for node in model.graph.node:
        if _is_other_activation(node, found):
            reason = (
                "its lower bound is not a constant 0"
                if node.op_type == "Clip"
                else f"no bound is defined for {node.op_type}"
            )
            yield _left(node, reason)
        for subgraph in subgraphs(node):
            yield from _inside(subgraph, node.name or node.op_type)


def _is_other_activation(node: onnx.NodeProto, found: set[str]) -> bool:
    """Tell whether a node is an activation function, but none that can be or is bounded."""
    bounds = any(HYRELU in name for name in (*node.input, *node.output))
    if node.domain not in ("", "ai.onnx") or bounds:
        return False
    if node.op_type == "Clip":
        return found.isdisjoint(node.output) and not any(map(is_threshold, node.input))
    return node.op_type in _OTHER_ACTIVATIONS


def _inside(graph: onnx.GraphProto, owner: str) -> Iterator[Unprotected]:
    for node in graph.node:
        if node.op_type in _OTHER_ACTIVATIONS or node.op_type in ("Relu", "Clip"):
            yield _left(node, f"it lies in a subgraph of {owner!r}")
        for subgraph in subgraphs(node):
            yield from _inside(subgraph, owner)


def _left(node: onnx.NodeProto, reason: str) -> Unprotected:
    return Unprotected(node.name or node.output[0], node.op_type, reason)
