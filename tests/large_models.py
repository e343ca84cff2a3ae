"""Networks of any size with random weights, written piece by piece so that memory stays bounded."""

import itertools
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

_PIECE = 1 << 22
_FLOATS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


class _Weights:
    """Appends tensors to one file of external data."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._location = path.name
        self._rng = np.random.default_rng(0)
        self.tensors: list[onnx.TensorProto] = []

    def close(self) -> None:
        self._file.close()

    def add(self, name: str, shape: tuple[int, ...], dtype: str, deviation: float) -> None:
        """Append normal numbers; integers are the same numbers in steps of 1/32 deviation."""
        kind = TensorProto.INT8 if dtype == "int8" else _FLOATS[dtype]
        tensor = TensorProto(name=name, dims=shape, data_type=kind)
        tensor.data_location = TensorProto.EXTERNAL
        offset = self._file.tell()
        for start in range(0, math.prod(shape), _PIECE):
            size = min(_PIECE, math.prod(shape) - start)
            values = self._rng.standard_normal(size, np.float32)
            if dtype == "int8":
                piece = np.clip(np.rint(values * 32), -127, 127).astype(np.int8)
            else:
                piece = (values * deviation).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
            self._file.write(piece.tobytes())
        length = self._file.tell() - offset
        entries = {"location": self._location, "offset": str(offset), "length": str(length)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        self.tensors.append(tensor)


def write_dense_network(
    path: Path, width: int, layers: int, dtype: str = "float32", inputs: int = 3072
) -> int:
    """Write a dense network with external data: ``layers`` of ``width`` neurons, ten classes.

    Args:
        path: Where to; the weights go to ``<name>.data`` beside it.
        width: Neurons of a hidden layer.
        layers: Hidden layers.
        dtype: ``float32``, ``float16``, ``bfloat16``, or ``int8``: weights behind
            DequantizeLinear with a scale a column.
        inputs: Extent of the flattened input image ``[N, 3, H, W]``.

    Returns:
        Number of weights.
    """
    side = math.isqrt(inputs // 3)
    half = dtype in ("float16", "bfloat16")
    weights = _Weights(path.with_name(f"{path.name}.data"))
    nodes = [helper.make_node("Flatten", ["input"], ["layer0"])]
    if half:
        nodes = [
            helper.make_node("Cast", ["input"], ["narrow"], to=_FLOATS[dtype]),
            helper.make_node("Flatten", ["narrow"], ["layer0"]),
        ]
    small: list[onnx.TensorProto] = []
    extents = [inputs, *[width] * layers, 10]
    for number, (rows, columns) in enumerate(itertools.pairwise(extents), start=1):
        name, deviation = f"dense{number}", math.sqrt(2 / rows)
        weight = f"{name}.weight"
        weights.add(weight, (rows, columns), dtype, deviation)
        if dtype == "int8":
            scale = np.full(columns, deviation / 32, np.float32)
            point = np.zeros(columns, np.int8)
            small.append(onnx.numpy_helper.from_array(scale, f"{name}.scale"))
            small.append(onnx.numpy_helper.from_array(point, f"{name}.zero_point"))
            read = [weight, f"{name}.scale", f"{name}.zero_point"]
            weight = f"{name}.values"
            nodes.append(helper.make_node("DequantizeLinear", read, [weight], axis=1))
        last = number == len(extents) - 1
        product = f"product{number}" if not last else ("narrow_logits" if half else "logits")
        nodes.append(helper.make_node("MatMul", [f"layer{number - 1}", weight], [product], name))
        if not last:
            nodes.append(helper.make_node("Relu", [product], [f"layer{number}"], f"relu{number}"))
    if half:
        nodes.append(helper.make_node("Cast", ["narrow_logits"], ["logits"], to=TensorProto.FLOAT))
    weights.close()
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [*weights.tensors, *small],
    )
    opset = helper.make_opsetid("", 17)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    )
    return sum(a * b for a, b in itertools.pairwise(extents))
