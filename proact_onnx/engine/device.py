"""An engine for any provider: parameters are graph inputs that stay on the device."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from proact_onnx.engine.memory import DeviceMemory, aligned_copy
from proact_onnx.engine.session import (
    Array,
    Indices,
    Provider,
    batches,
    create_session,
    running_provider,
    session_options,
    stopped,
)
from proact_onnx.messages import weights_as_inputs
from proact_onnx.model import image_input, output_names

# Data sets up to this size stay on the device.
_RESIDENT_BYTES = 2 << 30


class DeviceEngine:
    """Runs a model whose parameters are graph inputs, bound to memory of the device.

    Parameters are uploaded once and changed where they lie, so a write costs what it changes. The
    images of a data set are uploaded once too, when trials choose among them.

    Args:
        model: The model, every parameter an initializer.
        parameters: Names of the parameters that will be written to.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.

    Raises:
        LayoutError: If the device cannot change parameters where they lie.
        ModelError: If ONNX Runtime refuses the model.
        SettingsError: If the provider was asked for and does not work here.
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
        opened, stored = _parameters_as_inputs(model, parameters)
        self._session = create_session(opened, provider, session_options(threads))
        self.provider = running_provider(self._session)
        self._memory = DeviceMemory(self.provider)
        for dtype in {values.dtype for values in stored.values()}:
            self._memory.check_overwriting(dtype)
        self._input = image_input(model)
        self._outputs = output_names(model)
        self._batch_size = batch_size
        self._binding = self._session.io_binding()
        self._values = {name: self._memory.place(values) for name, values in stored.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._data_set: tuple[Array, ort.OrtValue] | None = None

    def run(self, images: Array, chosen: Indices | None = None) -> Array:
        """Return the model's first output for images with the parameters as they are now.

        Args:
            images: ``[N, ...]``.
            chosen: Indices of the images to run; all when absent. Where given, ``images`` are kept
                on the device and must not change.
        """
        streamed = self._stream(images, self._outputs[:1], chosen)
        return np.concatenate([values[0] for values in streamed])

    def stream(self, images: Array, chosen: Indices | None = None) -> Iterator[list[Array]]:
        """Yield all outputs of the model batch by batch, each ``[batch, ...]``; see `run`."""
        return self._stream(images, self._outputs, chosen)

    def write(self, parameter: str, elements: Indices, values: Array) -> None:
        """Overwrite elements of a parameter, by flat index in its stored layout."""
        self._memory.overwrite(self._values[parameter], elements, values)

    def _stream(
        self, images: Array, outputs: Sequence[str], chosen: Indices | None
    ) -> Iterator[list[Array]]:
        if chosen is not None and images.nbytes <= _RESIDENT_BYTES:
            kept = self._keep(images)
            for rows, count in batches(chosen, self._input, self._batch_size):
                read = self._memory.bind_rows(self._binding, self._input.name, kept, rows)
                yield self._run_bound(outputs, count)
                del read
            return
        wanted = images if chosen is None else images[chosen]
        for batch, count in batches(wanted, self._input, self._batch_size):
            uploaded = self._memory.place(batch)
            self._binding.bind_ortvalue_input(self._input.name, uploaded)
            yield self._run_bound(outputs, count)

    def _run_bound(self, outputs: Sequence[str], count: int) -> list[Array]:
        self._binding.clear_binding_outputs()
        for name in outputs:
            self._binding.bind_output(name)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise stopped(error) from error
        return [np.atleast_1d(value)[:count] for value in self._binding.copy_outputs_to_cpu()]

    def _keep(self, images: Array) -> ort.OrtValue:
        """Upload a data set, unless it is there already."""
        if self._data_set is None or self._data_set[0] is not images:
            self._data_set = (images, self._memory.place(images))
        return self._data_set[1]


def _parameters_as_inputs(
    model: onnx.ModelProto, parameters: list[str]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    wanted = set(parameters)
    stored = {
        tensor.name: aligned_copy(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.name in wanted
    }
    return weights_as_inputs(model, wanted), stored
