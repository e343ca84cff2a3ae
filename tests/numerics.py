"""Running models on numbers: one way for every test that compares two of them."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[np.generic]


def parse(text: str, **weights: Array) -> onnx.ModelProto:
    """Read a model written as ONNX text, with initializers given as arrays."""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()
    )
    return model


def random_feed(
    model: onnx.ModelProto, seed: int = 0, batch: int = 2, extent: int = 64
) -> dict[str, Array]:
    """Random input of the declared shape; open extents are ``batch`` in front, else ``extent``."""
    generator = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    feed: dict[str, Array] = {}
    for info in model.graph.input:
        if info.name in stored:
            continue
        tensor = info.type.tensor_type
        shape = [
            dim.dim_value if dim.dim_value > 0 else (extent if axis else batch)
            for axis, dim in enumerate(tensor.shape.dim)
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feed[info.name] = generator.standard_normal(shape).astype(dtype)
    return feed


def run(model: onnx.ModelProto, feed: Mapping[str, Array], optimise: bool = False) -> list[Array]:
    """Outputs in ONNX Runtime; without optimisation every node runs as it is written."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feed))


def run_reference(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """Outputs in ONNX's own reference implementation."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, dict(feed))


def assert_same_outputs(
    one: onnx.ModelProto, other: onnx.ModelProto, tolerance: float = 0.0
) -> None:
    """Both models pass ONNX's full check and compute the same from the same random input.

    Args:
        one: A model.
        other: A model with the same inputs.
        tolerance: Greatest difference, relative to the largest output; 0 asks for equality.
    """
    for model in (one, other):
        onnx.checker.check_model(model, full_check=True)
    feed = random_feed(one)
    for before, after in zip(run(one, feed), run(other, feed), strict=True):
        scale = float(np.abs(before).max()) if before.size else 0.0
        np.testing.assert_allclose(after, before, rtol=0, atol=tolerance * scale)


def operators(model: onnx.ModelProto) -> list[str]:
    """Operators of the graph, in order."""
    return [node.op_type for node in model.graph.node]
