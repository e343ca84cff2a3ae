"""Results as tables that fit into the 100 columns of a terminal."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from proact_onnx.activations import Activation
from proact_onnx.campaign import (
    Atlas,
    CampaignResult,
    CellSummary,
    Distributions,
    Estimate,
    FaultSite,
    FaultSummary,
    LayerEffect,
    gain,
)
from proact_onnx.choose import Choice
from proact_onnx.errors import ModelError
from proact_onnx.faults import Count, Effect, Parameter, Rate, parse_fault_model, spell_bits
from proact_onnx.report.rendering import Table
from proact_onnx.thresholds import FIXED_GRANULARITIES, Granularity, Thresholds, threshold_count
from proact_onnx.verify import ClippedLayer

_SAMPLES_SHOWN = 5
_BITS_SHOWN = 8
# Share of images from which on a bit counts as critical in the table.
_CRITICAL = 0.05
# With more models side by side, 100 columns hold the interval only below the mean.
_MODELS_ON_ONE_LINE = 3
# What is stored as the user's number format says, and not as it lies in the file.
_BY_FORMAT = "--format"


def _table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], folds: Sequence[str]
) -> Table:
    return Table(title, tuple(columns), tuple(map(tuple, rows)), tuple(folds))


def spell_rate(rate: float) -> str:
    """Spell a bit error rate as it is typed: 1e-6, not 1e-06, and 1e-4, not 0.0001."""
    if not 0.0 < rate < 1e-3:
        return f"{rate:g}"
    digits, _, exponent = f"{rate:.5e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def percent(value: float) -> str:
    """Spell a share as per cent with two decimals."""
    return f"{100 * value:z.2f}"


def interval(estimate: Estimate) -> str:
    """Spell the interval of an estimate as per cent."""
    return f"[{percent(estimate.low)}, {percent(estimate.high)}]"


def spell_shape(shape: Sequence[int | None]) -> str:
    """Spell a shape without its batch axis, an open extent as a question mark."""
    return "x".join("?" if extent is None else str(extent) for extent in shape) or "?"


def activation_table(activations: Sequence[Activation], title: str) -> Table:
    """What can be hardened: one row an activation, with the thresholds it would need."""
    rows = [
        [
            str(number),
            activation.name,
            activation.op,
            _place(activation),
            *(_count(activation, granularity) for granularity in FIXED_GRANULARITIES),
        ]
        for number, activation in enumerate(activations, start=1)
    ]
    columns = ["#", "activation", "op", "shape", *map(str, FIXED_GRANULARITIES)]
    return _table(title, columns, rows, ["activation"])


def _place(activation: Activation) -> str:
    if activation.is_inner:
        return f"in {activation.owner}"
    return spell_shape(activation.shape) + (" (last)" if activation.is_last else "")


def _count(activation: Activation, granularity: Granularity) -> str:
    try:
        return f"{threshold_count([activation], granularity):,}"
    except ModelError:
        return "?"


def parameter_table(parameters: Sequence[Parameter]) -> Table:
    """The fault space: one row a stored parameter, by the names that ``--layers`` matches."""
    rows = [
        [p.layer, p.name, str(p.kind), f"{p.size:,}", p.stored_as or _BY_FORMAT] for p in parameters
    ]
    columns = ["layer", "parameter", "kind", "numbers", "stored as"]
    return _table("fault space", columns, rows, ["layer", "parameter"])


def storage_table(parameters: Sequence[Parameter]) -> Table:
    """How the fault space is stored: one row a kind and type, in the order of the graph."""
    groups: dict[tuple[str, str], list[Parameter]] = {}
    for parameter in parameters:
        key = (str(parameter.kind), parameter.stored_as or _BY_FORMAT)
        groups.setdefault(key, []).append(parameter)
    rows = [
        [
            kind,
            stored_as,
            f"{sum(p.size for p in group):,}",
            f"{sum(p.size * len(p.bits) for p in group):,}",
        ]
        for (kind, stored_as), group in groups.items()
    ]
    columns = ["kind", "stored as", "numbers", "bits"]
    return _table("what memory holds", columns, rows, ["kind", "stored as"])


def cost_table(rows: Sequence[tuple[str, int | None, float | None]]) -> Table:
    """Memory overhead by granularity (Eq. 6): name, thresholds, per cent of the parameters."""
    spelled = [
        [
            name,
            "?" if thresholds is None else f"{thresholds:,}",
            "?" if overhead is None else f"{overhead:.3g}",
        ]
        for name, thresholds, overhead in rows
    ]
    columns = ["granularity", "thresholds", "% of parameters"]
    return _table("memory overhead (Eq. 6)", columns, spelled, ["granularity"])


def threshold_table(activations: Sequence[Activation], thresholds: Thresholds) -> Table:
    """Thresholds found: one row an activation, the range of its values."""
    rows = []
    for activation in activations:
        for ends, suffix in ((thresholds.values, ""), (thresholds.lower, " (lower)")):
            if activation.tensor in ends:
                values = ends[activation.tensor]
                extremes = [f"{f(values):.4g}" for f in (np.min, np.median, np.max)]
                rows.append([activation.name + suffix, f"{values.size:,}", *extremes])
    columns = ["activation", "count", "lowest", "median", "highest"]
    return _table("thresholds", columns, rows, ["activation"])


def choice_table(choice: Choice) -> Table:
    """What method ``auto`` tried: one row a candidate, the chosen one stressed."""
    rates = list(choice.candidates[0].accuracies)
    timed = any(candidate.latency is not None for candidate in choice.candidates)
    rows = [
        [
            candidate.name,
            f"{candidate.overhead:.3g}",
            f"{candidate.drop:.2f}",
            *([f"{candidate.latency:.2f}"] if timed and candidate.latency is not None else []),
            *(f"{100 * candidate.accuracies[rate]:.1f}" for rate in rates),
            candidate.verdict,
        ]
        for candidate in choice.candidates
    ]
    columns = ["candidate", "memory", "drop", *(["latency"] if timed else [])]
    columns += [*(f"BER {spell_rate(rate)}" for rate in rates), "verdict"]
    table = _table(
        "candidates: memory in %, points of clean accuracy lost, accuracy under faults in %",
        columns,
        rows,
        ["candidate", "verdict"],
    )
    chosen = next(i for i, candidate in enumerate(choice.candidates) if candidate.chosen)
    return replace(table, strong=frozenset((chosen, column) for column in range(len(columns))))


def spell_fault(name: str) -> str:
    """Spell a fault model for people: BER 1e-6, stuck at 0."""
    model = parse_fault_model(name)
    if isinstance(model.amount, Rate):
        parts = [f"BER {spell_rate(model.amount.ber)}"]
    elif isinstance(model.amount, Count):
        parts = [f"{model.amount.upsets:,} {'upset' if model.amount.upsets == 1 else 'upsets'}"]
    else:
        parts = ["single upsets"]
    if model.effect is not Effect.FLIP:
        parts.append(str(model.effect).replace("-", " "))
    if model.shape.length > 1:
        parts.append(f"bursts of {model.shape.length} {model.shape.along}")
    return ", ".join(parts)


def campaign_table(result: CampaignResult, confidence: float) -> Table:
    """Results of one campaign, one row a fault model; shares in per cent.

    Args:
        result: The campaign.
        confidence: Confidence level of the intervals.
    """
    rows = [
        [
            spell_fault(summary.fault),
            f"{summary.trials:,}",
            f"{summary.flips:.4g}",
            percent(summary.accuracy.mean),
            interval(summary.accuracy),
            percent(summary.drop.mean),
            percent(summary.sdc.mean),
            percent(summary.nonfinite.mean),
            percent(summary.percentile5.mean),
            percent(summary.worst),
        ]
        for summary in result.summaries
    ]
    level = f"{100 * confidence:g}% interval"
    columns = ["faults", "trials", "flips", "accuracy", level]
    columns += ["drop", "SDC", "DUE", "5th pct", "worst"]
    title = f"{result.model} under faults: mean flips, and shares in %"
    return _table(title, columns, rows, ["faults"])


def measures_table(result: CampaignResult, requirement: float | None) -> Table:
    """What else a campaign measured, one row a fault model; shares in per cent.

    Args:
        result: The campaign.
        requirement: Accuracy in per cent below which a trial is a failure, if there is one.
    """
    rows = [[spell_fault(summary.fault)] for summary in result.summaries]
    columns = ["faults"]

    def add(column: str, cells: Sequence[str | None]) -> None:
        if any(cell is not None for cell in cells):
            columns.append(column)
            for row, cell in zip(rows, cells, strict=True):
                row.append(cell or "")

    found = result.summaries
    add("images run", [f"{summary.evaluated:,}" for summary in found])
    add("std of maps", [percent(summary.spread.between) for summary in found])
    add("of images", [percent(summary.spread.within) for summary in found])
    add("SDC-5", [_share(summary.sdc5) for summary in found])
    add(f"P(below {requirement or 0:g})", [_with_interval(summary.below) for summary in found])
    add("output L2", [_scientific(summary.relative_l2) for summary in found])
    deviating = [summary.deviating for summary in found]
    add("off", [None if share is None else percent(share) for share in deviating])
    add("L2 (Eq. 9)", [_scientific(summary.distance) for summary in found])
    return _table(f"{result.model}: spread and further measures", columns, rows, ["faults"])


def class_table(result: CampaignResult) -> Table:
    """Accuracy by class in per cent: one row a class, one column a fault model."""
    golden = result.golden_classes or ()
    rows = []
    for number, counts in enumerate(golden):
        under_faults = [
            _accuracy(summary.classes[number]) if summary.classes else ""
            for summary in result.summaries
        ]
        rows.append([str(number), f"{counts[0]:,}", _accuracy(counts), *under_faults])
    faults = [spell_fault(summary.fault) for summary in result.summaries]
    return _table(
        f"{result.model}: accuracy by class in %",
        ["class", "images", "no faults", *faults],
        rows,
        [],
    )


def _accuracy(counts: tuple[int, int]) -> str:
    images, correct = counts
    return percent(correct / images) if images else ""


def _share(estimate: Estimate | None) -> str | None:
    return None if estimate is None else percent(estimate.mean)


def _with_interval(estimate: Estimate | None) -> str | None:
    return None if estimate is None else f"{percent(estimate.mean)} {interval(estimate)}"


def _scientific(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def comparison_table(results: Sequence[CampaignResult], confidence: float) -> Table:
    """Several models under the same faults: one column a model, accuracy in per cent.

    Args:
        results: One campaign a model; where one lacks a fault model, its cell is empty.
        confidence: Confidence level of the intervals.
    """
    gap = " " if len(results) <= _MODELS_ON_ONE_LINE else "\n"
    rows = [
        ["memory overhead", *(_overhead(result.memory_overhead) for result in results)],
        ["no faults", *(percent(result.golden_accuracy) for result in results)],
    ]
    for fault, row in by_fault(results):
        cells = [
            ""
            if found is None
            else f"{percent(found.accuracy.mean)}{gap}{interval(found.accuracy)}"
            for found in row
        ]
        rows.append([spell_fault(fault), *cells])
    names = [result.model for result in results]
    title = f"accuracy in %, mean and {100 * confidence:g}% interval"
    return _table(title, ["", *names], rows, ["", *names])


def by_fault(
    results: Sequence[CampaignResult],
) -> list[tuple[str, list[FaultSummary | None]]]:
    """Line campaigns up by fault model: rates ascending, then the others as they come.

    Returns:
        For each fault model its name and one summary a campaign, None where one lacks it.
    """
    held = [{summary.fault: summary for summary in result.summaries} for result in results]
    every = {fault: summary for found in held for fault, summary in found.items()}
    order = sorted(every, key=lambda fault: (every[fault].ber is None, every[fault].ber or 0.0))
    return [(fault, [found.get(fault) for found in held]) for fault in order]


def _overhead(share: float | None) -> str:
    return "?" if share is None else f"{share:.3g} %"


def gain_table(results: Sequence[CampaignResult], confidence: float) -> Table:
    """How much more accurate models are than the first, trial by trial; in points.

    Args:
        results: One campaign a model; fault models that the first lacks are left out.
        confidence: Confidence level of the intervals.
    """
    first, *others = results
    rows = []
    for fault, (baseline, *row) in by_fault(results):
        if baseline is None:
            continue
        gains = [None if found is None else gain(found, baseline, confidence) for found in row]
        cells = [
            "" if found is None else f"{100 * found.mean:+z.2f} {_signed(found)}" for found in gains
        ]
        rows.append([spell_fault(fault), *cells])
    names = [result.model for result in others]
    title = f"points gained over {first.model} under the same faults"
    return _table(title, ["", *names], rows, ["", *names])


def _signed(estimate: Estimate) -> str:
    return f"[{100 * estimate.low:+z.2f}, {100 * estimate.high:+z.2f}]"


def sensitivity_table(atlas: Atlas, confidence: float) -> Table:
    """The critical-bit atlas by layer and kind; shares in per cent.

    Args:
        atlas: The atlas.
        confidence: Confidence level of the intervals.
    """
    rows = []
    for layer in atlas.layers:
        cells = [c for c in atlas.cells if (c.layer, c.kind) == (layer.layer, layer.kind)]
        rows.append(
            [
                layer.layer,
                str(layer.kind),
                f"{layer.words:,}",
                f"{layer.trials:,}",
                percent(layer.sdc.mean),
                interval(layer.sdc),
                percent(layer.nonfinite.mean),
                percent(layer.drop.mean),
                spell_bits(c.bit for c in cells if c.bit is not None and _is_critical(c)),
            ]
        )
    level = f"{100 * confidence:g}% interval"
    columns = ["layer", "kind", "words", "upsets", "SDC", level, "DUE", "drop", "critical bits"]
    title = (
        f"{atlas.model} under single upsets: shares of images in %; "
        f"critical: SDC of {100 * _CRITICAL:g} % or more"
    )
    return _table(title, columns, rows, ["layer", "critical bits"])


def _is_critical(cell: CellSummary) -> bool:
    return cell.sdc.mean + cell.nonfinite.mean >= _CRITICAL


def site_table(sites: Sequence[FaultSite], total: int) -> Table:
    """Fault sites of one trial: one row a word.

    Args:
        sites: Those to show.
        total: How many there are.
    """
    rows = [
        [
            site.parameter,
            ",".join(map(str, site.element)) or "0",
            spell_bits(site.bits[:_BITS_SHOWN]) + (",..." if len(site.bits) > _BITS_SHOWN else ""),
            f"{site.before:.6g}",
            f"{site.after:.6g}",
        ]
        for site in sites
    ]
    more = "" if len(sites) == total else f": the first {len(sites):,} of {total:,} words"
    columns = ["parameter", "element", "bits", "before", "after"]
    return _table(f"fault sites{more}", columns, rows, ["parameter"])


def effect_table(effects: Sequence[LayerEffect]) -> Table:
    """What faults did to the activations: one row a layer, in the order of the network."""
    rows = [
        [
            effect.tensor,
            f"{effect.relative:.3g}",
            f"{effect.squared:.3g}",
            f"{effect.greatest:.4g}",
            f"{effect.nonfinite:,}",
        ]
        for effect in effects
    ]
    columns = ["activation", "relative L2", "mean square", "largest", "inf/NaN"]
    return _table("distance from the fault-free run", columns, rows, ["activation"])


def distribution_table(result: Distributions) -> Table:
    """Values of activations without faults and with them: one row a layer, shares in per cent."""
    rows = [
        [
            layer.tensor,
            f"{layer.golden.greatest:.4g}",
            percent(layer.golden.above_one / layer.golden.values),
            percent(layer.faulty.above_one / layer.faulty.values),
            f"{layer.faulty.greatest:.4g}",
            percent(layer.beyond / layer.faulty.values),
            f"{layer.faulty.nonfinite:,}",
        ]
        for layer in result.layers
    ]
    columns = ["activation", "max", "% > 1", "faulty % > 1", "faulty max", "% > max", "inf/NaN"]
    title = (
        f"{result.model}: values without faults, and at {spell_fault(result.fault)} "
        f"({result.trials:,} fault maps, {result.images:,} images)"
    )
    return _table(title, columns, rows, ["activation"])


def clipping_table(layers: Sequence[ClippedLayer]) -> Table:
    """Where fault-free images are clipped: one row a layer that clips any."""
    rows = []
    for layer in layers:
        first = ", ".join(map(str, layer.samples[:_SAMPLES_SHOWN]))
        more = ", ..." if len(layer.samples) > _SAMPLES_SHOWN else ""
        rows.append([layer.tensor, f"{len(layer.samples):,}", f"{layer.values:,}", first + more])
    columns = ["tensor", "images", "values", "first images"]
    return _table("clipped without a fault", columns, rows, ["tensor", "first images"])
