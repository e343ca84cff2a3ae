"""Histograms of activation values that grow batch by batch and keep no value."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

# Bins of equal width up to 1; beyond, a quarter of an octave each.
LINEAR_BINS = 64
_PER_OCTAVE = 4
_OCTAVES = 128

_LARGEST = np.finfo(np.float32).max
# Bits of a float32 that tell its bin: all but the last 16, which is what bfloat16 keeps.
_DROPPED = 16
_CODES = 0x7F80


def _bin_edges() -> npt.NDArray[np.float64]:
    """Ascending edges of the bins.

    Every edge has eight significant bits, so that the leading bits of a float32 decide its bin.
    """
    linear = np.arange(LINEAR_BINS + 1) / LINEAR_BINS
    fraction, exponent = np.frexp(2.0 ** (np.arange(1, _PER_OCTAVE * _OCTAVES) / _PER_OCTAVE))
    octaves = np.ldexp(np.round(fraction * 256) / 256, exponent)
    return np.concatenate([linear, octaves, [float(_LARGEST)]])


EDGES = _bin_edges()
BINS = len(EDGES) - 1

# A positive value lies above the number that its code begins with, or is that of the next code.
_CODE_BEGINS = (np.arange(_CODES, dtype=np.uint32) << _DROPPED).view(np.float32)
_BIN_OF_CODE = np.searchsorted(EDGES, _CODE_BEGINS, side="right") - 1


@dataclass(eq=False)
class Histogram:
    """Counts of values in fixed bins, with what bins cannot tell.

    Every value is counted in exactly one of ``counts``, ``zeros``, ``negative``, ``infinite`` and
    ``undefined``. Values are counted as float32; larger ones fall into the last bin.

    Attributes:
        counts: int64 ``[BINS]``: finite values above ``EDGES[i]`` up to ``EDGES[i + 1]``.
        zeros: Values that are exactly 0.
        negative: Finite values below 0, which only a saturating bound with a faulty threshold
            gives.
        infinite: Infinities.
        undefined: NaNs.
        total: Sum of the finite values.
        greatest: Largest finite value; minus infinity where there is none.
    """

    counts: Counts = field(default_factory=lambda: np.zeros(BINS, np.int64))
    zeros: int = 0
    negative: int = 0
    infinite: int = 0
    undefined: int = 0
    total: float = 0.0
    greatest: float = -np.inf

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count values of any floating-point type and shape."""
        finite = np.isfinite(values)
        if not finite.all():
            missing = int(np.count_nonzero(np.isnan(values)))
            self.undefined += missing
            self.infinite += values.size - int(np.count_nonzero(finite)) - missing
            values = values[finite]
        if not values.size:
            return
        with np.errstate(over="ignore"):
            self.total += float(values.sum(dtype=np.float64))
        self.greatest = max(self.greatest, float(values.max()))
        as_float32 = np.clip(values, -_LARGEST, _LARGEST).astype(np.float32, copy=False)
        positive = as_float32[as_float32 > 0]
        negative = int(np.count_nonzero(as_float32 < 0))
        self.negative += negative
        self.zeros += as_float32.size - positive.size - negative
        # One less, because a bin holds its upper edge.
        codes = (positive.view(np.uint32) - np.uint32(1)) >> np.uint32(_DROPPED)
        by_code = np.bincount(codes, minlength=_CODES)
        self.counts += np.bincount(_BIN_OF_CODE, by_code, BINS).astype(np.int64)

    def merge(self, other: "Histogram") -> None:
        """Count what another histogram has counted."""
        self.counts += other.counts
        self.zeros += other.zeros
        self.negative += other.negative
        self.infinite += other.infinite
        self.undefined += other.undefined
        self.total += other.total
        self.greatest = max(self.greatest, other.greatest)

    @property
    def finite(self) -> int:
        """Finite values counted."""
        return int(self.counts.sum()) + self.zeros + self.negative

    @property
    def nonfinite(self) -> int:
        """Infinities and NaNs counted."""
        return self.infinite + self.undefined

    @property
    def values(self) -> int:
        """Values counted."""
        return self.finite + self.nonfinite

    @property
    def above_one(self) -> int:
        """Finite values above 1."""
        return int(self.counts[LINEAR_BINS:].sum())

    @property
    def mean(self) -> float:
        """Mean of the finite values; NaN where there is none."""
        return self.total / self.finite if self.finite else float("nan")

    def quantile(self, share: float) -> float:
        """Bound a quantile of the finite values from above, by the upper edge of its bin.

        The quantile itself lies in that bin, so it is at most 1/64, or for values above 1 a quarter
        of an octave (19 %), smaller.

        Args:
            share: From 0 to 1.
        """
        if not self.finite:
            return float("nan")
        below: Counts = self.zeros + self.negative + np.cumsum(self.counts)
        wanted = max(1, math.ceil(share * self.finite))
        if wanted <= self.zeros + self.negative:
            return 0.0
        return min(float(EDGES[1 + np.searchsorted(below, wanted)]), self.greatest)
