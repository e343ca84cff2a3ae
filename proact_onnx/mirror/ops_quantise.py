"""Rules for the quantisers between floating point and codes."""

from onnx import TensorProto
from torch import Tensor

from proact_onnx.mirror.codes import align, centre, encode, wide
from proact_onnx.mirror.rule import MICROSOFT, Node, Operation, RuleTable
from proact_onnx.mirror.tensors import CODES, DTYPES

RULES = RuleTable()


@RULES.rule("QuantizeLinear", 1, MICROSOFT)
@RULES.rule("QuantizeLinear", 10)
def quantize_linear(node: Node) -> Operation:
    """Compile QuantizeLinear: one scale, one along an axis, or one a block."""
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    written = node.integer("output_dtype", 0) or TensorProto.UINT8
    if written not in CODES:
        raise node.unsupported(f"to element type {written}")
    precision = node.integer("precision", 0)
    if precision not in (0, TensorProto.FLOAT):
        raise node.unsupported(f"with precision {precision}")

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        dtype = wide(x, scale)
        scaled = x.to(dtype) / align(scale.to(dtype), x, axis, block)
        if zero_point is None:
            return encode(scaled, None, CODES[written])
        return encode(scaled, align(zero_point, x, axis, block), zero_point.dtype)

    return run


@RULES.rule("DequantizeLinear", 1, MICROSOFT)
@RULES.rule("DequantizeLinear", 10)
def dequantize_linear(node: Node) -> Operation:
    """Compile DequantizeLinear: one scale, one along an axis, or one a block."""
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    written = node.integer("output_dtype", 0)
    if written and written not in DTYPES:
        raise node.unsupported(f"to element type {written}")

    def run(codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        if zero_point is not None:
            zero_point = align(zero_point, codes, axis, block)
        steps = centre(codes, zero_point)
        values = steps * align(scale, codes, axis, block).to(wide(steps, scale))
        return values.to(DTYPES[written] if written else scale.dtype)

    return run
