"""ONNX Runtime sessions: where a model runs, and how samples go through it in batches."""

import ctypes
import functools
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from proact_onnx.engine.calls import Calls, join
from proact_onnx.engine.operators import describe_unknown, register_operators
from proact_onnx.errors import ModelError, RunError, SettingsError
from proact_onnx.external_data import write_with_external_data
from proact_onnx.messages import weight_bytes
from proact_onnx.model import INLINE_LIMIT_BYTES, model_inputs, output_names

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


class Provider(StrEnum):
    """Where ONNX Runtime executes; ``auto`` is CUDA where it works, and the CPU elsewhere."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"


# What a provider cannot run goes to the one after it.
_REGISTERED: dict[Provider, list[str]] = {
    Provider.CPU: ["CPUExecutionProvider"],
    Provider.CUDA: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    Provider.TENSORRT: [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ],
    Provider.OPENVINO: ["OpenVINOExecutionProvider", "CPUExecutionProvider"],
}
_ON_CUDA = (Provider.CUDA, Provider.TENSORRT)
_PACKAGES = {
    Provider.CUDA: "onnxruntime-gpu",
    Provider.TENSORRT: "onnxruntime-gpu",
    Provider.OPENVINO: "onnxruntime-openvino",
}
_UNUSABLE = {
    Provider.CUDA: (
        "ONNX Runtime finds no usable CUDA device here: use --provider cpu, or check the driver "
        "and the CUDA libraries"
    ),
    Provider.TENSORRT: (
        "ONNX Runtime cannot use TensorRT here: use --provider cuda or cpu, or check the driver, "
        "the CUDA libraries and the TensorRT libraries"
    ),
    Provider.OPENVINO: (
        "ONNX Runtime cannot use OpenVINO here: use --provider cpu, or check the OpenVINO libraries"
    ),
}


def session_options(threads: int = 0, *, optimise: bool = True) -> ort.SessionOptions:
    """Return options for a quiet session, which knows the operators that were loaded.

    Args:
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        optimise: Whether ONNX Runtime rewrites the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    register_operators(options)
    return options


def create_session(
    model: onnx.ModelProto | bytes,
    provider: Provider = Provider.AUTO,
    options: ort.SessionOptions | None = None,
    **arguments: Any,
) -> ort.InferenceSession:
    """Create a session where it was asked for.

    The GPU build of ONNX Runtime lists CUDA on machines that have none and falls back silently;
    only the session itself knows where it runs, so that is what is checked.

    Args:
        model: The model, weights included; or its serialised form.
        provider: Where to run.
        options: Session options; quiet defaults when absent.
        **arguments: Passed on to ``onnxruntime.InferenceSession``.

    Raises:
        ModelError: If ONNX Runtime refuses the model.
        SettingsError: If the provider was asked for and does not work here.
    """
    if not isinstance(model, bytes) and weight_bytes(model) >= INLINE_LIMIT_BYTES:
        # Too large for one message: the weights come from a file, which ONNX Runtime maps.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            write_with_external_data(model, path, "weights")
            return _open(str(path), provider, options, **arguments)
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return _open(content, provider, options, **arguments)


def _open(
    content: bytes | str,
    provider: Provider,
    options: ort.SessionOptions | None,
    **arguments: Any,
) -> ort.InferenceSession:
    wanted = _providers(provider)

    def open_on(providers: list[str]) -> ort.InferenceSession:
        # Falling back by itself, ONNX Runtime would talk, and forget the arguments.
        return ort.InferenceSession(
            content,
            options or session_options(),
            providers=providers,
            enable_fallback=False,
            **arguments,
        )

    try:
        try:
            session = open_on(wanted)
        except Exception:
            # Whether the provider or the model is at fault shows where every model runs.
            session = open_on(_REGISTERED[Provider.CPU])
    except Exception as error:
        raise refused(error) from error
    if provider is not Provider.AUTO and session.get_providers()[0] != wanted[0]:
        raise SettingsError(_UNUSABLE[provider])
    return session


def refused(error: Exception) -> ModelError:
    """Put what ONNX Runtime says about a model into one sentence."""
    said = " ".join(str(error).split())
    unknown = re.search(r"([\w.]+):(\w+)\(-?\d+\) is not a registered function/op", said)
    if unknown and unknown[1] != "ai.onnx":
        return ModelError(describe_unknown(unknown[2], unknown[1]))
    missing = re.search(r"implementation for (\w+)\(\d+\) node with name '([^']*)'", said)
    if missing:
        return ModelError(
            f"ONNX Runtime has no kernel for {missing[1]} at node {missing[2]!r} with the types of "
            "this model, such as bfloat16 on the CPU: convert the model to float32 or float16, or "
            "use another --provider"
        )
    return ModelError(f"ONNX Runtime cannot run the model: {said}")


def stopped(error: Exception) -> RunError:
    """Put what ONNX Runtime says while running a model into one sentence."""
    return RunError(str(refused(error)))


def _providers(provider: Provider) -> list[str]:
    """Names of the providers to ask for, most wanted first."""
    if provider is Provider.AUTO:
        return _REGISTERED[Provider.CUDA if _cuda_usable() else Provider.CPU]
    wanted = _REGISTERED[provider]
    if provider is not Provider.CPU and wanted[0] not in ort.get_available_providers():
        raise SettingsError(
            f"this build of ONNX Runtime does not support {provider}: install "
            f"{_PACKAGES[provider]} in its place, or use --provider cpu"
        )
    if provider in _ON_CUDA and not _cuda_usable():
        raise SettingsError(_UNUSABLE[provider])
    return wanted


@functools.cache
def _cuda_usable() -> bool:
    """Tell whether there is a device to try; ONNX Runtime complains loudly where there is none."""
    if _REGISTERED[Provider.CUDA][0] not in ort.get_available_providers():
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


@functools.cache
def provider_works(provider: Provider) -> bool:
    """Tell whether sessions asked for on a provider run there."""
    try:
        create_session(_smallest_model(), provider)
    except SettingsError:
        return False
    return True


def _smallest_model() -> onnx.ModelProto:
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "smallest", value[:1], value[1:]
    )
    return onnx.helper.make_model(
        graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]
    )


def runtime_version() -> str:
    """Version of ONNX Runtime, whichever of its packages is installed."""
    return str(ort.__version__)


def running_provider(session: ort.InferenceSession) -> Provider:
    """Return where a session really runs."""
    first = session.get_providers()[0]
    return next(provider for provider, names in _REGISTERED.items() if names[0] == first)


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
        self.inputs = model_inputs(model)
        self.outputs = output_names(model)
        self._batch_size = batch_size

    def run(self, images: Array, chosen: Indices | None = None) -> Array:
        """Return the model's first output, ``[N, ...]``.

        Args:
            images: ``[N, ...]``.
            chosen: Indices of the images to run; all when absent.

        Raises:
            RunError: If ONNX Runtime fails at running the model, or calls give outputs of
                different shapes.
        """
        output = self.outputs[0]
        parts = [value for [value] in self.stream(images, [output], chosen)]
        return join(parts, f"output {output!r}")

    def stream(
        self, images: Array, outputs: Sequence[str], chosen: Indices | None = None
    ) -> Iterator[list[Array]]:
        """Yield the named outputs batch by batch, each ``[batch, ...]``.

        Records that hold all that a call is given come one by one, each output ``[1, ...]``.

        Raises:
            RunError: If ONNX Runtime fails at running the model.
        """
        images = images if chosen is None else images[chosen]
        calls = self.calls(images)
        for batch, count in calls.cut(images):
            yield calls.apart(self.call(calls.feeds(batch), outputs), count)

    def call(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run the model once.

        Args:
            feeds: By name of the input, all that it is given.
            outputs: Names of the outputs.

        Raises:
            RunError: If ONNX Runtime fails at running the model.
        """
        try:
            values: list[Array] = self._session.run(list(outputs), feeds)
        except Exception as error:
            raise stopped(error) from error
        return values

    def calls(self, images: Array) -> Calls:
        """How samples become calls of the model."""
        return Calls.of(self.inputs, images, self._batch_size)


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
