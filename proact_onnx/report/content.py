"""What a report says about finished runs."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from proact_onnx.campaign import (
    AtlasRecord,
    CampaignRecord,
    CampaignResult,
    Estimate,
    FaultSummary,
    gain,
)
from proact_onnx.report.comparison import Comparison
from proact_onnx.report.comparison_tables import (
    clean_drop_table,
    distance_table,
    fault_drop_table,
    overhead_table,
    time_table,
)
from proact_onnx.report.document import Block, Commands, Document, Picture, Prose, Section
from proact_onnx.report.figures import draw_accuracy, draw_atlas, to_svg
from proact_onnx.report.monitor_tables import detection_table
from proact_onnx.report.rendering import Table
from proact_onnx.report.repeat import commands, facts, listing, spell_settings
from proact_onnx.report.runs import Runs
from proact_onnx.report.tables import (
    by_fault,
    campaign_table,
    class_table,
    comparison_table,
    gain_table,
    interval,
    measures_table,
    percent,
    sensitivity_table,
    spell_fault,
)
from proact_onnx.report.threshold_figure import draw_thresholds
from proact_onnx.report.tolerated_rates import tolerated_rate_table


def build_report(runs: Runs, title: str | None = None) -> Document:
    """Put a report together.

    Args:
        runs: What to report on.
        title: Its title; by default it names the models.
    """
    sections = []
    if runs.comparisons:
        sections.append(_methods(runs.comparisons))
    sections += map(_comparison, runs.comparisons)
    several = len(runs.campaigns) > 1
    for number, group in enumerate(runs.campaigns, start=1):
        name = f"Accuracy under faults, part {number}" if several else "Accuracy under faults"
        sections.append(_campaigns(name, group, group[0], f"accuracy-{number}"))
    for number, record in enumerate(runs.atlases, start=1):
        sections.append(_atlas(record, f"critical-bits-{number}"))
    sections.append(_repeat(runs))
    return Document(title or _title(runs), _lead(runs), tuple(sections))


def _title(runs: Runs) -> str:
    models = [
        *(found.model for found in runs.comparisons),
        *(record.result.model for group in runs.campaigns for record in group),
        *(record.atlas.model for record in runs.atlases),
    ]
    named = list(dict.fromkeys(models))
    return f"Faults in {named[0] if len(named) == 1 else f'{named[0]} and {len(named) - 1} more'}"


def _lead(runs: Runs) -> str:
    counts = [
        (len(runs.comparisons), "comparison of methods", "comparisons of methods"),
        (sum(map(len, runs.campaigns)), "fault-injection campaign", "fault-injection campaigns"),
        (len(runs.atlases), "study of critical bits", "studies of critical bits"),
    ]
    spelled = [f"{count} {one if count == 1 else more}" for count, one, more in counts if count]
    return (
        f"{', '.join(spelled).capitalize()}. Bits of stored parameters are flipped at random, and "
        "the faulty network is compared with its fault-free run. Intervals are at "
        f"{100 * runs.confidence:g} %; accuracies are in per cent, their differences in points."
    )


def _methods(comparisons: Sequence[Comparison]) -> Section:
    blocks: list[Block | None] = [
        clean_drop_table(comparisons),
        overhead_table(comparisons),
        distance_table(comparisons),
        time_table(comparisons),
    ]
    return Section("Methods without faults, and what they cost", _present(blocks))


def _comparison(comparison: Comparison) -> Section:
    table = fault_drop_table(comparison)
    blocks: list[Block] = [
        table
        or Prose(
            f"No method loses less than {comparison.drop_limit:g} points of accuracy under any of "
            "the faults tried."
        )
    ]
    if table is not None:
        blocks.append(
            Prose(
                "The drop includes what hardening costs without faults. Only faults are listed "
                f"under which a method loses less than {comparison.drop_limit:g} points."
            )
        )
    tolerated = tolerated_rate_table(comparison)
    if tolerated is not None:
        blocks += [
            tolerated,
            Prose(
                "Between two measured rates accuracy is taken to fall linearly over the logarithm "
                "of the rate. The interval ends where those of the accuracies reach the limit."
            ),
        ]
    figure = draw_thresholds(comparison)
    if figure is not None:
        caption = (
            "Thresholds of each layer, from lowest to highest with their median, beside the "
            "largest activation on the calibration images. A threshold far above it lets large "
            "faulty values pass."
        )
        blocks.append(Picture(f"thresholds-{comparison.model}", caption, to_svg(figure)))
    records = [replace(entry.record, result=entry.result) for entry in comparison.entries]
    baseline = records[comparison.entries.index(comparison.baseline)]
    name = f"{comparison.model}: methods under faults"
    measured = _campaigns(name, records, baseline, f"accuracy-{comparison.model}")
    return Section(name, (*measured.blocks, *blocks), measured.parts)


def _campaigns(
    title: str, records: Sequence[CampaignRecord], baseline: CampaignRecord, figure: str
) -> Section:
    """Campaigns under the same conditions; differences are taken against one of them."""
    results = [record.result for record in records]
    others = [record.result for record in records if record is not baseline]
    confidence = baseline.confidence
    blocks: list[Block] = [_measured(records), _models(results)]
    if others:
        blocks.append(_differences(baseline.result, others, confidence))
    if any(summary.ber for result in results for summary in result.summaries):
        drawn = draw_accuracy(results, confidence, magnified=len(results) > 1)
        caption = (
            "Accuracy over the bit error rate; bands are intervals of the mean."
            if len(results) == 1
            else "Accuracy over the bit error rate; bands are intervals of the mean. On the right, "
            "the rates where the best models have lost less than 15 points."
        )
        blocks.append(Picture(figure, caption, to_svg(drawn)))
    if others:
        blocks.append(comparison_table(results, confidence))
        blocks.append(gain_table([baseline.result, *others], confidence))
    parts = tuple(_details(record) for record in records)
    return Section(title, tuple(blocks), (*parts, _worst(records)))


def _details(record: CampaignRecord) -> Section:
    result = record.result
    blocks: list[Block] = [campaign_table(result, record.confidence)]
    blocks.append(measures_table(result, record.requirement))
    noticed = detection_table(result, record.requirement, record.confidence)
    blocks += [] if noticed is None else [noticed]
    if result.golden_classes and any(summary.classes for summary in result.summaries):
        blocks.append(class_table(result))
    return Section(result.model, tuple(blocks))


def _measured(records: Sequence[CampaignRecord]) -> Table:
    """The conditions that campaigns share."""
    record = records[0]
    identity, result = record.header.identity, record.result
    labels = "with labels" if result.labelled else "without labels: accuracy is agreement"
    if not result.classifier:
        labels = "outputs compared within the tolerance"
    rows = [
        ("images", f"{result.images:,}, {labels}"),
        ("from", str(record.header.made_by.get("images", "?"))),
        ("stored as", str(identity["format"])),
        ("faults in", ", ".join(identity.get("targets") or ()) or "all kinds of parameters"),
    ]
    if identity.get("layers"):
        rows.append(("layers", ", ".join(identity["layers"])))
    if identity.get("bits") is not None:
        rows.append(("bits", ", ".join(map(str, identity["bits"]))))
    faults = [spell_fault(fault) for fault, _ in by_fault([r.result for r in records])]
    rows.append(("fault models", "; ".join(faults)))
    rows.append(("trials for each", _range(_trials(records))))
    rows.append(("seed", str(identity["seed"])))
    return listing("what was measured", rows)


def _trials(records: Sequence[CampaignRecord]) -> list[int]:
    return [summary.trials for record in records for summary in record.result.summaries]


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _models(results: Sequence[CampaignResult]) -> Table:
    """What is known of the models before any fault."""
    rows = [
        (
            result.model,
            percent(result.float_accuracy),
            percent(result.golden_accuracy),
            "?" if result.memory_overhead is None else f"{result.memory_overhead:.3g}",
            f"{result.bits:,}",
            f"{result.saturated:,}",
            f"{sum(summary.trials for summary in result.summaries):,}",
            f"{sum(summary.evaluated for summary in result.summaries):,}",
        )
        for result in results
    ]
    columns = ("model", "as in file", "as stored", "overhead", "fault space", "saturated")
    title = "models: accuracy in % without faults, memory overhead in %, bits, and the campaign"
    return Table(title, (*columns, "trials", "images run"), tuple(rows), ("model",))


def _differences(
    baseline: CampaignResult, others: Sequence[CampaignResult], confidence: float
) -> Table:
    """Where each model differs most from the baseline: the answer in one line a model."""
    rows = []
    for result in others:
        found: list[tuple[Estimate, FaultSummary, FaultSummary]] = [
            (gain(mine, theirs, confidence), mine, theirs)
            for _, (theirs, mine) in by_fault([baseline, result])
            if mine is not None and theirs is not None
        ]
        if not found:
            continue
        most, mine, theirs = max(found, key=lambda item: abs(item[0].mean))
        low, mean, high = (f"{100 * part:+z.2f}" for part in (most.low, most.mean, most.high))
        rows.append(
            (
                result.model,
                spell_fault(mine.fault),
                f"{percent(mine.accuracy.mean)} {interval(mine.accuracy)}",
                f"{percent(theirs.accuracy.mean)} {interval(theirs.accuracy)}",
                f"{mean} [{low}, {high}]",
            )
        )
    title = f"where models differ most from {baseline.model}: accuracy in %, difference in points"
    columns = ("model", "faults", "accuracy", "the other's", "difference")
    return Table(title, columns, tuple(rows), ("model", "faults"))


def _worst(records: Sequence[CampaignRecord]) -> Section:
    """The worst trial of each model and fault model, and how to see what it did."""
    rows, lines = [], []
    for record in records:
        found = []
        for summary in record.result.summaries:
            trial = min(range(summary.trials), key=lambda number: summary.values[number])
            found.append((summary.worst, summary.fault, trial))
            rows.append(
                (
                    record.result.model,
                    spell_fault(summary.fault),
                    percent(summary.worst),
                    percent(summary.percentile5.mean),
                    f"{trial:,}",
                )
            )
        _, fault, trial = min(found)
        words = ["proact-onnx", "replay", str(record.path), "--fault", fault, "--trial", str(trial)]
        lines.append(shlex.join(words))
    title = "worst trial of each model and fault model, and the 5th percentile: accuracy in %"
    columns = ("model", "faults", "worst", "5th pct", "worst trial")
    return Section(
        "Worst trials",
        (
            Table(title, columns, tuple(rows), ("model", "faults")),
            Prose("The fault sites of the worst trial of each model, and what they did:"),
            Commands(tuple(lines)),
        ),
    )


def _atlas(record: AtlasRecord, figure: str) -> Section:
    atlas = record.atlas
    caption = (
        f"{atlas.model}: share of images whose class silently changes when one bit flips, by layer "
        "and bit position."
    )
    upsets = _range([cell.trials for cell in atlas.cells])
    text = (
        f"Every layer, kind of parameter and bit position was hit by {upsets} single upsets, each "
        f"on {record.header.identity['images']:,} of {atlas.images:,} images, in "
        f"{record.header.identity['format']}. Accuracy without faults: "
        f"{percent(atlas.golden_accuracy)} %."
    )
    return Section(
        f"Critical bits of {atlas.model}",
        (
            Prose(text),
            Picture(figure, caption, to_svg(draw_atlas(atlas))),
            sensitivity_table(atlas, record.confidence),
        ),
    )


def _repeat(runs: Runs) -> Section:
    parts = [_repeat_comparison(comparison) for comparison in runs.comparisons]
    singly: list[CampaignRecord | AtlasRecord] = [*chain(*runs.campaigns), *runs.atlases]
    parts += [_repeat_record(record, record.path.name) for record in singly]
    text = (
        "The same seed, model and images give the same faults and the same numbers. Commands name "
        "the files as the records do; labels that lie in a file of their own must be named, too."
    )
    return Section("To repeat this", (Prose(text),), tuple(parts))


def _repeat_record(record: CampaignRecord | AtlasRecord, title: str) -> Section:
    made = Section("digests, versions and settings", (facts(record),), folded=True)
    return Section(title, (Commands(tuple(commands(record))),), (made,))


def _repeat_comparison(comparison: Comparison) -> Section:
    rows = [
        ("folder", str(comparison.folder)),
        ("images", f"{comparison.images:,}"),
        ("seed", str(comparison.seed)),
        *((name, str(value)) for name, value in comparison.made_by.items()),
    ]
    models = tuple(
        (entry.title, entry.file, entry.sha256, spell_settings(entry.settings))
        for entry in comparison.entries
    )
    columns = ("method", "file", "sha256", "settings")
    return Section(
        f"{comparison.model}: comparison",
        (
            Commands((comparison.command,)),
            listing("versions and seed", rows),
            Table("models and the settings they were made with", columns, models, columns),
        ),
        tuple(
            _repeat_record(entry.record, f"{comparison.model}: {entry.title}")
            for entry in comparison.entries
        ),
    )


def _present(blocks: Sequence[Block | None]) -> tuple[Block, ...]:
    return tuple(block for block in blocks if block is not None)
