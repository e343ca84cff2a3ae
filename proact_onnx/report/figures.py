"""Figures on disk: readable in greyscale and by colour-blind people."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from proact_onnx.campaign import Atlas, CampaignResult, FaultSummary
from proact_onnx.errors import OutputError

# Okabe and Ito's palette, with markers and line styles so that colour carries nothing alone.
_STYLES = [
    ("#000000", "o", "-"),
    ("#0072B2", "s", "--"),
    ("#D55E00", "^", "-."),
    ("#009E73", "D", ":"),
    ("#CC79A7", "v", "-"),
    ("#E69F00", "P", "--"),
]


FORMATS = (".png", ".svg", ".pdf")
_LONGEST = 40


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


def plot_accuracy(results: Sequence[CampaignResult], path: Path, confidence: float) -> None:
    """Plot accuracy over bit error rate, one line with its band a model (Fig. 5 of the paper).

    Args:
        results: One campaign a model.
        path: Where to write; the suffix decides the format (png, svg, pdf).
        confidence: Confidence level of the bands, for the caption.

    Raises:
        OutputError: If the figure cannot be written, or its format is unknown.
    """
    check_figure(path)
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    lines = [(result, *line) for result in results for line in _lines(result)]
    for position, (result, variant, summaries) in enumerate(lines):
        colour, marker, line = _STYLES[position % len(_STYLES)]
        rates = [summary.ber or 0.0 for summary in summaries]
        estimates = [summary.accuracy for summary in summaries]
        axes.plot(
            rates,
            [100 * estimate.mean for estimate in estimates],
            color=colour,
            marker=marker,
            markersize=5,
            clip_on=False,
            linestyle=line,
            label=f"{result.model}{variant} (clean {100 * result.golden_accuracy:.2f} %)",
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
    axes.set_ylim(0, 100)
    axes.set_xlabel("bit error rate")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(
        f"Accuracy under bit flips, mean and {100 * confidence:g}% interval", fontsize=10
    )
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    save_figure(figure, path)


def plot_atlas(atlas: Atlas, path: Path) -> None:
    """Plot silent data corruption under single upsets by layer and bit position.

    Args:
        atlas: The atlas.
        path: Where to write; the suffix decides the format (png, svg, pdf).

    Raises:
        OutputError: If the figure cannot be written, or its format is unknown.
    """
    check_figure(path)
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
    axes.set_title(f"{atlas.model}: single upsets", fontsize=10)
    figure.colorbar(image, label="images with silent data corruption (%)")
    save_figure(figure, path)


def _lines(result: CampaignResult) -> Iterator[tuple[str, list[FaultSummary]]]:
    """Divide the rates of a campaign by what else tells their fault models apart."""
    lines: dict[str, list[FaultSummary]] = {}
    for summary in result.summaries:
        if summary.ber:
            _, _, variant = summary.fault.partition(" ")
            lines.setdefault(f", {variant}" if variant else "", []).append(summary)
    yield from lines.items()


def shorten(name: str) -> str:
    """Cut a long name at its front, where those of one network are alike."""
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"


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
