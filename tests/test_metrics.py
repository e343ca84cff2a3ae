"""What outputs mean."""

import numpy as np
import pytest

from proact_onnx.engine import Predictions, chance_warning, top1
from proact_onnx.errors import ModelError

INF, NAN = np.inf, np.nan
SCORES = np.array(
    [[0, 3, 1], [5, 2, 2], [1, 1, 0], [INF, 0, 1], [0, NAN, 9], [-INF, 0, 1], [-3, -1, -2]],
    np.float32,
)


def test_the_largest_score_wins_and_the_first_of_equal_ones() -> None:
    predictions = top1(SCORES)
    assert predictions.classes[[0, 1, 2, 6]].tolist() == [1, 0, 0, 1]
    assert predictions.finite.tolist() == [True, True, True, False, False, False, True]
    assert predictions.classes.dtype == np.int64


@pytest.mark.parametrize("shape", [(7, 3, 1, 1), (7, 1, 3), (7, 1, 1, 3)])
def test_further_axes_of_extent_one_do_not_matter(shape: tuple[int, ...]) -> None:
    reshaped, flat = top1(SCORES.reshape(shape)), top1(SCORES)
    np.testing.assert_array_equal(reshaped.classes, flat.classes)
    np.testing.assert_array_equal(reshaped.finite, flat.finite)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2, 3), (4, 3, 8, 8), (4, 1, 1)])
def test_what_is_no_vector_of_scores_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        top1(np.zeros(shape))
    assert str(caught.value) == (
        f"the model's first output has shape {list(shape)}, which is not a vector of class scores "
        "per image: only classifiers can be measured"
    )


def test_correct_and_corrupted_by_hand() -> None:
    leading = np.array([[0, 2], [1, 2], [2, 0], [3, 0], [4, 0]])
    golden = Predictions(np.array([0, 1, 2, 3, 4]), np.array([True] * 5), leading)
    finite = np.array([True, True, False, False, False])
    faulty = Predictions(np.array([0, 2, 2, 3, 0]), finite, leading)
    assert faulty.correct(np.array([0, 2, 2, 0, 0])).tolist() == [True, True, False, False, False]
    assert faulty.corrupted(golden).tolist() == [False, True, False, False, False]
    assert faulty.corrupted_beyond_5(golden).tolist() == [False] * 5
    other = Predictions(np.array([2, 0, 2, 3, 0]), np.array([True] * 5), leading)
    assert other.corrupted(golden).tolist() == [True, True, False, False, True]
    assert other.corrupted_beyond_5(golden).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_the_leading_classes_are_the_five_best(classes: int) -> None:
    scores = np.random.default_rng(0).standard_normal((30, classes)).astype(np.float32)
    best = np.sort(np.argsort(scores, axis=1)[:, -5:], axis=1)
    np.testing.assert_array_equal(np.sort(top1(scores).leading, axis=1), best)


def test_equal_scores_are_no_corruption() -> None:
    """Of twelve equal scores any five lead; the first is the prediction all the same."""
    even = top1(np.zeros((3, 12), np.float32))
    assert not even.corrupted_beyond_5(even).any()


def test_taking_some_images() -> None:
    taken = top1(SCORES).take(np.array([3, 0]))
    assert taken.classes[1] == 1
    assert taken.finite.tolist() == [False, True]


def test_guessing_is_told_from_knowing() -> None:
    """Guessing is caught as good as always; being right half the time passes."""
    for classes, images in ((10, 100), (10, 5000), (1000, 1000)):
        guesses = np.random.default_rng(0).binomial(images, 1 / classes, 1000) / images
        warned = [chance_warning(float(guess), classes, images) for guess in guesses]
        assert sum(warning is not None for warning in warned) > 995
        assert chance_warning(0.5, classes, images) is None
    warning = chance_warning(0.1, 10, 100)
    assert warning is not None
    assert "hardly better than guessing among 10 classes: check the preprocessing" in warning
