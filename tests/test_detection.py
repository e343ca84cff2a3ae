"""What a monitor notices: shares of trials and of images, and how they are shown."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from proact_onnx.alarm_levels import MonitorReport
from proact_onnx.campaign import Alarms, CampaignResult, Estimate, TrialResult, Verdict
from proact_onnx.campaign.detection import ratio_interval
from proact_onnx.campaign.summary import Reading, summarise_one, to_csv
from proact_onnx.monitor import Monitor
from proact_onnx.report import Table, detection_table, monitor_table, spell_monitor
from proact_onnx.report.rendering import to_html, to_markdown
from tests.command_line import Command

READING = Reading(golden_accuracy=0.9, total=1000)


def trial(
    number: int,
    alarms: Alarms | None,
    sdc: int = 0,
    nonfinite: int = 0,
    flips: int = 1,
    correct: int = 9,
) -> TrialResult:
    verdict = Verdict(
        images=10,
        correct=correct,
        golden_correct=9,
        sdc=sdc,
        nonfinite=nonfinite,
        sdc5=0,
        alarms=alarms,
    )
    return TrialResult("ber=1e-06", number, flips, flips, verdict)


TRIALS = [
    trial(0, Alarms(raised=9, new=8, sdc=4, nonfinite=1), sdc=5, nonfinite=1, correct=3),
    trial(1, Alarms(raised=1, new=0, sdc=0, nonfinite=0), sdc=1, correct=8),
    trial(2, Alarms(raised=2, new=2, sdc=0, nonfinite=0)),
    # No bit changed: it is the golden run, and says nothing of faults.
    trial(3, Alarms(raised=3, new=0, sdc=0, nonfinite=0), flips=0),
]


def clopper_pearson(events: int, trials: int) -> tuple[float, float]:
    low = stats.beta.ppf(0.025, events, trials - events + 1) if events else 0.0
    high = stats.beta.ppf(0.975, events + 1, trials - events) if events < trials else 1.0
    return float(low), float(high)


def test_shares_of_trials_and_images() -> None:
    found = summarise_one("ber=1e-06", TRIALS, replace(READING, requirement=0.5)).detection
    assert found is not None
    for estimate, events, among in (
        (found.trials, 2, 3),
        (found.harmful, 1, 2),
        (found.failing, 1, 1),
    ):
        assert estimate is not None
        assert estimate.mean == pytest.approx(events / among)
        assert (estimate.low, estimate.high) == pytest.approx(clopper_pearson(events, among))
    assert found.images is not None
    assert found.images.mean == pytest.approx(12 / 30)
    assert found.sdc is not None
    assert found.sdc.mean == pytest.approx(4 / 6)
    assert found.unharmed is not None
    assert found.unharmed.mean == pytest.approx((4 + 1 + 2) / (4 + 9 + 10))


def test_nothing_to_take_a_share_of() -> None:
    calm = summarise_one("ber=1e-06", TRIALS[2:3], READING).detection
    assert calm is not None
    assert (calm.harmful, calm.failing, calm.sdc) == (None, None, None)
    unchanged = summarise_one("ber=1e-06", TRIALS[3:], READING).detection
    assert unchanged is not None
    assert unchanged.trials is unchanged.images is None
    assert summarise_one("ber=1e-06", [trial(0, None)], READING).detection is None


def test_every_upset_on_every_image_leaves_nothing_open() -> None:
    trials = [replace(t, fault="single") for t in TRIALS[:3]]
    complete = replace(READING, total=10, places={"single": 3})
    found = summarise_one("single", trials, complete).detection
    assert found is not None
    for estimate in (found.trials, found.sdc, found.images):
        assert estimate is not None
        assert estimate.low == estimate.mean == estimate.high


@pytest.mark.parametrize(("events", "count"), [(0, 7), (1, 20), (13, 40), (40, 40)])
def test_the_ratio_of_all_or_nothing_has_clopper_and_pearsons_limits(
    events: int, count: int
) -> None:
    parts = np.array([1.0] * events + [0.0] * (count - events))
    found = ratio_interval(parts, np.ones(count))
    assert found is not None
    assert found.mean == events / count
    # Gaffke's limits are computed to about one per cent of the error probability.
    assert (found.low, found.high) == pytest.approx(clopper_pearson(events, count), abs=3e-3)


def test_the_ratio_s_interval_covers_the_ratio_of_clustered_images() -> None:
    """Images of a trial are flagged together; counted singly they would promise too much."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(200):
        wholes = rng.integers(0, 33, 60) * (rng.random(60) < 0.6)
        parts = np.where(rng.random(60) < 0.8, wholes, 0)
        found = ratio_interval(parts / 32, wholes / 32)
        assert found is not None
        assert found.low <= found.mean <= found.high
        covered += found.low <= 0.8 <= found.high
        low, high = clopper_pearson(int(parts.sum()), int(wholes.sum()))
        naive += low <= 0.8 <= high
    assert covered >= 188
    assert naive < 150


def test_the_interval_of_a_ratio_narrows() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for count in (50, 800):
        wholes = rng.random(count)
        found = ratio_interval(wholes * rng.random(count), wholes)
        assert found is not None
        widths.append(found.half_width)
    assert widths[1] < 0.05 < widths[0] < 0.2


def campaign(alarms: int | None) -> CampaignResult:
    reading = replace(READING, requirement=0.5)
    trials = TRIALS if alarms is not None else [trial(n, None) for n in range(4)]
    return CampaignResult(
        model="network.hardened.onnx",
        golden_accuracy=0.9,
        float_accuracy=0.9,
        images=1000,
        bits=1,
        saturated=0,
        memory_overhead=0.1,
        labelled=True,
        classifier=True,
        golden_classes=None,
        summaries=(summarise_one("ber=1e-06", trials, reading),),
        alarms=alarms,
    )


def shown(table: Table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=100).print(table)
    assert max(map(len, stream.getvalue().splitlines())) <= 100
    return re.sub(r"\s+", " ", stream.getvalue())


def test_the_table_of_what_is_noticed() -> None:
    table = detection_table(campaign(7), 50.0, 0.95)
    assert table is not None
    text = shown(table)
    low, high = clopper_pearson(7, 1000)
    assert f"without faults 0.70 [{100 * low:.2f}, {100 * high:.2f}] of the images" in text
    assert "faults SDC images unharmed trials SDC trials below 50" in text
    assert "BER 1e-6 66.67 30.43 66.67 50.00 100.00" in text
    for drawn in (to_html(table), to_markdown(table)):
        assert "66.67" in drawn
    assert detection_table(campaign(None), None, 0.95) is None
    without = detection_table(campaign(7), None, 0.95)
    assert without is not None
    assert "below" not in shown(without)


def test_the_csv_has_further_columns_only_with_a_monitor() -> None:
    [plain] = csv.DictReader(io.StringIO(to_csv(campaign(None))))
    assert not any("alarm" in name for name in plain)
    [row] = csv.DictReader(io.StringIO(to_csv(campaign(7))))
    assert list(row)[: len(plain)] == list(plain)
    assert float(row["false_alarms"]) == 0.007
    assert float(row["alarm_sdc"]) == pytest.approx(4 / 6)
    assert float(row["alarm_trials_low"]) == pytest.approx(clopper_pearson(2, 3)[0])


def test_the_table_of_levels() -> None:
    monitor = Monitor("out_of_bounds", ("first", "second"), (12, 0), 3000)
    report = MonitorReport(monitor, 1017, (9, 1234), (0, 16), 16, Estimate(0.0157, 0.009, 0.0254))
    text = shown(monitor_table(report))
    assert "values out of bounds in an image, 1,017 test images" in text
    assert "first 12 9 0" in text
    assert "second 0 1,234 16" in text
    assert spell_monitor(report)[1] == (
        "false alarms: 16 of 1,017 test images, 1.57 % [0.90, 2.54]"
    )


def test_from_harden_to_report_on_the_command_line(command: Command, project: Path) -> None:
    ranger = ("--method", "ranger", "--percentile", 99.5)
    small = ("--calibration-images", 300, "--accept-images", 200)
    done = command("harden", "digits.onnx", *ranger, *small, "--monitor")
    assert done.code == 0, done.err
    assert "monitor: output 'out_of_bounds' [N, 7], alarm levels from 500 fault-free" in done.out
    alarms = re.search(r"false alarms: ([\d,]+) of ([\d,]+) test images", done.out)
    assert alarms
    done = command("inject", "digits.hardened.onnx", "--ber", "1e-5", "--trials", 12)
    assert done.code == 0, done.err
    assert "digits.hardened.onnx: share that raises the alarm, in %; without faults" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    assert command("inject", "digits.onnx", "--trials", 2).out.count("raises the alarm") == 0
    done = command("report", "digits.hardened.campaign.jsonl")
    assert done.code == 0, done.err
    assert "share that raises the alarm" in (project / "report.html").read_text("utf-8")
    assert command("verify", "digits.onnx", "digits.hardened.onnx").code == 0
    assert command("inspect", "digits.hardened.onnx").code == 0
    profile = ("profile", "digits.hardened.onnx", "--trials", 2, "--images", 16)
    assert command(*profile).code == 0
