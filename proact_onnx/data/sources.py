"""Finding out what kind of source a path is, and reading it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from proact_onnx.data.arrays import read_npy, read_npz, read_npz_labels
from proact_onnx.data.cifar import cifar_files, is_cifar_file, read_cifar
from proact_onnx.data.dataset import Dataset, class_indices
from proact_onnx.data.decoding import Size
from proact_onnx.data.folder import read_folder
from proact_onnx.data.mnist import idx_image_files, is_idx_file, read_idx_labels, read_mnist
from proact_onnx.data.parts import PARTS, Part, choose_part
from proact_onnx.data.reading import reading
from proact_onnx.errors import DataError


def load_dataset(
    path: Path,
    labels: Path | None = None,
    *,
    part: Part | None = None,
    size: Size | None = None,
) -> Dataset:
    """Read images and, where there are any, labels.

    The kind of source is told by name:

    - ``.npz``: arrays ``images`` and ``labels`` (:func:`~proact_onnx.data.arrays.read_npz` lists
      the other keys), or compressed images one after another;
    - ``.npy``: the images; the labels are another file;
    - ``data_batch_1.bin``, ``test_batch``, ``train.bin``, ``test``, ...: CIFAR-10 or CIFAR-100 in
      binary or Python form, one file or the folder of them;
    - ``train-images-idx3-ubyte``, ``t10k-images-idx3-ubyte``, also with ``.gz``: MNIST, one file
      or the folder of them;
    - any other folder: image files, in one sub-folder for each class or without labels.

    A source may be divided into a training and a test part: a folder of CIFAR or MNIST files, an
    archive with keys such as ``x_train``, a folder with the sub-folders ``train`` and ``test``.
    If it holds both, ``part`` must say which is meant, so that they are never mixed up or
    together; if it holds one, that one is read. Asking an undivided source for a part is an error.

    Args:
        path: File or folder.
        labels: File of labels (``.npy``, ``.npz`` or IDX) that takes the place of labels stored
            with the images.
        part: ``"train"`` or ``"test"``.
        size: Height and width to decode compressed images to, needed when they differ in size.
            Stored arrays keep their size; :func:`~proact_onnx.data.preprocess.prepare` resizes
            them.

    Raises:
        DataError: If the source is missing, unreadable, damaged, empty or of no known kind, or
            its part is not clear.
    """
    path = Path(path)
    if part is not None and part not in PARTS:
        raise DataError(f"there is no part {part!r} of a dataset: choose 'train' or 'test'")
    with reading(path, "a file or folder"):
        is_folder = _is_folder(path)
    dataset = _read_folder(path, part, size) if is_folder else _read_file(path, part, size)
    if labels is None:
        return dataset
    return replace(dataset, labels=class_indices(_read_labels(Path(labels)), str(labels)))


def _is_folder(path: Path) -> bool:
    if not path.exists():
        raise DataError(f"there is no file or folder {path}: check the path")
    return path.is_dir()


def _read_folder(path: Path, part: Part | None, size: Size | None) -> Dataset:
    if cifar := cifar_files(path):
        return read_cifar(cifar, part, path)
    if mnist := idx_image_files(path):
        return read_mnist(mnist, part, path)
    chosen = choose_part(_part_folders(path), part, path)
    return read_folder(path if chosen is None else path / chosen, size)


def _part_folders(path: Path) -> list[Part]:
    # With other folders beside it, one called "train" is a class.
    with reading(path, "a folder"):
        names = {
            entry.name
            for entry in path.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        }
    return [part for part in PARTS if part in names] if names <= set(PARTS) else []


def _read_file(path: Path, part: Part | None, size: Size | None) -> Dataset:
    if path.suffix == ".npz":
        return read_npz(path, part, size)
    if path.suffix == ".npy":
        choose_part((), part, path)
        return Dataset(read_npy(path), None, str(path))
    if is_cifar_file(path):
        return read_cifar([path], part, path)
    if is_idx_file(path):
        return read_mnist([path], part, path)
    raise DataError(
        f"{path} is no kind of data that can be told by its name: give an .npz or .npy file, a "
        "CIFAR or MNIST file under its official name, or a folder of images"
    )


def _read_labels(path: Path) -> npt.NDArray[Any]:
    if not path.exists():
        raise DataError(f"there is no file of labels {path}: check the path")
    if path.suffix == ".npy":
        return read_npy(path)
    if path.suffix == ".npz":
        return read_npz_labels(path)
    if is_idx_file(path):
        return read_idx_labels(path)
    raise DataError(
        f"{path} is no known kind of label file: give an .npy or .npz file, or an IDX file under "
        "its official name"
    )
