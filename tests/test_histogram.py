"""Histograms of activations, against counting every bin by itself."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from proact_onnx.campaign import Histogram
from proact_onnx.campaign.histogram import BINS, EDGES, LINEAR_BINS

LARGEST = np.finfo(np.float32).max


def counted(*batches: npt.ArrayLike) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.asarray(batch))
    return histogram


def one_by_one(values: npt.NDArray[np.floating]) -> list[int]:
    """How many values lie in each bin, its upper edge included."""
    return [int(((values > low) & (values <= high)).sum()) for low, high in pairwise(EDGES)]


def test_bins_are_linear_up_to_1_and_logarithmic_up_to_the_largest_float() -> None:
    assert EDGES[0] == 0.0
    np.testing.assert_array_equal(np.diff(EDGES[: LINEAR_BINS + 1]), 1 / LINEAR_BINS)
    assert EDGES[LINEAR_BINS] == 1.0
    assert EDGES[-1] == LARGEST
    # Four bins an octave, whose edges are rounded to 8 significant bits.
    assert BINS == LINEAR_BINS + 4 * 128
    exact = 2.0 ** (np.arange(4 * 128) / 4)
    np.testing.assert_allclose(EDGES[LINEAR_BINS:-1], exact, rtol=2.0**-8)


def test_every_value_is_counted_in_its_bin() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.random(2000), 2.0 ** rng.uniform(-140, 128, 2000), [LARGEST, 1e-45]]
    ).astype(np.float32)
    assert counted(values).counts.tolist() == one_by_one(values)


def test_an_edge_belongs_to_the_bin_below_it() -> None:
    edges = EDGES[1:].astype(np.float32)
    assert counted(edges).counts.tolist() == [1] * BINS
    following = np.nextafter(EDGES[:-1].astype(np.float32), np.float32(np.inf))
    assert counted(following).counts.tolist() == [1] * BINS
    assert counted(np.float32([1.0])).above_one == 0
    assert counted(np.nextafter(np.float32([1.0]), np.float32(2))).above_one == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_value_is_lost_or_counted_twice(dtype: type[np.floating]) -> None:
    special = [0.0, -0.0, 0.0, -2.5, np.inf, -np.inf, np.inf, np.nan, 0.25, 3.0]
    histogram = counted(np.array(special, dtype), np.array([[7.0], [0.0]], dtype))
    assert (histogram.zeros, histogram.negative) == (4, 1)
    assert (histogram.infinite, histogram.undefined, histogram.nonfinite) == (3, 1, 4)
    assert histogram.counts.sum() == 3
    assert (histogram.values, histogram.finite, histogram.above_one) == (12, 8, 2)
    assert histogram.greatest == 7.0
    assert histogram.mean == pytest.approx((-2.5 + 0.25 + 3.0 + 7.0) / 8)


def test_values_beyond_float32_fall_into_the_last_bin() -> None:
    histogram = counted([1e300, 1e-300])
    assert histogram.counts[-1] == histogram.zeros == 1
    assert histogram.greatest == 1e300
    assert histogram.nonfinite == 0


def test_batches_and_merging_give_the_same_as_one_batch() -> None:
    values = np.random.default_rng(1).lognormal(0, 3, 999).astype(np.float32)
    whole, parts = counted(values), counted(values[:100], values[100:400])
    parts.merge(counted(values[400:], [np.nan, 0.0]))
    assert parts.counts.tolist() == whole.counts.tolist()
    assert (parts.zeros, parts.undefined) == (1, 1)
    assert parts.greatest == whole.greatest
    assert parts.mean == pytest.approx(values.astype(np.float64).sum() / 1000)


def test_a_quantile_lies_in_the_bin_below_its_bound() -> None:
    values = np.random.default_rng(2).lognormal(0, 2, 5001).astype(np.float32)
    values[:1000] = 0
    histogram = counted(values, [np.inf])
    for share in (0.0, 0.1, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = np.quantile(values, share, method="inverted_cdf")
        bound = histogram.quantile(share)
        assert exact <= bound <= max(exact + 1 / 64, exact * 1.2)
    assert histogram.quantile(0.1) == 0.0
    assert histogram.quantile(1.0) == histogram.greatest


def test_an_empty_histogram_has_no_mean() -> None:
    histogram = counted([np.nan])
    assert np.isnan(histogram.mean)
    assert np.isnan(histogram.quantile(0.5))
    assert histogram.greatest == -np.inf
