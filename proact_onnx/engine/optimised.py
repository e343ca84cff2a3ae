"""The graph that ONNX Runtime makes of a model when it loads it."""

import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort

from proact_onnx.engine.session import Provider, create_session, session_options


def optimised_graph(model: onnx.ModelProto, *, for_this_machine: bool = True) -> onnx.ModelProto:
    """Let ONNX Runtime optimise a model for the CPU, and read the graph back.

    Args:
        model: The model, weights included.
        for_this_machine: Whether as it does by default, with layouts of this processor; otherwise
            only rewrites that run everywhere.

    Raises:
        ModelError: If ONNX Runtime refuses the model.
    """
    options = session_options()
    if not for_this_machine:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        create_session(model, Provider.CPU, options)
        return onnx.load(path)
