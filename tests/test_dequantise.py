"""Dequantised weights as constants: every source of a weight changes it, as the file says."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.engine import dequantise
from proact_onnx.engine.dequantise import dequantisations_to_constants
from proact_onnx.engine.inplace import InPlaceEngine
from tests.numerics import parse, run

RNG = np.random.default_rng(0)
SOURCES = ["w8", "ws", "wz", "b32", "bs", "d8", "ds", "dz", "xs"]


def network(dense_scale: np.ndarray, dense_axis: int) -> onnx.ModelProto:
    """A convolution with a scale a channel, and a dense layer; ``xs`` also scales the input."""
    integers = {
        "w8": RNG.integers(-127, 128, (6, 3, 3, 3), np.int8),
        "d8": RNG.integers(0, 256, (24, 5), np.uint8),
    }
    shape = dense_scale.shape
    return parse(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 4, 4] x) => (float[N, 5] y) {{
            xq = QuantizeLinear (x, xs, xz)
            xd = DequantizeLinear (xq, xs, xz)
            w = DequantizeLinear <axis = 0> (w8, ws, wz)
            b = DequantizeLinear <axis = 0> (b32, bs)
            c = Conv (xd, w, b)
            f = Flatten (c)
            r = Relu (f)
            d = DequantizeLinear <axis = {dense_axis}> (d8, ds, dz)
            e = DequantizeLinear <axis = 0> (e32, xs)
            m = Gemm (r, d)
            y = Add (m, e)
        }}""",
        **integers,
        ws=RNG.uniform(0.01, 0.02, 6).astype(np.float32),
        wz=RNG.integers(-3, 4, 6).astype(np.int8),
        b32=RNG.integers(-(2**28), 2**28, 6).astype(np.int32),
        bs=RNG.uniform(1e-9, 2e-9, 6).astype(np.float32),
        ds=dense_scale,
        dz=np.full(shape, 128, np.uint8),
        e32=RNG.integers(-9, 9, 5).astype(np.int32),
        xs=np.float32(0.05),
        xz=np.int8(3),
    )


@pytest.mark.parametrize(
    ("scale", "axis"),
    [
        (np.float32(0.01), 0),
        (np.linspace(0.01, 0.02, 24, dtype=np.float32), 0),
        (np.linspace(0.01, 0.02, 5, dtype=np.float32), -1),
    ],
    ids=["tensor", "rows", "columns"],
)
def test_every_source_of_a_weight_changes_it_in_place(scale: np.ndarray, axis: int) -> None:
    model = network(np.asarray(scale), axis)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    images = RNG.standard_normal((4, 3, 4, 4)).astype(np.float32)
    engine = InPlaceEngine(model, SOURCES, threads=1)
    before = engine.run(images)
    np.testing.assert_allclose(before, run(model, {"x": images})[0], rtol=1e-4, atol=1e-4)
    for name in SOURCES:
        values = stored[name].reshape(-1).copy()
        elements = np.arange(values.size)[::2]
        if values.dtype == np.float32:
            values[elements] *= np.float32(3)
        else:
            values[elements] ^= values.dtype.type(1 << (27 if name == "b32" else 4))
        engine.write(name, elements, values[elements])
        faulty = onnx.ModelProto()
        faulty.CopyFrom(model)
        tensor = next(t for t in faulty.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(values.reshape(stored[name].shape), name))
        expected = run(faulty, {"x": images})[0]
        assert not np.allclose(expected, before, rtol=1e-4, atol=1e-4), name
        np.testing.assert_allclose(engine.run(images), expected, rtol=1e-4, atol=1e-4)
        engine.write(name, elements, stored[name].reshape(-1)[elements])
        np.testing.assert_array_equal(engine.run(images), before)


def test_weights_are_those_of_the_standard() -> None:
    model = network(np.full(5, 0.5, np.float32), 1)
    rewritten, found = dequantisations_to_constants(model)
    stored = {t.name: numpy_helper.to_array(t) for t in rewritten.graph.initializer}
    assert {known.result for known in found} == {"w", "b", "d", "e"}
    points = stored["wz"].astype(int).reshape(6, 1, 1, 1)
    scales = stored["ws"].reshape(6, 1, 1, 1)
    np.testing.assert_array_equal(
        stored["w"], (stored["w8"].astype(int) - points).astype(np.float32) * scales
    )
    np.testing.assert_array_equal(stored["d"], (stored["d8"].astype(np.float32) - 128) / 2)
    assert [node.op_type for node in rewritten.graph.node].count("DequantizeLinear") == 1


def test_networks_too_large_for_a_copy_are_dequantised_in_every_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network(np.asarray(np.float32(0.01)), 0)
    monkeypatch.setattr(dequantise, "_MOST_WEIGHTS", 100)
    assert dequantisations_to_constants(model) == (model, [])
    images = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
    engine = InPlaceEngine(model, SOURCES, threads=1)
    np.testing.assert_allclose(engine.run(images), run(model, {"x": images})[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("y = DequantizeLinear <axis = 0> (q, s, z)", "a graph output"),
        ("w = DequantizeLinear <axis = 0, block_size = 2> (q, t, u) y = Mul (w, x)", "blocks"),
        ("c = Relu (s) w = DequantizeLinear <axis = 0> (q, c) y = Mul (w, x)", "a computed scale"),
    ],
)
def test_what_follows_from_no_stored_scale_a_channel_stays(node: str, reason: str) -> None:
    model = parse(
        f"""<ir_version: 10, opset_import: ["": 21]>
        net (float[4, 2] x) => (float[4, 2] y) {{ {node} }}""",
        q=np.ones((4, 2), np.int8),
        s=np.ones(4, np.float32),
        z=np.zeros(4, np.int8),
        t=np.ones((2, 2), np.float32),
        u=np.zeros((2, 2), np.int8),
    )
    assert dequantisations_to_constants(model) == (model, []), reason
