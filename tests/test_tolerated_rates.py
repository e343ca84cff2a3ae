"""The bit error rate that methods tolerate, against hand-made campaigns and scipy."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq

from proact_onnx.report.comparison import read_comparison
from proact_onnx.report.tolerated_rates import rate_at, spell_open, tolerated_rate_table
from tests.comparisons import comparison


def test_a_rate_between_two_measured_ones_agrees_with_scipy() -> None:
    rates = [1e-6, 1e-5, 3e-5, 1e-4]
    drops = [0.1, 2.0, 9.5, 60.0]
    curve = interp1d(np.log10(rates), drops)
    expected = 10 ** brentq(lambda place: curve(place) - 5.0, -6, -4)
    assert rate_at(rates, drops, 5.0) == pytest.approx(expected, rel=1e-9)
    assert rate_at(rates, drops, 2.0) == pytest.approx(1e-5)


def test_the_first_crossing_counts_where_noise_makes_several() -> None:
    assert rate_at([1e-6, 1e-5, 1e-4, 1e-3], [0.0, 6.0, 4.0, 8.0], 5.0) < 1e-5


@pytest.mark.parametrize(
    ("drops", "rate", "spelled"),
    [([5.0, 9.0], 0.0, "< 1e-6"), ([0.0, 4.9], math.inf, "> 3e-5")],
)
def test_rates_beyond_the_measured_ones_are_told_as_such(
    drops: list[float], rate: float, spelled: str
) -> None:
    assert rate_at([1e-6, 3e-5], drops, 5.0) == rate
    assert spell_open(rate, [1e-6, 3e-5]) == spelled


def test_one_row_a_method_beside_the_reference(tmp_path: Path) -> None:
    """Of 90 %, Ranger loses 6 and 50 points, ProAct 2 and 10, at 1e-6 and 1e-5."""
    found = read_comparison(comparison(tmp_path / "c", drop_limit=6.5))
    table = tolerated_rate_table(found)
    assert table is not None
    assert table.title == (
        "net.onnx: bit error rate at which 6.5 points of the unprotected model's 90.00 % are lost"
    )
    assert table.columns == ("method", "rate", "times that of ProAct (hybrid)")
    rows = {row[0]: row[1:] for row in table.rows}
    ranger, proact = 10 ** (-6 + 0.5 / 44), 10 ** (-6 + 4.5 / 8)
    assert rows["unprotected"] == ("< 1e-6", f"< {1e-6 / proact:.3g}")
    assert rows["Ranger (layer-wise)"][1] == f"{ranger / proact:.3g}"
    assert rows["ProAct (hybrid)"][1] == "1"
    mean, ends = rows["ProAct (hybrid)"][0].split(" [")
    assert mean == "3.7e-6"
    low, high = ends.rstrip("]").split(", ")
    # 60 equal trials leave the mean up to five points lower: at 1e-6 seven points may be lost.
    assert low == "< 1e-6"
    assert float(high) > 3.7e-6


def test_two_methods_beyond_the_measured_rates_have_no_ratio(tmp_path: Path) -> None:
    table = tolerated_rate_table(read_comparison(comparison(tmp_path / "c", drop_limit=60.0)))
    assert table is not None
    assert [row[1:] for row in table.rows[1:]] == [("> 1e-5", ""), ("> 1e-5", "")]


def test_above_every_measured_rate_is_a_lower_limit_of_the_ratio(tmp_path: Path) -> None:
    found = read_comparison(comparison(tmp_path / "c", drop_limit=45.0, reference="ranger-layer"))
    table = tolerated_rate_table(found)
    assert table is not None
    ranger = 10 ** (-6 + 39 / 44)
    assert table.rows[2][1:] == ("> 1e-5", f"> {1e-5 / ranger:.3g}")
