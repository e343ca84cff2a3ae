"""Tensors in the memory of the device that sessions run on, and changing them there.

What is copied from the host is what changes: indices and values. Two small sessions do the work on
the device, a scatter whose output is bound to the memory of its input, and a gather.
"""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from proact_onnx.engine.layout import LayoutError
from proact_onnx.engine.session import Array, Indices, Provider, create_session, session_options

# The oldest that knows everything needed here, so that every runtime takes the models.
_OPSET = 13
_IR_VERSION = 7
# Where providers want their inputs, if not in the memory of the CPU.
_DEVICES = {Provider.CUDA: "cuda", Provider.TENSORRT: "cuda"}
# Bytes of a cache line: vectors that lie in two of them load slowly, or not at all on some devices.
_ALIGNMENT = 64


def aligned_copy(values: Array) -> Array:
    """Copy an array to where a cache line begins."""
    room = np.empty(values.nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    copy: Array = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


class DeviceMemory:
    """Memory of the device that a provider runs on.

    Args:
        provider: A provider that works here.
    """

    def __init__(self, provider: Provider) -> None:
        self.device = _DEVICES.get(provider, "cpu")
        self._mover = Provider.CPU if self.device == "cpu" else Provider.CUDA
        self._scatters: dict[int, ort.InferenceSession] = {}
        self._gathers: dict[int, ort.InferenceSession] = {}

    def place(self, values: Array) -> ort.OrtValue:
        """Put an array on the device; on the CPU it is not copied."""
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(values, order="C"), self.device, 0)

    def check_overwriting(self, dtype: np.dtype[np.generic]) -> None:
        """Find out whether elements of a type can be overwritten on the device.

        That an output may lie in the memory of an input is not promised for every provider.

        Raises:
            LayoutError: If they cannot.
        """
        values = np.arange(4).astype(dtype)
        tensor = self.place(values[:3].copy())
        self.overwrite(tensor, np.array([1]), values[3:])
        if tensor.numpy().tobytes() != values[[0, 3, 2]].tobytes():
            raise LayoutError(f"{dtype} cannot be overwritten in the memory of the {self.device}")

    def overwrite(self, tensor: ort.OrtValue, elements: Indices, values: Array) -> None:
        """Change elements of a tensor where it lies.

        Args:
            tensor: A tensor on the device.
            elements: Flat indices, ``[K]``, each at most once.
            values: What to put there, ``[K]``, of the tensor's type.
        """
        if not len(elements):
            return
        kind = tensor.element_type()
        if kind not in self._scatters:
            self._scatters[kind] = self._open(
                "ScatterElements",
                {"data": kind, "elements": onnx.TensorProto.INT64, "values": kind},
                {"changed": kind},
            )
        indices = np.ascontiguousarray(elements, np.int64)
        updates = np.ascontiguousarray(values, helper.tensor_dtype_to_np_dtype(kind))
        binding = self._scatters[kind].io_binding()
        flat = (self.device, 0, kind, [int(np.prod(tensor.shape()))], tensor.data_ptr())
        binding.bind_input("data", *flat)
        binding.bind_cpu_input("elements", indices)
        binding.bind_cpu_input("values", updates)
        binding.bind_output("changed", *flat)
        self._scatters[kind].run_with_iobinding(binding)

    def bind_rows(
        self, binding: ort.IOBinding, name: str, tensor: ort.OrtValue, rows: Indices
    ) -> ort.OrtValue:
        """Make rows of a tensor an input of a session.

        Rows that follow each other are read where they lie; others are gathered on the device.

        Args:
            binding: Binding of the session.
            name: Name of its input.
            tensor: A tensor on the device, ``[N, ...]``.
            rows: Indices of rows, ``[K]``.

        Returns:
            The tensor that holds the rows; it must live as long as the session reads them.
        """
        kind, (_, *extents) = tensor.element_type(), tensor.shape()
        row_bytes = int(np.prod(extents)) * helper.tensor_dtype_to_np_dtype(kind).itemsize
        offset = int(rows[0]) * row_bytes
        if offset % _ALIGNMENT == 0 and (np.diff(rows) == 1).all():
            binding.bind_input(
                name, self.device, 0, kind, [len(rows), *extents], tensor.data_ptr() + offset
            )
            return tensor
        if kind not in self._gathers:
            self._gathers[kind] = self._open(
                "Gather", {"data": kind, "rows": onnx.TensorProto.INT64}, {"taken": kind}
            )
        indices = np.ascontiguousarray(rows, np.int64)
        gathering = self._gathers[kind].io_binding()
        gathering.bind_ortvalue_input("data", tensor)
        gathering.bind_cpu_input("rows", indices)
        gathering.bind_output("taken", self.device, 0)
        self._gathers[kind].run_with_iobinding(gathering)
        [taken] = gathering.get_outputs()
        binding.bind_ortvalue_input(name, taken)
        return taken

    def _open(
        self, operator: str, inputs: Mapping[str, int], outputs: Mapping[str, int]
    ) -> ort.InferenceSession:
        """Open a session of one operator on tensors of any shape."""
        node = helper.make_node(operator, list(inputs), list(outputs))
        read, written = (
            [helper.make_tensor_value_info(name, kind, None) for name, kind in tensors.items()]
            for tensors in (inputs, outputs)
        )
        model = helper.make_model(
            helper.make_graph([node], operator, read, written),
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )
        return create_session(model, self._mover, session_options(1))
