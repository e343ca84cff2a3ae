"""IREE, compiled for this processor."""

import importlib
import importlib.metadata
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
from proact_onnx.model import opset
from proact_onnx.versions import convert_opset

# The lowest opset that its importer has all operators of.
_IMPORTED_OPSET = 17


@dataclass(frozen=True)
class Iree:
    """IREE's compiler and runtime for the CPU."""

    name: str = "iree"
    tolerance: float = TOLERANCE
    timed: bool = True

    def available(self) -> bool:
        """Tell whether compiler and runtime are installed."""
        return installed("iree.compiler", "iree.runtime")

    def version(self) -> str:
        """Version of the compiler."""
        return importlib.metadata.version("iree-base-compiler")

    def load(self, model: onnx.ModelProto, shapes: Shapes) -> Program:
        """Compile a model for inputs of these shapes; see `Runtime.load`."""
        compiler = importlib.import_module("iree.compiler")
        importer = importlib.import_module("iree.compiler.extras.onnx_importer")
        runtime = importlib.import_module("iree.runtime")
        fixed = with_static_shapes(model, shapes)
        if opset(fixed) < _IMPORTED_OPSET:
            fixed = convert_opset(fixed, _IMPORTED_OPSET)
        info = importer.ModelInfo(onnx.shape_inference.infer_shapes(fixed, data_prop=True))
        module = info.create_module(context=compiler.ir.Context())
        importer.NodeImporter.define_function(info.main_graph, module.operation).import_all()
        code = compiler.compile_str(
            str(module),
            target_backends=["llvm-cpu"],
            input_type="onnx",
            extra_args=["--iree-llvmcpu-target-cpu=host"],
        )
        function = runtime.load_vm_flatbuffer(code, driver="local-task")[model.graph.name]

        def run(feeds: Feeds) -> list[Array]:
            result = function(*feeds.values())
            values = result if isinstance(result, list | tuple) else [result]
            return [np.array(value) for value in values]

        return run
