"""OpenVINO on the CPU, in float32: by itself it computes in bfloat16 on some processors."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from proact_onnx.deploy.base import TOLERANCE, Array, Program, installed


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO's CPU device."""

    name: str = "openvino"
    tolerance: float = TOLERANCE
    timed: bool = True

    def available(self) -> bool:
        """Tell whether the package is installed."""
        return installed("openvino")

    def version(self) -> str:
        """Version of the package, without the build it came from."""
        return str(importlib.import_module("openvino").__version__).partition("-")[0]

    def load(self, model: onnx.ModelProto, shape: Sequence[int]) -> Program:
        """Load a model for one shape of images; see `Runtime.load`."""
        openvino = importlib.import_module("openvino")
        core = openvino.Core()
        read = core.read_model(model.SerializeToString(), b"")
        read.reshape(list(shape))
        compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        count = len(model.graph.output)

        def run(images: Array) -> list[Array]:
            results = compiled(images)
            # Its buffers are overwritten by the next run.
            return [np.array(results[place]) for place in range(count)]

        return run
