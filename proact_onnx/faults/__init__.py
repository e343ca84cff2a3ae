"""What can go wrong in memory: number formats, the fault space, and the faults drawn from it."""

from proact_onnx.faults.formats import FixedPoint, FloatingPoint, NumberFormat, parse_format
from proact_onnx.faults.sampling import FaultMap, draw_faults
from proact_onnx.faults.space import (
    FaultSpace,
    Kind,
    Parameter,
    fault_space,
    parameter_count,
    quantised_count,
)

__all__ = [
    "FaultMap",
    "FaultSpace",
    "FixedPoint",
    "FloatingPoint",
    "Kind",
    "NumberFormat",
    "Parameter",
    "draw_faults",
    "fault_space",
    "parameter_count",
    "parse_format",
    "quantised_count",
]
