"""What a model consists of, and what protecting it would cost: the answer to ``inspect``."""

from dataclasses import dataclass
from pathlib import Path

import onnx

from proact_onnx.activations import Activation, find_activations
from proact_onnx.coverage import Coverage, Unprotected, coverage, unprotected
from proact_onnx.errors import ModelError
from proact_onnx.faults import Parameter, fault_space, parameter_count
from proact_onnx.model import SCALE_SUFFIX, THRESHOLD_SUFFIX, is_scale, load_model, opset
from proact_onnx.rewrite import Refusal, open_subgraphs, prepare
from proact_onnx.thresholds import (
    FIXED_GRANULARITIES,
    Granularity,
    memory_overhead,
    threshold_count,
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
        linear: Outputs of linear layers that are bounded on request.
        coverage: Where values are bounded once the activations are.
        coverage_with_linear: The same, once the outputs of linear layers are, too.
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
    linear: tuple[Activation, ...]
    coverage: Coverage
    coverage_with_linear: Coverage
    unfolded: tuple[Refusal, ...]


def inspect_model(path: Path) -> Inspection:
    """Read a model and describe it.

    Raises:
        ModelError: If the file is not a model this tool can work on.
    """
    stored = load_model(path)
    prepared = prepare(stored, restore_rectifiers=True)
    space = fault_space(open_subgraphs(stored)[0], None)
    model = prepared.model
    activations = find_activations(model)
    everything = find_activations(model, linear=True)
    parameters = parameter_count(model)
    return Inspection(
        opset=opset(stored),
        ir_version=stored.ir_version,
        producer=f"{stored.producer_name} {stored.producer_version}".strip(),
        activations=tuple(activations),
        protected=tuple(
            tensor.name
            for tensor in model.graph.initializer
            if tensor.name.endswith(THRESHOLD_SUFFIX)
        ),
        rescaled=_rescaled_layers(model),
        parameters=parameters,
        stored=space.parameters,
        fault_space_bits=space.bits,
        costs=tuple(
            _cost(granularity, activations, parameters) for granularity in FIXED_GRANULARITIES
        ),
        linear=tuple(a for a in everything if a not in activations),
        coverage=coverage(model, activations),
        coverage_with_linear=coverage(model, everything),
        unprotected=tuple(unprotected(model)),
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


def _rescaled_layers(model: onnx.ModelProto) -> int:
    """Number of layers that divide by a scale; other scales are of biases, or copies."""
    written = {name for node in model.graph.node for name in node.output}
    scales = [tensor.name for tensor in model.graph.initializer if is_scale(tensor.name)]
    return sum(name.removesuffix(SCALE_SUFFIX) in written for name in scales)
