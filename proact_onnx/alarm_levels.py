"""From which count on a monitor raises the alarm, and how often it does without a fault."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.campaign.estimates import Estimate, proportion_interval
from proact_onnx.engine import Session
from proact_onnx.engine.costs import Costs
from proact_onnx.errors import ModelError
from proact_onnx.monitor import Monitor
from proact_onnx.rewrite import Bound

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MonitorReport:
    """A monitor, and what it does on fault-free images that its levels were not found on.

    Attributes:
        monitor: The monitor.
        images: Test images.
        highest: By layer, the highest count on one of them.
        layer_alarms: By layer, on how many its count lies above its level.
        alarms: On how many any count does.
        false_alarms: The share of these, with Clopper and Pearson's limits at 95 %.
    """

    monitor: Monitor
    images: int
    highest: tuple[int, ...]
    layer_alarms: tuple[int, ...]
    alarms: int
    false_alarms: Estimate


def calibrate_monitor(
    model: Session, layers: Sequence[str], clean: Sequence[npt.NDArray[Any]]
) -> Monitor:
    """Find the alarm levels: for each layer the highest count on any of the clean images.

    A further image of the same kind exceeds the highest of n counts with probability 1 / (n + 1)
    at most, whatever the distribution, so with L layers it raises the alarm with probability
    L / (n + 1) at most. That holds for images which the thresholds do not know; where these are
    the maxima of the calibration images, only the others count.

    Args:
        model: The hardened model; the monitor is its last output.
        layers: What its columns count.
        clean: Sets of preprocessed images, each ``[N, ...]``.
    """
    counts = np.concatenate([_counts(model, images) for images in clean])
    levels = tuple(counts.max(axis=0).tolist())
    return Monitor(model.outputs[-1], tuple(layers), levels, len(counts))


def measure_false_alarms(
    model: Session, monitor: Monitor, images: npt.NDArray[Any]
) -> MonitorReport:
    """Count the images without a fault that raise the alarm.

    Args:
        model: The hardened model.
        monitor: Its monitor.
        images: Preprocessed images, ``[N, ...]``, that the levels were not found on.
    """
    counts = _counts(model, images)
    alarms = int(monitor.raised(counts).sum())
    return MonitorReport(
        monitor=monitor,
        images=len(images),
        highest=tuple(counts.max(axis=0).tolist()),
        layer_alarms=tuple((counts > np.array(monitor.alarm_levels)).sum(axis=0).tolist()),
        alarms=alarms,
        false_alarms=proportion_interval(alarms, len(images)),
    )


def check_images_apart(
    model: onnx.ModelProto, bounds: Sequence[Bound], images: npt.NDArray[Any]
) -> None:
    """Find out whether counts by image make sense: whether every layer keeps images apart.

    Args:
        model: The hardened model, without a monitor.
        bounds: What is to be watched.
        images: Preprocessed images, ``[N, ...]``; two of them are run.

    Raises:
        ModelError: If the first axis of a layer is not the batch.
    """
    sizes = Costs(model, images)
    for bound in bounds:
        if sizes.batched(bound.compared) is None:
            raise ModelError(
                f"the monitor cannot count by image, because the first axis of activation "
                f"{bound.tensor!r} is not the batch: leave --monitor out"
            )


def _counts(model: Session, images: npt.NDArray[Any]) -> Counts:
    streamed = model.stream(images, model.outputs[-1:])
    return np.concatenate([values for [values] in streamed]).astype(np.int64)
