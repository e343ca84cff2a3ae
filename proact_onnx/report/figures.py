"""Figures on disk: readable in greyscale and by colour-blind people."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot

from proact_onnx.campaign import CampaignResult
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
    for position, result in enumerate(results):
        colour, marker, line = _STYLES[position % len(_STYLES)]
        rates = [summary.ber for summary in result.summaries if summary.ber > 0]
        estimates = [summary.accuracy for summary in result.summaries if summary.ber > 0]
        axes.plot(
            rates,
            [100 * estimate.mean for estimate in estimates],
            color=colour,
            marker=marker,
            markersize=5,
            clip_on=False,
            linestyle=line,
            label=f"{result.model} (clean {100 * result.golden_accuracy:.2f} %)",
        )
        axes.fill_between(
            rates,
            [100 * estimate.low for estimate in estimates],
            [100 * estimate.high for estimate in estimates],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    if any(summary.ber > 0 for result in results for summary in result.summaries):
        axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_xlabel("bit error rate")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(
        f"Accuracy under bit flips, mean and {100 * confidence:g}% interval", fontsize=10
    )
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(scratch, dpi=150, format=path.suffix.lower().removeprefix("."))
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write the figure {path}: {error.strerror or error}") from error
    finally:
        pyplot.close(figure)
