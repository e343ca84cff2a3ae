"""Slower engines that need nothing but documented behaviour of ONNX Runtime."""

import onnx
from onnx import numpy_helper

from proact_onnx.engine.inplace import Indices
from proact_onnx.engine.session import (
    Array,
    BatchRunner,
    Provider,
    Session,
    create_session,
    session_options,
)


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
        session = create_session(opened, provider, session_options(threads))
        self._runner = BatchRunner(session, model, batch_size)
        self.provider = self._runner.provider

    def run(self, images: Array) -> Array:
        """Return the model's first output for all images with the parameters as they are now."""
        return self._runner.run(images, self._values)

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
        self._session: Session | None = Session(self._model, *self._arguments)
        self.provider = self._session.provider

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
