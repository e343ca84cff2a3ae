"""Dense layers as pointwise convolutions: the same numbers, and only where that is known."""

import numpy as np
import onnx
import pytest

from proact_onnx.engine.dense import dense_to_pointwise
from tests.numerics import operators, parse, run, run_reference

FEATURES, OUTPUTS = 512, 128
POINTWISE = ["Reshape", "Transpose", "Conv", "Transpose", "Reshape"]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return (values / np.sqrt(shape[0])).astype(np.float32)


def network(layer: str, x: str = f"N, {FEATURES}", **weights: np.ndarray) -> onnx.ModelProto:
    return parse(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[{x}] x) => (float[{x.rpartition(",")[0]}, M] y) {{ {layer} }}""",
        **weights,
    )


GEMM = network("y = Gemm (x, w, b)", w=draw(FEATURES, OUTPUTS), b=draw(OUTPUTS))
REWRITTEN = {
    "Gemm": GEMM,
    "transB": network(
        "y = Gemm <transB = 1> (x, w, b)", w=draw(OUTPUTS, FEATURES), b=draw(OUTPUTS)
    ),
    "no bias": network("y = Gemm (x, w)", w=draw(FEATURES, OUTPUTS)),
    "MatMul": network("y = MatMul (x, w)", w=draw(FEATURES, OUTPUTS)),
    "sequence": network("y = MatMul (x, w)", x=f"N, 3, {FEATURES}", w=draw(FEATURES, OUTPUTS)),
    "fixed batch": network("y = MatMul (x, w)", x=f"5, 2, {FEATURES}", w=draw(FEATURES, OUTPUTS)),
}
LEFT = {
    "few weights": network("y = Gemm (x, w)", x="N, 32", w=draw(32, 128)),
    "few outputs": network("y = Gemm (x, w)", x="N, 8192", w=draw(8192, 10)),
    "factor": network("y = Gemm <alpha = 0.5> (x, w)", w=draw(FEATURES, OUTPUTS)),
    "bias of one": network("y = Gemm (x, w, b)", w=draw(FEATURES, OUTPUTS), b=draw(1)),
    "transA": network(
        "t = Transpose <perm = [1, 0]> (x) y = Gemm <transA = 1> (t, w)",
        w=draw(FEATURES, OUTPUTS),
    ),
    "weights in front": network(
        "t = Transpose <perm = [1, 0]> (x) z = MatMul (w, t) y = Transpose <perm = [1, 0]> (z)",
        w=draw(OUTPUTS, FEATURES),
    ),
    "shared": network("z = MatMul (x, w) y = MatMul (z, w)", w=draw(512, 512)),
    "two open axes": network("y = MatMul (x, w)", x=f"N, L, {FEATURES}", w=draw(FEATURES, OUTPUTS)),
    "float64": network(
        "d = Cast <to = 11> (x) e = MatMul (d, w) y = Cast <to = 1> (e)",
        w=draw(FEATURES, OUTPUTS).astype(np.float64),
    ),
}


def feed(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    shape = [dim.dim_value or 7 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(5).standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("name", REWRITTEN)
def test_large_layers_become_convolutions_that_compute_the_same(name: str, optimise: bool) -> None:
    model = REWRITTEN[name]
    rewritten = dense_to_pointwise(model)
    assert operators(rewritten) == POINTWISE
    onnx.checker.check_model(rewritten, full_check=True)
    [expected] = run_reference(model, feed(model))
    [ours] = run(rewritten, feed(model), optimise=optimise)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", LEFT)
def test_other_layers_are_left_alone(name: str) -> None:
    model = LEFT[name]
    assert dense_to_pointwise(model) == model
    assert run(model, feed(model))[0].shape[0] == 7


def test_the_model_given_is_not_changed_and_names_are_kept() -> None:
    before = GEMM.SerializeToString()
    rewritten = dense_to_pointwise(GEMM)
    assert GEMM.SerializeToString() == before
    kernel, bias = rewritten.graph.initializer[:2]
    assert (kernel.name, list(kernel.dims)) == ("w", [OUTPUTS, FEATURES, 1, 1])
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(kernel)[:, :, 0, 0], draw(FEATURES, OUTPUTS).T
    )
    assert bias == GEMM.graph.initializer[1]


def test_an_empty_batch_stays_empty() -> None:
    empty = {"x": np.zeros((0, FEATURES), np.float32)}
    assert run(GEMM, empty)[0].shape == (0, OUTPUTS)
