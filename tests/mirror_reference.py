"""ONNX Runtime as the reference that the mirror has to agree with."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import torch

from proact_onnx.mirror import Mirror

NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}

Arrays = Mapping[str, np.ndarray]


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def random_feeds(
    session: onnxruntime.InferenceSession, *, images: bool = False, batch: int = 2, side: int = 64
) -> dict[str, np.ndarray]:
    """Random inputs, of either sign or (``images``) from 0 to 1.

    An open first axis gets the extent ``batch``, any other open axis ``side``.
    """
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        shape = [
            extent if isinstance(extent, int) else (batch if axis == 0 else side)
            for axis, extent in enumerate(value.shape)
        ]
        numbers = rng.random(shape) if images else 2 * rng.standard_normal(shape)
        feeds[value.name] = np.asarray(numbers).astype(NUMPY_TYPES[value.type])
    return feeds


def assert_agrees(model: onnx.ModelProto, feeds: Arrays, share: float = 1e-4) -> None:
    """Mirror and ONNX Runtime give the same outputs: types, shapes and values.

    Values may differ by ``share`` of the output's largest magnitude, or where that is below 0.01
    by that of 0.01: near zero ONNX Runtime's own Sigmoid is off by up to 1e-7.
    """
    session = open_session(model)
    expected = session.run(None, dict(feeds))
    mirror = Mirror(model)
    with torch.no_grad():
        results = mirror(*[torch.from_numpy(feeds[name]) for name in mirror.inputs])
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == len(expected)
    for name, result, reference in zip(mirror.outputs, results, expected, strict=True):
        actual = result.numpy()
        assert actual.dtype == reference.dtype, name
        assert actual.shape == reference.shape, name
        if reference.dtype.kind != "f":
            np.testing.assert_array_equal(actual, reference, err_msg=name)
        elif reference.size:
            finite = np.abs(reference[np.isfinite(reference)], dtype=np.float64)
            allowed = share * max(finite.max(initial=0), 1e-2)
            np.testing.assert_allclose(actual, reference, rtol=0, atol=allowed, err_msg=name)
