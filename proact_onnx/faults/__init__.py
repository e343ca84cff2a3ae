"""What can go wrong in memory: number formats, the fault space, and fault models to draw from."""

from proact_onnx.faults.formats import (
    AsStored,
    AutoScale,
    FixedPoint,
    FloatingPoint,
    Integer,
    MemoryFormat,
    NumberFormat,
    parse_format,
)
from proact_onnx.faults.listing import list_space, read_space, spell_bits, spell_storage
from proact_onnx.faults.models import (
    Along,
    Count,
    FaultModel,
    Rate,
    Shape,
    Single,
    parse_fault_model,
)
from proact_onnx.faults.quantisers import Role, quantiser_role
from proact_onnx.faults.sampling import Effect, FaultMap, stream
from proact_onnx.faults.space import (
    FaultSpace,
    Kind,
    Parameter,
    added_count,
    fault_space,
    parameter_count,
)

__all__ = [
    "Along",
    "AsStored",
    "AutoScale",
    "Count",
    "Effect",
    "FaultMap",
    "FaultModel",
    "FaultSpace",
    "FixedPoint",
    "FloatingPoint",
    "Integer",
    "Kind",
    "MemoryFormat",
    "NumberFormat",
    "Parameter",
    "Rate",
    "Role",
    "Shape",
    "Single",
    "added_count",
    "fault_space",
    "list_space",
    "parameter_count",
    "parse_fault_model",
    "parse_format",
    "quantiser_role",
    "read_space",
    "spell_bits",
    "spell_storage",
    "stream",
]
