"""Number formats, against exact fractions, Python integers and struct."""

import math
import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from proact_onnx.errors import SettingsError
from proact_onnx.faults import FixedPoint, FloatingPoint, Integer, parse_format

# Every format of 8 and of 16 bits, and the narrowest ones.
EXHAUSTIVE = [
    (0, 0),
    (1, 0),
    (0, 1),
    *((m, 7 - m) for m in range(8)),
    *((m, 15 - m) for m in range(16)),
]
SAMPLED = [*((m, 31 - m) for m in range(32)), (10, 13)]


def exact_value(word: int, m: int, n: int) -> Fraction:
    """Two's complement by its definition: the top bit counts negative."""
    width = 1 + m + n
    top = word >> (width - 1)
    return Fraction(word - (top << width), 2**n)


def exact_word(value: Fraction, m: int, n: int) -> int:
    """The word of the nearest value, ties to even; Python rounds fractions that way."""
    width = 1 + m + n
    integer = min(max(round(value * 2**n), -(2 ** (width - 1))), 2 ** (width - 1) - 1)
    return integer % 2**width


def values_of(m: int, n: int, rng: np.random.Generator, count: int = 400) -> np.ndarray:
    """Values in and around the range, halves between two words among them."""
    steps = rng.integers(-(2 ** (m + n)) - 9, 2 ** (m + n) + 9, size=count)
    halves = (2.0 * steps + 1) / 2 ** (n + 1)
    spread = rng.normal(size=count) * 2.0**m
    edges = [2.0**m, -(2.0**m), 2.0**m - 2.0**-n, 0.0, -0.0, 2.0 ** -(n + 1), -(2.0 ** -(n + 1))]
    return np.concatenate([halves, spread, edges])


@pytest.mark.parametrize(("m", "n"), EXHAUSTIVE)
def test_every_word_decodes_exactly_and_comes_back(m: int, n: int) -> None:
    number_format = FixedPoint(m, n)
    words = np.arange(2**number_format.width, dtype=np.uint32)
    decoded = number_format.decode(words)
    top = 2 ** (m + n)
    integers = [word - 2 * top if word >= top else word for word in range(2 * top)]
    # Dividing by a power of two is exact.
    assert decoded.tolist() == [integer / 2**n for integer in integers]
    np.testing.assert_array_equal(number_format.encode(decoded), words)


@pytest.mark.parametrize(("m", "n"), SAMPLED)
def test_random_words_of_wide_formats_decode_exactly(m: int, n: int) -> None:
    number_format = FixedPoint(m, n)
    rng = np.random.default_rng(m)
    words = rng.integers(2**number_format.width, size=10_000, dtype=np.uint32)
    words[:3] = 0, 2**number_format.width - 1, 2 ** (number_format.width - 1)
    decoded = number_format.decode(words)
    assert [Fraction(value) for value in decoded] == [
        exact_value(int(word), m, n) for word in words
    ]
    np.testing.assert_array_equal(number_format.encode(decoded), words)


@pytest.mark.parametrize(("m", "n"), EXHAUSTIVE + SAMPLED)
def test_encoding_rounds_half_to_even_and_saturates(m: int, n: int) -> None:
    values = values_of(m, n, np.random.default_rng(n))
    expected = [exact_word(Fraction(value), m, n) for value in values]
    np.testing.assert_array_equal(FixedPoint(m, n).encode(values), expected)


def test_the_paper_s_format_by_hand() -> None:
    values = np.array([1.0, -1.0, 1.5 * 2**-16, 0.5 * 2**-16, 2.5 * 2**-16, 1e6, -1e6])
    words = FixedPoint(15, 16).encode(values)
    assert [f"{word:08x}" for word in words] == [
        "00010000",
        "ffff0000",
        "00000002",
        "00000000",
        "00000002",
        "7fffffff",
        "80000000",
    ]


@pytest.mark.parametrize(("m", "n"), [(3, 4), (15, 16), (31, 0)])
def test_saturated_counts_what_lies_outside_after_rounding(m: int, n: int) -> None:
    values = values_of(m, n, np.random.default_rng(1))
    low, high = Fraction(-(2**m)), Fraction(2**m) - Fraction(1, 2**n)
    rounded = [Fraction(round(Fraction(value) * 2**n), 2**n) for value in values]
    outside = sum(not low <= value <= high for value in rounded)
    assert 0 < outside < len(values)
    assert FixedPoint(m, n).saturated(values) == outside


def test_infinities_and_the_largest_doubles_saturate_without_a_warning() -> None:
    number_format = FixedPoint(15, 16)
    extremes = np.array([np.inf, -np.inf, 1.7e308, -1.7e308])
    with np.errstate(all="raise"):
        words = number_format.encode(extremes)
        count = number_format.saturated(extremes)
    assert [int(word) for word in words] == [2**31 - 1, 2**31, 2**31 - 1, 2**31]
    assert count == 4


def test_nan_has_no_fixed_point_word() -> None:
    with pytest.raises(ValueError, match=r"^NaN has no Q15\.16 encoding$"):
        FixedPoint(15, 16).encode(np.array([0.0, np.nan]))


def test_float16_and_float64_values_encode_like_their_exact_values() -> None:
    number_format = FixedPoint(3, 4)
    halves = np.array([0.03125, 0.09375, 1.40625, -7.9], np.float16)
    expected = [exact_word(Fraction(float(value)), 3, 4) for value in halves]
    np.testing.assert_array_equal(number_format.encode(halves), expected)
    np.testing.assert_array_equal(number_format.encode(halves.astype(np.float64)), expected)


FLOAT32 = FloatingPoint(np.dtype(np.float32))


def test_float32_words_are_those_of_struct() -> None:
    rng = np.random.default_rng(2)
    words = rng.integers(2**32, size=3000, dtype=np.uint32)
    words[:4] = 0x7F800000, 0xFF800000, 0x00000001, 0x80000000
    decoded = FLOAT32.decode(words)
    for word, value in zip(words, decoded, strict=True):
        (expected,) = struct.unpack("<f", struct.pack("<I", word))
        assert value == expected or (math.isnan(value) and math.isnan(expected))
    numbers = ~np.isnan(decoded)
    np.testing.assert_array_equal(FLOAT32.encode(decoded)[numbers], words[numbers])


def test_float32_counts_what_overflows_as_saturated() -> None:
    values = np.array([1e39, -1e39, 3e38, np.inf, np.nan, 0.0])
    assert FLOAT32.saturated(values) == 2


def value_of_half(word: int) -> float:
    """IEEE binary16, as the standard library reads it."""
    (value,) = struct.unpack("<e", struct.pack("<H", word))
    return float(value)


def value_of_brain(word: int) -> float:
    """bfloat16: the upper half of a binary32 whose lower half is zero."""
    (value,) = struct.unpack("<f", struct.pack("<I", word << 16))
    return float(value)


SHORT_FLOATS = [("float16", value_of_half), ("bfloat16", value_of_brain)]


@pytest.mark.parametrize(("name", "value_of"), SHORT_FLOATS)
def test_every_word_of_a_short_float(name: str, value_of: Callable[[int], float]) -> None:
    number_format = parse_format(name)
    words = np.arange(2**16, dtype=np.uint32)
    expected = np.array([value_of(int(word)) for word in words])
    decoded = number_format.decode(words)
    np.testing.assert_array_equal(decoded, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(number_format.encode(decoded)[numbers], words[numbers])


@pytest.mark.parametrize(("name", "value_of"), SHORT_FLOATS)
def test_short_floats_round_to_the_nearest_and_ties_to_even(
    name: str, value_of: Callable[[int], float]
) -> None:
    number_format = parse_format(name)
    rng = np.random.default_rng(3)
    below = rng.integers(1, 0x7800 if name == "float16" else 0x7E00, size=2000)
    low = np.array([value_of(int(word)) for word in below])
    high = np.array([value_of(int(word) + 1) for word in below])
    for share, chosen in ((0.25, below), (0.5, below + below % 2), (0.75, below + 1)):
        between = low + share * (high - low)
        # The midpoint of two neighbours has one bit more than they, which float32 still holds.
        words = number_format.encode(between.astype(np.float32))
        np.testing.assert_array_equal(words, chosen)
        np.testing.assert_array_equal(
            number_format.encode(-between.astype(np.float32)), chosen | 0x8000
        )


def test_short_floats_count_what_overflows() -> None:
    values = np.array([65519.0, 65520.0, -1e6, np.inf], np.float32)
    assert parse_format("float16").saturated(values) == 2
    assert parse_format("bfloat16").saturated(values) == 0


@pytest.mark.parametrize("number_format", [FixedPoint(15, 16), FLOAT32, parse_format("bfloat16")])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (1, 1, 4)])
def test_shapes_stay(number_format: FixedPoint | FloatingPoint, shape: tuple[int, ...]) -> None:
    values = np.full(shape, 1.25, np.float32)
    words = number_format.encode(values)
    assert words.shape == shape
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(number_format.decode(words), values)
    assert number_format.decode(words).shape == shape


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("Q15.16", 32),
        ("Q7.8", 16),
        ("Q0.7", 8),
        ("Q31.0", 32),
        ("Q0.0", 1),
        ("auto", 32),
        ("auto16", 16),
        ("auto8", 8),
        ("float32", 32),
        ("float16", 16),
        ("bfloat16", 16),
    ],
)
def test_parsed_formats_answer_to_their_name(text: str, width: int) -> None:
    number_format = parse_format(text)
    assert number_format.name == text
    assert number_format.width == width


@pytest.mark.parametrize(("text", "width"), [("Q40.2", 43), ("Q16.16", 33), ("Q99.99", 199)])
def test_a_width_that_no_word_has_is_refused(text: str, width: int) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_format(text)
    assert str(caught.value) == (
        f"format '{text}' takes {width} bits with its sign: choose m and n so that 1 + m + n is "
        "at most 32"
    )


@pytest.mark.parametrize("text", ["int9", "q15.16", "Q15", "Q15.16 ", "Q-1.8", "", "Q1.٣"])
def test_an_unknown_format_is_refused(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_format(text)
    assert str(caught.value) == (
        f"unknown number format {text!r}: use Qm.n (for example Q15.16 or Q7.8), auto, auto16 or "
        "auto8, stored, or one of "
        "float32, float16, bfloat16"
    )


@pytest.mark.parametrize("text", ["auto1", "auto33", "auto0"])
def test_an_automatic_width_that_no_word_has_is_refused(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_format(text)
    assert str(caught.value) == (
        f"format '{text}' has words of {int(text[4:])} bits: choose from auto2 to auto32"
    )


@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize(
    ("greatest", "exponent"),
    [(0.9, 0), (1.0, 1), (-1.0, 1), (0.5, 0), (0.0103, -6), (3e4, 15), (1e-6, -19), (0.0, 0)],
)
def test_automatic_formats_leave_no_bit_unused(width: int, greatest: float, exponent: int) -> None:
    """The smallest power of two above every magnitude is the range."""
    values = np.array([greatest, greatest / 3, -greatest / 7, 0.0], np.float32)
    fitted = parse_format(f"auto{width}").fit(values)
    assert (fitted.width, fitted.saturated(values)) == (width, 0)
    assert isinstance(fitted, FixedPoint)
    assert fitted.integer_bits == exponent
    resolution = 2.0 ** (exponent - width + 1)
    np.testing.assert_allclose(fitted.decode(fitted.encode(values)), values, atol=resolution / 2)


def test_an_automatic_format_grows_where_rounding_reaches_its_end() -> None:
    values = np.array([127.9, -3.0], np.float32)
    fitted = parse_format("auto8").fit(values)
    assert fitted.saturated(values) == 0
    np.testing.assert_array_equal(fitted.decode(fitted.encode(values)), [128.0, -4.0])


@pytest.mark.parametrize("name", ["Q7.8", "float16"])
def test_other_formats_are_the_same_for_every_tensor(name: str) -> None:
    chosen = parse_format(name)
    assert chosen.fit(np.array([1e-9, 1e9], np.float32)) == chosen


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16"])
def test_every_word_of_an_integer(name: str) -> None:
    integers = Integer(np.dtype(name))
    words = np.arange(2**integers.width, dtype=np.uint32)
    code = {"int8": "b", "uint8": "B", "int16": "h", "uint16": "H"}[name]
    expected = [
        struct.unpack(f"<{code}", int(w).to_bytes(integers.width // 8, "little"))[0] for w in words
    ]
    assert integers.decode(words).tolist() == expected
    np.testing.assert_array_equal(integers.encode(np.array(expected, name)), words)


def test_random_words_of_wide_integers() -> None:
    integers = Integer(np.dtype(np.int32))
    words = np.random.default_rng(0).integers(2**32, size=10_000, dtype=np.uint32)
    words[:3] = 0, 2**31, 2**32 - 1
    expected = [struct.unpack("<i", struct.pack("<I", int(word)))[0] for word in words]
    assert integers.decode(words).tolist() == expected
    np.testing.assert_array_equal(integers.encode(np.array(expected, np.int32)), words)
