"""Drawn faults: their distribution, and what they depend on."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from proact_onnx.errors import SettingsError
from proact_onnx.faults import (
    Along,
    Count,
    Effect,
    FaultMap,
    FaultModel,
    FaultSpace,
    Kind,
    Parameter,
    Rate,
    Shape,
    Single,
    parse_fault_model,
)
from proact_onnx.faults.sampling import draw_count, draw_distinct, place_in_order


def parameter(
    name: str, kind: Kind, shape: tuple[int, ...], layer: str, width: int = 32
) -> Parameter:
    return Parameter(name, kind, shape, layer, width, tuple(range(width)))


def draw_faults(space: FaultSpace, ber: float, seed: int, trial: int) -> FaultMap:
    return FaultModel(Rate(ber)).draw(space, seed, trial)


SPACE = FaultSpace(
    (
        parameter("conv", Kind.WEIGHT, (4, 3, 3, 3), "first"),
        parameter("bias", Kind.BIAS, (4,), "first"),
        parameter("dense", Kind.WEIGHT, (10, 36), "last"),
        parameter("threshold", Kind.THRESHOLD, (), "bound"),
    )
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
    counts = [draw_faults(SPACE, ber, 3, trial).sites for trial in range(trials)]
    mean, variance = SPACE.bits * ber, SPACE.bits * ber * (1 - ber)
    assert abs(np.mean(counts) - mean) < 4 * np.sqrt(variance / trials)
    assert abs(np.var(counts) / variance - 1) < 0.1
    seen = np.bincount(counts, minlength=12)
    expected = stats.binom.pmf(np.arange(12), SPACE.bits, ber) * trials
    kept = expected > 8
    pooled = np.append(expected[kept], trials - expected[kept].sum())
    observed = np.append(seen[: len(kept)][kept], trials - seen[: len(kept)][kept].sum())
    assert stats.chisquare(observed, pooled).pvalue > 1e-3


@pytest.mark.parametrize(
    ("population", "probability"),
    [(1, 0.3), (3, 1.0), (40, 0.5), (10**9, 1e-9), (10**6, 2e-5), (10**6, 1e-4), (5, 0.0)],
)
def test_counts_are_binomial(population: int, probability: float) -> None:
    draws = [draw_count(population, probability, 1, trial, "key") for trial in range(4000)]
    law = stats.binom(population, probability)
    assert all(0 <= count <= population for count in draws)
    if law.var() == 0:
        assert set(draws) == {int(law.mean())}
        return
    low, high = int(law.ppf(0.002)), int(law.ppf(0.998))
    edges = np.unique(np.linspace(low, high, min(12, high - low + 1)).astype(int))
    observed = np.histogram(np.searchsorted(edges, draws), np.arange(len(edges) + 2))[0]
    shares = np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]]))
    kept = shares * 4000 > 5
    assert stats.chisquare(
        observed[kept], shares[kept] / shares[kept].sum() * observed[kept].sum()
    ).pvalue > 1e-3  # fmt: skip
    assert abs(np.mean(draws) - law.mean()) < 4 * law.std() / np.sqrt(4000)


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
    assert len(set(bits)) == len(bits) == faults.sites > 0
    for elements, masks in faults.words.values():
        assert (np.diff(elements) > 0).all()
        assert (masks != 0).all()


def test_no_rate_flips_nothing_and_certainty_flips_everything() -> None:
    assert draw_faults(SPACE, 0.0, 0, 0).words == {}
    everything = draw_faults(SPACE, 1.0, 0, 0)
    assert everything.sites == SPACE.bits
    for parameter in SPACE.parameters:
        elements, masks = everything.words[parameter.name]
        np.testing.assert_array_equal(elements, np.arange(parameter.size))
        assert (masks == 0xFFFFFFFF).all()


def test_narrow_words_flip_only_their_own_bits() -> None:
    narrow = FaultSpace(
        tuple(parameter(p.name, p.kind, p.shape, p.layer, width=8) for p in SPACE.parameters)
    )
    assert draw_faults(narrow, 1.0, 0, 0).sites == narrow.elements * 8
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
    backwards = draw_faults(FaultSpace(SPACE.parameters[::-1]), 1e-3, 7, 5)
    assert sorted(flipped_bits(alone)) == sorted(flipped_bits(backwards))


@pytest.mark.parametrize(("ber", "seed", "trial"), [(1.1e-3, 7, 5), (1e-3, 8, 5), (1e-3, 7, 6)])
def test_another_rate_seed_or_trial_gives_other_faults(ber: float, seed: int, trial: int) -> None:
    assert not same(draw_faults(SPACE, 1e-3, 7, 5), draw_faults(SPACE, ber, seed, trial))


def test_parameters_of_one_shape_are_hit_at_different_places() -> None:
    twins = FaultSpace(
        tuple(parameter(name, Kind.WEIGHT, (50, 50), name) for name in ("one", "other"))
    )
    words = draw_faults(twins, 1e-2, 0, 0).words
    assert not np.array_equal(words["one"][0], words["other"][0])


def test_models_compared_share_the_faults_on_what_they_share() -> None:
    plain = FaultSpace(SPACE.parameters[:3])
    for trial in range(20):
        hardened = dict(draw_faults(SPACE, 1e-3, 0, trial).words)
        hardened.pop("threshold", None)
        assert flipped_bits(FaultMap(hardened)) == flipped_bits(draw_faults(plain, 1e-3, 0, trial))


def bits_of(space: FaultSpace) -> list[tuple[str, int, int]]:
    return [
        (p.name, element, bit)
        for p in space.parameters
        for element in range(p.size)
        for bit in p.bits
    ]


@pytest.mark.parametrize("bits", [(0,), (3, 4, 30), tuple(range(16, 32))])
def test_only_the_exposed_bits_are_hit(bits: tuple[int, ...]) -> None:
    space = SPACE.restrict(bits=bits)
    everything = draw_faults(space, 1.0, 0, 0)
    assert everything.sites == SPACE.elements * len(bits)
    assert {bit for _, _, bit in flipped_bits(everything)} == set(bits)
    some = [bit for t in range(50) for *_, bit in flipped_bits(draw_faults(space, 0.02, 0, t))]
    if len(bits) > 1:
        assert stats.chisquare(np.bincount(some, minlength=32)[list(bits)]).pvalue > 1e-3


@pytest.mark.parametrize("upsets", [1, 3, 40])
def test_a_count_is_a_count_and_every_bit_equally_likely(upsets: int) -> None:
    space = SPACE.restrict(bits=(1, 7))
    seen = dict.fromkeys(bits_of(space), 0)
    trials = 3000
    for trial in range(trials):
        faults = FaultModel(Count(upsets)).draw(space, 5, trial)
        assert faults.sites == upsets
        for site in flipped_bits(faults):
            seen[site] += 1
    assert len(seen) == 2 * SPACE.elements
    assert sum(seen.values()) == upsets * trials
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3
    hit = sum(count for (name, *_), count in seen.items() if name == "threshold")
    mean = upsets * trials * 2 / space.bits
    assert abs(hit - mean) < 4 * np.sqrt(mean)


def test_counted_faults_are_shared_but_for_those_in_thresholds() -> None:
    many = parameter("threshold", Kind.THRESHOLD, (120,), "bound")
    hardened = FaultSpace((*SPACE.parameters[:3], many))
    plain = FaultSpace(SPACE.parameters[:3])
    for trial in range(30):
        with_thresholds = flipped_bits(FaultModel(Count(20)).draw(hardened, 0, trial))
        without = set(flipped_bits(FaultModel(Count(20)).draw(plain, 0, trial)))
        shared = {site for site in with_thresholds if site[0] != "threshold"}
        assert shared <= without
        assert 0 < len(shared) < 20


def test_single_upsets_visit_every_place_once() -> None:
    model = FaultModel(Single())
    space = SPACE.restrict(layers=["bound", "bias"])
    assert model.places(space) == 5 * 32
    for seed in (0, 1):
        visited = []
        for trial in range(5 * 32):
            faults = model.draw(space, seed, trial)
            assert faults.sites == 1
            visited += flipped_bits(faults)
        assert sorted(visited) == sorted(bits_of(space))
        assert visited != bits_of(space)
    with pytest.raises(
        SettingsError, match="has 160 places for 'single', so there is no trial 160"
    ):
        model.draw(space, 0, 160)


@pytest.mark.parametrize("population", [1, 2, 3, 5, 16, 17, 1000])
def test_the_order_of_a_population_is_a_permutation(population: int) -> None:
    for seed in range(3):
        order = [place_in_order((seed,), population, position) for position in range(population)]
        assert sorted(order) == list(range(population))
    if population == 1000:
        assert stats.kendalltau(order, range(population)).pvalue > 1e-3


def test_orders_are_evenly_spread() -> None:
    first = [place_in_order((seed,), 7, 0) for seed in range(3000)]
    assert stats.chisquare(np.bincount(first, minlength=7)).pvalue > 1e-3


def test_more_upsets_than_places_are_refused() -> None:
    space = SPACE.restrict(layers=["bound"])
    assert FaultModel(Count(32)).draw(space, 0, 0).sites == 32
    with pytest.raises(SettingsError) as caught:
        FaultModel(Count(33)).draw(space, 0, 0)
    assert str(caught.value) == "the fault space has 32 places for 'flips=33': ask for fewer flips"


@pytest.mark.parametrize("length", [2, 3, 8])
def test_bursts_hit_adjacent_bits_of_a_word(length: int) -> None:
    model = FaultModel(Count(1), shape=Shape(length))
    begins = []
    for trial in range(1500):
        sites = flipped_bits(model.draw(SPACE, 0, trial))
        assert len({(name, element) for name, element, _ in sites}) == 1
        bits = [bit for *_, bit in sites]
        assert bits == list(range(bits[0], bits[0] + length))
        begins.append(bits[0])
    counts = np.bincount(begins, minlength=33 - length)
    assert len(counts) == 33 - length
    assert stats.chisquare(counts).pvalue > 1e-3


def test_bursts_keep_to_the_exposed_bits() -> None:
    space = SPACE.restrict(bits=(0, 1, 2, 9, 10, 20))
    model = FaultModel(Single(), shape=Shape(2))
    assert model.places(space) == 3 * SPACE.elements
    begins = {min(bit for *_, bit in flipped_bits(model.draw(space, 0, t))) for t in range(80)}
    assert begins == {0, 1, 9}
    assert FaultModel(Single(), shape=Shape(4)).places(space) == 0


def test_bursts_hit_one_bit_of_adjacent_words() -> None:
    model = FaultModel(Count(1), shape=Shape(3, Along.WORDS))
    seen = set()
    for trial in range(800):
        sites = flipped_bits(model.draw(SPACE, 0, trial))
        (name,), (bit,) = {site[0] for site in sites}, {site[2] for site in sites}
        elements = [element for _, element, _ in sites]
        assert elements == list(range(elements[0], elements[0] + 3))
        assert elements[-1] < {p.name: p.size for p in SPACE.parameters}[name]
        seen.add((name, bit))
    assert {name for name, _ in seen} == {"conv", "bias", "dense"}
    assert {bit for _, bit in seen} == set(range(32))


@pytest.mark.parametrize("along", list(Along))
@pytest.mark.parametrize("length", [2, 4])
def test_bursts_keep_the_share_of_faulty_bits(along: Along, length: int) -> None:
    ber, trials = 2e-4, 3000
    shape = Shape(length, along)
    model = FaultModel(Rate(ber), shape=shape)
    space = FaultSpace(SPACE.parameters[:3])
    counts = [model.draw(space, 0, trial).sites for trial in range(trials)]
    mean = space.bits * ber
    assert abs(np.mean(counts) - mean) < 4 * np.sqrt(mean * shape.length / trials)
    assert {count for count in counts if count <= length} == {0, length}


def test_overlapping_bursts_of_words_are_one_mask_a_word() -> None:
    faults = FaultModel(Rate(0.3), shape=Shape(3, Along.WORDS)).draw(SPACE, 0, 0)
    for elements, masks in faults.words.values():
        assert (np.diff(elements) > 0).all()
        assert len(elements) == len(masks)


def test_stuck_bits_lie_where_flips_would() -> None:
    flip, stuck = (FaultModel(Rate(1e-2), effect) for effect in (Effect.FLIP, Effect.STUCK_AT_1))
    for trial in range(3):
        assert same(flip.draw(SPACE, 0, trial), stuck.draw(SPACE, 0, trial))


def test_what_effects_do_to_words() -> None:
    words = np.array([0b1010, 0xFFFFFFFF, 0, 1 << 31], np.uint32)
    masks = np.array([0b0110, 1, 1 << 31, 1 << 31], np.uint32)
    expected = {
        Effect.FLIP: [0b1100, 0xFFFFFFFE, 1 << 31, 0],
        Effect.STUCK_AT_0: [0b1000, 0xFFFFFFFE, 0, 0],
        Effect.STUCK_AT_1: [0b1110, 0xFFFFFFFF, 1 << 31, 1 << 31],
    }
    for effect, after in expected.items():
        assert FaultMap({}, effect).apply(words, masks).tolist() == after


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("ber=1e-06", FaultModel(Rate(1e-6))),
        ("ber=0.001 stuck-at-1", FaultModel(Rate(1e-3), Effect.STUCK_AT_1)),
        ("ber=0.0", FaultModel(Rate(0.0))),
        ("flips=12 burst=2", FaultModel(Count(12), shape=Shape(2))),
        (
            "single stuck-at-0 burst=4-words",
            FaultModel(Single(), Effect.STUCK_AT_0, Shape(4, Along.WORDS)),
        ),
    ],
)
def test_fault_models_answer_to_their_name(name: str, model: FaultModel) -> None:
    assert model.name == name
    assert parse_fault_model(name) == model


@pytest.mark.parametrize("name", ["", "ber", "ber=x", "flips=-1", "single burst", "ber=1e-6 flip"])
def test_what_is_no_fault_model_is_refused(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_fault_model(name)
    assert str(caught.value) == (
        f"there is no fault model {name!r}: write ber=RATE, flips=COUNT or single, then, if "
        "wanted, stuck-at-0 or stuck-at-1, then burst=LENGTH or burst=LENGTH-words"
    )


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
        tuple(parameter(name, Kind.WEIGHT, shape, name) for name, shape in shapes.items())
    )
    assert alexnet.bits > 800_000_000
    tracemalloc.start()
    flips = [draw_faults(alexnet, 1e-7, 0, trial).sites for trial in range(20)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 60 < np.mean(flips) < 110
    assert peak < 1_000_000
