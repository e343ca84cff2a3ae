"""The figure of activation values without and with faults, layer by layer."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from proact_onnx.campaign import Distributions, Histogram, LayerDistribution
from proact_onnx.campaign.histogram import BINS, EDGES, LINEAR_BINS
from proact_onnx.report.figures import check_figure, save_figure, shorten
from proact_onnx.report.tables import percent, spell_fault

# A light area under a dark line: they differ in lightness and in kind, not only in colour.
_AREA = "#9ECAE9"
_LINE = "#B33C00"
_LIMIT: dict[str, Any] = {"color": "#000000", "linewidth": 0.8, "linestyle": (0, (2, 2))}
# In inches: what a model takes, what lies around its panels, and the height of a panel.
_WIDTH = 6.4
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.62, 0.1, 0.45, 0.72
_PANEL = 0.8
_GAP = 0.3
_TICKS = 7
_SMALL = 6.5


def plot_distributions(results: Sequence[Distributions], path: Path) -> None:
    """Plot the distributions of all activations (Fig. 3 and 6 of the paper).

    Args:
        results: One a model, with the same fault model; they stand side by side.
        path: Where to write; the suffix decides the format (png, svg, pdf).

    Raises:
        OutputError: If the figure cannot be written, or its format is unknown.
    """
    check_figure(path)
    save_figure(distribution_figure(results), path)


def distribution_figure(
    results: Sequence[Distributions], activations: Sequence[str] = ()
) -> Figure:
    """Draw distributions, one row an activation function.

    Of each model, the left panel shows values up to 1, the right panel those above it on a
    logarithmic axis. Rows share their axes, models only that of the shares, because faults carry
    the values of an unprotected model so much further than those of a hardened one.

    Args:
        results: One a model, with the same fault model.
        activations: Names of the activations to draw, in the order wanted; by default all of
            them. A model that lacks one leaves its place empty.
    """
    rows = list(activations) or list(
        dict.fromkeys(layer.tensor for result in results for layer in result.layers)
    )
    chosen = [
        {layer.tensor: layer for layer in result.layers if layer.tensor in rows}
        for result in results
    ]
    lowest = min((_power_below(found.values()) for found in chosen), default=1.0)
    height = _TOP + len(rows) * (_PANEL + _GAP) - _GAP + _BOTTOM
    figure = Figure(figsize=(_WIDTH * len(results), height))
    for place, (result, found) in enumerate(zip(results, chosen, strict=True)):
        panels = _panels(figure, len(rows), place)
        last = _last_bin(found.values())
        for name, (left, right) in zip(rows, panels, strict=True):
            left.set_title(shorten(name), loc="left", fontsize=7, pad=3)
            if name in found:
                _draw(left, found[name], slice(0, LINEAR_BINS), lowest)
                _draw(right, found[name], slice(LINEAR_BINS, last), lowest)
                _annotate(left, right, found[name])
            else:
                left.text(0.5, 0.5, "not in this model", ha="center", transform=left.transAxes)
        _scale(panels, lowest, float(EDGES[last]))
        _label(figure, panels, place, result)
    _explain(figure, results[0])
    return figure


def _panels(figure: Figure, rows: int, place: int) -> list[tuple[Axes, Axes]]:
    """Add the panels of one model: a pair a row.

    Places are computed: finding them by the size of their labels, or sharing axes, would take
    minutes for networks of a hundred layers.
    """
    width, height = figure.get_size_inches()
    grid = figure.add_gridspec(
        rows,
        2,
        left=(place * _WIDTH + _LEFT) / width,
        right=((place + 1) * _WIDTH - _RIGHT) / width,
        top=1 - _TOP / height,
        bottom=_BOTTOM / height,
        hspace=_GAP / _PANEL,
        wspace=0.1,
    )
    return [
        (figure.add_subplot(grid[row, 0]), figure.add_subplot(grid[row, 1])) for row in range(rows)
    ]


def _power_below(layers: Iterable[LayerDistribution]) -> float:
    """The power of ten at or below the smallest share that a bin has."""
    smallest = 1.0
    for layer in layers:
        for histogram in (layer.golden, layer.faulty):
            shares = _shares(histogram)
            smallest = min(smallest, float(shares.min(where=shares > 0, initial=1.0)))
    return float(10.0 ** min(-1.0, np.floor(np.log10(smallest))))


def _last_bin(layers: Iterable[LayerDistribution]) -> int:
    """End of the last bin that holds a value, of those above 1."""
    counts = sum((layer.golden.counts + layer.faulty.counts for layer in layers), np.zeros(BINS))
    return max(LINEAR_BINS, int(np.flatnonzero(counts).max(initial=0))) + 1


def _shares(histogram: Histogram) -> npt.NDArray[np.float64]:
    return histogram.counts / max(1, histogram.values)


def _draw(axes: Axes, layer: LayerDistribution, bins: slice, lowest: float) -> None:
    edges = EDGES[bins.start : bins.stop + 1]
    # Empty bins lie below the panel, where a logarithmic axis has no place for 0.
    golden, faulty = (
        np.maximum(_shares(histogram)[bins], lowest / 10)
        for histogram in (layer.golden, layer.faulty)
    )
    axes.stairs(golden, edges, baseline=lowest / 10, fill=True, color=_AREA)
    axes.stairs(faulty, edges, baseline=None, color=_LINE, linewidth=1.0)
    if edges[0] < layer.golden.greatest <= edges[-1]:
        axes.axvline(layer.golden.greatest, **_LIMIT)


def _annotate(left: Axes, right: Axes, layer: LayerDistribution) -> None:
    golden, faulty = layer.golden, layer.faulty
    shares = [
        (left, "exactly 0", golden.zeros, faulty.zeros),
        (right, "above 1", golden.above_one, faulty.above_one),
        (right, "inf, NaN", golden.nonfinite, faulty.nonfinite),
    ]
    lines: dict[Axes, list[str]] = {left: [], right: []}
    for axes, name, without, under in shares:
        if name != "inf, NaN" or without or under:
            before, after = (
                percent(count / max(1, histogram.values))
                for count, histogram in ((without, golden), (under, faulty))
            )
            lines[axes].append(f"{name}: {before} %, faulty {after} %")
    for axes, text in lines.items():
        axes.text(
            0.985,
            0.94,
            "\n".join(text),
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=_SMALL,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1},
        )


def _scale(panels: Sequence[tuple[Axes, Axes]], lowest: float, greatest: float) -> None:
    for left, right in panels:
        left.set(xlim=(0, 1), ylim=(lowest, 1), yscale="log")
        right.set(xlim=(1, greatest), xscale="log", ylim=(lowest, 1), yscale="log")
        right.xaxis.set_major_locator(LogLocator(numticks=_TICKS))
        right.xaxis.set_minor_locator(NullLocator())
        right.tick_params(labelleft=False)
        for axes in (left, right):
            axes.yaxis.set_major_locator(LogLocator(numticks=_TICKS - 2))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.tick_params(labelsize=_SMALL, labelbottom=left is panels[-1][0])
            axes.grid(visible=True, which="major", alpha=0.3)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)


def _label(
    figure: Figure, panels: Sequence[tuple[Axes, Axes]], place: int, result: Distributions
) -> None:
    width, height = figure.get_size_inches()
    figure.text(
        (place + 0.5) * _WIDTH / width,
        1 - 0.1 / height,
        f"{shorten(result.model)}: {result.trials:,} fault maps, {result.images:,} images",
        ha="center",
        va="top",
        fontsize=9,
    )
    figure.text(
        (place * _WIDTH + 0.08) / width,
        (_BOTTOM + height - _TOP) / 2 / height,
        "share of values",
        rotation="vertical",
        va="center",
        fontsize=8,
    )
    left, right = panels[-1]
    left.set_xlabel("value, up to 1 (bins of 1/64)", fontsize=8)
    right.set_xlabel("value, above 1 (bins of a quarter of an octave)", fontsize=8)
    figure.align_xlabels([left, right])


def _explain(figure: Figure, result: Distributions) -> None:
    handles = [
        Patch(color=_AREA, label="without faults"),
        Line2D([], [], color=_LINE, label=spell_fault(result.fault)),
        Line2D([], [], label="greatest value without faults", **_LIMIT),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=8)
