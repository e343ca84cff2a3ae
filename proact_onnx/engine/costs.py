"""What tensors and nodes of a network take for one image: bytes, and operations."""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.activations import tensor_types
from proact_onnx.engine.calls import Calls
from proact_onnx.engine.session import Array, Provider, create_session, session_options
from proact_onnx.messages import node_reads, without_weights
from proact_onnx.model import model_inputs
from proact_onnx.rewrite import expose

# Of convolutions, the input that holds the weights.
_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
_PRODUCTS = frozenset({"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"})
# Some operators want small inputs, such as scales and shapes, to be constants.
_LARGEST_CONSTANT = 4096


class Costs:
    """Sizes of a model's tensors and nodes, as they show when images run through it.

    Shape inference leaves many shapes open that a graph computes, such as those behind a padded
    skip connection. Running one image, and two, leaves none open and shows which axis is the batch.
    An image stands for a sample of all inputs that comes in a batch with others.

    Args:
        model: The model.
        images: Preprocessed images, ``[N, ...]``; at most two are used.

    Raises:
        ModelError: If ONNX Runtime refuses the model.
    """

    def __init__(self, model: onnx.ModelProto, images: Array) -> None:
        inputs = model_inputs(model)
        calls = Calls.of(inputs, images, 1)
        self._fixed_batch = calls.size if calls.filled else None
        declared = next((i for i in inputs if i.shape[0] == self._fixed_batch), inputs[0])
        [info] = (info for info in model.graph.input if info.name == declared.name)
        self._axis = info.type.tensor_type.shape.dim[0]
        self._stored: dict[str, tuple[tuple[int, ...], int]] = {
            t.name: (tuple(t.dims), onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize)
            for t in model.graph.initializer
        }
        types = tensor_types(model)
        computed = [name for node in model.graph.node for name in node.output if name in types]
        self._kinds = {name: types[name].type.tensor_type.elem_type for name in computed}
        tensors = [name for name, kind in self._kinds.items() if kind != onnx.TensorProto.UNDEFINED]
        # Read where they lie: a session would make copies of them.
        light = without_weights(model, _LARGEST_CONSTANT)
        kept = {tensor.name for tensor in light.graph.initializer}
        weights = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if tensor.name not in kept
        }
        session = create_session(
            expose(light, tensors), Provider.CPU, session_options(1, optimise=False)
        )
        # By number of images, the shape of each tensor.
        self._shapes: dict[int, dict[str, tuple[int, ...]]] = {}
        for count in (1, 2):
            some = images[np.arange(count) % len(images)]
            batch, _ = next(Calls.of(inputs, images, count).cut(some))
            feeds = calls.feeds(batch)
            values = session.run(tensors, {**feeds, **weights})
            shapes = {name: np.shape(value) for name, value in zip(tensors, values, strict=True)}
            self._shapes[count] = shapes | {name: fed.shape for name, fed in feeds.items()}
        for each in inputs:
            self._kinds[each.name] = onnx.helper.np_dtype_to_tensor_dtype(each.dtype)

    def elements(self, tensor: str) -> int:
        """Elements that belong to one image; of an initializer, all."""
        if tensor in self._stored:
            return math.prod(self._stored[tensor][0])
        shape = self._shapes[1].get(tensor)
        return 0 if shape is None else math.prod(shape) // (self._fixed_batch or 1)

    def bytes(self, tensor: str) -> int:
        """Bytes that belong to one image; of an initializer, all."""
        if tensor in self._stored:
            return self.elements(tensor) * self._stored[tensor][1]
        elements = self.elements(tensor)
        if not elements:
            return 0
        return elements * int(onnx.helper.tensor_dtype_to_np_dtype(self._kinds[tensor]).itemsize)

    def batched(self, tensor: str) -> onnx.ValueInfoProto | None:
        """Type of a tensor of images, with an axis in front that is as open as the model's own.

        ``None`` for a tensor whose first axis is not the batch.
        """
        one, two = (self._shapes[count].get(tensor, ()) for count in (1, 2))
        if one[:1] != (self._fixed_batch or 1,) or two != (self._fixed_batch or 2, *one[1:]):
            return None
        info = onnx.helper.make_tensor_value_info(tensor, self._kinds[tensor], one)
        info.type.tensor_type.shape.dim[0].CopyFrom(self._axis)
        return info

    def macs(self, node: onnx.NodeProto) -> int:
        """Multiply-accumulate operations a node does for one image.

        An operator that is no convolution and no matrix product counts an operation for every
        element of its largest tensor.
        """
        written = sum(self.elements(name) for name in node.output)
        weights = _CONVOLUTIONS.get(node.op_type)
        if weights is not None and node.input[weights] in self._stored:
            return written * math.prod(self._stored[node.input[weights]][0][1:])
        left = self._shapes[1].get(node.input[0]) if node.op_type in _PRODUCTS else None
        if left:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            return written * int(left[0 if transposed else -1])
        return max(self.elements(name) for name in (*node.input, *node.output))

    def peak_bytes(self, nodes: Sequence[onnx.NodeProto]) -> int:
        """Bytes an image that live tensors take at most while nodes run in order."""
        reads = [node_reads(node) - self._stored.keys() for node in nodes]
        last_reads = {name: number for number, names in enumerate(reads) for name in names}
        live: set[str] = set()
        most = 0
        for number, node in enumerate(nodes):
            live |= reads[number] | set(node.output)
            most = max(most, sum(self.bytes(name) for name in live))
            live = {name for name in live if last_reads.get(name, -1) > number}
        return most
