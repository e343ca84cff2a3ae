"""OpenCV's module for networks, on the CPU."""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from proact_onnx.deploy.base import TOLERANCE, Array, Program, installed, with_static_shape
from proact_onnx.model import image_input, output_names


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

    def load(self, model: onnx.ModelProto, shape: Sequence[int]) -> Program:
        """Load a model for one shape of images; see `Runtime.load`."""
        # What it refuses it also writes to the terminal, in many lines.
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        dnn = importlib.import_module("cv2").dnn
        fixed = with_static_shape(model, image_input(model).name, shape)
        network = dnn.readNetFromONNX(np.frombuffer(fixed.SerializeToString(), np.uint8))
        outputs = list(output_names(model))

        def run(images: Array) -> list[Array]:
            network.setInput(images)
            return [np.array(value) for value in network.forward(outputs)]

        return run
