"""tract, the inference engine written in Rust."""

import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

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

    def load(self, model: onnx.ModelProto, shapes: Shapes) -> Program:
        """Load a model for inputs of these shapes; see `Runtime.load`."""
        tract = importlib.import_module("tract")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save_model(with_static_shapes(model, shapes), path)
            runnable = tract.onnx().load(path).into_model().into_runnable()

        def run(feeds: Feeds) -> list[Array]:
            return [np.array(value.to_numpy()) for value in runnable.run(list(feeds.values()))]

        return run
