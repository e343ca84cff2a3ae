"""Programs that rewrite ONNX files before they are deployed."""

import importlib
import importlib.metadata
from dataclasses import dataclass

import onnx

from proact_onnx.deploy.base import installed
from proact_onnx.engine import optimised_graph, runtime_version


@dataclass(frozen=True)
class OrtOptimiser:
    """ONNX Runtime's optimiser, its graph written to a file that runs on every processor."""

    name: str = "ort-optimiser"

    def available(self) -> bool:
        """Always."""
        return True

    def version(self) -> str:
        """Version of ONNX Runtime."""
        return runtime_version()

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Optimise a copy of a model, without the layouts of this processor."""
        return optimised_graph(model, for_this_machine=False)


@dataclass(frozen=True)
class OnnxSim:
    """onnxsim, onnx-simplifier."""

    name: str = "onnxsim"

    def available(self) -> bool:
        """Tell whether the package is installed."""
        return installed("onnxsim")

    def version(self) -> str:
        """Version of the package."""
        return importlib.metadata.version("onnxsim")

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Simplify a copy of a model."""
        simplified, _ = importlib.import_module("onnxsim").simplify(_copy(model))
        return simplified  # type: ignore[no-any-return]


@dataclass(frozen=True)
class OnnxSlim:
    """onnxslim."""

    name: str = "onnxslim"

    def available(self) -> bool:
        """Tell whether the package is installed."""
        return installed("onnxslim")

    def version(self) -> str:
        """Version of the package."""
        return importlib.metadata.version("onnxslim")

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Slim a copy of a model."""
        return importlib.import_module("onnxslim").slim(_copy(model))  # type: ignore[no-any-return]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
