"""OpenVINO on the CPU, in float32: by itself it computes in bfloat16 on some processors."""

import importlib
from dataclasses import dataclass

import numpy as np
import onnx

from proact_onnx.deploy.base import TOLERANCE, Array, Feeds, Program, Shapes, installed


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

    def load(self, model: onnx.ModelProto, shapes: Shapes) -> Program:
        """Load a model for inputs of these shapes; see `Runtime.load`."""
        openvino = importlib.import_module("openvino")
        core = openvino.Core()
        read = core.read_model(model.SerializeToString(), b"")
        read.reshape({name: list(shape) for name, shape in shapes.items()})
        compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        count = len(model.graph.output)

        def run(feeds: Feeds) -> list[Array]:
            results = compiled(dict(feeds))
            # Its buffers are overwritten by the next run.
            return [np.array(results[place]) for place in range(count)]

        return run
