"""What the trials of a campaign say about each bit error rate."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proact_onnx.campaign.estimates import Estimate, mean_interval
from proact_onnx.campaign.store import TrialResult
from proact_onnx.files import write_text


@dataclass(frozen=True)
class BerSummary:
    """Results at one bit error rate; all rates and accuracies from 0 to 1.

    Attributes:
        ber: Bit error rate.
        trials: Fault maps evaluated.
        flips: Mean number of flipped bits.
        accuracy: Mean top-1 accuracy under fault.
        drop: Mean accuracy lost against the golden run on the same images.
        sdc: Share of images with silent data corruption.
        nonfinite: Share of images with a non-finite output.
        percentile5: 5th percentile of the trials' accuracy.
        worst: Accuracy of the worst trial.
    """

    ber: float
    trials: int
    flips: float
    accuracy: Estimate
    drop: Estimate
    sdc: Estimate
    nonfinite: Estimate
    percentile5: float
    worst: float


@dataclass(frozen=True)
class CampaignResult:
    """A finished campaign.

    Attributes:
        model: Name of the model file.
        golden_accuracy: Accuracy of the golden run, whose parameters went through the format.
        float_accuracy: Accuracy of the model as it is stored in the file.
        images: Images in the data set.
        bits: Size of the fault space.
        saturated: Parameters outside the range of the format.
        memory_overhead: Stored thresholds in per cent of the other parameters (Eq. 6).
        labelled: Whether labels were given; otherwise the golden run's classes stand in.
        summaries: One a bit error rate, in ascending order.
    """

    model: str
    golden_accuracy: float
    float_accuracy: float
    images: int
    bits: int
    saturated: int
    memory_overhead: float
    labelled: bool
    summaries: tuple[BerSummary, ...]


def summarise(
    trials: Iterable[TrialResult], golden_accuracy: float, confidence: float
) -> tuple[BerSummary, ...]:
    """Summarise trials by bit error rate.

    A trial's drop is taken against the golden run on the same images, so which images it drew
    matters little; its accuracy is the golden run's on all images less that drop.

    Args:
        trials: In any order.
        golden_accuracy: Accuracy of the golden run on the whole data set.
        confidence: Confidence level of the intervals.
    """
    by_ber: dict[float, list[TrialResult]] = {}
    for trial in trials:
        by_ber.setdefault(trial.ber, []).append(trial)
    return tuple(
        _summarise_one(ber, by_ber[ber], golden_accuracy, confidence) for ber in sorted(by_ber)
    )


def _summarise_one(
    ber: float, trials: list[TrialResult], golden_accuracy: float, confidence: float
) -> BerSummary:
    trials = sorted(trials, key=lambda trial: trial.trial)
    images = np.array([trial.images for trial in trials], np.float64)
    lost = np.array([trial.golden_correct - trial.correct for trial in trials], np.float64)
    drops = lost / images
    # A fault can spoil every image, or by luck mend every one the network gets wrong.
    drop = mean_interval(drops, (golden_accuracy - 1.0, golden_accuracy), confidence)
    accuracy = Estimate(
        golden_accuracy - drop.mean, golden_accuracy - drop.high, golden_accuracy - drop.low
    )
    sdc = np.array([trial.sdc for trial in trials]) / images
    nonfinite = np.array([trial.nonfinite for trial in trials]) / images
    accuracies = golden_accuracy - drops
    return BerSummary(
        ber=ber,
        trials=len(trials),
        flips=float(np.mean([trial.flips for trial in trials])),
        accuracy=accuracy,
        drop=drop,
        sdc=mean_interval(sdc, (0.0, 1.0), confidence),
        nonfinite=mean_interval(nonfinite, (0.0, 1.0), confidence),
        percentile5=float(np.clip(np.percentile(accuracies, 5), 0.0, 1.0)),
        worst=float(np.clip(accuracies.min(), 0.0, 1.0)),
    )


def write_csv(result: CampaignResult, path: Path) -> None:
    """Write the summaries, one line a bit error rate, shares from 0 to 1.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_text(path, to_csv(result))


def to_csv(result: CampaignResult) -> str:
    """Spell the summaries as CSV, one line a bit error rate, shares from 0 to 1."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    estimates = ["accuracy", "drop", "sdc", "nonfinite"]
    writer.writerow(
        [
            "model",
            "ber",
            "trials",
            "mean_flips",
            "golden_accuracy",
            *(f"{name}{end}" for name in estimates for end in ("", "_low", "_high")),
            "accuracy_percentile5",
            "accuracy_worst",
        ]
    )
    for summary in result.summaries:
        values: list[float] = []
        for name in estimates:
            estimate: Estimate = getattr(summary, name)
            values += [estimate.mean, estimate.low, estimate.high]
        writer.writerow(
            [
                result.model,
                repr(summary.ber),
                summary.trials,
                *(
                    f"{value:.8g}"
                    for value in (
                        summary.flips,
                        result.golden_accuracy,
                        *values,
                        summary.percentile5,
                        summary.worst,
                    )
                ),
            ]
        )
    return stream.getvalue()
