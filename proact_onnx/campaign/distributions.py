"""Distributions of activation values without and with faults (Fig. 3 and 6 of the paper)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.activations import activation_outputs
from proact_onnx.campaign.distance import ActivationMeter
from proact_onnx.campaign.encoded import Injection, encode_model
from proact_onnx.campaign.histogram import Histogram
from proact_onnx.campaign.images import choose_images
from proact_onnx.campaign.subject import Subject
from proact_onnx.data import Dataset, Preprocessing, check_labels
from proact_onnx.engine import chance_warning, is_classifier, top1
from proact_onnx.errors import ModelError, SettingsError
from proact_onnx.faults import FaultModel, Rate
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.settings import InjectSettings, ProfileSettings, RuntimeSettings

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

_NAMES = 4


@dataclass(frozen=True)
class LayerDistribution:
    """The values of one activation function.

    Attributes:
        tensor: Name of its output.
        golden: Values without faults.
        faulty: Values under all fault maps, on the same images.
        beyond: How many finite faulty values are greater than every fault-free one.
    """

    tensor: str
    golden: Histogram
    faulty: Histogram
    beyond: int


@dataclass(frozen=True)
class Distributions:
    """Distributions of a model's activations.

    Attributes:
        model: Name of the model file.
        fault: The fault model as a record names it.
        trials: Fault maps.
        images: Images, the same for every fault map.
        saturated: Parameters outside the range of the format.
        golden_accuracy: Accuracy without faults on these images, from 0 to 1; agreement with the
            fault-free run where there are no labels; None where outputs are not class scores.
        faulty_accuracy: The same, mean over the fault maps.
        layers: One an activation function, in topological order.
    """

    model: str
    fault: str
    trials: int
    images: int
    saturated: int
    golden_accuracy: float | None
    faulty_accuracy: float | None
    layers: tuple[LayerDistribution, ...]


class DistributionStudy:
    """Collects the values of activations without faults and under fault maps.

    Trial ``t`` has the fault map that a campaign of the same seed and rate has in its trial ``t``.
    All run on the same images, so that faults alone tell the distributions apart. The memory
    needed grows with a batch, not with images or trials.

    Args:
        model: The model file; what is faulted is what it stores.
        data: Images to draw from.
        settings: Rate, fault maps, images and activations.
        inject: Format, targets, layers, bits and seed.
        preprocessing: How images become the model's input.
        runtime: How ONNX Runtime executes.

    Raises:
        ModelError: If the model cannot be read or has no activation function.
        DataError: If the images do not fit the model.
        SettingsError: If a setting does not fit the model.
    """

    def __init__(
        self,
        model: Path,
        data: Dataset,
        settings: ProfileSettings | None = None,
        inject: InjectSettings | None = None,
        preprocessing: Preprocessing | None = None,
        runtime: RuntimeSettings | None = None,
    ) -> None:
        self._settings = settings or ProfileSettings()
        self._subject = Subject(model, data, inject, preprocessing, runtime)
        self._tensors = _choose(
            activation_outputs(self._subject.model), self._settings.activations, model
        )

    def run(self, reporter: Reporter | None = None) -> Distributions:
        """Run the golden model, then every fault map.

        Args:
            reporter: Receives progress, the choice of the engine, and warnings.

        Raises:
            ModelError: If the model cannot be run, or an activation has no finite value.
            DataError: If the labels do not fit the model.
        """
        reporter = reporter or LogReporter()
        subject, settings = self._subject, self._settings
        fault, seed = FaultModel(Rate(settings.ber)), subject.settings.seed
        chosen = choose_images(len(subject.data), settings.images, seed, 0, subject.data.labels)
        images = subject.prepare(subject.data.images[chosen])
        subject.load_operators(reporter)
        encoded = encode_model(subject.model, subject.space, subject.format)
        meter = ActivationMeter(encoded, images, subject.arguments, self._tensors)
        reporter.notice(f"{subject.path.name}: {meter.notice}")
        reporter.begin(f"{subject.path.name} {fault.name}", 1 + settings.trials)
        golden = _Collector(self._tensors)
        golden_answers = golden.collect(meter, images)
        self._check_finite(golden)
        right = self._right_classes(golden_answers, chosen, reporter)
        reporter.advance()
        greatest = {tensor: found.greatest for tensor, found in golden.histograms.items()}
        faulty = _Collector(self._tensors, greatest)
        accuracies = []
        for trial in range(settings.trials):
            injection = encoded.inject(fault.draw(subject.space, seed, trial))
            if injection.words:
                answers = faulty.collect(meter, images, injection)
            else:
                faulty.repeat(golden)
                answers = golden_answers
            accuracies.append(_accuracy(answers, right))
            reporter.advance()
        return Distributions(
            model=subject.path.name,
            fault=fault.name,
            trials=settings.trials,
            images=len(images),
            saturated=encoded.saturated,
            golden_accuracy=_accuracy(golden_answers, right),
            faulty_accuracy=_mean(accuracies),
            layers=tuple(
                LayerDistribution(
                    tensor,
                    golden.histograms[tensor],
                    faulty.histograms[tensor],
                    faulty.beyond[tensor],
                )
                for tensor in self._tensors
            ),
        )

    def _check_finite(self, golden: "_Collector") -> None:
        for tensor, histogram in golden.histograms.items():
            if not histogram.finite:
                raise ModelError(
                    f"activation {tensor!r} of {self._subject.path.name} has no finite value "
                    f"without faults, its parameters stored as {self._subject.format.name}: "
                    "choose a --format with a wider range, or check the preprocessing"
                )

    def _right_classes(
        self, golden: "_Answers | None", chosen: Indices, reporter: Reporter
    ) -> Indices | None:
        """Labels of the images, or the golden run's classes; None without class scores."""
        data = self._subject.data
        if golden is None or data.labels is None:
            return None if golden is None else golden.classes
        check_labels(data, golden.scores)
        labels = data.labels[chosen]
        accuracy = float((golden.classes == labels).mean())
        warning = chance_warning(accuracy, golden.scores, len(labels))
        if warning is not None:
            reporter.warn(warning)
        return labels


@dataclass(frozen=True)
class _Answers:
    """Classes that a model gives some images.

    Attributes:
        classes: int64 ``[N]``; -1 where the output is not finite.
        scores: Number of classes it chooses among.
    """

    classes: Indices
    scores: int


class _Collector:
    """Histograms of activations under one condition.

    Args:
        tensors: Names of the activations.
        limits: By activation, a value; how often it is exceeded is counted.
    """

    def __init__(self, tensors: Sequence[str], limits: Mapping[str, float] | None = None) -> None:
        self.histograms = {tensor: Histogram() for tensor in tensors}
        self.beyond = dict.fromkeys(tensors, 0)
        self._limits = limits or {}

    def collect(
        self, meter: ActivationMeter, images: Array, injection: Injection | None = None
    ) -> _Answers | None:
        """Run images and count the values of their activations.

        Returns:
            The classes, or None where outputs are not class scores.
        """
        classes = []
        scores = 0
        for outputs, activations in meter.stream(images, injection):
            for tensor, values in zip(self.histograms, activations, strict=True):
                self.histograms[tensor].add(values)
                if tensor in self._limits:
                    exceeding = np.isfinite(values) & (values > self._limits[tensor])
                    self.beyond[tensor] += int(np.count_nonzero(exceeding))
            if is_classifier(outputs):
                found = top1(outputs)
                classes.append(np.where(found.finite, found.classes, -1))
                scores = outputs[0].size
        answers = np.concatenate(classes) if classes else np.empty(0, np.int64)
        return _Answers(answers, scores) if len(answers) == len(images) else None

    def repeat(self, other: "_Collector") -> None:
        """Count what another collector has counted; nothing of it exceeds a limit."""
        for tensor, histogram in self.histograms.items():
            histogram.merge(other.histograms[tensor])


def _accuracy(answers: _Answers | None, right: Indices | None) -> float | None:
    if answers is None or right is None:
        return None
    return float((answers.classes == right).mean())


def _mean(accuracies: Sequence[float | None]) -> float | None:
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(known) / len(known) if known else None


def _choose(tensors: Sequence[str], patterns: Sequence[str], model: Path) -> list[str]:
    if not tensors:
        raise ModelError(
            f"{model.name} has no activation whose values could be collected (Relu, or Clip from "
            f"0): 'proact-onnx inspect {model}' lists what it has"
        )
    for pattern in patterns:
        if not any(fnmatchcase(tensor, pattern) for tensor in tensors):
            known = ", ".join(tensors[:_NAMES]) + (", ..." if len(tensors) > _NAMES else "")
            raise SettingsError(
                f"no activation of {model.name} matches the pattern {pattern!r}: its activations "
                f"are {known}"
            )
    if not patterns:
        return list(tensors)
    return [t for t in tensors if any(fnmatchcase(t, pattern) for pattern in patterns)]
