"""Image files in a folder, in one sub-folder for each class or without labels."""

from pathlib import Path

import numpy as np

from proact_onnx.data.dataset import Dataset
from proact_onnx.data.decoding import Size, decode_images
from proact_onnx.data.reading import reading
from proact_onnx.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_folder(path: Path, size: Size | None = None) -> Dataset:
    """Read a folder of image files.

    With sub-folders, each is a class: their sorted names get the indices 0 to K - 1, the order of
    torchvision's ``ImageFolder`` (by character, so ``10`` comes before ``2``). Without sub-folders
    the images have no labels. Files are taken in the order of their names; hidden names and files
    with other suffixes than those of images are passed over.

    Args:
        path: The folder.
        size: Height and width to decode to; needed when the images differ in size.

    Returns:
        uint8 images ``[N, H, W, 3]``, or ``[N, H, W]`` if all are grey.

    Raises:
        DataError: If there are no images, a class has none, images lie beside class folders, or
            an image cannot be decoded.
    """
    with reading(path, "a folder"):
        folders = sorted(
            entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
    files = _images_in(path)
    if folders and files:
        raise DataError(
            f"{path} holds images ({files[0].name}) beside folders ({folders[0].name}): keep "
            "either one folder for each class, or images only"
        )
    if not folders and not files:
        raise DataError(
            f"{path} holds no images: give a folder of image files ({', '.join(SUFFIXES)}), of "
            "class folders, or of CIFAR or MNIST files under their official names"
        )
    labels = None
    if folders:
        classes = [_images_in(folder) for folder in folders]
        for folder, members in zip(folders, classes, strict=True):
            if not members:
                raise DataError(
                    f"the class folder {folder} holds no images: remove it, or name the folder "
                    "that holds the class folders"
                )
        files = [file for members in classes for file in members]
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(c) for c in classes])
    return Dataset(decode_images(files, lambda index: str(files[index]), size), labels, str(path))


def _images_in(folder: Path) -> list[Path]:
    with reading(folder, "a folder"):
        return sorted(
            entry
            for entry in folder.iterdir()
            if entry.suffix.lower() in SUFFIXES
            and not entry.name.startswith(".")
            and entry.is_file()
        )
