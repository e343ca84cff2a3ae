"""What trials say about each bit error rate."""

import csv
import io

import numpy as np
import pytest

from proact_onnx.campaign import CampaignResult, TrialResult, mean_interval, summarise
from proact_onnx.campaign.summary import to_csv

GOLDEN = 0.8


def trials_at(ber: float, lost: list[int], images: int = 50) -> list[TrialResult]:
    """Trials that lose so many of 40 images the golden run gets right."""
    return [
        TrialResult(ber, number, number + 1, images, 40 - loss, 40, min(loss, 5), 2)
        for number, loss in enumerate(lost)
    ]


def test_means_by_hand() -> None:
    [summary] = summarise(trials_at(1e-3, [0, 10, 20, 40]), GOLDEN, 0.95)
    assert summary.ber == 1e-3
    assert summary.trials == 4
    assert summary.flips == 2.5
    assert summary.drop.mean == pytest.approx(70 / 200)
    assert summary.accuracy.mean == pytest.approx(GOLDEN - 70 / 200)
    assert summary.sdc.mean == pytest.approx(15 / 200)
    assert summary.nonfinite.mean == pytest.approx(0.04)
    assert summary.worst == pytest.approx(0.0)
    assert summary.percentile5 == pytest.approx(np.percentile([0.8, 0.6, 0.4, 0.0], 5))


def test_intervals_are_those_of_the_trials() -> None:
    lost = [0, 0, 10, 20, 40]
    [summary] = summarise(trials_at(1e-3, lost), GOLDEN, 0.9)
    drop = mean_interval(np.array(lost) / 50, (GOLDEN - 1, GOLDEN), 0.9)
    assert summary.drop == drop
    assert summary.accuracy.low == pytest.approx(GOLDEN - drop.high)
    assert summary.accuracy.high == pytest.approx(GOLDEN - drop.low)
    sdc = mean_interval(np.minimum(lost, 5) / 50, (0.0, 1.0), 0.9)
    assert summary.sdc == sdc


def test_rates_are_told_apart_and_ordered_whatever_the_order_of_the_trials() -> None:
    trials = trials_at(1e-2, [5, 6]) + trials_at(1e-5, [0, 1, 2]) + trials_at(1e-3, [3])
    summaries = summarise(trials, GOLDEN, 0.95)
    assert [summary.ber for summary in summaries] == [1e-5, 1e-3, 1e-2]
    assert [summary.trials for summary in summaries] == [3, 1, 2]
    assert summarise(trials[::-1], GOLDEN, 0.95) == summaries


def test_a_drop_is_taken_on_the_trial_s_own_images() -> None:
    """Two subsets of different difficulty, the same loss: no spread comes from the choice."""
    easy = TrialResult(1e-3, 0, 1, 10, 8, 9, 1, 0)
    hard = TrialResult(1e-3, 1, 1, 10, 3, 4, 1, 0)
    [summary] = summarise([easy, hard], GOLDEN, 0.95)
    assert summary.drop.mean == pytest.approx(0.1)
    assert summary.accuracy.mean == pytest.approx(GOLDEN - 0.1)
    assert summary.worst == summary.percentile5 == pytest.approx(GOLDEN - 0.1)


def test_shares_stay_between_nought_and_one() -> None:
    lucky = [TrialResult(1e-3, n, 1, 10, 10, 10, 0, 0) for n in range(3)]
    spoilt = [TrialResult(1e-2, n, 1, 10, 0, 10, 9, 1) for n in range(3)]
    for summary in summarise(lucky + spoilt, GOLDEN, 0.95):
        for value in (summary.accuracy.low, summary.accuracy.mean, summary.accuracy.high):
            assert -1e-12 <= value <= 1 + 1e-12
        assert 0.0 <= summary.worst <= summary.percentile5 <= 1.0
        assert summary.accuracy.low <= summary.accuracy.mean <= summary.accuracy.high


def test_csv_reads_back() -> None:
    summaries = summarise(trials_at(1e-6, [0, 1, 2]) + trials_at(1e-3, [9, 30]), GOLDEN, 0.95)
    result = CampaignResult(
        model="a,b.onnx",
        golden_accuracy=GOLDEN,
        float_accuracy=0.81,
        images=50,
        bits=320,
        saturated=0,
        memory_overhead=0.5,
        labelled=True,
        summaries=summaries,
    )
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
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
        assert float(row["accuracy_percentile5"]) == pytest.approx(summary.percentile5)
        assert float(row["accuracy_worst"]) == pytest.approx(summary.worst)
