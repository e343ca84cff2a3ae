"""ONNX tensors and element types as PyTorch ones."""

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from proact_onnx.errors import ModelError

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
}

# Element types of codes that quantisers write; PyTorch has none of 4 or 2 bits.
CODES: dict[int, torch.dtype] = {
    element: DTYPES[element]
    for element in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16)
}


def to_tensor(proto: TensorProto) -> Tensor:
    """Copy an ONNX tensor, shape and element type kept, to the CPU.

    Raises:
        ModelError: Its data lies in an external file, or PyTorch has no such element type.
    """
    if proto.data_location == TensorProto.EXTERNAL:
        raise ModelError(
            f"tensor '{proto.name}' is still in an external data file: "
            "load the model together with its external data"
        )
    if proto.data_type not in DTYPES:
        raise ModelError(
            f"tensor '{proto.name}' has element type {TensorProto.DataType.Name(proto.data_type)}, "
            "which PyTorch cannot train through: use a training-free method such as ranger"
        )
    array = numpy_helper.to_array(proto)
    if proto.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())
