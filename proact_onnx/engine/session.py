"""ONNX Runtime sessions: where a model runs, and how images go through it in batches."""

import ctypes
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from proact_onnx.errors import ModelError, SettingsError
from proact_onnx.model import ModelInput, image_input, output_names

Array = npt.NDArray[Any]


class Provider(StrEnum):
    """Where ONNX Runtime executes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_NO_PARAMETERS: Mapping[str, Array] = {}


def session_options(threads: int = 0, *, optimise: bool = True) -> ort.SessionOptions:
    """Return options for a quiet session.

    Args:
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        optimise: Whether ONNX Runtime rewrites the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def create_session(
    model: onnx.ModelProto,
    provider: Provider = Provider.AUTO,
    options: ort.SessionOptions | None = None,
    **arguments: Any,
) -> ort.InferenceSession:
    """Create a session, on a GPU where one is usable and asked for.

    The GPU build of ONNX Runtime lists CUDA on machines that have none and falls back silently;
    only the session itself knows where it runs, so that is what is checked.

    Args:
        model: The model, weights included.
        provider: ``auto`` takes CUDA when it works and the CPU otherwise.
        options: Session options; quiet defaults when absent.
        **arguments: Passed on to ``onnxruntime.InferenceSession``.

    Raises:
        ModelError: If ONNX Runtime refuses the model.
        SettingsError: If CUDA was asked for and does not work here.
    """
    wanted = [_CPU]
    if provider is not Provider.CPU and _cuda_usable():
        wanted.insert(0, _CUDA)
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options or session_options(), providers=wanted, **arguments
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"ONNX Runtime cannot run the model: {reason}") from error
    if provider is Provider.CUDA and session.get_providers()[0] != _CUDA:
        raise SettingsError(
            "ONNX Runtime finds no usable CUDA device here: use --provider cpu, or check the "
            "driver and the CUDA libraries"
        )
    return session


@functools.cache
def _cuda_usable() -> bool:
    """Tell whether there is a device to try; ONNX Runtime complains loudly where there is none."""
    if _CUDA not in ort.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    devices = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(devices)) != 0:
        return False
    if devices.value > 0:
        ort.preload_dlls()
    return devices.value > 0


def runtime_version() -> str:
    """Version of ONNX Runtime, whichever of its packages is installed."""
    return str(ort.__version__)


def running_provider(session: ort.InferenceSession) -> Provider:
    """Return where a session really runs."""
    return Provider.CUDA if session.get_providers()[0] == _CUDA else Provider.CPU


class BatchRunner:
    """Puts any number of images through a session.

    Args:
        session: The session.
        model: The model it runs, for the names and shapes of its inputs and outputs.
        batch_size: Images per run, for models whose batch axis is free.
    """

    def __init__(
        self, session: ort.InferenceSession, model: onnx.ModelProto, batch_size: int
    ) -> None:
        self._session = session
        self.provider = running_provider(session)
        self.input = image_input(model)
        self.outputs = output_names(model)
        self._batch_size = batch_size

    def run(self, images: Array, parameters: Mapping[str, Array] = _NO_PARAMETERS) -> Array:
        """Return the model's first output for all images, ``[N, ...]``.

        Args:
            images: ``[N, ...]``.
            parameters: Values of further graph inputs, the same for every batch.
        """
        streamed = self.stream(images, self.outputs[:1], parameters)
        return np.concatenate([values[0] for values in streamed])

    def stream(
        self,
        images: Array,
        outputs: Sequence[str],
        parameters: Mapping[str, Array] = _NO_PARAMETERS,
    ) -> Iterator[list[Array]]:
        """Yield the named outputs batch by batch, each ``[batch, ...]``."""
        for batch, count in batches(images, self.input, self._batch_size):
            values = self._session.run(list(outputs), {self.input.name: batch, **parameters})
            yield [np.atleast_1d(value)[:count] for value in values]


class Session(BatchRunner):
    """A model ready to run on any number of images.

    Args:
        model: The model, weights included.
        provider: Where to run it.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        provider: Provider = Provider.AUTO,
        threads: int = 0,
        batch_size: int = 128,
    ) -> None:
        session = create_session(model, provider, session_options(threads))
        super().__init__(session, model, batch_size)


def batches(images: Array, model_input: ModelInput, batch_size: int) -> Iterator[tuple[Array, int]]:
    """Cut images into batches the model accepts.

    A model with a fixed batch axis gets batches of exactly that many images, the last one filled
    up by repeating its final image.

    Args:
        images: Preprocessed images, ``[N, ...]``.
        model_input: The model's input; its first extent is the batch axis.
        batch_size: Images per batch where the batch axis is free.

    Yields:
        A batch, and how many of its images are real.
    """
    fixed = model_input.shape[0] if model_input.shape else None
    size = fixed or batch_size
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        count = len(batch)
        if fixed and count < fixed:
            batch = np.concatenate([batch, np.repeat(batch[-1:], fixed - count, axis=0)])
        yield np.ascontiguousarray(batch), count
