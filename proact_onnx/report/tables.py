"""Tables for the terminal, as rich renderables that fit into 100 columns."""

from collections.abc import Iterable, Sequence

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from proact_onnx.activations import Activation
from proact_onnx.campaign import CampaignResult, Estimate
from proact_onnx.errors import ModelError
from proact_onnx.faults import Parameter
from proact_onnx.thresholds import Granularity, Thresholds, threshold_count
from proact_onnx.verify import ClippedLayer

_SAMPLES_SHOWN = 5
# With more models side by side, 100 columns hold the interval only below the mean.
_MODELS_ON_ONE_LINE = 3


def _table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], folds: Sequence[str]
) -> Table:
    """Make a table whose columns named in ``folds`` give way where it is too wide.

    These hold text, on the left; the others hold figures, which are never broken or cut.
    """
    table = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    rows = list(rows)
    for place, column in enumerate(columns):
        if column in folds:
            table.add_column(escape(column), overflow="fold")
        else:
            longest = max(len(text) for text in (column, *(row[place] for row in rows)))
            table.add_column(escape(column), justify="right", no_wrap=True, min_width=longest)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def spell_rate(rate: float) -> str:
    """Spell a bit error rate as it is typed: 1e-6, not 1e-06."""
    return f"{rate:g}".replace("e-0", "e-")


def percent(value: float) -> str:
    """Spell a share as per cent with two decimals."""
    return f"{100 * value:.2f}"


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
            spell_shape(activation.shape) + (" (last)" if activation.is_last else ""),
            *(_count(activation, granularity) for granularity in Granularity),
        ]
        for number, activation in enumerate(activations, start=1)
    ]
    columns = ["#", "activation", "op", "shape", *map(str, Granularity)]
    return _table(title, columns, rows, ["activation"])


def _count(activation: Activation, granularity: Granularity) -> str:
    try:
        return f"{threshold_count([activation], granularity):,}"
    except ModelError:
        return "?"


def parameter_table(parameters: Sequence[Parameter]) -> Table:
    """The fault space: one row a stored parameter, by the names that ``--layers`` matches."""
    rows = [[p.layer, p.name, str(p.kind), f"{p.size:,}"] for p in parameters]
    columns = ["layer", "parameter", "kind", "numbers"]
    return _table("fault space", columns, rows, ["layer", "parameter"])


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
        values = thresholds.values[activation.tensor]
        extremes = (values.min(), np.median(values), values.max())
        rows.append([activation.name, f"{values.size:,}", *(f"{value:.4g}" for value in extremes)])
    columns = ["activation", "count", "lowest", "median", "highest"]
    return _table("thresholds", columns, rows, ["activation"])


def campaign_table(result: CampaignResult, confidence: float) -> Table:
    """Results of one campaign, one row a bit error rate; shares in per cent.

    Args:
        result: The campaign.
        confidence: Confidence level of the intervals.
    """
    rows = [
        [
            spell_rate(summary.ber),
            f"{summary.trials:,}",
            f"{summary.flips:.4g}",
            percent(summary.accuracy.mean),
            interval(summary.accuracy),
            percent(summary.drop.mean),
            percent(summary.sdc.mean),
            percent(summary.nonfinite.mean),
            percent(summary.percentile5),
            percent(summary.worst),
        ]
        for summary in result.summaries
    ]
    level = f"{100 * confidence:g}% interval"
    columns = ["BER", "trials", "flips", "accuracy", level]
    columns += ["drop", "SDC", "inf/NaN", "5th pct", "worst"]
    title = f"{result.model} under faults: mean flips, and shares in %"
    return _table(title, columns, rows, [])


def comparison_table(results: Sequence[CampaignResult], confidence: float) -> Table:
    """Several models under the same faults: one column a model, accuracy in per cent.

    Args:
        results: One campaign a model, with the same bit error rates.
        confidence: Confidence level of the intervals.
    """
    gap = " " if len(results) <= _MODELS_ON_ONE_LINE else "\n"
    rows = [
        ["memory overhead", *(f"{result.memory_overhead:.3g} %" for result in results)],
        ["no faults", *(percent(result.golden_accuracy) for result in results)],
    ]
    for row in zip(*(result.summaries for result in results), strict=True):
        cells = [
            f"{percent(summary.accuracy.mean)}{gap}{interval(summary.accuracy)}" for summary in row
        ]
        rows.append([f"BER {spell_rate(row[0].ber)}", *cells])
    names = [result.model for result in results]
    title = f"accuracy in %, mean and {100 * confidence:g}% interval"
    return _table(title, ["", *names], rows, ["", *names])


def clipping_table(layers: Sequence[ClippedLayer]) -> Table:
    """Where fault-free images are clipped: one row a layer that clips any."""
    rows = []
    for layer in layers:
        first = ", ".join(map(str, layer.samples[:_SAMPLES_SHOWN]))
        more = ", ..." if len(layer.samples) > _SAMPLES_SHOWN else ""
        rows.append([layer.tensor, f"{len(layer.samples):,}", f"{layer.values:,}", first + more])
    columns = ["tensor", "images", "values", "first images"]
    return _table("clipped without a fault", columns, rows, ["tensor", "first images"])
