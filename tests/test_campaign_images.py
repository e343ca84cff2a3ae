"""Which images trials evaluate: chances, proportions, and the same for every model."""

import itertools

import numpy as np
import pytest

from proact_onnx.campaign.images import choose_images

LABELS = np.random.default_rng(0).integers(0, 7, 203)


@pytest.mark.parametrize("strata", [None, LABELS])
def test_a_choice_is_ascending_without_repetition_and_repeatable(
    strata: np.ndarray | None,
) -> None:
    for count, trial in itertools.product((1, 16, 202), range(5)):
        chosen = choose_images(203, count, 3, trial, strata)
        assert chosen.dtype == np.int64
        assert len(chosen) == count
        assert (np.diff(chosen) > 0).all()
        assert chosen[0] >= 0 and chosen[-1] < 203
        np.testing.assert_array_equal(chosen, choose_images(203, count, 3, trial, strata))


@pytest.mark.parametrize("strata", [None, LABELS])
@pytest.mark.parametrize("count", [0, 203, 500])
def test_all_images_are_taken_where_no_choice_is_left(
    strata: np.ndarray | None, count: int
) -> None:
    np.testing.assert_array_equal(choose_images(203, count, 0, 4, strata), np.arange(203))


@pytest.mark.parametrize("strata", [None, LABELS])
def test_trials_and_seeds_choose_differently(strata: np.ndarray | None) -> None:
    choices = {
        tuple(choose_images(203, 16, seed, trial, strata)) for seed in (0, 1) for trial in range(20)
    }
    assert len(choices) == 40


def test_without_strata_choices_stay_those_of_earlier_records() -> None:
    """numpy keeps the streams of a generator, so a record can be continued for ever."""
    expected = np.sort(np.random.default_rng((5, 0x1A6E5, 9)).choice(100, 10, replace=False))
    np.testing.assert_array_equal(choose_images(100, 10, 5, 9), expected)


@pytest.mark.parametrize("strata", [None, LABELS, np.arange(203) // 202])
def test_every_image_has_the_same_chance(strata: np.ndarray | None) -> None:
    trials, count = 6000, 30
    drawn = np.zeros(203)
    for trial in range(trials):
        drawn[choose_images(203, count, 1, trial, strata)] += 1
    share = count / 203
    error = np.sqrt(share * (1 - share) / trials)
    deviations = (drawn / trials - share) / error
    # Of 203 normal deviates one beyond 4.5 is seen once in 700 runs; their variance is 1.
    assert np.abs(deviations).max() < 4.5
    assert np.square(deviations).mean() < 1.4


def test_pairs_within_a_class_are_drawn_independently_of_their_order() -> None:
    """Neighbours in the file are no likelier together than others of their class."""
    labels = np.repeat([0, 1], [50, 53])
    together = np.zeros(49)
    apart = 0
    for trial in range(8000):
        chosen = np.isin(np.arange(50), choose_images(103, 20, 2, trial, labels))
        together += chosen[:-1] & chosen[1:]
        apart += chosen[0] & chosen[25]
    assert together.mean() / 8000 == pytest.approx(apart / 8000, rel=0.12)


@pytest.mark.parametrize("count", [7, 16, 64, 150])
def test_every_class_appears_in_proportion(count: int) -> None:
    sizes = np.bincount(LABELS)
    for trial in range(200):
        drawn = np.bincount(LABELS[choose_images(203, count, 0, trial, LABELS)], minlength=7)
        assert (np.abs(drawn - count * sizes / 203) < 1).all()


def test_a_network_of_one_class_is_measured_with_less_noise() -> None:
    labels = np.repeat(np.arange(10), 100)

    def shares(strata: np.ndarray | None) -> np.ndarray:
        chosen = (choose_images(1000, 40, 0, trial, strata) for trial in range(300))
        return np.array([(labels[images] == 3).mean() for images in chosen])

    assert shares(labels) == pytest.approx(0.1)
    assert shares(None).std() > 0.03
