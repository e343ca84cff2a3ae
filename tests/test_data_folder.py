from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proact_onnx.data.folder import read_folder
from proact_onnx.errors import DataError

RNG = np.random.default_rng(2)


def write(path: Path, *shape: int) -> np.ndarray:
    pixels = RNG.integers(0, 256, shape, np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    dog = write(tmp_path / "dog" / "1.png", 5, 4, 3)
    second = write(tmp_path / "cat" / "b.bmp", 5, 4, 3)
    first = write(tmp_path / "cat" / "a.PNG", 5, 4, 3)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").write_text("not an image")
    dataset = read_folder(tmp_path)
    np.testing.assert_array_equal(dataset.images, [first, second, dog])
    np.testing.assert_array_equal(dataset.labels, [0, 0, 1])


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    images = [write(tmp_path / name, 6, 6) for name in ("a.png", "b.png")]
    dataset = read_folder(tmp_path)
    np.testing.assert_array_equal(dataset.images, images)
    assert dataset.labels is None


def test_grey_among_colour_becomes_rgb(tmp_path: Path) -> None:
    grey = write(tmp_path / "a.png", 4, 4)
    colour = write(tmp_path / "b.png", 4, 4, 4)
    images = read_folder(tmp_path).images
    np.testing.assert_array_equal(images[0], np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(images[1], colour[..., :3])


def test_sizes_must_agree_unless_resized(tmp_path: Path) -> None:
    first = write(tmp_path / "a.png", 4, 6, 3)
    second = write(tmp_path / "b.png", 5, 6, 3)
    with pytest.raises(DataError, match=r"b.png is 5 x 6 pixels but .*a.png is 4 x 6: .* --resize"):
        read_folder(tmp_path)
    images = read_folder(tmp_path, size=(4, 6)).images
    np.testing.assert_array_equal(images[0], first)
    expected = Image.fromarray(second).resize((6, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images[1], np.asarray(expected))


def test_damaged_image(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 40, 40, 3)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cannot decode .*a.png \(.*\): repair or remove it"):
        read_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"cannot decode .*a.png"):
        read_folder(tmp_path)


def test_sixteen_bit_image(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 3), 40000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="pixels of type 'I;16', not 8 bits"):
        read_folder(tmp_path)


def test_huge_image_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png", 20, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"cannot decode .*a.png \(Image size \(400 pixels\)"):
        read_folder(tmp_path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images: give a folder of image files"):
        read_folder(tmp_path)


def test_empty_class(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "a.png", 4, 4)
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"class folder .*dog holds no images"):
        read_folder(tmp_path)


def test_images_beside_classes(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "a.png", 4, 4)
    write(tmp_path / "b.png", 4, 4)
    with pytest.raises(DataError, match=r"holds images \(b.png\) beside folders \(cat\)"):
        read_folder(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none"):
        read_folder(tmp_path / "none")
