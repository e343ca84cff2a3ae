import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proact_onnx.data.arrays import read_npy, read_npz, read_npz_labels
from proact_onnx.errors import DataError

IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
LABELS = np.array([4, 2])


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(folder / "data.npz", **arrays)
    return folder / "data.npz"


@pytest.mark.parametrize(
    ("image_key", "label_key"),
    [("images", "labels"), ("X", "Y"), ("data", "target"), ("x_train", "y_train"),
     ("test_images", "test_labels")],
)  # fmt: skip
def test_keys(tmp_path: Path, image_key: str, label_key: str) -> None:
    dataset = read_npz(saved(tmp_path, **{image_key: IMAGES, label_key: LABELS}))
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)


def test_without_labels(tmp_path: Path) -> None:
    assert read_npz(saved(tmp_path, images=IMAGES)).labels is None


def test_one_hot_labels(tmp_path: Path) -> None:
    dataset = read_npz(saved(tmp_path, x=IMAGES, y=np.eye(5)[LABELS]))
    np.testing.assert_array_equal(dataset.labels, LABELS)


def test_parts(tmp_path: Path) -> None:
    path = saved(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:1], y_test=LABELS[1:])
    test = read_npz(path, "test")
    np.testing.assert_array_equal(test.images, IMAGES[:1])
    np.testing.assert_array_equal(test.labels, [2])
    assert test.source.endswith("data.npz (test)")
    np.testing.assert_array_equal(read_npz(path, "train").labels, LABELS)
    with pytest.raises(DataError, match="a train and a test part: say with --part train"):
        read_npz(path)


def test_part_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no parts, not a test part"):
        read_npz(saved(tmp_path, images=IMAGES), "test")
    with pytest.raises(DataError, match="only a train part, not a test part"):
        read_npz(saved(tmp_path, x_train=IMAGES), "test")


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images under a known key \(it has arr_0, Pixels\)"):
        read_npz(saved(tmp_path, arr_0=IMAGES, Pixels=IMAGES))
    with pytest.raises(DataError, match=r"no labels under a known key \(it has images\)"):
        read_npz_labels(saved(tmp_path, images=IMAGES))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path, images=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(DataError, match=r"not a NumPy archive of numbers.*Object arrays"):
        read_npz(path)
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a NumPy array of numbers.*Object arrays"):
        read_npy(tmp_path / "objects.npy")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_cut_off(tmp_path: Path, kept: float) -> None:
    path = saved(tmp_path, images=np.random.default_rng(0).integers(0, 255, (50, 40), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match="damaged or cut off"):
        read_npz(path)


def test_damaged_member(tmp_path: Path) -> None:
    path = saved(tmp_path, images=np.random.default_rng(0).integers(0, 255, (50, 40), np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or cut off"):
        read_npz(path)


def test_one_kind_of_file_under_the_name_of_the_other(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match=r"single array, not an archive: name it \.npy"):
        read_npz(tmp_path / "a.npz")
    with (tmp_path / "a.npy").open("wb") as file:
        np.savez(file, images=IMAGES)
    with pytest.raises(DataError, match=r"an archive of arrays: name it \.npz"):
        read_npy(tmp_path / "a.npy")


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .* \(Is a directory\)"):
        read_npz(tmp_path)


def encoded(images: np.ndarray) -> dict[str, np.ndarray]:
    pieces = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        pieces.append(buffer.getvalue())
    return {
        "jpeg": np.frombuffer(b"".join(pieces), np.uint8),
        "offsets": np.cumsum([0, *map(len, pieces)]),
        "labels": np.arange(len(images)),
    }


def test_compressed_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    dataset = read_npz(saved(tmp_path, **encoded(images)))
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, [0, 1, 2])
    assert read_npz(tmp_path / "data.npz", size=(7, 9)).images.shape == (3, 7, 9, 3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("jpeg", np.zeros((2, 2), np.uint8), r"'jpeg' .* shape \(2, 2\)"),
        ("jpeg", np.zeros(10), "'jpeg' .* type float64"),
        ("offsets", np.zeros(3), "'offsets' .* type float64"),
        ("offsets", np.array([0, 5, 5]), "do not rise"),
        ("offsets", np.array([0, 10**9]), "do not rise within"),
        ("offsets", np.array([0]), "do not rise"),
        ("offsets", np.array([0, 9, 20, 30]), "cannot decode image 0 of"),
    ],
)
def test_compressed_images_refused(
    tmp_path: Path, key: str, value: np.ndarray, message: str
) -> None:
    arrays = encoded(np.zeros((3, 5, 4, 3), np.uint8))
    with pytest.raises(DataError, match=message):
        read_npz(saved(tmp_path, **{**arrays, key: value}))


def test_member_that_is_no_array(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images", "text")
    with pytest.raises(DataError, match=r"'images' in .* is no array"):
        read_npz(tmp_path / "a.npz")


def test_jpeg_set_shows_the_images_of_the_exact_set(shared_dir: Path) -> None:
    cifar = shared_dir / "data" / "cifar10"
    exact, jpeg = read_npz(cifar / "test.npz"), read_npz(cifar / "test_jpeg.npz")
    assert jpeg.images.shape == (10000, 32, 32, 3)
    # JPEG loses some detail; within a class the images stand in the official order.
    for cls in range(10):
        first = jpeg.images[jpeg.labels == cls][0].astype(float)
        original = exact.images[exact.labels == cls][0].transpose(1, 2, 0)
        assert np.mean((first - original) ** 2) < 321
