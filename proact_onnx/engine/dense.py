"""Dense layers as pointwise convolutions, which are fast without a private copy of the weights.

For ``y = x W`` ONNX Runtime keeps the weights packed in memory of its own, where they cannot be
overwritten; read as stored, they are packed again in every run, which costs up to the whole product
when there are few images. A convolution's weights are laid out in blocks by the graph optimiser
instead, as an initializer. So ``x [M, K]`` becomes an image of ``K`` channels and ``1 x M`` pixels,
and ``W`` a kernel of extent 1: the same sums, over weights that stay where they are. The transposes
around it join the reordering that blocked convolutions do anyway.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from proact_onnx.activations import tensor_types
from proact_onnx.messages import extents, node_reads, with_values

# Below, packing costs nothing that can be measured, and few outputs fill no block.
_FEWEST_WEIGHTS = 1 << 16
_FEWEST_OUTPUTS = 64


def dense_to_pointwise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite the large dense layers of a model.

    A ``Gemm`` without factors or a ``MatMul`` is rewritten when its weights are a float32
    initializer ``[K, N]`` (``[N, K]`` with ``transB``) that nothing else reads. Every initializer
    keeps its name and its values; those of rewritten layers become ``[N, K, 1, 1]``.

    Args:
        model: A valid model; it is not changed.

    Returns:
        A model that computes the same; the model itself if it has no such layer.
    """
    graph = model.graph
    reads = Counter(name for node in graph.node for name in node_reads(node))
    reads.update(info.name for info in (*graph.input, *graph.output))
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    unshared = {name: tensor for name, tensor in tensors.items() if reads[name] == 1}
    shapes: dict[str, tuple[int | None, ...]] = {}
    if any(node.op_type == "MatMul" for node in graph.node):
        shapes = {name: extents(info) for name, info in tensor_types(model).items()}
    nodes: list[onnx.NodeProto] = []
    kernels: dict[str, npt.NDArray[Any]] = {}
    shapes_read: list[onnx.TensorProto] = []
    for index, node in enumerate(graph.node):
        kernel = _kernel(node, unshared)
        leading = _leading_extents(node, shapes)
        bias = tensors.get(node.input[2]) if len(node.input) > 2 else None
        if kernel is None or leading is None or not _fits(node, bias, len(kernel)):
            nodes.append(node)
            continue
        kernels[node.input[1]] = kernel[:, :, None, None]
        prefix = f"pointwise/{index}"
        image, product = np.array([1, 1, -1, kernel.shape[1]]), np.array([*leading, len(kernel)])
        shapes_read.append(numpy_helper.from_array(image, f"{prefix}/image_shape"))
        shapes_read.append(numpy_helper.from_array(product, f"{prefix}/product_shape"))
        nodes.extend(_convolution(node, prefix))
    if not kernels:
        return model
    rewritten = with_values(model, kernels)
    del rewritten.graph.node[:]
    rewritten.graph.node.extend(nodes)
    rewritten.graph.initializer.extend(shapes_read)
    return rewritten


def _convolution(node: onnx.NodeProto, prefix: str) -> list[onnx.NodeProto]:
    names = (f"{prefix}/{step}" for step in ("pixels", "image", "sums", "rows"))
    pixels, image, sums, rows = names
    x, weights, *bias = node.input
    return [
        helper.make_node("Reshape", [x, f"{prefix}/image_shape"], [pixels], name=pixels),
        helper.make_node("Transpose", [pixels], [image], name=image, perm=[0, 3, 1, 2]),
        helper.make_node("Conv", [image, weights, *bias], [sums], name=sums),
        helper.make_node("Transpose", [sums], [rows], name=rows, perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", [rows, f"{prefix}/product_shape"], node.output, name=prefix),
    ]


def _kernel(
    node: onnx.NodeProto, unshared: Mapping[str, onnx.TensorProto]
) -> npt.NDArray[np.float32] | None:
    """The weights of a large dense layer, ``[N, K]``; ``None`` for any other node."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Gemm", "MatMul"):
        return None
    tensor = unshared.get(node.input[1])
    if (
        tensor is None
        or tensor.data_type != onnx.TensorProto.FLOAT
        or len(tensor.dims) != 2
        or math.prod(tensor.dims) < _FEWEST_WEIGHTS
    ):
        return None
    matrix = numpy_helper.to_array(tensor)
    kernel = np.ascontiguousarray(matrix if _attribute(node, "transB", 0) else matrix.T)
    return kernel if len(kernel) >= _FEWEST_OUTPUTS else None


def _fits(node: onnx.NodeProto, bias: onnx.TensorProto | None, outputs: int) -> bool:
    """Tell whether a convolution can do what the node does with its product."""
    plain = all(
        _attribute(node, name, default) == default
        for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
    )
    no_bias = len(node.input) < 3 or not node.input[2]
    return plain and (no_bias or (bias is not None and list(bias.dims) == [outputs]))


def _leading_extents(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int | None, ...]]
) -> list[int] | None:
    """Extents of the product before its last, as Reshape takes them; ``None`` if not known."""
    if node.op_type == "Gemm":
        return [-1]
    shape = shapes.get(node.input[0], ()) if node.input else ()
    leading = [-1 if extent is None else extent for extent in shape[:-1]]
    return leading if leading and leading.count(-1) <= 1 else None


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    found = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return float(found[0]) if found else default
