"""Drawn faults: their distribution, and what they depend on."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from proact_onnx.faults import FaultMap, FaultSpace, Kind, Parameter, draw_faults
from proact_onnx.faults.sampling import draw_distinct

SPACE = FaultSpace(
    (
        Parameter("conv", Kind.WEIGHT, (4, 3, 3, 3), "first"),
        Parameter("bias", Kind.BIAS, (4,), "first"),
        Parameter("dense", Kind.WEIGHT, (10, 36), "last"),
        Parameter("threshold", Kind.THRESHOLD, (), "bound"),
    ),
    32,
)


def flipped_bits(faults: FaultMap) -> list[tuple[str, int, int]]:
    """Every flipped bit as (parameter, element, bit), read bit by bit."""
    return [
        (name, int(element), bit)
        for name, (elements, masks) in faults.words.items()
        for element, mask in zip(elements, masks, strict=True)
        for bit in range(32)
        if int(mask) >> bit & 1
    ]


def same(one: FaultMap, other: FaultMap) -> bool:
    return flipped_bits(one) == flipped_bits(other)


def test_the_number_of_flips_is_binomial_over_the_whole_space() -> None:
    ber, trials = 2e-4, 4000
    counts = [draw_faults(SPACE, ber, 3, trial).flips for trial in range(trials)]
    mean, variance = SPACE.bits * ber, SPACE.bits * ber * (1 - ber)
    assert abs(np.mean(counts) - mean) < 4 * np.sqrt(variance / trials)
    assert abs(np.var(counts) / variance - 1) < 0.1
    seen = np.bincount(counts, minlength=12)
    expected = stats.binom.pmf(np.arange(12), SPACE.bits, ber) * trials
    kept = expected > 8
    pooled = np.append(expected[kept], trials - expected[kept].sum())
    observed = np.append(seen[: len(kept)][kept], trials - seen[: len(kept)][kept].sum())
    assert stats.chisquare(observed, pooled).pvalue > 1e-3


def test_faults_fall_evenly_on_parameters_and_bits() -> None:
    by_parameter = dict.fromkeys((parameter.name for parameter in SPACE.parameters), 0)
    by_bit = np.zeros(32, int)
    by_element = np.zeros(360, int)
    for trial in range(600):
        for name, element, bit in flipped_bits(draw_faults(SPACE, 2e-3, 0, trial)):
            by_parameter[name] += 1
            by_bit[bit] += 1
            if name == "dense":
                by_element[element] += 1
    sizes = np.array([parameter.size for parameter in SPACE.parameters])
    total = by_bit.sum()
    assert total > 15_000
    assert stats.chisquare(list(by_parameter.values()), total * sizes / sizes.sum()).pvalue > 1e-3
    assert stats.chisquare(by_bit).pvalue > 1e-3
    assert stats.chisquare(by_element).pvalue > 1e-3


@pytest.mark.parametrize("ber", [1e-3, 0.2, 0.5, 0.8])
def test_no_bit_is_drawn_twice(ber: float) -> None:
    faults = draw_faults(SPACE, ber, 1, 0)
    bits = flipped_bits(faults)
    assert len(set(bits)) == len(bits) == faults.flips > 0
    for elements, masks in faults.words.values():
        assert (np.diff(elements) > 0).all()
        assert (masks != 0).all()


def test_no_rate_flips_nothing_and_certainty_flips_everything() -> None:
    assert draw_faults(SPACE, 0.0, 0, 0).words == {}
    everything = draw_faults(SPACE, 1.0, 0, 0)
    assert everything.flips == SPACE.bits
    for parameter in SPACE.parameters:
        elements, masks = everything.words[parameter.name]
        np.testing.assert_array_equal(elements, np.arange(parameter.size))
        assert (masks == 0xFFFFFFFF).all()


def test_narrow_words_flip_only_their_own_bits() -> None:
    narrow = FaultSpace(SPACE.parameters, 8)
    assert draw_faults(narrow, 1.0, 0, 0).flips == narrow.elements * 8
    for _, masks in draw_faults(narrow, 0.5, 0, 0).words.values():
        assert masks.max() <= 0xFF


@pytest.mark.parametrize(("population", "count"), [(5, 2), (5, 3), (6, 3), (4, 4), (4, 0)])
def test_every_subset_is_equally_likely(population: int, count: int) -> None:
    rng = np.random.default_rng(0)
    seen: dict[tuple[int, ...], int] = {}
    draws = 4000
    for _ in range(draws):
        drawn = draw_distinct(rng, population, count)
        assert len(drawn) == count
        assert drawn.dtype == np.int64
        key = tuple(int(value) for value in drawn)
        assert key == tuple(sorted(set(key)))
        seen[key] = seen.get(key, 0) + 1
    subsets = int(np.round(stats.binom.pmf(count, population, 0.5) * 2**population))
    assert len(seen) == subsets
    if subsets > 1:
        assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_a_trial_depends_on_nothing_but_its_own_key() -> None:
    alone = draw_faults(SPACE, 1e-3, 7, 5)
    for trial in (9, 0, 5):
        for ber in (1e-4, 1e-2):
            draw_faults(SPACE, ber, 7, trial)
    assert same(alone, draw_faults(SPACE, 1e-3, 7, 5))
    backwards = draw_faults(FaultSpace(SPACE.parameters[::-1], 32), 1e-3, 7, 5)
    assert sorted(flipped_bits(alone)) == sorted(flipped_bits(backwards))


@pytest.mark.parametrize(("ber", "seed", "trial"), [(1.1e-3, 7, 5), (1e-3, 8, 5), (1e-3, 7, 6)])
def test_another_rate_seed_or_trial_gives_other_faults(ber: float, seed: int, trial: int) -> None:
    assert not same(draw_faults(SPACE, 1e-3, 7, 5), draw_faults(SPACE, ber, seed, trial))


def test_parameters_of_one_shape_are_hit_at_different_places() -> None:
    twins = FaultSpace(
        tuple(Parameter(name, Kind.WEIGHT, (50, 50), name) for name in ("one", "other")), 32
    )
    words = draw_faults(twins, 1e-2, 0, 0).words
    assert not np.array_equal(words["one"][0], words["other"][0])


def test_models_compared_share_the_faults_on_what_they_share() -> None:
    plain = FaultSpace(SPACE.parameters[:3], 32)
    for trial in range(20):
        hardened = dict(draw_faults(SPACE, 1e-3, 0, trial).words)
        hardened.pop("threshold", None)
        assert flipped_bits(FaultMap(hardened)) == flipped_bits(draw_faults(plain, 1e-3, 0, trial))


def test_the_cost_grows_with_the_flips_and_not_with_the_space() -> None:
    shapes = {
        "c1": (64, 3, 11, 11),
        "c2": (192, 64, 5, 5),
        "c3": (384, 192, 3, 3),
        "f1": (4096, 2304),
        "f2": (4096, 4096),
        "f3": (10, 4096),
    }
    alexnet = FaultSpace(
        tuple(Parameter(name, Kind.WEIGHT, shape, name) for name, shape in shapes.items()), 32
    )
    assert alexnet.bits > 800_000_000
    tracemalloc.start()
    flips = [draw_faults(alexnet, 1e-7, 0, trial).flips for trial in range(20)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 60 < np.mean(flips) < 110
    assert peak < 1_000_000
