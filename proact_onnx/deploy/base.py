"""What every runtime offers: one protocol, and the model in the form that deployed files have."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import onnx

from proact_onnx.model import computes_in_float16

Array = npt.NDArray[Any]
# By input, in the order of the graph, what one run is given.
Feeds = Mapping[str, Array]
# By input, extents of that, batch axis included.
Shapes = Mapping[str, Sequence[int]]
# Runs a model once; its outputs, in the order of the graph.
Program = Callable[[Feeds], list[Array]]

# How far outputs may be off, relative to the largest: other orders of summation in float32.
TOLERANCE = 1e-4
# The same with 10 bits of fraction in products (TensorFloat-32, which GPUs compute in by default).
TOLERANCE_TF32 = 1e-2
# The same for models whose weights are float16.
TOLERANCE_FLOAT16 = 3e-2
# The same for models that round to 8 bits between layers: a code more or less here and there.
TOLERANCE_QUANTISED = 0.1
_QUANTISED = ("QuantizeLinear", "DynamicQuantizeLinear")


class Runtime(Protocol):
    """Something that executes ONNX files.

    Attributes:
        name: As the user types it.
        tolerance: Largest error of its outputs, relative to the largest output.
        timed: Whether its latency means anything.
    """

    @property
    def name(self) -> str:
        """As the user types it."""

    @property
    def tolerance(self) -> float:
        """Largest error of its outputs, relative to the largest output."""

    @property
    def timed(self) -> bool:
        """Whether its latency means anything."""

    def available(self) -> bool:
        """Tell whether it is installed, and the device it runs on is there."""

    def version(self) -> str:
        """Its version, as it names itself."""

    def load(self, model: onnx.ModelProto, shapes: Shapes) -> Program:
        """Load a model to run it on inputs of these shapes.

        Whatever a runtime raises here or in the program is its reason to refuse the model.
        """


class Optimiser(Protocol):
    """Something that rewrites ONNX files.

    Attributes:
        name: As the user types it.
    """

    @property
    def name(self) -> str:
        """As the user types it."""

    def available(self) -> bool:
        """Tell whether it is installed."""

    def version(self) -> str:
        """Its version."""

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Rewrite a copy of a model; whatever is raised here is its reason to refuse it."""


@dataclass(frozen=True)
class Candidate:
    """A runtime, alone or for what an optimiser writes.

    Attributes:
        runtime: Executes the model.
        optimiser: Rewrites it before.
    """

    runtime: Runtime
    optimiser: Optimiser | None = None

    @property
    def name(self) -> str:
        """As the user types it."""
        return self.optimiser.name if self.optimiser else self.runtime.name

    def available(self) -> bool:
        """Tell whether all it needs is there."""
        return self.runtime.available() and (self.optimiser is None or self.optimiser.available())

    def version(self) -> str:
        """Version of the optimiser, or else of the runtime."""
        return self.optimiser.version() if self.optimiser else self.runtime.version()

    def rewrite(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """What the optimiser makes of a model; without one, the model itself."""
        return self.optimiser.apply(model) if self.optimiser else model


def installed(*modules: str) -> bool:
    """Tell whether Python packages are there, without importing them."""
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:
        return False


def with_static_shapes(model: onnx.ModelProto, shapes: Shapes) -> onnx.ModelProto:
    """Copy a model, giving its inputs fixed extents.

    Extents of other tensors that go by the name of one of an input's are fixed with it, for
    several runtimes take what a file says about inner tensors at its word.

    Args:
        model: The model.
        shapes: By input.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    graph = fixed.graph
    known: dict[str, int] = {}
    for info in graph.input:
        if info.name in shapes:
            dims = info.type.tensor_type.shape.dim
            for dim, extent in zip(dims, shapes[info.name], strict=True):
                if dim.dim_param:
                    known[dim.dim_param] = extent
                dim.dim_value = extent
    for info in (*graph.value_info, *graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param in known:
                dim.dim_value = known[dim.dim_param]
    return fixed


def tolerance_for(runtime: Runtime, model: onnx.ModelProto) -> float:
    """Largest error of a runtime's outputs of a model, relative to the largest output."""
    tolerances = [runtime.tolerance]
    if computes_in_float16(model):
        tolerances.append(TOLERANCE_FLOAT16)
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        tolerances.append(TOLERANCE_QUANTISED)
    return max(tolerances)
