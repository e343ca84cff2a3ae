"""Images per trial and the numbers of trials at which a campaign may stop."""

import itertools
import math

import numpy as np
import pytest

from proact_onnx.campaign.estimates import Spread
from proact_onnx.campaign.judge import Verdict
from proact_onnx.campaign.plan import (
    PILOT_IMAGES,
    PILOT_TRIALS,
    best_images,
    checks,
    images_per_trial,
)
from proact_onnx.campaign.store import TrialResult


def _cost(found: Spread, images: int, cost_ratio: float) -> float:
    """Cost times variance, one trial in 500 being off by everything."""
    variance = found.between**2 + 1 / 500 + found.within**2 / images
    return (images + cost_ratio) * variance


@pytest.mark.parametrize("between", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("within", [0.0, 0.05, 0.3, 0.5])
@pytest.mark.parametrize("cost_ratio", [1.0, 10.0, 1000.0])
def test_the_best_number_of_images_costs_least(
    between: float, within: float, cost_ratio: float
) -> None:
    found = Spread(between, within)
    best = best_images(found, 1 << 14, cost_ratio)
    powers = [2**power for power in range(4, 15)]
    assert best in powers
    least = min(_cost(found, images, cost_ratio) for images in powers)
    # The nearest power in proportion may lose to its neighbour, but hardly.
    assert _cost(found, best, cost_ratio) <= 1.03 * least


def test_no_more_images_than_there_are() -> None:
    assert best_images(Spread(0.0, 0.5), 20, 1000.0) == 20
    assert best_images(Spread(0.0, 0.0), 10) == 10


def _trial(number: int, correct: int, golden_correct: int, flips: int = 9) -> TrialResult:
    verdict = Verdict(PILOT_IMAGES, correct, golden_correct, sdc=0, nonfinite=0)
    return TrialResult("ber=1e-06", number, flips, flips, verdict)


def test_a_pilot_without_any_effect_asks_for_the_least() -> None:
    trials = [_trial(number, 29, 29, flips=0) for number in range(PILOT_TRIALS)]
    assert images_per_trial(trials, 0.92, 10_000) == 16


def test_maps_that_scatter_ask_for_fewer_images_than_maps_alike() -> None:
    rng = np.random.default_rng(0)
    scattered = [
        _trial(number, int(rng.binomial(PILOT_IMAGES, rng.random())), 32)
        for number in range(PILOT_TRIALS)
    ]
    alike = [
        _trial(number, int(rng.binomial(PILOT_IMAGES, 0.5)), 32) for number in range(PILOT_TRIALS)
    ]
    assert images_per_trial(scattered, 1.0, 10_000) == 16
    assert images_per_trial(alike, 1.0, 10_000) == 32


@pytest.mark.parametrize("most", [1, 100, 101, 500, 100_000])
def test_checks_ascend_in_steps_of_a_fifth_and_end_before_the_last_trial(most: int) -> None:
    counts = list(checks(most))
    assert all(100 <= count < most for count in counts)
    assert all(later == math.ceil(1.2 * count) for count, later in itertools.pairwise(counts))
    assert bool(counts) == (most > 100)
    if counts:
        assert counts[0] == 100
        assert math.ceil(1.2 * counts[-1]) >= most


def test_more_trials_asked_for_keep_the_earlier_checks() -> None:
    assert list(checks(20_000))[: len(list(checks(500)))] == list(checks(500))
