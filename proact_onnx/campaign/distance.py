"""How far faults move the activations of a network from their golden values (Eq. 9)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.activations import activation_outputs
from proact_onnx.campaign.encoded import EncodedModel, Injection
from proact_onnx.engine import FaultEngine, Provider, choose_engine
from proact_onnx.errors import ModelError
from proact_onnx.rewrite import expose

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LayerEffect:
    """What faults do to the output of one activation function.

    Attributes:
        tensor: Name of the tensor.
        squared: Mean over images and neurons of the squared difference from the golden run; not a
            number or infinite where a faulty value is.
        relative: Euclidean norm of the difference over that of the golden values.
        greatest: Largest magnitude under fault.
        nonfinite: Number of values that are infinite or no number.
    """

    tensor: str
    squared: float
    relative: float
    greatest: float
    nonfinite: int


class ActivationMeter:
    """Runs a model with all its activations exposed, without and with faults.

    Args:
        encoded: The model; its first output stays the first.
        images: Preprocessed images, to choose an engine with.
        arguments: Provider, threads and batch size.
        tensors: Names of the activations to watch, in the order wanted; by default all, in
            topological order.

    Raises:
        ModelError: If the model has no activation.
    """

    def __init__(
        self,
        encoded: EncodedModel,
        images: Array,
        arguments: tuple[Provider, int, int],
        tensors: Sequence[str] = (),
    ) -> None:
        self._tensors = list(tensors) or activation_outputs(encoded.model)
        if not self._tensors:
            raise ModelError(
                "the model has no activation function whose values could be compared: leave "
                "--distance out"
            )
        exposed = expose(encoded.model, self._tensors)
        names = [value.name for value in exposed.graph.output]
        self._columns = [names.index(tensor) for tensor in self._tensors]
        parameters = list(encoded.parameters)
        chosen = choose_engine(exposed, parameters, images, *arguments)
        self._engine: FaultEngine = chosen.engine
        self.notice = chosen.notice

    @staticmethod
    def suits(model: onnx.ModelProto) -> bool:
        """Tell whether a model has an activation whose values can be compared."""
        return bool(activation_outputs(model))

    def stream(
        self, images: Array, injection: Injection | None = None
    ) -> Iterator[tuple[Array, list[Array]]]:
        """Yield the model's first output and its activations, batch by batch.

        Args:
            images: ``[N, ...]``.
            injection: The faults; they are there from the first batch to the last.

        Yields:
            The output and the activations of some images, each ``[batch, ...]``.
        """
        try:
            if injection is not None:
                injection.put(self._engine)
            for values in self._engine.stream(images):
                yield values[0], [values[column] for column in self._columns]
        finally:
            if injection is not None:
                injection.undo(self._engine)

    def golden(self, images: Array) -> list[list[Array]]:
        """Activations of some images without faults, batch by batch."""
        return [values for _, values in self.stream(images)]

    def effects(
        self, injection: Injection, images: Array, golden: list[list[Array]] | None = None
    ) -> tuple[Array, list[LayerEffect]]:
        """Measure faults on some images.

        Args:
            injection: The faults; they are undone.
            images: ``[N, ...]``.
            golden: What `golden` gives for them, where several injections share the images.

        Returns:
            The faulty outputs, ``[N, ...]``, and the effect on every activation in topological
            order.
        """
        golden = self.golden(images) if golden is None else golden
        outputs, faulty = zip(*self.stream(images, injection), strict=True)
        effects = [
            _compare(tensor, expected, actual)
            for tensor, expected, actual in zip(
                self._tensors, zip(*golden, strict=True), zip(*faulty, strict=True), strict=True
            )
        ]
        return np.concatenate(outputs), effects


def mean_distance(effects: Sequence[LayerEffect]) -> float:
    """Average the squared distance over the layers: Eq. 9 of the paper.

    Args:
        effects: One a layer; each averages over its neurons, and over the images.
    """
    return float(np.mean([effect.squared for effect in effects]))


def _compare(tensor: str, golden: Sequence[Array], faulty: Sequence[Array]) -> LayerEffect:
    squares = total = 0.0
    greatest = 0.0
    values = nonfinite = 0
    with np.errstate(invalid="ignore", over="ignore"):
        for expected, actual in zip(golden, faulty, strict=True):
            apart = actual.astype(np.float64) - expected
            squares += float(np.square(apart).sum())
            total += float(np.square(expected.astype(np.float64)).sum())
            magnitudes = np.abs(actual)
            greatest = max(greatest, float(np.nanmax(magnitudes, initial=0.0)))
            nonfinite += int(np.count_nonzero(~np.isfinite(actual)))
            values += actual.size
    relative = float(np.sqrt(squares / total)) if total else float(squares > 0)
    return LayerEffect(tensor, squares / values, relative, greatest, nonfinite)
