"""OpenCV's module for networks, on the CPU."""

import importlib
import os
from dataclasses import dataclass

import numpy as np
import onnx

from proact_onnx.deploy.base import (
    TOLERANCE,
    Array,
    Feeds,
    Program,
    Shapes,
    installed,
    with_static_shapes,
)
from proact_onnx.model import output_names


@dataclass(frozen=True)
class OpenCv:
    """``cv2.dnn``."""

    name: str = "opencv"
    tolerance: float = TOLERANCE
    timed: bool = True

    def available(self) -> bool:
        """Tell whether one of OpenCV's packages is installed."""
        return installed("cv2")

    def version(self) -> str:
        """Version of the library."""
        return str(importlib.import_module("cv2").__version__)

    def load(self, model: onnx.ModelProto, shapes: Shapes) -> Program:
        """Load a model for inputs of these shapes; see `Runtime.load`."""
        # What it refuses it also writes to the terminal, in many lines.
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        dnn = importlib.import_module("cv2").dnn
        fixed = with_static_shapes(model, shapes)
        network = dnn.readNetFromONNX(np.frombuffer(fixed.SerializeToString(), np.uint8))
        outputs = list(output_names(model))

        def run(feeds: Feeds) -> list[Array]:
            for name, values in feeds.items():
                network.setInput(values, name)
            return [np.array(value) for value in network.forward(outputs)]

        return run
