"""What a monitor counts without faults, and what it notices of faults."""

from collections.abc import Sequence

from proact_onnx.alarm_levels import MonitorReport
from proact_onnx.campaign import CampaignResult, Estimate
from proact_onnx.campaign.estimates import proportion_interval
from proact_onnx.report.rendering import Table
from proact_onnx.report.tables import interval, percent, spell_fault


def monitor_table(report: MonitorReport) -> Table:
    """Alarm levels, and counts on fault-free test images: one row a layer."""
    rows = [
        (layer, f"{level:,}", f"{highest:,}", f"{alarms:,}")
        for layer, level, highest, alarms in zip(
            report.monitor.layers,
            report.monitor.alarm_levels,
            report.highest,
            report.layer_alarms,
            strict=True,
        )
    ]
    title = f"monitor: values out of bounds in an image, {report.images:,} test images"
    columns = ("activation", "alarm above", "highest", "false alarms")
    return Table(title, columns, tuple(rows), ("activation",))


def detection_table(
    result: CampaignResult, requirement: float | None, confidence: float
) -> Table | None:
    """What the monitor noticed, one row a fault model; shares in per cent.

    Args:
        result: The campaign.
        requirement: Accuracy in per cent below which a trial is a failure, if there is one.
        confidence: Confidence level of the intervals.

    Returns:
        None for a model without a monitor.
    """
    found = [(s.fault, s.detection) for s in result.summaries if s.detection is not None]
    if result.alarms is None or not found:
        return None
    columns = ["faults", "SDC images", "unharmed", "trials", "SDC trials"]
    if requirement is not None:
        columns.append(f"below {requirement:g}")
    rows = []
    for fault, noticed in found:
        cells = [noticed.sdc, noticed.unharmed, noticed.trials, noticed.harmful]
        cells += [noticed.failing] if requirement is not None else []
        rows.append((spell_fault(fault), *(_cell(cell) for cell in cells)))
    clean = proportion_interval(result.alarms, result.images, confidence)
    title = (
        f"{result.model}: share that raises the alarm, in %; "
        f"without faults {percent(clean.mean)} {interval(clean)} of the images"
    )
    return Table(title, tuple(columns), tuple(rows), ("faults",))


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{percent(estimate.mean)}\n{interval(estimate)}"


def spell_monitor(report: MonitorReport) -> Sequence[str]:
    """Say in two sentences what a monitor is called and how often it raises a false alarm."""
    monitor = report.monitor
    return (
        f"monitor: output '{monitor.output}' [N, {len(monitor.layers)}], alarm levels from "
        f"{monitor.calibration_images:,} fault-free images",
        f"false alarms: {report.alarms:,} of {report.images:,} test images, "
        f"{percent(report.false_alarms.mean)} % {interval(report.false_alarms)}",
    )
