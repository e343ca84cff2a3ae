"""An engine for any provider: parameters are graph inputs that stay on the device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnxruntime as ort
from onnx import numpy_helper

from proact_onnx.engine.calls import Calls, join
from proact_onnx.engine.memory import DeviceMemory, aligned_copy
from proact_onnx.engine.session import (
    Array,
    Indices,
    Provider,
    create_session,
    running_provider,
    session_options,
    stopped,
)
from proact_onnx.messages import weights_as_inputs
from proact_onnx.model import model_inputs, output_names

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
        self._inputs = model_inputs(model)
        self._outputs = output_names(model)
        self._batch_size = batch_size
        self._binding = self._session.io_binding()
        self._values = {name: self._memory.place(values) for name, values in stored.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._data_set: _DataSet | None = None

    def run(self, images: Array, chosen: Indices | None = None) -> Array:
        """Return the model's first output for images with the parameters as they are now.

        Args:
            images: ``[N, ...]``.
            chosen: Indices of the images to run; all when absent. Where given, ``images`` are kept
                on the device and must not change.
        """
        streamed = self._stream(images, self._outputs[:1], chosen)
        return join([values[0] for values in streamed])

    def stream(self, images: Array, chosen: Indices | None = None) -> Iterator[list[Array]]:
        """Yield all outputs of the model batch by batch, each ``[batch, ...]``; see `run`."""
        return self._stream(images, self._outputs, chosen)

    def write(self, parameter: str, elements: Indices, values: Array) -> None:
        """Overwrite elements of a parameter, by flat index in its stored layout."""
        self._memory.overwrite(self._values[parameter], elements, values)

    def _stream(
        self, images: Array, outputs: Sequence[str], chosen: Indices | None
    ) -> Iterator[list[Array]]:
        calls = Calls.of(self._inputs, images, self._batch_size)
        if chosen is not None and not calls.whole and images.nbytes <= _RESIDENT_BYTES:
            kept = self._keep(images, calls)
            for rows, count in calls.cut(chosen):
                read = [
                    self._memory.bind_rows(self._binding, name, value, rows)
                    for name, value in kept.items()
                ]
                yield calls.apart(self._run_bound(outputs), count)
                del read
            return
        for batch, count in calls.cut(images if chosen is None else images[chosen]):
            fed = calls.feeds(batch)
            for name, values in fed.items():
                self._binding.bind_ortvalue_input(name, self._memory.place(values))
            yield calls.apart(self._run_bound(outputs), count)

    def _run_bound(self, outputs: Sequence[str]) -> list[Array]:
        self._binding.clear_binding_outputs()
        for name in outputs:
            self._binding.bind_output(name)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise stopped(error) from error
        return list(self._binding.copy_outputs_to_cpu())

    def _keep(self, images: Array, calls: Calls) -> Mapping[str, ort.OrtValue]:
        """Upload a data set, unless it is there already."""
        if self._data_set is None or self._data_set.images is not images:
            fed = calls.feeds(images)
            placed = {name: self._memory.place(values) for name, values in fed.items()}
            self._data_set = _DataSet(images, fed, placed)
        return self._data_set.placed


@dataclass(frozen=True)
class _DataSet:
    """Images that stay on the device.

    Attributes:
        images: As they were given.
        fed: By input, what was uploaded; on the CPU it is read where it lies.
        placed: Where it is.
    """

    images: Array
    fed: Mapping[str, Array]
    placed: Mapping[str, ort.OrtValue]


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
