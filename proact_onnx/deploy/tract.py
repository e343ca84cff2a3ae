"""tract, the inference engine written in Rust."""

import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from proact_onnx.deploy.base import TOLERANCE, Array, Program, installed, with_static_shape
from proact_onnx.model import image_input


@dataclass(frozen=True)
class Tract:
    """tract on the CPU."""

    name: str = "tract"
    tolerance: float = TOLERANCE
    timed: bool = True

    def available(self) -> bool:
        """Tell whether the package is installed."""
        return installed("tract")

    def version(self) -> str:
        """Version of the library."""
        return str(importlib.import_module("tract").version())

    def load(self, model: onnx.ModelProto, shape: Sequence[int]) -> Program:
        """Load a model for one shape of images; see `Runtime.load`."""
        tract = importlib.import_module("tract")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save_model(with_static_shape(model, image_input(model).name, shape), path)
            runnable = tract.onnx().load(path).into_model().into_runnable()

        def run(images: Array) -> list[Array]:
            return [np.array(value.to_numpy()) for value in runnable.run([images])]

        return run
