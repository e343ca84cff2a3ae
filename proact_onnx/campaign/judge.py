"""What the outputs of a faulty run say beside those of the golden run."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from proact_onnx.engine import Predictions, top1

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
PerClass = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Alarms:
    """How many images of a trial raise the monitor's alarm.

    Attributes:
        raised: All that do.
        new: Those that do not without faults.
        sdc: Those with silent data corruption.
        nonfinite: Those with a non-finite output.
    """

    raised: int
    new: int
    sdc: int
    nonfinite: int


@dataclass(frozen=True)
class Verdict:
    """What a trial's outputs are worth.

    Attributes:
        images: Images evaluated.
        correct: How many are classified as labelled; for outputs that are not class scores, how
            many are within the tolerance.
        golden_correct: How many the golden run gets right of the same images.
        sdc: How many have a finite output that is silently wrong: another top-1 class than the
            golden run's, or an element off by more than the tolerance.
        nonfinite: How many have an infinity or a NaN in the output, or none because the runtime
            stopped with an error, which can be detected (DUE).
        sdc5: How many have a finite output whose top-1 class is not among the golden run's top
            five; None for outputs that are not class scores.
        relative_l2: Mean over the images with finite output of ``|faulty - golden| / |golden|`` in
            the Euclidean norm; None for class scores, and where no output is finite.
        deviating: Mean share of elements off by more than the tolerance, non-finite ones included;
            None for class scores.
        classes: By class, how many images are labelled so and how many of these are classified
            so; None unless asked for.
        alarms: Images that raise the monitor's alarm; None without a monitor.
    """

    images: int
    correct: int
    golden_correct: int
    sdc: int
    nonfinite: int
    sdc5: int | None = None
    relative_l2: float | None = None
    deviating: float | None = None
    classes: PerClass | None = None
    alarms: Alarms | None = None


class Judge(Protocol):
    """Compares outputs with those of the golden run.

    Attributes:
        alarms: Which images raise the monitor's alarm without faults, ``[N]``; None without a
            monitor.
    """

    alarms: Flags | None

    def compare(self, outputs: Array, chosen: Indices, raised: Flags | None = None) -> Verdict:
        """Judge the outputs for the chosen images.

        Args:
            outputs: ``[len(chosen), ...]``.
            chosen: Indices of the images.
            raised: Which of them raise the monitor's alarm; None without a monitor.
        """

    def unchanged(self, chosen: Indices) -> Verdict:
        """Judge the golden run's own outputs."""


@dataclass(frozen=True)
class ClassJudge:
    """Judges class scores.

    Attributes:
        golden: The golden run's predictions for all images.
        labels: int64 ``[N]``.
        classes: Number of classes.
        per_class: Whether to count by class.
        alarms: Which images raise the monitor's alarm without faults, ``[N]``.
    """

    golden: Predictions
    labels: npt.NDArray[np.int64]
    classes: int
    per_class: bool = False
    alarms: Flags | None = None

    @property
    def accuracy(self) -> float:
        """Accuracy of the golden run on all images, from 0 to 1."""
        return float(self.golden.correct(self.labels).mean())

    def compare(self, outputs: Array, chosen: Indices, raised: Flags | None = None) -> Verdict:
        """Judge class scores for the chosen images."""
        return self._judge(top1(outputs), chosen, raised)

    def unchanged(self, chosen: Indices) -> Verdict:
        """Judge the golden run's own classes."""
        return self._judge(self.golden.take(chosen), chosen, _of(self.alarms, chosen))

    def _judge(self, faulty: Predictions, chosen: Indices, raised: Flags | None) -> Verdict:
        golden, labels = self.golden.take(chosen), self.labels[chosen]
        right, sdc = faulty.correct(labels), faulty.corrupted(golden)
        return Verdict(
            images=len(chosen),
            correct=int(right.sum()),
            golden_correct=int(golden.correct(labels).sum()),
            sdc=int(sdc.sum()),
            nonfinite=int((~faulty.finite).sum()),
            sdc5=int(faulty.corrupted_beyond_5(golden).sum()),
            classes=self._by_class(labels, right) if self.per_class else None,
            alarms=_count(raised, _of(self.alarms, chosen), sdc, ~faulty.finite),
        )

    def _by_class(self, labels: npt.NDArray[np.int64], right: Flags) -> PerClass:
        images = np.bincount(labels, minlength=self.classes).tolist()
        correct = np.bincount(labels[right], minlength=self.classes).tolist()
        return tuple(zip(images, correct, strict=True))


@dataclass(frozen=True)
class ElementJudge:
    """Judges outputs that are not class scores, element by element.

    Attributes:
        golden: The golden run's outputs for all images, ``[N, ...]``.
        tolerance: How far an element may be off, relative to the largest magnitude in the golden
            output of its image.
        alarms: Which images raise the monitor's alarm without faults, ``[N]``.
    """

    golden: Array
    tolerance: float
    alarms: Flags | None = None

    @property
    def accuracy(self) -> float:
        """Share of images the golden run has a finite output for, from 0 to 1."""
        return float(np.isfinite(self._flat(self.golden)).all(axis=1).mean())

    def compare(self, outputs: Array, chosen: Indices, raised: Flags | None = None) -> Verdict:
        """Judge the outputs for the chosen images."""
        golden, faulty = self._flat(self.golden[chosen]), self._flat(outputs)
        known = np.isfinite(golden).all(axis=1)
        finite = np.asarray(np.isfinite(faulty).all(axis=1))
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(faulty - golden)
            allowed = self.tolerance * np.abs(golden).max(axis=1, keepdims=True)
            # A NaN is not within any tolerance.
            off = ~(apart <= allowed)
            distances = np.linalg.norm(apart, axis=1) / np.linalg.norm(golden, axis=1)
        within = known & ~off.any(axis=1)
        measured = distances[finite & np.isfinite(distances)]
        sdc = np.asarray(finite & off.any(axis=1))
        return Verdict(
            images=len(chosen),
            correct=int(within.sum()),
            golden_correct=int(known.sum()),
            sdc=int(sdc.sum()),
            nonfinite=int((~finite).sum()),
            relative_l2=float(measured.mean()) if measured.size else None,
            deviating=float(off.mean()),
            alarms=_count(raised, _of(self.alarms, chosen), sdc, ~finite),
        )

    def unchanged(self, chosen: Indices) -> Verdict:
        """Judge the golden run's own outputs."""
        return self.compare(self.golden[chosen], chosen, _of(self.alarms, chosen))

    @staticmethod
    def _flat(outputs: Array) -> npt.NDArray[np.float64]:
        return outputs.reshape(len(outputs), -1).astype(np.float64)


def _of(alarms: Flags | None, chosen: Indices) -> Flags | None:
    return None if alarms is None else alarms[chosen]


def _count(
    raised: Flags | None, golden: Flags | None, sdc: Flags, nonfinite: Flags
) -> Alarms | None:
    if raised is None or golden is None:
        return None
    parts = (raised, raised & ~golden, raised & sdc, raised & nonfinite)
    return Alarms(*(int(np.count_nonzero(part)) for part in parts))
