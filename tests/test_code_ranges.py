"""Thresholds in front of quantised codes: lowered to where they act, or left out."""

import numpy as np
import onnx
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.code_ranges import CodeRange, act_on_codes, code_ranges
from proact_onnx.thresholds import Thresholds
from tests.numerics import parse


def network(zero_point: str = "z") -> onnx.ModelProto:
    return parse(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3] x) => (float[N, 3] y) {{
            q = QuantizeLinear (x, s, {zero_point})
            d = DequantizeLinear (q, s, {zero_point})
            r = Relu (d)
            m = Mul (r, r)
            t = Relu (m)
            w = DequantizeLinear (w8, s)
            u = Relu (w)
            y = Add (t, u)
        }}""",
        s=np.float32(0.5),
        z=np.int8(-128),
        p=np.uint8(28),
        w8=np.ones(3, np.uint8),
    )


@pytest.mark.parametrize(("zero_point", "top"), [("z", 255), ("p", 227), ("", 255)])
def test_the_top_code_bounds_what_it_is_decoded_to(zero_point: str, top: int) -> None:
    model = network(zero_point)
    found = code_ranges(model, find_activations(model))
    assert found == {"r": CodeRange(highest=top * 0.5, step=0.5)}


def thresholds(*values: float) -> Thresholds:
    shaped = np.array(values, np.float32).reshape(1, -1) if len(values) > 1 else values[0]
    return Thresholds({"r": np.asarray(shaped, np.float32), "t": np.asarray(np.float32(1e9))})


RANGES = {"r": CodeRange(127.5, 0.5)}


def test_a_threshold_that_no_code_exceeds_catches_the_top_code() -> None:
    coded = act_on_codes(thresholds(3.25, 127.5, 900, 127.25), RANGES, zero_top_code=True)
    np.testing.assert_array_equal(
        coded.thresholds.values["r"], np.float32([[3.25, 127.25, 127.25, 127.25]])
    )
    assert coded.lowered == 2
    assert coded.thresholds.values["t"] == 1e9
    codes = np.arange(256) * np.float32(0.5)
    np.testing.assert_array_equal(np.flatnonzero(codes > RANGES["r"].below_top), [255])


def test_bounds_that_clamp_leave_it_to_the_quantiser() -> None:
    coded = act_on_codes(thresholds(128.0), RANGES, zero_top_code=False)
    assert (set(coded.thresholds.values), coded.lowered, coded.bounded) == ({"t"}, 0, ("r",))
    some = act_on_codes(thresholds(3.25, 128), RANGES, zero_top_code=False)
    np.testing.assert_array_equal(some.thresholds.values["r"], np.float32([[3.25, 128]]))
    assert some.bounded == ()
