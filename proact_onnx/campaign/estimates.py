"""Interval estimates of means over trials."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

Values = npt.NDArray[np.float64]

# Ends of the search for a limit: from so close to the mean that rounding begins to count, to just
# before the pole at the greatest value.
_LEAST_TILT = 1e-4
_GREATEST_TILT = 1.0 - 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    Attributes:
        mean: Point estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2


def mean_interval(
    values: Values,
    bounds: tuple[float, float],
    confidence: float = 0.95,
) -> Estimate:
    """Estimate the mean of independent trials whose values are bounded.

    At low bit error rates most trials change nothing and a few change everything. Student's t
    interval covers such a mean far too seldom, and claims certainty when no trial changed
    anything. Gaffke's limits (2005, *Three test statistics for a nonparametric one-sided
    hypothesis on the mean of a nonnegative variable*) hold for bounded values of any
    distribution: the upper one is a quantile of the mean under random weights, uniform on the
    simplex (a Bayesian bootstrap), over the sample and one more value, the upper bound; the lower
    one likewise with the lower bound. For values that are only ever the two bounds they are
    Clopper and Pearson's limits of a proportion, and for many trials with a spread they approach
    Student's.

    Args:
        values: One value a trial, ``[n]``, n >= 1.
        bounds: Least and greatest value the mean can take. Values beyond them, which trials on
            a subset of the images can show, count as the bound.
        confidence: Confidence level.

    Returns:
        Mean and interval; a single trial leaves almost the whole range open.
    """
    low, high = bounds
    span = high - low
    if span <= 0.0:
        return Estimate(low, low, high)
    scaled = np.clip((values - low) / span, 0.0, 1.0)
    tail = (1.0 - confidence) / 2.0
    return Estimate(
        low + span * float(scaled.mean()),
        high - span * _upper_limit(1.0 - scaled, tail),
        low + span * _upper_limit(scaled, tail),
    )


def _upper_limit(values: Values, tail: float) -> float:
    """Gaffke's upper limit of the mean of values from 0 to 1, at error probability ``tail``.

    The mean t of N values under uniform simplex weights exceeds a limit exactly when a sum of
    exponential variables with factors ``value - limit`` is positive. Lugannani and Rice's
    saddlepoint formula (1980) gives that probability to about one per cent of itself, and for a
    given tilt the limit and its saddlepoint are explicit, so one root is sought.
    """
    least = float(values.min())
    if least == 1.0:
        return 1.0
    # Stretched so that the values reach from 0 to 1: the search then never meets a spread of zero.
    extended = np.append((values - least) / (1.0 - least), 1.0)

    def limit_and_tail(tilt: float) -> tuple[float, float]:
        weights = 1.0 / (1.0 - tilt * extended)
        limit = float((weights * extended).sum() / weights.sum())
        shares = len(extended) * weights / weights.sum()
        deviations = shares * (extended - limit)
        saddle = tilt * float(weights.mean())
        root = math.sqrt(max(0.0, -2.0 * float(np.log(shares).sum())))
        curvature = saddle * math.sqrt(float(np.square(deviations).sum()))
        correction = 1.0 / curvature - 1.0 / root
        density = math.exp(-root * root / 2.0) / math.sqrt(2.0 * math.pi)
        return limit, 0.5 * math.erfc(root / math.sqrt(2.0)) + density * correction

    tilt = optimize.brentq(
        lambda tilt: limit_and_tail(tilt)[1] - tail, _LEAST_TILT, _GREATEST_TILT, xtol=1e-13
    )
    return least + (1.0 - least) * min(1.0, limit_and_tail(tilt)[0])
