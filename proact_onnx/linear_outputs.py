"""Outputs of linear layers that no activation function bounds: residual sums, attention, logits."""

from collections import defaultdict
from collections.abc import Collection

import onnx

from proact_onnx.messages import node_reads
from proact_onnx.model import HYRELU, RESCALE

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Operators that hand values on, or move each by constants.
_HANDS_ON = frozenset(
    {
        "BatchNormalization",
        "Cast",
        "Concat",
        "DepthToSpace",
        "Dropout",
        "Flatten",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
        "Upsample",
    }
)
_BY_CONSTANTS = frozenset({"Add", "Sub", "Mul", "Div"})


def linear_outputs(model: onnx.ModelProto, bounding: Collection[int]) -> list[tuple[int, str]]:
    """List what Conv, Gemm and MatMul give where no activation function bounds it.

    What a constant is added to behind a layer without a bias, and BatchNormalization that could
    not be folded, belong to the layer. A layer is left out where all ways from it lead into
    functions that bound it: the values are bounded there.

    Args:
        model: The model; nodes in topological order.
        bounding: Positions of the nodes that belong to such functions, QuantizeLinear aside, which
            bounds by its nature.

    Returns:
        Position of the layer's node, and the tensor to bound, in topological order.
    """
    return _Search(model, bounding).run()


class _Search:
    def __init__(self, model: onnx.ModelProto, bounding: Collection[int]) -> None:
        graph = model.graph
        self._nodes = list(graph.node)
        self._bounding = bounding
        self._outputs = {info.name for info in graph.output}
        self._readers: dict[str, list[int]] = defaultdict(list)
        self._constant = {tensor.name for tensor in graph.initializer}
        for position, node in enumerate(self._nodes):
            reads = node_reads(node)
            for name in reads:
                self._readers[name].append(position)
            # Also what is computed from constants alone, as from weights that are reshaped.
            if reads and reads <= self._constant:
                self._constant.update(node.output)
        self._known: dict[str, bool] = {}

    def run(self) -> list[tuple[int, str]]:
        found = []
        # From the end, so that where a tensor leads is known when its layer asks.
        for position in reversed(range(len(self._nodes))):
            node = self._nodes[position]
            for name in node.output:
                self._known[name] = self._leads_into_bounds(name)
            if node.op_type not in LINEAR or node.domain not in ("", "ai.onnx"):
                continue
            output = self._end_of_layer(node.output[0])
            bounded = HYRELU in output or output in self._constant
            if not bounded and not self._known[node.output[0]]:
                found.append((position, output))
        return found[::-1]

    def _end_of_layer(self, name: str) -> str:
        """Follow a layer's output through its bias and its normalisation."""
        while name not in self._outputs and len(self._readers[name]) == 1:
            node = self._nodes[self._readers[name][0]]
            # Rescaling divides and adds the bias in nodes of its own.
            is_affine = (
                RESCALE in name
                or node.op_type == "BatchNormalization"
                or (node.op_type == "Add" and self._others_are_constant(node, name))
            )
            if not is_affine or node.domain not in ("", "ai.onnx"):
                break
            name = node.output[0]
        return name

    def _leads_into_bounds(self, name: str) -> bool:
        readers = self._readers[name]
        if name in self._outputs or not readers:
            return False
        return all(self._is_bounded_by(self._nodes[p], p, name) for p in readers)

    def _is_bounded_by(self, node: onnx.NodeProto, position: int, name: str) -> bool:
        if position in self._bounding or node.op_type == "QuantizeLinear":
            return True
        if node.domain not in ("", "ai.onnx") or name not in node.input:
            return False
        hands_on = node.op_type in _HANDS_ON or (
            node.op_type in _BY_CONSTANTS and self._others_are_constant(node, name)
        )
        # An output that nothing reads leads nowhere.
        used = [o for o in node.output if o in self._outputs or self._readers[o]]
        return hands_on and bool(used) and all(self._known[output] for output in used)

    def _others_are_constant(self, node: onnx.NodeProto, name: str) -> bool:
        others = [other for other in node.input if other != name]
        return len(others) == len(node.input) - 1 and set(others) <= self._constant
