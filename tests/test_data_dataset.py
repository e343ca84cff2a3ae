import hashlib

import numpy as np
import pytest

from proact_onnx.data.dataset import Dataset, check_labels, class_indices, split_disjoint
from proact_onnx.errors import DataError


def numbered(count: int) -> Dataset:
    """Images whose only pixel is their index, which is also their label."""
    return Dataset(np.arange(count, dtype=np.float32)[:, None], np.arange(count), "numbers")


def test_take_keeps_order_and_pairs_labels() -> None:
    taken = numbered(10).take([7, 2, 2])
    np.testing.assert_array_equal(taken.images[:, 0], [7, 2, 2])
    np.testing.assert_array_equal(taken.labels, [7, 2, 2])
    assert len(taken) == 3
    assert taken.source == "numbers"


def test_take_without_labels() -> None:
    assert Dataset(np.ones((3, 4)), None, "x").take([1]).labels is None


def test_take_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="numbers holds no image data"):
        numbered(3).take([])


def test_labels_of_any_integer_type_become_int64() -> None:
    dataset = Dataset(np.ones((2, 1)), np.array([3, 4], np.uint8), "x")
    assert dataset.labels is not None
    assert dataset.labels.dtype == np.int64


def test_digest_is_over_type_shape_and_bytes() -> None:
    images = np.arange(6, dtype=np.uint8).reshape(2, 3)
    labels = np.array([1, 0])
    expected = hashlib.sha256(
        b"|u1(2, 3);" + images.tobytes() + b"<i8(2,);" + labels.astype("<i8").tobytes()
    )
    assert Dataset(images, labels, "a").digest == expected.hexdigest()


def test_digest_does_not_depend_on_source_or_memory_order() -> None:
    images = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    first = Dataset(images, None, "a").digest
    assert Dataset(np.asfortranarray(images), None, "b").digest == first


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 3), np.uint8), None),
        (np.zeros((2, 3), np.uint8), np.array([0, 1])),
        (np.zeros((2, 3), np.int8), np.array([0, 0])),
        (np.zeros((2, 3, 1), np.uint8), np.array([0, 0])),
        (np.array([[0, 0, 0], [0, 0, 1]], np.uint8), np.array([0, 0])),
    ],
)
def test_digest_changes_with_the_data(images: np.ndarray, labels: np.ndarray | None) -> None:
    reference = Dataset(np.zeros((2, 3), np.uint8), np.array([0, 0]), "x").digest
    assert Dataset(images, labels, "x").digest != reference


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 2), complex), None, "are of type complex128"),
        (np.zeros((2, 2), bool), None, "are of type bool"),
        (np.zeros(4), None, r"have shape \(4,\)"),
        (np.zeros((0, 3)), None, "holds no image data"),
        (np.zeros((3, 0)), None, "holds no image data"),
        (np.zeros((3, 2)), np.zeros(3), "labels of x have type float64"),
        (np.zeros((3, 2)), np.zeros((3, 2), int), r"shape \(3, 2\)"),
        (np.zeros((3, 2)), np.zeros(2, int), "3 images but 2 labels"),
    ],
)
def test_refused(images: np.ndarray, labels: np.ndarray | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(images, labels, "x")


def test_split_is_disjoint_random_and_repeatable() -> None:
    dataset = numbered(100)
    first, second, third = split_disjoint(dataset, [50, 30, 20], seed=3)
    values = [set(part.images[:, 0]) for part in (first, second, third)]
    assert [len(part) for part in values] == [50, 30, 20]
    assert set.union(*values) == set(range(100))
    np.testing.assert_array_equal(first.images[:, 0], first.labels)
    assert sorted(first.images[:, 0]) != list(first.images[:, 0])
    again = split_disjoint(dataset, [50, 30, 20], seed=3)
    assert [part.digest for part in again] == [first.digest, second.digest, third.digest]
    assert split_disjoint(dataset, [50], seed=4)[0].digest != first.digest


def test_split_may_leave_images_over() -> None:
    assert [len(part) for part in split_disjoint(numbered(10), [2, 3], seed=0)] == [2, 3]


def test_split_needs_enough_images() -> None:
    with pytest.raises(DataError, match=r"10 images, too few .* 6 \+ 5 = 11"):
        split_disjoint(numbered(10), [6, 5], seed=0)


def test_split_needs_images_in_each_subset() -> None:
    with pytest.raises(DataError, match=r"sizes \[3, 0\]"):
        split_disjoint(numbered(10), [3, 0], seed=0)


@pytest.mark.parametrize(
    "stored",
    [
        np.array([2, 0, 1], np.uint8),
        np.array([[2], [0], [1]]),
        np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32),
        np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], bool),
    ],
)
def test_class_indices(stored: np.ndarray) -> None:
    labels = class_indices(stored, "x")
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, [2, 0, 1])


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.array([[0.1, 0.9], [1.0, 0.0]]), "not one-hot"),
        (np.array([[1, 1], [1, 0]]), "not one-hot"),
        (np.array([[0, 0], [1, 0]]), "not one-hot"),
        (np.array([[1, 2], [1, 0]]), "not one-hot"),
        (np.array([1.0, 2.0]), "type float64"),
        (np.array(["cat", "dog"]), "type <U3"),
        (np.zeros((2, 2, 2), int), r"shape \(2, 2, 2\)"),
    ],
)
def test_class_indices_refused(stored: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        class_indices(stored, "x")


def test_check_labels_names_the_first_outside() -> None:
    dataset = Dataset(np.ones((4, 1)), np.array([0, 9, 10, -1]), "faces.npz")
    with pytest.raises(DataError, match=r"label 10 of image 2 of faces.npz .* has 10 \(0 to 9\)"):
        check_labels(dataset, 10)
    with pytest.raises(DataError, match="label -1 of image 3"):
        check_labels(dataset, 11)
    check_labels(dataset.take([0, 1, 2]), 11)
    check_labels(Dataset(np.ones((4, 1)), None, "x"), 1)
