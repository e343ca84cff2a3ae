"""Apache TVM, compiled for this processor."""

import importlib
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


@dataclass(frozen=True)
class Tvm:
    """TVM's Relax, with the passes it applies by default and no tuning."""

    name: str = "tvm"
    tolerance: float = TOLERANCE
    # Untuned kernels say nothing about what a bound costs.
    timed: bool = False

    def available(self) -> bool:
        """Tell whether the package is installed."""
        return installed("tvm")

    def version(self) -> str:
        """Version of the package."""
        return str(importlib.import_module("tvm").__version__)

    def load(self, model: onnx.ModelProto, shapes: Shapes) -> Program:
        """Load a model for inputs of these shapes; see `Runtime.load`."""
        tvm = importlib.import_module("tvm")
        relax = importlib.import_module("tvm.relax")
        frontend = importlib.import_module("tvm.relax.frontend.onnx")
        module = frontend.from_onnx(with_static_shapes(model, shapes))
        module = relax.transform.DecomposeOpsForInference()(module)
        module = relax.get_pipeline("zero")(module)
        machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())

        def run(feeds: Feeds) -> list[Array]:
            result = machine["main"](*map(tvm.runtime.tensor, feeds.values()))
            values = [result] if hasattr(result, "numpy") else list(result)
            return [np.array(value.numpy()) for value in values]

        return run
