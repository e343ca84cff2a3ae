from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proact_onnx.data.sources import load_dataset
from proact_onnx.errors import DataError

IMAGES = np.random.default_rng(1).random((3, 2, 4, 4), np.float32)
LABELS = np.array([1, 0, 2])


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    dataset = load_dataset(tmp_path / "a.npz")
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.source == str(tmp_path / "a.npz")


def test_pair_of_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    dataset = load_dataset(tmp_path / "images.npy", tmp_path / "labels.npy")
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert load_dataset(tmp_path / "images.npy").labels is None


def test_labels_given_take_the_place_of_those_stored(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    np.savez(tmp_path / "b.npz", labels=LABELS[::-1])
    dataset = load_dataset(tmp_path / "a.npz", tmp_path / "b.npz")
    np.testing.assert_array_equal(dataset.labels, LABELS[::-1])


def test_labels_of_another_count(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS[:2])
    with pytest.raises(DataError, match="3 images but 2 labels"):
        load_dataset(tmp_path / "images.npy", tmp_path / "labels.npy")


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(path)


def test_folder_of_train_and_test_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "cat" / "a.png", 10)
    write_image(tmp_path / "train" / "dog" / "a.png", 20)
    write_image(tmp_path / "test" / "cat" / "a.png", 30)
    (tmp_path / ".cache").mkdir()
    train = load_dataset(tmp_path, part="train")
    np.testing.assert_array_equal(train.images[:, 0, 0], [10, 20])
    np.testing.assert_array_equal(train.labels, [0, 1])
    np.testing.assert_array_equal(load_dataset(tmp_path, part="test").images[:, 0, 0], [30])
    with pytest.raises(DataError, match="holds a train and a test part"):
        load_dataset(tmp_path)


def test_train_beside_other_folders_is_a_class(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.png", 10)
    write_image(tmp_path / "bus" / "a.png", 20)
    dataset = load_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.images[:, 0, 0], [20, 10])
    np.testing.assert_array_equal(dataset.labels, [0, 1])
    with pytest.raises(DataError, match="holds no parts, not a train part"):
        load_dataset(tmp_path, part="train")


def test_size_resizes_decoded_images_only(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 10)
    assert load_dataset(tmp_path, size=(3, 5)).images.shape == (1, 3, 5)
    np.save(tmp_path / "images.npy", IMAGES)
    assert load_dataset(tmp_path / "images.npy", size=(3, 5)).images.shape == IMAGES.shape


def test_missing(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    with pytest.raises(DataError, match=r"there is no file or folder .*none.npz: check the path"):
        load_dataset(tmp_path / "none.npz")
    with pytest.raises(DataError, match=r"there is no file of labels .*none.npy"):
        load_dataset(tmp_path / "images.npy", tmp_path / "none.npy")


def test_path_that_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .* \(File name too long\)"):
        load_dataset(tmp_path / ("x" * 5000))


def test_unknown_kinds(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    (tmp_path / "cifar-10.tar.gz").touch()
    with pytest.raises(DataError, match=r"cifar-10.tar.gz is no kind of data"):
        load_dataset(tmp_path / "cifar-10.tar.gz")
    with pytest.raises(DataError, match=r"cifar-10.tar.gz is no known kind of label file"):
        load_dataset(tmp_path / "images.npy", tmp_path / "cifar-10.tar.gz")


def test_part_of_an_undivided_source(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    with pytest.raises(DataError, match="holds no parts, not a test part"):
        load_dataset(tmp_path / "images.npy", part="test")
    with pytest.raises(DataError, match="no part 'validation'"):
        load_dataset(tmp_path / "images.npy", part="validation")  # type: ignore[arg-type]


def test_shipped_cifar10(shared_dir: Path) -> None:
    dataset = load_dataset(shared_dir / "data" / "cifar10" / "test.npz")
    assert dataset.images.shape == (1017, 3, 32, 32)
    assert dataset.images.dtype == np.uint8
    # The official test set begins: cat, ship, ship, airplane, frog.
    np.testing.assert_array_equal(dataset.labels[:5], [3, 8, 8, 0, 6])
