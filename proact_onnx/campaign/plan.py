"""How many images a trial evaluates, and after how many trials a campaign may stop.

Both follow from the numbers of trials and their results alone, never from a clock, so the same
seed gives the same campaign on any machine, with any number of workers and after any interruption.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from proact_onnx.campaign.estimates import Spread, spread
from proact_onnx.campaign.store import TrialResult

# The first trials of a fault model, and the images of each of them.
PILOT_TRIALS = 30
PILOT_IMAGES = 32

# What a trial costs before its first image (drawing, encoding, putting in and taking out faults,
# starting the run), in images.
COST_RATIO = 10.0

# Below this, what is said of single trials (5th percentile, worst) would mean too little.
_LEAST_IMAGES = 16

# An interval allows for trials unlike any seen; its length then depends on the number of trials
# more than on their images. As variance: one in 500, the trials of the paper, is off by everything.
_UNSEEN = 1.0 / 500.0

# A campaign may stop at these numbers of trials; ever longer steps keep the looks few. Simulated
# stops at half-widths from 0.5 to 2 points covered the mean in 94 % of campaigns or more.
_FIRST_CHECK = 100
_GROWTH = 1.2


def images_per_trial(trials: Sequence[TrialResult], golden_accuracy: float, total: int) -> int:
    """Decide from the pilot how many images every further trial evaluates.

    Args:
        trials: The pilot's trials.
        golden_accuracy: Accuracy of the golden run on all images, from 0 to 1.
        total: Images there are.
    """
    found = spread(
        np.array([trial.verdict.correct for trial in trials], np.int64),
        np.array([trial.verdict.golden_correct for trial in trials], np.int64),
        np.array([trial.verdict.images for trial in trials], np.int64),
        np.array([trial.flips > 0 for trial in trials]),
        golden_accuracy,
    )
    return best_images(found, total)


def best_images(found: Spread, total: int, cost_ratio: float = COST_RATIO) -> int:
    """Images per trial that estimate the mean best for what a campaign costs.

    T trials of n images cost ``T (n + cost_ratio)`` and leave the mean a variance of
    ``(between^2 + within^2 / n) / T``; their product is least at
    ``n = sqrt(cost_ratio) within / between`` (two-stage sampling, Cochran 1977, section 10.6).

    Args:
        found: Standard deviations between fault maps and within them.
        total: Images there are.
        cost_ratio: What a trial costs beside its images, in images.

    Returns:
        The nearest power of two, at least 16 and at most ``total``.
    """
    wanted = math.sqrt(cost_ratio * found.within**2 / (found.between**2 + _UNSEEN))
    power = round(math.log2(max(wanted, _LEAST_IMAGES)))
    return min(total, int(2**power))


def checks(most: int) -> Iterator[int]:
    """Count the trials after which a campaign looks whether its interval is short enough.

    Looking more often would stop more often on a lucky streak.

    Args:
        most: Trials after which it ends in any case.

    Yields:
        Numbers of trials below ``most``, ascending: 100, 120, 144, 173 and so on.
    """
    count = _FIRST_CHECK
    while count < most:
        yield count
        count = math.ceil(count * _GROWTH)
