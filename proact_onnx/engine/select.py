"""Choosing the engine of a campaign: the fastest one that is proved right on this model."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.engine.inplace import Indices, InPlaceEngine, LayoutError
from proact_onnx.engine.portable import FreshSessionEngine, WeightsAsInputsEngine
from proact_onnx.engine.session import Array, Provider
from proact_onnx.errors import ModelError
from proact_onnx.model import computes_in_float16

# How far outputs may lie apart, relative to the largest. Engines add in another order and round
# intermediate results at other places, which shows in the precision that the model computes with.
_AGREEMENT = 1e-3
_AGREEMENT_FLOAT16 = 3e-2
_CHECK_IMAGES = 4
# Large enough to be seen in the outputs, small enough to keep them finite.
_DISTURBANCE = 0.25


class FaultEngine(Protocol):
    """Runs a model whose parameters can be overwritten between runs."""

    @property
    def name(self) -> str:
        """How the engine works, in a few words."""

    @property
    def provider(self) -> Provider:
        """Where it runs."""

    def run(self, images: Array) -> Array:
        """Return the model's first output for all images with the parameters as they are now."""

    def write(self, parameter: str, elements: Indices, values: Array) -> None:
        """Overwrite elements of a parameter, by flat index in its stored layout."""


@dataclass(frozen=True)
class ChosenEngine:
    """An engine, and why it was chosen.

    Attributes:
        engine: The engine.
        notice: One sentence for the user.
    """

    engine: FaultEngine
    notice: str


def choose_engine(
    model: onnx.ModelProto,
    parameters: list[str],
    images: Array,
    provider: Provider = Provider.AUTO,
    threads: int = 0,
    batch_size: int = 128,
) -> ChosenEngine:
    """Open the fastest engine that can be trusted on this model.

    On the CPU the in-place engine is tried first. Overwriting an initializer in place works, but
    the runtime's documentation does not promise it, so it must first pass a test: one element of
    every parameter is disturbed, the outputs are compared with those of a new session that was
    created with the disturbed parameters, and after undoing the disturbance with those of the
    undisturbed one. Parameters as graph inputs are documented behaviour and need no proof; they
    would only fail it by rounding, where a value falls to the other side of a threshold.

    Args:
        model: The model, every parameter an initializer.
        parameters: Names of the parameters that a campaign writes to.
        images: Preprocessed images for the test; a few are enough.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.

    Raises:
        ModelError: If ONNX Runtime refuses the model.
        SettingsError: If CUDA was asked for and does not work here.
    """
    fresh = FreshSessionEngine(model, parameters, provider, threads, batch_size)
    reasons = []
    if fresh.provider is Provider.CPU:
        try:
            engine = InPlaceEngine(model, parameters, threads, batch_size)
        except (LayoutError, ModelError) as error:
            reasons.append(str(error))
        else:
            if _proved(engine, fresh, model, parameters, images[:_CHECK_IMAGES]):
                return ChosenEngine(engine, _notice(engine, reasons))
            reasons.append(f"{engine.name} disagreed with a fresh session")
    try:
        inputs = WeightsAsInputsEngine(model, parameters, provider, threads, batch_size)
    except ModelError as error:
        reasons.append(str(error))
        return ChosenEngine(fresh, _notice(fresh, reasons))
    return ChosenEngine(inputs, _notice(inputs, reasons))


def _proved(
    engine: FaultEngine,
    fresh: FaultEngine,
    model: onnx.ModelProto,
    parameters: list[str],
    images: Array,
) -> bool:
    outputs = _disturbed_outputs(model, parameters, engine, images)
    expected = _disturbed_outputs(model, parameters, fresh, images)
    tolerance = _tolerance(model)
    return all(_agree(a, b, tolerance) for a, b in zip(outputs, expected, strict=True))


def _disturbed_outputs(
    model: onnx.ModelProto, parameters: list[str], engine: FaultEngine, images: Array
) -> tuple[Array, Array]:
    """Outputs with one element of every parameter disturbed, and after undoing it."""
    rng = np.random.default_rng(0)
    stored = {t.name: t for t in model.graph.initializer}
    originals = {}
    for name in parameters:
        values = numpy_helper.to_array(stored[name]).reshape(-1)
        element = rng.integers(values.size, size=1)
        originals[name] = (element, values[element])
        engine.write(name, element, values[element] + values.dtype.type(_DISTURBANCE))
    disturbed = engine.run(images)
    for name, (element, value) in originals.items():
        engine.write(name, element, value)
    return disturbed, engine.run(images)


def _tolerance(model: onnx.ModelProto) -> float:
    return _AGREEMENT_FLOAT16 if computes_in_float16(model) else _AGREEMENT


def _agree(outputs: Array, expected: Array, tolerance: float) -> bool:
    if outputs.shape != expected.shape:
        return False
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(outputs)):
        return False
    scale = np.abs(expected[finite]).max(initial=0.0)
    apart = np.abs(outputs[finite] - expected[finite])
    return bool((apart <= tolerance * scale).all())


def _notice(engine: FaultEngine, reasons: list[str]) -> str:
    place = "GPU" if engine.provider is Provider.CUDA else "CPU"
    because = f", because {'; '.join(reasons)}" if reasons else ""
    return f"engine: {engine.name} on the {place}{because}"
