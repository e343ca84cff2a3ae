"""Figures on disk: readable in greyscale and by colour-blind people."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proact_onnx.campaign import Atlas, CampaignResult, FaultSummary
from proact_onnx.errors import OutputError

LineStyle = str | tuple[int, tuple[int, ...]]

# Okabe and Ito's palette, then some of Paul Tol's muted one, with markers and line styles so that
# colour carries nothing alone. The second half has open markers.
STYLES: list[tuple[str, str, LineStyle]] = [
    ("#000000", "o", "-"),
    ("#0072B2", "s", "--"),
    ("#D55E00", "^", "-."),
    ("#009E73", "D", ":"),
    ("#CC79A7", "v", "-"),
    ("#E69F00", "P", "--"),
    ("#56B4E9", "o", (0, (6, 2, 1, 2, 1, 2))),
    ("#882255", "s", "-"),
    ("#999933", "^", "--"),
    ("#332288", "D", "-."),
    ("#7F7F7F", "v", ":"),
    ("#44AA99", "X", (0, (8, 2))),
]
_FILLED = 6

FORMATS = (".png", ".svg", ".pdf")
_LONGEST = 40
# More lines than these hide behind a legend inside the axes.
_LEGEND_INSIDE = 6
# The magnified panel shows the rates where the best models have lost less than this.
_MAGNIFIED_LOSS = 0.15


def check_figure(path: Path) -> None:
    """Check that the suffix of a figure names a format that can be written.

    Raises:
        OutputError: If it does not.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutputError(
            f"cannot write the figure {path}: choose a name that ends in "
            f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        )


def plot_accuracy(
    results: Sequence[CampaignResult], path: Path, confidence: float, magnified: bool = False
) -> None:
    """Plot accuracy over bit error rate, one line with its band a model (Fig. 5 of the paper).

    Args:
        results: One campaign a model; up to twelve lines differ in colour, marker and style.
        path: Where to write; the suffix decides the format (png, svg, pdf).
        confidence: Confidence level of the bands, for the caption.
        magnified: Whether a second panel shows the rates where the best models have lost less
            than 15 points, if there are others.

    Raises:
        OutputError: If the figure cannot be written, or its format is unknown.
    """
    check_figure(path)
    save_figure(draw_accuracy(results, confidence, magnified), path)


def draw_accuracy(
    results: Sequence[CampaignResult], confidence: float, magnified: bool = False
) -> Figure:
    """Draw what `plot_accuracy` writes."""
    lines = [
        _Line(f"{result.model}{variant}", result.golden_accuracy, summaries)
        for result in results
        for variant, summaries in _lines(result)
    ]
    view = _magnify(lines) if magnified else None
    below = view is not None or len(lines) > _LEGEND_INSIDE
    columns = 2 if view is None or len(lines) <= 4 else 3
    height = 4.0 + (0.2 * math.ceil(len(lines) / columns) if below else 0.0)
    figure, grid = pyplot.subplots(
        1,
        1 if view is None else 2,
        figsize=(6.4 if view is None else 10.5, height),
        layout="constrained",
        squeeze=False,
    )
    whole = grid[0, 0]
    _draw_lines(whole, lines, clip=False)
    whole.set_ylim(0, 100)
    whole.set_ylabel("top-1 accuracy (%)")
    whole.set_title(
        f"Accuracy under bit flips, mean and {100 * confidence:g}% interval", fontsize=10
    )
    if view is not None:
        part = grid[0, 1]
        _draw_lines(part, lines, clip=True)
        part.set_xlim(view.rates[0] / 1.2, view.rates[-1] * 1.2)
        part.set_ylim(100 * view.low, 100 * view.high)
        part.set_title("magnified", fontsize=10)
    if below:
        figure.legend(
            *whole.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=8,
            handlelength=4,
        )
    elif lines:
        whole.legend(frameon=False, fontsize=8, loc="lower left", handlelength=3)
    return figure


@dataclass(frozen=True)
class _Line:
    name: str
    clean: float
    summaries: list[FaultSummary]


@dataclass(frozen=True)
class _View:
    """What a magnified panel shows: bit error rates, and accuracies from 0 to 1."""

    rates: list[float]
    low: float
    high: float


def _magnify(lines: Sequence[_Line]) -> _View | None:
    """Choose the range of the magnified panel; None where it would show nothing new."""
    best: dict[float, float] = {}
    for line in lines:
        for summary in line.summaries:
            rate = summary.ber or 0.0
            best[rate] = max(best.get(rate, 0.0), summary.accuracy.mean)
    floor = max((line.clean for line in lines), default=0.0) - _MAGNIFIED_LOSS
    rates = sorted(rate for rate, accuracy in best.items() if accuracy >= floor)
    rates = rates if len(rates) > 1 else sorted(best)[:2]
    if len(rates) < 2:
        return None
    shown = [s.accuracy for line in lines for s in line.summaries if s.ber in rates]
    low = max(floor, min(estimate.low for estimate in shown))
    high = max(estimate.high for estimate in shown)
    margin = max(0.05 * (high - low), 0.001)
    return _View(rates, max(0.0, low - margin), min(1.0, high + margin))


def _draw_lines(axes: Axes, lines: Sequence[_Line], clip: bool) -> None:
    for position, line in enumerate(lines):
        colour, marker, style = STYLES[position % len(STYLES)]
        rates = [summary.ber or 0.0 for summary in line.summaries]
        estimates = [summary.accuracy for summary in line.summaries]
        axes.plot(
            rates,
            [100 * estimate.mean for estimate in estimates],
            color=colour,
            marker=marker,
            markersize=5,
            markerfacecolor=marker_face(position),
            clip_on=clip,
            linestyle=style,
            label=label_of(f"{line.name} (clean {100 * line.clean:.2f} %)"),
        )
        axes.fill_between(
            rates,
            [100 * estimate.low for estimate in estimates],
            [100 * estimate.high for estimate in estimates],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    if lines:
        axes.set_xscale("log")
    axes.set_xlabel("bit error rate")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def marker_face(position: int) -> str:
    """Colour inside the marker of a line: its own, or white in the second half of the styles."""
    position %= len(STYLES)
    return STYLES[position][0] if position < _FILLED else "#FFFFFF"


def label_of(name: str) -> str:
    """Spell a name so that a legend neither reads it as a formula nor leaves it out."""
    return ("" if not name.startswith("_") else " ") + name.replace("$", r"\$")


def plot_atlas(atlas: Atlas, path: Path) -> None:
    """Plot silent data corruption under single upsets by layer and bit position.

    Args:
        atlas: The atlas.
        path: Where to write; the suffix decides the format (png, svg, pdf).

    Raises:
        OutputError: If the figure cannot be written, or its format is unknown.
    """
    check_figure(path)
    save_figure(draw_atlas(atlas), path)


def draw_atlas(atlas: Atlas) -> Figure:
    """Draw what `plot_atlas` writes."""
    rows = {(layer.layer, layer.kind): row for row, layer in enumerate(atlas.layers)}
    bits = sorted({cell.bit for cell in atlas.cells if cell.bit is not None}, reverse=True)
    columns = {bit: column for column, bit in enumerate(bits)}
    shares = np.full((len(rows), len(bits)), np.nan)
    for cell in atlas.cells:
        if cell.bit is not None:
            shares[rows[cell.layer, cell.kind], columns[cell.bit]] = 100 * cell.sdc.mean
    size = (max(6.4, 3.5 + 0.16 * len(bits)), max(2.4, 1.2 + 0.17 * len(rows)))
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    # One scale for all models, so that figures can be compared.
    image = axes.imshow(
        shares, cmap="cividis", aspect="auto", interpolation="nearest", vmin=0, vmax=100
    )
    every = max(1, len(bits) // 16)
    axes.set_xticks(range(0, len(bits), every), [str(bit) for bit in bits[::every]], fontsize=7)
    names = [f"{shorten(layer)} {kind}" for layer, kind in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=6)
    axes.set_xlabel("bit position (0: least significant)")
    axes.set_title(label_of(f"{atlas.model}: single upsets"), fontsize=10)
    figure.colorbar(image, label="images with silent data corruption (%)")
    return figure


def _lines(result: CampaignResult) -> Iterator[tuple[str, list[FaultSummary]]]:
    """Divide the rates of a campaign by what else tells their fault models apart."""
    lines: dict[str, list[FaultSummary]] = {}
    for summary in result.summaries:
        if summary.ber:
            _, _, variant = summary.fault.partition(" ")
            lines.setdefault(f", {variant}" if variant else "", []).append(summary)
    yield from lines.items()


def shorten(name: str) -> str:
    """Cut a long name at its beginning, and keep it from being read as a formula."""
    short = name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"
    return short.replace("$", r"\$")


def to_svg(figure: Figure) -> str:
    """Spell a figure as SVG, the same figure always in the same words, and close it."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "proact-onnx", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return stream.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whole, or not at all, and close it.

    Raises:
        OutputError: If it cannot be written.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(scratch, dpi=150, format=path.suffix.lower().removeprefix("."))
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write the figure {path}: {error.strerror or error}") from error
    finally:
        pyplot.close(figure)
