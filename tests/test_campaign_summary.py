"""What trials say about each bit error rate."""

import csv
import io

import numpy as np
import pytest
from scipy import stats

from proact_onnx.campaign import (
    CampaignResult,
    FaultSummary,
    Reading,
    TrialResult,
    Verdict,
    gain,
    mean_interval,
    summarise,
)
from proact_onnx.campaign.summary import to_csv

GOLDEN = 0.8
READING = Reading(GOLDEN, 0.95, total=50)


def trial(ber: float, number: int, verdict: Verdict) -> TrialResult:
    return TrialResult(f"ber={ber!r}", number, 1, 1, verdict)


def trials_at(ber: float, lost: list[int], images: int = 50) -> list[TrialResult]:
    """Trials that lose so many of 40 images the golden run gets right."""
    return [
        TrialResult(
            f"ber={ber!r}",
            number,
            number + 1,
            number + 1,
            Verdict(images, 40 - loss, 40, min(loss, 5), 2, min(loss, 3)),
        )
        for number, loss in enumerate(lost)
    ]


def result_of(summaries: tuple[FaultSummary, ...]) -> CampaignResult:
    return CampaignResult(
        model="a,b.onnx",
        golden_accuracy=GOLDEN,
        float_accuracy=0.81,
        images=50,
        bits=320,
        saturated=0,
        memory_overhead=0.5,
        labelled=True,
        classifier=True,
        golden_classes=None,
        summaries=summaries,
    )


def test_means_by_hand() -> None:
    [summary] = summarise(trials_at(1e-3, [0, 10, 20, 40]), READING)
    assert summary.ber == 1e-3
    assert summary.trials == 4
    assert summary.flips == 2.5
    assert summary.drop.mean == pytest.approx(70 / 200)
    assert summary.accuracy.mean == pytest.approx(GOLDEN - 70 / 200)
    assert summary.sdc.mean == pytest.approx(15 / 200)
    assert summary.nonfinite.mean == pytest.approx(0.04)
    assert summary.worst == pytest.approx(0.0)
    assert summary.percentile5.mean == pytest.approx(np.percentile([0.8, 0.6, 0.4, 0.0], 5))
    assert summary.values == pytest.approx((0.8, 0.6, 0.4, 0.0))


def test_intervals_are_those_of_the_trials() -> None:
    lost = [0, 0, 10, 20, 40]
    [summary] = summarise(trials_at(1e-3, lost), Reading(GOLDEN, 0.9, total=50))
    accuracy = mean_interval(GOLDEN - np.array(lost) / 50, (0.0, 1.0), 0.9)
    assert summary.accuracy.mean == pytest.approx(accuracy.mean)
    assert summary.drop.low == pytest.approx(GOLDEN - accuracy.high)
    assert summary.drop.high == pytest.approx(GOLDEN - accuracy.low)
    sdc = mean_interval(np.minimum(lost, 5) / 50, (0.0, 1.0), 0.9)
    assert summary.sdc == sdc


def test_rates_are_told_apart_and_ordered_whatever_the_order_of_the_trials() -> None:
    trials = trials_at(1e-2, [5, 6]) + trials_at(1e-5, [0, 1, 2]) + trials_at(1e-3, [3])
    summaries = summarise(trials, READING)
    assert [summary.ber for summary in summaries] == [1e-5, 1e-3, 1e-2]
    assert [summary.trials for summary in summaries] == [3, 1, 2]
    assert summarise(trials[::-1], READING) == summaries


def test_a_drop_is_taken_on_the_trial_s_own_images() -> None:
    """Two subsets of different difficulty, the same loss: no spread comes from the choice."""
    easy = trial(1e-3, 0, Verdict(10, 8, 9, 1, 0))
    hard = trial(1e-3, 1, Verdict(10, 3, 4, 1, 0))
    [summary] = summarise([easy, hard], READING)
    assert summary.drop.mean == pytest.approx(0.1)
    assert summary.accuracy.mean == pytest.approx(GOLDEN - 0.1)
    assert summary.worst == summary.percentile5.mean == pytest.approx(GOLDEN - 0.1)


def test_shares_stay_between_nought_and_one() -> None:
    lucky = [trial(1e-3, n, Verdict(10, 10, 10, 0, 0)) for n in range(3)]
    spoilt = [trial(1e-2, n, Verdict(10, 0, 10, 9, 1)) for n in range(3)]
    for summary in summarise(lucky + spoilt, READING):
        for value in (summary.accuracy.low, summary.accuracy.mean, summary.accuracy.high):
            assert -1e-12 <= value <= 1 + 1e-12
        assert 0.0 <= summary.worst <= summary.percentile5.mean <= 1.0
        assert summary.accuracy.low <= summary.accuracy.mean <= summary.accuracy.high


def test_csv_reads_back() -> None:
    summaries = summarise(trials_at(1e-6, [0, 1, 2]) + trials_at(1e-3, [9, 30]), READING)
    rows = list(csv.DictReader(io.StringIO(to_csv(result_of(summaries)))))
    assert len(rows) == 2
    for row, summary in zip(rows, summaries, strict=True):
        assert row["model"] == "a,b.onnx"
        assert float(row["ber"]) == summary.ber
        assert int(row["trials"]) == summary.trials
        assert float(row["mean_flips"]) == summary.flips
        assert float(row["golden_accuracy"]) == GOLDEN
        for name in ("accuracy", "drop", "sdc", "nonfinite"):
            estimate = getattr(summary, name)
            assert float(row[name]) == pytest.approx(estimate.mean, abs=1e-7)
            assert float(row[f"{name}_low"]) == pytest.approx(estimate.low, abs=1e-7)
            assert float(row[f"{name}_high"]) == pytest.approx(estimate.high, abs=1e-7)
        assert float(row["accuracy_percentile5"]) == pytest.approx(summary.percentile5.mean)
        assert float(row["accuracy_worst"]) == pytest.approx(summary.worst)


def test_a_requirement_is_a_share_of_trials() -> None:
    reading = Reading(GOLDEN, 0.95, total=50, requirement=0.5)
    [summary] = summarise(trials_at(1e-3, [0, 10, 20, 30, 40, 0, 0, 0]), reading)
    assert summary.below is not None
    assert summary.below.mean == 3 / 8
    exact = stats.binomtest(3, 8).proportion_ci(0.95, method="exact")
    assert (summary.below.low, summary.below.high) == pytest.approx((exact.low, exact.high))
    [without] = summarise(trials_at(1e-3, [0, 1]), READING)
    assert without.below is None


def test_every_place_on_every_image_leaves_nothing_open() -> None:
    single = [
        TrialResult("single", number, 1, 1, Verdict(50, 40 - number, 40, 3, 0, 2))
        for number in range(4)
    ]
    known = Reading(GOLDEN, 0.95, total=50, places={"single": 4})
    [summary] = summarise(single, known)
    assert summary.accuracy.low == summary.accuracy.high == pytest.approx(GOLDEN - 0.03)
    assert summary.ber is None
    [fewer_images] = summarise(single, Reading(GOLDEN, 0.95, total=51, places={"single": 4}))
    [more_places] = summarise(single, Reading(GOLDEN, 0.95, total=50, places={"single": 40}))
    assert fewer_images.accuracy.half_width > more_places.accuracy.half_width > 0


def test_what_some_models_measure_is_averaged() -> None:
    trials = [
        TrialResult(
            "flips=2",
            number,
            2,
            2,
            Verdict(4, 2, 4, 2, 0, relative_l2=value, deviating=0.5),
            distance=10.0 * number,
        )
        for number, value in enumerate([0.5, None, 1.5])
    ]
    [summary] = summarise(trials, READING)
    assert (summary.relative_l2, summary.deviating, summary.distance) == (1.0, 0.5, 10.0)
    assert summary.sdc5 is None
    row = next(csv.DictReader(io.StringIO(to_csv(result_of((summary,))))))
    assert (row["relative_l2"], row["distance"], row["sdc5"], row["ber"]) == ("1", "10", "", "")


def test_classes_are_added_up() -> None:
    trials = [
        TrialResult("single", n, 1, 1, Verdict(4, 3, 4, 1, 0, 0, classes=((n, 1), (4 - n, 2))))
        for n in (1, 2)
    ]
    [summary] = summarise(trials, READING)
    assert summary.classes == ((3, 2), (5, 4))


def test_images_of_trials_without_a_change_cost_nothing() -> None:
    same = TrialResult("ber=1e-07", 0, 0, 0, Verdict(50, 40, 40, 0, 0, 0))
    [summary] = summarise([same, *trials_at(1e-7, [3, 4])[1:]], READING)
    assert summary.evaluated == 50


def test_a_gain_is_taken_trial_by_trial() -> None:
    """Trials scatter widely, and the one model is always two images better."""
    lost = list(np.random.default_rng(0).integers(2, 40, 200))
    [baseline] = summarise(trials_at(1e-3, [int(n) for n in lost]), READING)
    [better] = summarise(trials_at(1e-3, [int(n) - 2 for n in lost[:150]]), READING)
    found = gain(better, baseline, 0.95)
    assert found.mean == pytest.approx(0.04)
    assert found.half_width < 0.8 * baseline.accuracy.half_width
    assert found.low < 0.04 < found.high
