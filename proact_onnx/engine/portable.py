"""Slower engines that need nothing but documented behaviour of ONNX Runtime."""

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.engine.inplace import Indices
from proact_onnx.engine.session import (
    Array,
    Provider,
    Session,
    batches,
    create_session,
    running_provider,
    session_options,
)
from proact_onnx.model import image_input


class WeightsAsInputsEngine:
    """Runs a model whose parameters are graph inputs, handed over with every batch.

    Args:
        model: The model, every parameter an initializer.
        parameters: Names of the parameters that will be written to.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.
    """

    name = "weights as inputs"

    def __init__(
        self,
        model: onnx.ModelProto,
        parameters: list[str],
        provider: Provider = Provider.AUTO,
        threads: int = 0,
        batch_size: int = 128,
    ) -> None:
        opened = onnx.ModelProto()
        opened.CopyFrom(model)
        wanted = set(parameters)
        self._values: dict[str, Array] = {}
        declared = {value.name for value in opened.graph.input}
        for tensor in list(opened.graph.initializer):
            if tensor.name in wanted:
                self._values[tensor.name] = numpy_helper.to_array(tensor).copy()
                opened.graph.initializer.remove(tensor)
                if tensor.name not in declared:
                    opened.graph.input.append(
                        onnx.helper.make_tensor_value_info(
                            tensor.name, tensor.data_type, tensor.dims
                        )
                    )
        self._session = create_session(opened, provider, session_options(threads))
        self.provider = running_provider(self._session)
        self._input = image_input(model)
        self._output = model.graph.output[0].name
        self._batch_size = batch_size

    def run(self, images: Array) -> Array:
        """Return the model's first output for all images with the parameters as they are now."""
        return np.concatenate(
            [
                self._session.run([self._output], {self._input.name: batch, **self._values})[0][
                    :count
                ]
                for batch, count in batches(images, self._input, self._batch_size)
            ]
        )

    def write(self, parameter: str, elements: Indices, values: Array) -> None:
        """Overwrite elements of a parameter, by flat index."""
        self._values[parameter].reshape(-1)[elements] = values


class FreshSessionEngine:
    """Creates a new session after every change: the reference the other engines answer to.

    Args:
        model: The model, every parameter an initializer.
        parameters: Names of the parameters that will be written to.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.
    """

    name = "a session per trial"

    def __init__(
        self,
        model: onnx.ModelProto,
        parameters: list[str],
        provider: Provider = Provider.AUTO,
        threads: int = 0,
        batch_size: int = 128,
    ) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        wanted = set(parameters)
        self._tensors = {t.name: t for t in self._model.graph.initializer if t.name in wanted}
        self._arguments = (provider, threads, batch_size)
        self._session: Session | None = None
        self.provider = Session(self._model, *self._arguments).provider

    def run(self, images: Array) -> Array:
        """Return the model's first output for all images with the parameters as they are now."""
        if self._session is None:
            self._session = Session(self._model, *self._arguments)
        return self._session.run(images)

    def write(self, parameter: str, elements: Indices, values: Array) -> None:
        """Overwrite elements of a parameter, by flat index."""
        tensor = self._tensors[parameter]
        stored = numpy_helper.to_array(tensor).copy()
        stored.reshape(-1)[elements] = values
        tensor.CopyFrom(numpy_helper.from_array(stored, parameter))
        self._session = None
