"""Distributions of activations as CSV: a summary of every activation, and the histograms."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from proact_onnx.campaign.distributions import Distributions
from proact_onnx.campaign.histogram import EDGES, Histogram
from proact_onnx.files import write_text

_QUANTILES = (0.5, 0.9, 0.99, 0.999)
_SUMMARY = (
    *("model", "activation", "state", "values", "zero", "negative", "infinite", "nan"),
    *("above_1", "above_golden_max", "max", "mean"),
    *(f"quantile_{share:g}" for share in _QUANTILES),
)


def write_summary(distributions: Distributions, path: Path) -> None:
    """Write one line an activation and state: counts of values, and statistics of finite ones.

    States are ``fault-free`` and the name of the fault model. Quantiles are the upper edges of
    their bins, see `Histogram.quantile`.

    Raises:
        OutputError: If the file cannot be written.
    """
    rows = []
    for layer in distributions.layers:
        for state, histogram, beyond in (
            ("fault-free", layer.golden, 0),
            (distributions.fault, layer.faulty, layer.beyond),
        ):
            counts = (
                *(histogram.values, histogram.zeros, histogram.negative),
                *(histogram.infinite, histogram.undefined, histogram.above_one, beyond),
            )
            statistics = (
                *(histogram.greatest, histogram.mean),
                *(histogram.quantile(share) for share in _QUANTILES),
            )
            numbers = (*counts, *(f"{value:.9g}" for value in statistics))
            rows.append([distributions.model, layer.tensor, state, *numbers])
    _write(path, _SUMMARY, rows)


def write_histograms(distributions: Distributions, path: Path) -> None:
    """Write one line a bin, activation and state.

    A line counts values above ``low`` up to ``high``. Values that are exactly 0 have both ends at
    0, finite ones below it the ends -inf and 0, infinities both ends at inf, and NaNs at nan. Bins
    without a value are left out.

    Raises:
        OutputError: If the file cannot be written.
    """
    rows = []
    for layer in distributions.layers:
        for state, histogram in (
            ("fault-free", layer.golden),
            (distributions.fault, layer.faulty),
        ):
            rows += [
                [distributions.model, layer.tensor, state, f"{low:.9g}", f"{high:.9g}", count]
                for low, high, count in _bins(histogram)
                if count
            ]
    _write(path, ("model", "activation", "state", "low", "high", "count"), rows)


def _bins(histogram: Histogram) -> Iterator[tuple[float, float, int]]:
    yield -math.inf, 0.0, histogram.negative
    yield 0.0, 0.0, histogram.zeros
    yield from zip(EDGES[:-1].tolist(), EDGES[1:].tolist(), histogram.counts.tolist(), strict=True)
    yield math.inf, math.inf, histogram.infinite
    yield math.nan, math.nan, histogram.undefined


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, stream.getvalue())
