"""What the monitor of a model notices of the faults: of trials, and of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from proact_onnx.campaign.estimates import Estimate, mean_interval, proportion_interval
from proact_onnx.campaign.store import TrialResult

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Detection:
    """What a monitor noticed under one fault model, in the trials in which a bit changed.

    A trial is noticed if at least one of its images raises the alarm that does not raise it
    without faults. All shares are from 0 to 1, and None where there is nothing to take a share of.

    Attributes:
        images: Share of all images that raise the alarm.
        trials: Share of the trials that are noticed.
        harmful: The same of those with silent data corruption in at least one image.
        failing: The same of those with an accuracy below the requirement; None also where none is
            set.
        sdc: Share of the images with silent data corruption that raise the alarm.
        unharmed: Share of the images with the golden run's answer that raise it.
    """

    images: Estimate | None
    trials: Estimate | None
    harmful: Estimate | None
    failing: Estimate | None
    sdc: Estimate | None
    unharmed: Estimate | None


def detection(
    trials: Sequence[TrialResult],
    failing: Flags | None,
    confidence: float,
    shorten: Callable[[Estimate], Estimate],
) -> Detection | None:
    """Summarise what the monitor noticed in the trials of one fault model.

    Args:
        trials: The trials.
        failing: Which of them fall short of the required accuracy, ``[n]``; None without one.
        confidence: Confidence level of the intervals.
        shorten: Corrects an interval for what the trials cover of the fault space.

    Returns:
        None unless all trials have alarms.
    """
    alarms = [trial.verdict.alarms for trial in trials if trial.verdict.alarms is not None]
    if len(alarms) < len(trials):
        return None
    changed = np.array([trial.flips > 0 for trial in trials])
    images, sdc, nonfinite = (
        np.array([getattr(trial.verdict, name) for trial in trials], np.float64)
        for name in ("images", "sdc", "nonfinite")
    )
    raised, new, raised_sdc, raised_nonfinite = (
        np.array([getattr(alarm, name) for alarm in alarms], np.float64)
        for name in ("raised", "new", "sdc", "nonfinite")
    )

    def noticed(among: Flags) -> Estimate | None:
        among = among & changed
        if not among.any():
            return None
        events = int(np.count_nonzero(new[among]))
        return shorten(proportion_interval(events, int(np.count_nonzero(among)), confidence))

    def flagged(part: Values, whole: Values) -> Estimate | None:
        found = ratio_interval((part / images)[changed], (whole / images)[changed], confidence)
        return None if found is None else shorten(found)

    return Detection(
        images=flagged(raised, images),
        trials=noticed(changed),
        harmful=noticed(sdc > 0),
        failing=None if failing is None else noticed(failing),
        sdc=flagged(raised_sdc, sdc),
        unharmed=flagged(raised - raised_sdc - raised_nonfinite, images - sdc - nonfinite),
    )


def ratio_interval(parts: Values, wholes: Values, confidence: float = 0.95) -> Estimate | None:
    """Estimate a ratio of two means over independent trials, such as the share of SDC noticed.

    Images of one trial suffer the same faults, so they say less than as many independent ones.
    The interval holds every ratio c for which the mean of ``part - c whole`` may be zero, by
    Gaffke's limits for bounded values (Fieller's argument).

    Args:
        parts: By trial, ``[n]``; from 0 to the whole.
        wholes: By trial, ``[n]``; from 0 to 1.
        confidence: Confidence level.

    Returns:
        None if all wholes are zero.
    """
    total = float(wholes.sum())
    if total == 0.0:
        return None

    def limits(ratio: float) -> Estimate:
        return mean_interval(parts - ratio * wholes, (-ratio, 1.0 - ratio), confidence)

    low, high = 0.0, 1.0
    if limits(0.0).low > 0.0:
        low = float(optimize.brentq(lambda ratio: limits(ratio).low, 0.0, 1.0, xtol=_PRECISION))
    if limits(1.0).high < 0.0:
        high = float(optimize.brentq(lambda ratio: limits(ratio).high, 0.0, 1.0, xtol=_PRECISION))
    return Estimate(float(parts.sum()) / total, low, high)


# Far finer than what is shown, two decimals of a per cent.
_PRECISION = 1e-6
