"""Choosing the engine of a campaign: the fastest one that is proved right on this model."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.engine.device import DeviceEngine
from proact_onnx.engine.inplace import InPlaceEngine
from proact_onnx.engine.layout import LayoutError
from proact_onnx.engine.portable import FreshSessionEngine
from proact_onnx.engine.session import Array, Indices, Provider
from proact_onnx.errors import ModelError
from proact_onnx.faults import Role, quantiser_role
from proact_onnx.model import computes_in_float16

# How far outputs may lie apart, relative to the largest. Engines add in another order and round
# intermediate results at other places, which shows in the precision that the model computes with;
# in a quantised model it may decide a tie, and moves outputs by steps of its quantisers.
_AGREEMENT = 1e-3
_AGREEMENT_FLOAT16 = 3e-2
_AGREEMENT_QUANTISED = 6e-2
_CHECK_IMAGES = 4
# Of models with so many weights, no copies are made that are not needed. Whatever they are stored
# in, kernels compute in 32 bits.
LARGE_WEIGHTS = 200_000_000
_CHECK_ELEMENTS = 3
_PLACES = {
    Provider.CPU: "the CPU",
    Provider.CUDA: "the GPU",
    Provider.TENSORRT: "the GPU by TensorRT",
    Provider.OPENVINO: "the CPU by OpenVINO",
}


class FaultEngine(Protocol):
    """Runs a model whose parameters can be overwritten between runs."""

    @property
    def name(self) -> str:
        """How the engine works, in a few words."""

    @property
    def provider(self) -> Provider:
        """Where it runs."""

    def run(self, images: Array, chosen: Indices | None = None) -> Array:
        """Return the model's first output for images with the parameters as they are now.

        Args:
            images: ``[N, ...]``.
            chosen: Indices of the images to run; all when absent. An engine may keep ``images``
                for later runs when this is given, so they must not change.
        """

    def stream(self, images: Array, chosen: Indices | None = None) -> Iterator[list[Array]]:
        """Yield all outputs of the model batch by batch, each ``[batch, ...]``; see `run`."""

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
    the runtime's documentation does not promise it, so it must first pass a test: some elements of
    every parameter are disturbed, the outputs are compared with those of a new session that was
    created with the disturbed parameters, and after undoing the disturbance with those of the
    undisturbed one. Parameters as graph inputs are documented behaviour and need no proof; they
    would only fail it by rounding, where a value falls to the other side of a threshold. They are
    taken at once for models so large that optimised copies would fill the memory.

    Args:
        model: The model, every parameter an initializer.
        parameters: Names of the parameters that a campaign writes to.
        images: Preprocessed images for the test; a few are enough.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.

    Raises:
        ModelError: If ONNX Runtime refuses the model.
        SettingsError: If the provider was asked for and does not work here.
    """
    if is_large(model):
        return _choose_for_large(model, parameters, provider, threads, batch_size)
    fresh = FreshSessionEngine(model, parameters, provider, threads, batch_size)
    reasons = []
    if fresh.provider is Provider.CPU:
        # First the proof, then the engine: the memory of both need not be had at once.
        try:
            proof = _Proof(fresh, model, parameters, images[:_CHECK_IMAGES])
            engine = InPlaceEngine(model, parameters, threads, batch_size)
        except (LayoutError, ModelError) as error:
            reasons.append(str(error))
        else:
            if proof.holds(engine):
                return ChosenEngine(engine, _notice(engine, reasons))
            reasons.append(f"{engine.name} disagreed with a fresh session")
    try:
        inputs = DeviceEngine(model, parameters, provider, threads, batch_size)
    except (LayoutError, ModelError) as error:
        reasons.append(str(error))
        return ChosenEngine(fresh, _notice(fresh, reasons))
    return ChosenEngine(inputs, _notice(inputs, reasons))


def is_large(model: onnx.ModelProto) -> bool:
    """Tell whether copies of a model are to be avoided."""
    weights = sum(int(math.prod(tensor.dims)) for tensor in model.graph.initializer)
    return weights >= LARGE_WEIGHTS


def _choose_for_large(
    model: onnx.ModelProto,
    parameters: list[str],
    provider: Provider,
    threads: int,
    batch_size: int,
) -> ChosenEngine:
    """Open an engine that needs no second optimised copy of a model, and nothing to compare with.

    The in-place engine holds several: the fresh session's, the optimised one, and for a while
    those with which it finds the places of weights.
    """
    reasons = ["the model is large"]
    try:
        engine: FaultEngine = DeviceEngine(model, parameters, provider, threads, batch_size)
    except (LayoutError, ModelError) as error:
        reasons.append(str(error))
        engine = FreshSessionEngine(model, parameters, provider, threads, batch_size)
    return ChosenEngine(engine, _notice(engine, reasons))


class _Proof:
    """What a fresh session gives, disturbed and restored, for another engine to give as well."""

    def __init__(
        self, fresh: FaultEngine, model: onnx.ModelProto, parameters: list[str], images: Array
    ) -> None:
        stored = {t.name: t for t in model.graph.initializer}
        quantisers = _quantisers(model)
        rng = np.random.default_rng(0)
        self._images = images
        self._before: dict[str, tuple[Indices, Array]] = {}
        self._after: dict[str, tuple[Indices, Array]] = {}
        for name in parameters:
            values = numpy_helper.to_array(stored[name]).reshape(-1)
            elements = rng.choice(values.size, min(values.size, _CHECK_ELEMENTS), replace=False)
            self._before[name] = (elements, values[elements])
            disturb = _nudge if name in quantisers else _disturb
            self._after[name] = (elements, disturb(values, elements))
        self._undisturbed = fresh.run(images)
        self._disturbed = _run_with(fresh, self._after, images)
        for name, original in self._before.items():
            fresh.write(name, *original)
        self._tolerance = _tolerance(model)

    def holds(self, engine: FaultEngine) -> bool:
        """Disturb an engine, restore it, and tell whether it gave the same both times."""
        try:
            disturbed = _run_with(engine, self._after, self._images)
            restored = _run_with(engine, self._before, self._images)
        except ModelError:
            return False
        return _agree(disturbed, self._disturbed, self._tolerance) and _agree(
            restored, self._undisturbed, self._tolerance
        )


def _run_with(
    engine: FaultEngine, writes: Mapping[str, tuple[Indices, Array]], images: Array
) -> Array:
    for name, (elements, values) in writes.items():
        engine.write(name, elements, values)
    return engine.run(images)


def _disturb(values: Array, elements: Indices) -> Array:
    """Other values for some elements: far enough to be seen, near enough to stay finite."""
    before = values[elements]
    after: Array
    if values.dtype.kind in "iu":
        # The highest bit in use of a two's complement number, which is not its sign.
        highest = max(int(values.max()), ~int(values.min()), 1).bit_length() - 1
        after = before ^ values.dtype.type(1 << highest)
    else:
        largest = np.abs(values[np.isfinite(values)]).max(initial=0)
        after = before + (largest or values.dtype.type(1))
    return after


def _nudge(values: Array, elements: Indices) -> Array:
    """Other scales and zero points: so near that codes do not saturate in every layer."""
    before = values[elements]
    after: Array
    if values.dtype.kind in "iu":
        after = before ^ values.dtype.type(1)
    else:
        after = before * values.dtype.type(1.25)
    return after


def _quantisers(model: onnx.ModelProto) -> set[str]:
    """Names of scales and zero points."""
    roles = (Role.SCALE, Role.ZERO_POINT)
    return {
        name
        for node in model.graph.node
        for position, name in enumerate(node.input)
        if quantiser_role(node, position) in roles
    }


def _tolerance(model: onnx.ModelProto) -> float:
    # Behind dequantised weights alone, fused operators quantise what they multiply with.
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        return _AGREEMENT_QUANTISED
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
    because = f", because {'; '.join(reasons)}" if reasons else ""
    return f"engine: {engine.name} on {_PLACES[engine.provider]}{because}"
