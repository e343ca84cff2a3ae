"""Batch normalisations as depthwise convolutions: the same numbers, followed element by element."""

import numpy as np
import onnx
import pytest

from proact_onnx.engine.normalise import normalisations_to_convolutions
from tests.numerics import operators, parse, random_feed, run, run_reference

CHANNELS = 6


def network(
    x: str = f"N, {CHANNELS}, 5, 4",
    node: str = "BatchNormalization (x, scale, bias, mean, var)",
    outputs: str = "y",
    more: str = "",
    dtype: type = np.float32,
) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    scale, bias, mean, var = rng.standard_normal((4, CHANNELS)).astype(dtype)
    kind = {np.float32: "float", np.float64: "double"}[dtype]
    return parse(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net ({kind}[{x}] x) => ({kind}[{x}] y) {{ {outputs} = {node} {more} }}""",
        scale=scale,
        bias=bias,
        mean=mean,
        var=np.abs(var),
    )


@pytest.mark.parametrize(
    "x", [f"N, {CHANNELS}, 5, 4", f"N, {CHANNELS}, 7", f"2, {CHANNELS}, 3, 2, 2"]
)
@pytest.mark.parametrize("epsilon", ["", "<epsilon = 0.1>"])
def test_normalisations_become_convolutions_that_compute_the_same(x: str, epsilon: str) -> None:
    model = network(x, f"BatchNormalization {epsilon} (x, scale, bias, mean, var)")
    before = model.SerializeToString()
    rewritten, [found] = normalisations_to_convolutions(model)
    assert model.SerializeToString() == before
    assert operators(rewritten) == ["Conv"]
    assert found.vectors == ("scale", "bias", "mean", "var")
    onnx.checker.check_model(rewritten, full_check=True)
    feed = random_feed(model)
    [expected] = run_reference(model, feed)
    [ours] = run(rewritten, feed)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "model",
    [
        network(f"N, {CHANNELS}"),
        network(dtype=np.float64),
        network(more="unread = Relu (scale)"),
        network(
            node="BatchNormalization <training_mode = 1> (x, scale, bias, mean, var)",
            outputs="y, running_mean, running_var",
        ),
    ],
    ids=["two axes", "float64", "vector read elsewhere", "training"],
)
def test_others_are_left_alone(model: onnx.ModelProto) -> None:
    rewritten, found = normalisations_to_convolutions(model)
    assert rewritten == model
    assert found == []


def test_what_follows_from_an_element_is_what_the_formula_says() -> None:
    _, [found] = normalisations_to_convolutions(network())
    stored = {
        "scale": np.array([2, np.inf, 1], np.float32),
        "bias": np.array([1, 0, 1], np.float32),
        "mean": np.array([3, 1, 1], np.float32),
        "var": np.array([4, 1, -1], np.float32),
    }
    factor, shift = found.derive(stored, np.array([2, 0, 1]))
    np.testing.assert_allclose(factor, [np.nan, 1, np.inf], rtol=1e-5)
    np.testing.assert_allclose(shift, [np.nan, -2, -np.inf], rtol=1e-5)
