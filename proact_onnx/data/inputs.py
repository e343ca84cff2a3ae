"""Data for models with several inputs: one record a sample, a field for each input by its name."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from proact_onnx.data.preprocess import Preprocessing, prepare
from proact_onnx.errors import DataError

Array = npt.NDArray[Any]


class Input(Protocol):
    """What a model says of an input: `proact_onnx.model.ModelInput`, which needs onnx to load."""

    @property
    def name(self) -> str:
        """Name of the graph input."""

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Extents, batch axis included; None for an open one."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Element type."""


def bundle(arrays: Mapping[str, Array], source: str) -> Array:
    """Put arrays side by side, so that samples can be chosen and shuffled.

    Args:
        arrays: By name of a model input, ``[N, ...]``.
        source: Where they came from, for the message.

    Returns:
        Records ``[N]`` with a field for each input.

    Raises:
        DataError: If an array holds no numbers, or they have different lengths.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "buif":
            raise DataError(f"{name!r} in {source} is of type {array.dtype}: store numbers")
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        spelled = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(
            f"the arrays of {source} have different numbers of samples ({spelled}): give one entry "
            "of each for every sample"
        )
    fields = [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
    records: Array = np.empty(next(iter(lengths.values())), np.dtype(fields))
    for name, array in arrays.items():
        records[name] = array
    return records


def prepare_inputs(images: Array, preprocessing: Preprocessing, inputs: Sequence[Input]) -> Array:
    """Bring data into the form a model takes.

    Args:
        images: ``[N, ...]`` images for a model with one input, or records from `bundle`, whose
            fields are taken as they are where the model has several inputs.
        preprocessing: How images become the model's input.
        inputs: The inputs of the model.

    Returns:
        What the model takes: an array ``[N, ...]``, or records whose fields have the types of the
        inputs, in their order. A field is a part of a batch, or where it has as many axes as the
        input itself, all that one call is given.

    Raises:
        DataError: If the data does not fit the inputs.
    """
    if not inputs:
        raise DataError("the model has no input that data could be fed to: export it with one")
    if images.dtype.names is None:
        if len(inputs) != 1:
            names = ", ".join(each.name for each in inputs)
            raise DataError(
                f"the model has {len(inputs)} inputs ({names}): give an .npz file with an array of "
                "samples under the name of each"
            )
        only = inputs[0]
        if len(only.shape) == 1 and images.ndim > 1:
            raise DataError(
                f"the model's input {only.name!r} has no axis but one, so a sample is all that a "
                f"call is given: store the samples as 'input:{only.name}' in an .npz file, one row "
                "a call"
            )
        return prepare(images, preprocessing, only.shape, only.dtype)
    missing = [each.name for each in inputs if each.name not in images.dtype.names]
    if missing:
        raise DataError(
            f"the model's input {missing[0]!r} is not in the data, which has "
            f"{', '.join(images.dtype.names)}: store an array of samples under its name"
        )
    for each in inputs:
        _check(each, images.dtype[each.name])
    if len(inputs) == 1 and len(images.dtype[inputs[0].name].shape) < len(inputs[0].shape):
        only = inputs[0]
        return prepare(images[only.name], preprocessing, only.shape, only.dtype)
    whole = {len(images.dtype[each.name].shape) == len(each.shape) for each in inputs}
    if len(whole) > 1:
        raise DataError(
            "some arrays hold a sample of a batch and others all that a call is given: give all "
            "inputs of the model with the axes they have in a call, and one in front for the calls"
        )
    if whole == {False}:
        _check_batch(inputs)
    fields = [(each.name, each.dtype, images.dtype[each.name].shape) for each in inputs]
    prepared: Array = np.empty(len(images), np.dtype(fields))
    for each in inputs:
        prepared[each.name] = images[each.name]
    return prepared


def _check_batch(inputs: Sequence[Input]) -> None:
    """Find out whether the first axes of all inputs can be one batch."""
    stated = {each.name: each.shape[0] for each in inputs if each.shape[0] is not None}
    if len(set(stated.values())) > 1:
        spelled = ", ".join(f"{name} {extent}" for name, extent in stated.items())
        raise DataError(
            f"the first axes of the model's inputs are no batch, for they differ ({spelled}): give "
            "all inputs with the axes they have in a call, and one in front for the calls"
        )


def _check(wanted: Input, field: np.dtype[Any]) -> None:
    """Compare the shape and kind of a field with an input."""
    rank = len(wanted.shape)
    shape = wanted.shape if len(field.shape) == rank else wanted.shape[1:]
    fits = len(field.shape) in (rank, rank - 1) and all(
        extent in (None, given) for extent, given in zip(shape, field.shape, strict=True)
    )
    if not fits:
        spelled = "x".join("?" if extent is None else str(extent) for extent in wanted.shape)
        raise DataError(
            f"the samples of {wanted.name!r} have shape {field.shape}, and the model's input is "
            f"{spelled or 'a single number'}, its batch in front: give one entry a sample"
        )
    kinds = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}
    if (field.base.kind) not in kinds.get(wanted.dtype.kind, ""):
        raise DataError(
            f"the samples of {wanted.name!r} have type {field.base}, and the model takes "
            f"{wanted.dtype}: store them in that type"
        )
