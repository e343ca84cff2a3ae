"""Tensors changed where they lie, and rows of them as inputs, against numpy."""

import numpy as np
import pytest

from proact_onnx.engine import Provider
from proact_onnx.engine.layout import LayoutError
from proact_onnx.engine.memory import DeviceMemory, aligned_copy
from proact_onnx.engine.session import create_session
from tests.numerics import parse

TYPES = [np.float32, np.float16, np.float64, np.int8, np.uint8, np.int16, np.int32]


def numbers(dtype: type, *shape: int) -> np.ndarray:
    return (
        np.random.default_rng(0)
        .integers(0, 256, (*shape, np.dtype(dtype).itemsize))
        .astype(np.uint8)
        .view(dtype)[..., 0]
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_exactly_the_elements_named_are_overwritten_in_the_memory_of_the_tensor(
    dtype: type,
) -> None:
    memory = DeviceMemory(Provider.CPU)
    tensor = memory.place(numbers(dtype, 6, 5, 40))
    place, expected = tensor.data_ptr(), tensor.numpy().copy()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        elements = rng.choice(expected.size, 50, replace=False)
        values = numbers(dtype, 50)[rng.permutation(50)]
        memory.overwrite(tensor, elements, values)
        expected.reshape(-1)[elements] = values
        assert tensor.numpy().tobytes() == expected.tobytes()
    assert tensor.data_ptr() == place


def test_no_elements_change_nothing() -> None:
    memory = DeviceMemory(Provider.CPU)
    tensor = memory.place(np.ones(3, np.float32))
    memory.overwrite(tensor, np.array([], np.int64), np.array([], np.float32))
    assert tensor.numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_cpu_overwrites_elements_of_every_type(dtype: type) -> None:
    DeviceMemory(Provider.CPU).check_overwriting(np.dtype(dtype))


def test_a_device_that_writes_into_a_copy_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceMemory, "overwrite", lambda *arguments: None)
    with pytest.raises(
        LayoutError, match=r"^float32 cannot be overwritten in the memory of the cpu$"
    ):
        DeviceMemory(Provider.CPU).check_overwriting(np.dtype(np.float32))


IDENTITY = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 4, 16] x) => (float[N, 4, 16] y) { y = Identity (x) }"""


@pytest.mark.parametrize(
    "rows", [[0, 1, 2], [3, 4, 5, 6], [9], [0, 2, 3], [5, 4, 3], [7, 7, 7], [8, 9, 9]]
)
@pytest.mark.parametrize("width", [16, 3])
def test_rows_of_a_tensor_feed_a_session(rows: list[int], width: int) -> None:
    session = create_session(parse(IDENTITY.replace("16", str(width))), Provider.CPU)
    memory = DeviceMemory(Provider.CPU)
    stored = numbers(np.int8, 10, 4, width).astype(np.float32)
    tensor = memory.place(stored)
    binding = session.io_binding()
    binding.bind_output("y")
    held = memory.bind_rows(binding, "x", tensor, np.array(rows))
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], stored[rows])
    in_place = rows in ([0, 1, 2], [3, 4, 5, 6], [9])
    aligned = width == 16 or rows[0] == 0
    assert (held is tensor) == (in_place and aligned)


@pytest.mark.parametrize("shape", [(3, 5), (0,), (), (1000,)])
@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.bool_])
def test_aligned_copies_begin_at_a_cache_line(shape: tuple[int, ...], dtype: type) -> None:
    values = np.ones(shape, dtype)
    copy = aligned_copy(values)
    assert copy.ctypes.data % 64 == 0 or not copy.size
    assert copy.dtype == values.dtype
    np.testing.assert_array_equal(copy, values)
    copy[...] = 0
    assert values.all()
