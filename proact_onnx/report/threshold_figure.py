"""Thresholds beside the ranges of the activations they bound, layer by layer."""

from collections.abc import Iterator

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from proact_onnx.report.comparison import Comparison
from proact_onnx.report.figures import STYLES, label_of, marker_face, shorten

# Share of a layer's row that its methods divide among themselves.
_SPREAD = 0.7
# With more layers than these, the axis is labelled at both ends.
_TALL = 15


def draw_thresholds(comparison: Comparison) -> Figure | None:
    """Draw one row a layer: its largest activation, and the thresholds of every method.

    A bar reaches from the lowest to the highest threshold, a marker stands at the median. The
    axis is logarithmic; thresholds of zero stand at its left end.

    Args:
        comparison: The comparison.

    Returns:
        None where no layer has a positive value.
    """
    layers = comparison.layers
    methods = [
        (position, entry)
        for position, entry in enumerate(comparison.entries)
        if any(entry.name in layer.thresholds for layer in layers)
    ]
    positive = [value for value in _values(comparison) if value > 0.0]
    if not positive:
        return None
    least = min(positive) / 2.0
    row = max(0.28, 0.06 * len(methods))
    figure, axes = pyplot.subplots(
        figsize=(8.0, 1.3 + row * len(layers) + 0.1 * len(methods)), layout="constrained"
    )
    for number, layer in enumerate(layers):
        axes.plot(
            [max(layer.maximum, least)] * 2,
            [number - 0.45, number + 0.45],
            color="#555555",
            linewidth=1.5,
            label="largest activation" if number == 0 else None,
        )
    for place, (position, entry) in enumerate(methods):
        colour, marker, _ = STYLES[position % len(STYLES)]
        offset = _SPREAD * ((place + 0.5) / len(methods) - 0.5)
        found = [
            (number + offset, [max(value, least) for value in layer.thresholds[entry.name]])
            for number, layer in enumerate(layers)
            if entry.name in layer.thresholds
        ]
        heights = [height for height, _ in found]
        lows, medians, highs = zip(*(values for _, values in found), strict=True)
        axes.hlines(heights, lows, highs, color=colour, linewidth=1.2)
        axes.plot(
            medians,
            heights,
            color=colour,
            marker=marker,
            markersize=4.5,
            markerfacecolor=marker_face(position),
            linestyle="none",
            label=label_of(entry.title),
        )
    for edge in range(1, len(layers)):
        axes.axhline(edge - 0.5, color="#000000", alpha=0.12, linewidth=0.6)
    axes.set_xscale("log")
    wide = max(positive) / least > 1e3
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_yticks(range(len(layers)), [shorten(layer.activation) for layer in layers], fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", top=len(layers) > _TALL, labeltop=len(layers) > _TALL)
    axes.set_xlabel("value (logarithmic)")
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def _values(comparison: Comparison) -> Iterator[float]:
    for layer in comparison.layers:
        yield layer.maximum
        for values in layer.thresholds.values():
            yield from values
