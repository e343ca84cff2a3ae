"""The Relu that quantisation folded away: found where it was, and nothing changes."""

import numpy as np
import onnx
import pytest

from passes import ExpandPools, RestoreRectifiers, run_passes
from tests.numerics import Array, operators, parse, run

RNG = np.random.default_rng(0)
WEIGHTS: dict[str, Array] = {
    "xs": np.float32(0.02),
    "xz": np.uint8(110),
    "w": RNG.integers(-127, 128, (4, 3, 3, 3), np.int8),
    "ws": np.float32(0.01),
    "wz": np.int8(0),
    "ys": np.float32(0.013),
    "low": np.uint8(0),
    "lowest": np.int8(-128),
    "above": np.uint8(1),
}
QOPERATOR = """
    q = QuantizeLinear(x, xs, xz)
    c = QLinearConv(q, xs, xz, w, ws, wz, ys, {zero})
    y = DequantizeLinear(c, ys, {zero})
    z = Neg(y)
"""
QDQ = """
    q = QuantizeLinear(x, xs, xz)
    d = DequantizeLinear(q, xs, xz)
    f = DequantizeLinear(w, ws, wz)
    [conv] s = Conv(d, f)
    c = QuantizeLinear(s, ys, {zero})
    y = DequantizeLinear(c, ys, {zero})
    z = Neg(y)
"""


def net(body: str, zero: str) -> onnx.ModelProto:
    return parse(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] z) {{ {body.format(zero=zero)} }}""",
        **WEIGHTS,
    )


@pytest.mark.parametrize(
    ("body", "zero", "name"),
    [(QOPERATOR, "low", "c/rectifier"), (QDQ, "low", "conv/rectifier")],
)
@pytest.mark.parametrize("optimise", [False, True])
def test_a_range_from_zero_on_was_a_relu(body: str, zero: str, name: str, optimise: bool) -> None:
    model = net(body, zero)
    restored, changes = run_passes(model, [RestoreRectifiers()])
    assert changes == {"restore-rectifiers": 1}
    onnx.checker.check_model(restored, full_check=True)
    relus = [node for node in restored.graph.node if node.op_type == "Relu"]
    assert [(node.name, list(node.output)) for node in relus] == [(name, ["c/rectifier"])]
    images = RNG.standard_normal((3, 3, 6, 6)).astype(np.float32)
    [before] = run(model, {"x": images}, optimise)
    assert len(np.unique(before)) > 30 and before.max() <= 0
    np.testing.assert_array_equal(run(restored, {"x": images}, optimise)[0], before)


def test_a_bound_behind_it_acts_on_codes() -> None:
    """What exceeds the bound is zero in the next layer's codes, and the rest is as it was."""
    restored, _ = run_passes(net(QDQ, "low"), [RestoreRectifiers()])
    node = next(node for node in restored.graph.node if node.op_type == "Relu")
    node.output[0] = "raw"
    bound = onnx.helper.make_node("Clip", ["raw", "", "limit"], ["c/rectifier"])
    position = list(restored.graph.node).index(node) + 1
    restored.graph.node.insert(position, bound)
    limit = np.float32(100 * 0.013)
    restored.graph.initializer.append(onnx.numpy_helper.from_array(limit, "limit"))
    images = RNG.standard_normal((3, 3, 6, 6)).astype(np.float32)
    [free] = run(net(QDQ, "low"), {"x": images})
    assert (-free > 1.3).any()
    np.testing.assert_allclose(run(restored, {"x": images})[0], np.maximum(free, -limit), rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "zero"),
    [
        (QOPERATOR, "above"),
        (QDQ, "above"),
        (
            QDQ.replace("Conv(d, f)", "Conv(d, f)")
            .replace("c = Quant", "r = Relu(s) c = Quant")
            .replace("Linear(s, ys", "Linear(r, ys"),
            "low",
        ),
        (QDQ.replace("z = Neg(y)", "z = Identity(x)"), "above"),
    ],
    ids=["codes below zero", "values below zero", "a Relu that stands", "no reader"],
)
def test_other_codes_stay(body: str, zero: str) -> None:
    model = net(body, zero)
    assert run_passes(model, [RestoreRectifiers()])[1] == {"restore-rectifiers": 0}


@pytest.mark.parametrize("body", [QOPERATOR, QDQ])
def test_scores_are_no_activation(body: str) -> None:
    model = net(body.replace("z = Neg(y)", "").replace("y = Dequant", "z = Dequant"), "low")
    assert run_passes(model, [RestoreRectifiers()])[1] == {"restore-rectifiers": 0}


@pytest.mark.parametrize(
    ("pool", "operator"),
    [
        ("QLinearAveragePool <kernel_shape = [2, 2], strides = [2, 2]>", "AveragePool"),
        ("QLinearGlobalAveragePool", "GlobalAveragePool"),
    ],
)
def test_pools_of_codes_are_expanded(pool: str, operator: str) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        net (uint8[N, 3, 4, 4] x) => (uint8[N, 3, H, W] y) {{
            y = com.microsoft.{pool} (x, xs, xz, ys, low)
        }}""",
        **{name: WEIGHTS[name] for name in ("xs", "xz", "ys", "low")},
    )
    expanded, changes = run_passes(model, [ExpandPools()])
    assert changes == {"expand-pools": 1}
    assert operators(expanded) == ["DequantizeLinear", operator, "QuantizeLinear"]
    images = RNG.integers(0, 256, (5, 3, 4, 4), np.uint8)
    [before], [after] = run(model, {"x": images}), run(expanded, {"x": images})
    # A mean half way between two codes may be rounded either way.
    assert np.abs(before.astype(int) - after).max() <= 1
    assert len(np.unique(after)) > 5


def test_pools_of_another_layout_stay() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        net (uint8[N, 4, 4, 3] x) => (uint8[N, H, W, 3] y) {
            y = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (x, xs, xz, ys, low)
        }""",
        **{name: WEIGHTS[name] for name in ("xs", "xz", "ys", "low")},
    )
    assert run_passes(model, [ExpandPools()])[1] == {"expand-pools": 0}
