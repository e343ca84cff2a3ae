"""A model whose parameters went through a number format, and how faults get into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from proact_onnx.engine import FaultEngine
from proact_onnx.errors import ModelError
from proact_onnx.faults import FaultMap, FaultSpace, NumberFormat


@dataclass(frozen=True)
class EncodedModel:
    """A model with its parameters as a memory format keeps them.

    Attributes:
        model: The model with decoded parameters: the one the golden run executes.
        number_format: The format.
        words: By parameter, the flat array of stored words.
        dtypes: By parameter, the type the model computes with.
        saturated: Number of parameters outside the range of the format.
    """

    model: onnx.ModelProto
    number_format: NumberFormat
    words: Mapping[str, npt.NDArray[np.uint32]]
    dtypes: Mapping[str, np.dtype[Any]]
    saturated: int

    def flip(self, engine: FaultEngine, faults: FaultMap) -> None:
        """Put faults into an engine that runs this model."""
        for name, (elements, masks) in faults.words.items():
            self._put(engine, name, elements, self.words[name][elements] ^ masks)

    def restore(self, engine: FaultEngine, faults: FaultMap) -> None:
        """Take the faults out again."""
        for name, (elements, _) in faults.words.items():
            self._put(engine, name, elements, self.words[name][elements])

    def _put(
        self,
        engine: FaultEngine,
        name: str,
        elements: npt.NDArray[np.int64],
        words: npt.NDArray[np.uint32],
    ) -> None:
        engine.write(name, elements, decode(self.number_format, words, self.dtypes[name]))


def encode_model(
    model: onnx.ModelProto, space: FaultSpace, number_format: NumberFormat
) -> EncodedModel:
    """Bring the parameters of a fault space through a format.

    Args:
        model: The model, every parameter an initializer; it is not changed.
        space: Which parameters.
        number_format: The format.

    Raises:
        ModelError: If a parameter is NaN.
    """
    encoded = onnx.ModelProto()
    encoded.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in encoded.graph.initializer}
    words: dict[str, npt.NDArray[np.uint32]] = {}
    dtypes: dict[str, np.dtype[Any]] = {}
    saturated = 0
    for parameter in space.parameters:
        name = parameter.name
        values = numpy_helper.to_array(tensors[name])
        if np.isnan(values).any():
            raise ModelError(
                f"parameter {name!r} holds NaN, which no memory format can be asked to keep: "
                "repair the model"
            )
        words[name] = number_format.encode(values).reshape(-1)
        dtypes[name] = values.dtype
        saturated += number_format.saturated(values)
        decoded = decode(number_format, words[name], values.dtype).reshape(values.shape)
        tensors[name].CopyFrom(numpy_helper.from_array(decoded, name))
    return EncodedModel(encoded, number_format, words, dtypes, saturated)


def decode(
    number_format: NumberFormat, words: npt.NDArray[np.uint32], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Decode words through float64 and cast once to the type the model computes with."""
    with np.errstate(over="ignore"):
        return number_format.decode(words).astype(dtype)
