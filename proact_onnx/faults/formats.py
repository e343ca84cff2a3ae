"""How a parameter is stored in memory: the encodings whose bits flip."""

import re
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from proact_onnx.errors import SettingsError

Words = npt.NDArray[np.uint32]
Reals = npt.NDArray[np.floating[Any]]

_WIDEST = 32


class MemoryFormat(Protocol):
    """How real parameters are stored: a user's choice, from which each tensor's format follows."""

    @property
    def name(self) -> str:
        """The format's name, as the user writes it."""

    @property
    def width(self) -> int | None:
        """Bits of one word; None where they are those of each tensor's own type."""

    def fit(self, values: Reals) -> "NumberFormat":
        """Return the number format of the tensor that holds these values."""


class NumberFormat(Protocol):
    """The format of one tensor: values to words of ``width`` bits and back.

    Words are held in uint32 whatever their width; bit 0 is the least significant.
    """

    @property
    def name(self) -> str:
        """The format's name."""

    @property
    def width(self) -> int:
        """Bits of one word."""

    def encode(self, values: Reals) -> Words:
        """Return the word nearest to each value."""

    def decode(self, words: Words) -> npt.NDArray[np.float64]:
        """Return the value that each word stands for."""

    def saturated(self, values: Reals) -> int:
        """Count the values that lie outside the format's range."""


@dataclass(frozen=True)
class FixedPoint:
    """Two's complement fixed point Qm.n: one sign bit, m integer bits and n fraction bits.

    The paper stores every parameter in Q15.16 (section VI-A): range -32768 to 32768 - 2^-16,
    resolution 2^-16.

    Attributes:
        integer_bits: m, bits before the binary point, sign excluded; negative where the word
            begins behind the point, as in tensors of small values.
        fraction_bits: n, bits after it; negative where the word ends before the point.
    """

    integer_bits: int
    fraction_bits: int

    @property
    def name(self) -> str:
        """The format's name, ``Qm.n``."""
        return f"Q{self.integer_bits}.{self.fraction_bits}"

    @property
    def width(self) -> int:
        """Bits of one word, sign included."""
        return 1 + self.integer_bits + self.fraction_bits

    def fit(self, values: Reals) -> "FixedPoint":
        """Return this format: it is the same for every tensor."""
        return self

    def encode(self, values: Reals) -> Words:
        """Round to the nearest word, ties to even, and saturate at the ends of the range.

        Args:
            values: Finite or infinite reals; infinities saturate. NaN has no word.

        Returns:
            uint32 words of the same shape, the unused high bits zero.

        Raises:
            ValueError: If a value is NaN.
        """
        if np.isnan(values).any():
            raise ValueError(f"NaN has no {self.name} encoding")
        integers = np.clip(self._scaled(values), *self._limits).astype(np.int64)
        return (integers & self._mask).astype(np.uint32)

    def decode(self, words: Words) -> npt.NDArray[np.float64]:
        """Read words as two's complement integers, scaled by 2^-n; exact in float64."""
        unused = 32 - self.width
        integers = (words << np.uint32(unused)).view(np.int32) >> np.int32(unused)
        return np.ldexp(integers.astype(np.float64), -self.fraction_bits)

    def saturated(self, values: Reals) -> int:
        """Count the values that lie outside the format's range after rounding."""
        scaled = self._scaled(values)
        low, high = self._limits
        return int(np.count_nonzero((scaled < low) | (scaled > high)))

    def _scaled(self, values: Reals) -> npt.NDArray[np.float64]:
        # The largest float64 values overflow to infinity here, and infinities saturate.
        with np.errstate(over="ignore"):
            scaled: npt.NDArray[np.float64] = np.rint(
                np.ldexp(values.astype(np.float64), self.fraction_bits)
            )
        return scaled

    @property
    def _limits(self) -> tuple[int, int]:
        return -(1 << (self.width - 1)), (1 << (self.width - 1)) - 1

    @property
    def _mask(self) -> int:
        return (1 << self.width) - 1


@dataclass(frozen=True)
class _NativeType:
    """A type of the processor, whose own bits are the words."""

    dtype: np.dtype[Any]

    @property
    def name(self) -> str:
        """Name of the type."""
        return str(self.dtype)

    @property
    def width(self) -> int:
        """Bits of one word."""
        return 8 * self.dtype.itemsize

    def decode(self, words: Words) -> npt.NDArray[np.float64]:
        """Return the values of the bit patterns, exact in float64; NaN and infinities are such."""
        with np.errstate(invalid="ignore"):
            return np.asarray(words, self._word, order="C").view(self.dtype).astype(np.float64)

    def saturated(self, values: npt.NDArray[Any]) -> int:
        """Return 0: values of the type itself are stored as they are."""
        return 0

    @property
    def _word(self) -> np.dtype[Any]:
        return np.dtype(f"u{self.dtype.itemsize}")


@dataclass(frozen=True)
class FloatingPoint(_NativeType):
    """A floating-point type with its bits as the words.

    Attributes:
        dtype: float32, float16 (IEEE 754 binary32 and binary16) or bfloat16, the upper half of
            binary32.
    """

    def fit(self, values: Reals) -> "FloatingPoint":
        """Return this format: it is the same for every tensor."""
        return self

    def encode(self, values: Reals) -> Words:
        """Return the bit patterns of the values, rounded to nearest, ties to even."""
        return self._round(values).view(self._word).astype(np.uint32)

    def saturated(self, values: Reals) -> int:
        """Count the finite values that overflow to infinity."""
        overflowed = np.isinf(self._round(values)) & np.isfinite(values)
        return int(np.count_nonzero(overflowed))

    def _round(self, values: Reals) -> npt.NDArray[Any]:
        with np.errstate(over="ignore"):
            return np.asarray(values, dtype=self.dtype, order="C")


@dataclass(frozen=True)
class Integer(_NativeType):
    """Parameters of a quantised model, whose bits are those of the integers in the file.

    Attributes:
        dtype: int8, uint8, int16, uint16 or int32.
    """

    def encode(self, values: npt.NDArray[Any]) -> Words:
        """Return the bit patterns of integers of this type."""
        return np.asarray(values, self.dtype, order="C").view(self._word).astype(np.uint32)


@dataclass(frozen=True)
class AutoScale:
    """Fixed point with the binary point placed for each tensor: dynamic fixed point.

    The point stands so that no value of the tensor saturates and none of the bits is wasted, as
    in integer accelerators with a power-of-two scale a tensor.

    Attributes:
        width: Bits of one word, sign included.
    """

    width: int

    @property
    def name(self) -> str:
        """The format's name: ``auto``, with the width where it is not 32."""
        return "auto" if self.width == _WIDEST else f"auto{self.width}"

    def fit(self, values: Reals) -> FixedPoint:
        """Return the fixed point with the finest resolution that holds every finite value."""
        magnitudes = np.abs(values[np.isfinite(values)].astype(np.float64))
        greatest = float(magnitudes.max(initial=0.0))
        # frexp: greatest = mantissa * 2**exponent with a mantissa from 0.5 to below 1.
        exponent = int(np.frexp(greatest)[1]) if greatest else 0
        fixed = FixedPoint(exponent, self.width - 1 - exponent)
        if fixed.saturated(values[np.isfinite(values)]):
            # Rounding lifted the greatest value to the power of two above it.
            return FixedPoint(exponent + 1, self.width - 2 - exponent)
        return fixed


@dataclass(frozen=True)
class AsStored:
    """Every parameter in the floating-point type in which the file stores it."""

    name: str = "stored"
    width: int | None = None

    def fit(self, values: Reals) -> FloatingPoint:
        """Return the type of the values.

        Raises:
            SettingsError: If its words have more than 32 bits.
        """
        if values.dtype.name not in FLOATING_POINT:
            raise SettingsError(
                f"format 'stored' keeps floats of at most {_WIDEST} bits, and the model stores "
                f"{values.dtype}: choose another --format"
            )
        return FLOATING_POINT[values.dtype.name]


FLOATING_POINT = {
    known.name: known
    for known in map(
        FloatingPoint, (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
    )
}


def parse_format(name: str) -> MemoryFormat:
    """Return the format that a user's name stands for.

    Args:
        name: ``Qm.n`` with at most 32 bits in all, such as ``Q15.16``; ``auto``, ``auto16`` or
            ``auto8``: fixed point of that many bits (32) scaled for each tensor; ``float32``,
            ``float16`` or ``bfloat16``; ``stored``: each parameter in the type of the file.

    Raises:
        SettingsError: If there is no such format.
    """
    if name == AsStored.name:
        return AsStored()
    if name in FLOATING_POINT:
        return FLOATING_POINT[name]
    if match := re.fullmatch(r"Q([0-9]{1,2})\.([0-9]{1,2})", name):
        fixed = FixedPoint(int(match[1]), int(match[2]))
        if fixed.width <= _WIDEST:
            return fixed
        raise SettingsError(
            f"format {name!r} takes {fixed.width} bits with its sign: choose m and n so that "
            f"1 + m + n is at most {_WIDEST}"
        )
    if match := re.fullmatch(r"auto([0-9]{0,2})", name):
        width = int(match[1] or _WIDEST)
        if 2 <= width <= _WIDEST:
            return AutoScale(width)
        raise SettingsError(
            f"format {name!r} has words of {width} bits: choose from auto2 to auto{_WIDEST}"
        )
    floats = ", ".join(FLOATING_POINT)
    raise SettingsError(
        f"unknown number format {name!r}: use Qm.n (for example Q15.16 or Q7.8), auto, auto16 or "
        f"auto8, stored, or one of {floats}"
    )
