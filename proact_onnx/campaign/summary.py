"""What the trials of a campaign say about each fault model."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from proact_onnx.campaign.detection import Detection, detection
from proact_onnx.campaign.estimates import (
    Estimate,
    Spread,
    finite_population,
    mean_interval,
    paired_difference,
    proportion_interval,
    quantile_interval,
    spread,
    trial_accuracies,
)
from proact_onnx.campaign.store import TrialResult
from proact_onnx.faults import Rate, parse_fault_model
from proact_onnx.files import write_text

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FaultSummary:
    """Results under one fault model; all shares and accuracies from 0 to 1.

    Attributes:
        fault: Name of the fault model.
        ber: Its bit error rate; None where it has none.
        trials: Fault maps evaluated.
        evaluated: Images evaluated in all these trials; trials in which no bit changed take none.
        flips: Mean number of changed bits.
        accuracy: Mean top-1 accuracy under fault.
        drop: The golden run's accuracy less that.
        sdc: Share of images with silent data corruption, SDC-1.
        sdc5: The same, SDC-5; None for outputs that are not class scores.
        nonfinite: Share of images with a non-finite output, a detectable error (DUE).
        percentile5: 5th percentile of the trials' accuracy.
        worst: Accuracy of the worst trial.
        spread: Standard deviations between fault maps and within them, between images.
        values: Accuracy of each trial by its number, from 0 on.
        below: Probability that the accuracy of a trial lies below the requirement; None where
            none is set.
        relative_l2: Mean relative L2 distance of outputs that are not class scores; None otherwise.
        deviating: Mean share of their elements off by more than the tolerance; None otherwise.
        distance: Mean L2 distance of activations (Eq. 9); None unless measured.
        classes: By class, images and how many were classified so; None unless counted.
        detection: What the monitor noticed; None for a model without one.
    """

    fault: str
    ber: float | None
    trials: int
    evaluated: int
    flips: float
    accuracy: Estimate
    drop: Estimate
    sdc: Estimate
    sdc5: Estimate | None
    nonfinite: Estimate
    percentile5: Estimate
    worst: float
    spread: Spread
    values: tuple[float, ...]
    below: Estimate | None = None
    relative_l2: float | None = None
    deviating: float | None = None
    distance: float | None = None
    classes: tuple[tuple[int, int], ...] | None = None
    detection: Detection | None = None


@dataclass(frozen=True)
class CampaignResult:
    """A finished campaign.

    Attributes:
        model: Name of the model file.
        golden_accuracy: Accuracy of the golden run, whose parameters went through the format.
        float_accuracy: Accuracy of the model as it is stored in the file, on at most 1,024 images.
        images: Images in the data set.
        bits: Size of the fault space.
        saturated: Parameters outside the range of the format.
        memory_overhead: Stored thresholds and scales in per cent of the other parameters (Eq. 6);
            None where a record of an earlier release does not say.
        labelled: Whether labels were given; otherwise the golden run's classes stand in.
        classifier: Whether outputs are class scores; otherwise accuracy is the share of images
            within the tolerance.
        golden_classes: By class, images and how many the golden run classified so; None unless
            counted.
        summaries: One a fault model: rates in ascending order, then the others as asked for.
        alarms: Images that raise the monitor's alarm without faults; None without a monitor.
    """

    model: str
    golden_accuracy: float
    float_accuracy: float
    images: int
    bits: int
    saturated: int
    memory_overhead: float | None
    labelled: bool
    classifier: bool
    golden_classes: tuple[tuple[int, int], ...] | None
    summaries: tuple[FaultSummary, ...]
    alarms: int | None = None


@dataclass(frozen=True)
class Reading:
    """How trials are read.

    Attributes:
        golden_accuracy: Accuracy of the golden run on the whole data set.
        confidence: Confidence level of the intervals.
        total: Images in the data set.
        requirement: Accuracy below which a trial is a failure, from 0 to 1.
        places: By the names of fault models that draw every place once: how many there are.
    """

    golden_accuracy: float
    confidence: float = 0.95
    total: int = 0
    requirement: float | None = None
    places: Mapping[str, int] | None = None


def summarise(trials: Iterable[TrialResult], reading: Reading) -> tuple[FaultSummary, ...]:
    """Summarise trials by fault model.

    Args:
        trials: In any order.
        reading: How to read them.
    """
    by_fault: dict[str, list[TrialResult]] = {}
    for trial in trials:
        by_fault.setdefault(trial.fault, []).append(trial)
    summaries = [summarise_one(name, found, reading) for name, found in by_fault.items()]
    return tuple(sorted(summaries, key=lambda summary: (summary.ber is None, summary.ber or 0.0)))


def summarise_one(fault: str, trials: Sequence[TrialResult], reading: Reading) -> FaultSummary:
    """Summarise the trials of one fault model, in any order."""
    trials = sorted(trials, key=lambda trial: trial.trial)
    verdicts = [trial.verdict for trial in trials]
    images = np.array([verdict.images for verdict in verdicts], np.int64)
    correct = np.array([verdict.correct for verdict in verdicts], np.int64)
    golden_correct = np.array([verdict.golden_correct for verdict in verdicts], np.int64)
    changed = np.array([trial.flips > 0 for trial in trials])
    golden = reading.golden_accuracy
    values = trial_accuracies(correct, golden_correct, images, changed, golden)
    population = (reading.places or {}).get(fault)
    complete = population is not None and bool((images >= reading.total).all())

    def shorten(found: Estimate) -> Estimate:
        if not complete or population is None:
            return found
        return finite_population(found, len(trials), population)

    def estimate(of: Values, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
        return shorten(mean_interval(of, bounds, reading.confidence))

    accuracy = estimate(values)
    possible = np.clip(values, 0.0, 1.0)
    sdc5 = [verdict.sdc5 for verdict in verdicts if verdict.sdc5 is not None]
    below = failing = None
    if reading.requirement is not None:
        failing = values < reading.requirement
        failures = int(np.count_nonzero(failing))
        below = proportion_interval(failures, len(trials), reading.confidence)
    model = parse_fault_model(fault)
    return FaultSummary(
        fault=fault,
        ber=model.amount.ber if isinstance(model.amount, Rate) else None,
        trials=len(trials),
        evaluated=int(images[changed].sum()),
        flips=float(np.mean([trial.flips for trial in trials])),
        accuracy=accuracy,
        drop=Estimate(golden - accuracy.mean, golden - accuracy.high, golden - accuracy.low),
        sdc=estimate(np.array([verdict.sdc for verdict in verdicts]) / images),
        sdc5=estimate(np.array(sdc5) / images) if len(sdc5) == len(trials) else None,
        nonfinite=estimate(np.array([verdict.nonfinite for verdict in verdicts]) / images),
        percentile5=quantile_interval(
            np.clip(values, 0.0, 1.0), 0.05, (0.0, 1.0), reading.confidence
        ),
        worst=float(possible.min()),
        spread=spread(correct, golden_correct, images, changed, golden),
        values=tuple(values.tolist()),
        below=below,
        relative_l2=_mean([verdict.relative_l2 for verdict in verdicts]),
        deviating=_mean([verdict.deviating for verdict in verdicts]),
        distance=_mean([trial.distance for trial in trials]),
        classes=_by_class([verdict.classes for verdict in verdicts]),
        detection=detection(trials, failing, reading.confidence, shorten),
    )


def gain(summary: FaultSummary, baseline: FaultSummary, confidence: float) -> Estimate:
    """Estimate how much more accurate one model is than another under the same faults.

    Args:
        summary: The one model; trials of the same number had the same faults in both.
        baseline: The other.
        confidence: Confidence level.
    """
    matched = min(summary.trials, baseline.trials)
    values, others = (np.array(found.values[:matched]) for found in (summary, baseline))
    return paired_difference(values, others, confidence)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _by_class(
    counts: Sequence[tuple[tuple[int, int], ...] | None],
) -> tuple[tuple[int, int], ...] | None:
    known = [trial for trial in counts if trial is not None]
    if not known:
        return None
    total = np.array(known).sum(axis=0)
    return tuple((int(images), int(correct)) for images, correct in total)


def write_csv(result: CampaignResult, path: Path) -> None:
    """Write the summaries, one line a fault model, shares from 0 to 1.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_text(path, to_csv(result))


def to_csv(result: CampaignResult) -> str:
    """Spell the summaries as CSV, one line a fault model, shares from 0 to 1.

    What was not measured is an empty field.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    rows = [_row(result, summary) for summary in result.summaries]
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return stream.getvalue()


def _row(result: CampaignResult, summary: FaultSummary) -> dict[str, str | int]:
    row: dict[str, str | int] = {
        "model": result.model,
        "fault": summary.fault,
        "ber": "" if summary.ber is None else repr(summary.ber),
        "trials": summary.trials,
        "images": summary.evaluated,
        "mean_flips": _figure(summary.flips),
        "golden_accuracy": _figure(result.golden_accuracy),
    }
    columns = {"below": "below_requirement", "percentile5": "accuracy_percentile5"}
    for name in ("accuracy", "drop", "sdc", "sdc5", "nonfinite", "below", "percentile5"):
        estimate: Estimate | None = getattr(summary, name)
        column = columns.get(name, name)
        row[column] = _figure(None if estimate is None else estimate.mean)
        row[f"{column}_low"] = _figure(None if estimate is None else estimate.low)
        row[f"{column}_high"] = _figure(None if estimate is None else estimate.high)
    row["accuracy_worst"] = _figure(summary.worst)
    row["std_between_maps"] = _figure(summary.spread.between)
    row["std_within_maps"] = _figure(summary.spread.within)
    row["relative_l2"] = _figure(summary.relative_l2)
    row["deviating"] = _figure(summary.deviating)
    row["distance"] = _figure(summary.distance)
    if result.alarms is not None:
        row.update(_noticed(result.alarms / result.images, summary.detection))
    return row


def _noticed(false_alarms: float, found: Detection | None) -> dict[str, str]:
    row = {"false_alarms": _figure(false_alarms)}
    for field in fields(Detection):
        estimate: Estimate | None = None if found is None else getattr(found, field.name)
        for end, part in (("", "mean"), ("_low", "low"), ("_high", "high")):
            value = None if estimate is None else getattr(estimate, part)
            row[f"alarm_{field.name}{end}"] = _figure(value)
    return row


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.8g}"
