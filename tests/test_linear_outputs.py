"""Which outputs of linear layers are bounded, and what the bounds do in a whole network."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.data import Dataset
from proact_onnx.faults import fault_space
from proact_onnx.harden import harden
from proact_onnx.model import is_threshold, load_model, save_model
from proact_onnx.settings import HardenSettings, OutOfRange
from proact_onnx.verify import verify
from tests.numerics import Array, parse, run, run_reference

W = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)
KERNEL = W.reshape(4, 4, 1, 1)
BIAS = np.float32([1, -1, 2, 0])


def linear(body: str, outputs: str = "float[N, 4] y", **weights: Array) -> list[str]:
    model = parse(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x) => ({outputs}) {{ {body} }}
        """,
        w=W,
        b=BIAS,
        **weights,
    )
    onnx.checker.check_model(model, full_check=True)
    found = find_activations(model, linear=True)
    assert all(a.two_sided for a in found if a.op in ("MatMul", "Gemm", "Conv"))
    return [a.tensor for a in found if a.op in ("MatMul", "Gemm", "Conv")]


SHAPE = np.int64([-1, 2, 2])


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("y = Gemm(x, w, b)", ["y"]),
        ("g = Gemm(x, w, b)  y = Softmax(g)", ["g"]),
        ("g = Gemm(x, w, b)  y = Relu(g)", []),
        ("g = Gemm(x, w, b)  y = Sigmoid(g)", []),
        ("g = Gemm(x, w, b)  s = Sigmoid(g)  y = Add(g, s)", ["g"]),
        ("m = MatMul(x, w)  y = Add(m, b)", ["y"]),
        ("m = MatMul(x, w)  a = Add(b, m)  y = Relu(a)", []),
        ("m = MatMul(x, w)  a = Add(m, x)  y = Relu(a)", ["m"]),
        ("m = MatMul(x, w)  a = Add(m, b)  r = Relu(a)  y = Add(r, a)", ["a"]),
        ("m = MatMul(x, w)  d = Div(m, b)  t = Transpose<perm = [0, 1]>(d)  y = Tanh(t)", []),
        ("m = MatMul(x, w)  y = Neg(m)  z = Relu(m)", ["m"]),
        ("g = Gemm(x, w, b)  n = Gemm(g, w, b)  y = Relu(n)", ["g"]),
        ("m = MatMul(x, w)  c = Concat<axis = 0>(m, x)  y = Relu(c)", []),
        ("u = MatMul(w, w)  m = MatMul(x, u)  y = Relu(m)", []),
    ],
)
def test_outputs_that_no_activation_bounds(body: str, found: list[str]) -> None:
    assert linear(body) == found


def test_an_output_is_bounded_though_an_activation_reads_it_too() -> None:
    assert linear("y = Gemm(x, w, b)  z = Relu(y)", "float[N, 4] y, float[N, 4] z") == ["y"]


def test_a_subgraph_may_read_anything() -> None:
    body = """
    g = Gemm(x, w, b)  r = Relu(g)
    y = If(c) <
      then_branch = t () => (float[N, 4] p) { p = Neg(g) },
      else_branch = f () => (float[N, 4] q) { q = Identity(r) }
    >
    """
    assert linear(body, c=np.array(True)) == ["g"]


def block(opset: int) -> onnx.ModelProto:
    """A residual block and a head: two linear outputs, one of them behind an activation."""
    return parse(
        f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        net (float[N, 4, 3, 3] x) => (float[N, 4] y)
        {{
          [first] c = Conv(x, k, b)
          r = Relu(c)
          [second] d = Conv(r, k, b)
          s = Add(d, x)
          p = GlobalAveragePool(s)
          f = Flatten(p)
          [head] y = Gemm(f, w, b)
        }}
        """,
        w=W,
        b=BIAS,
        k=KERNEL,
    )


def images(count: int = 64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 4, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("opset", [10, 13])
@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("clamp", [False, True])
def test_residual_branches_and_logits_are_hardened(
    tmp_path: Path, opset: int, granularity: str, clamp: bool
) -> None:
    original, output = tmp_path / "block.onnx", tmp_path / "hardened.onnx"
    save_model(block(opset), original)
    settings = HardenSettings(
        method="ranger",
        protect="linear",
        granularity=granularity,
        out_of_range=OutOfRange.CLAMP if clamp else None,
    )
    data = Dataset(images(), None, "noise")
    report = harden(original, data, output, settings=settings)
    assert [a.name for a in report.activations] == ["r", "second", "head"]
    values = {"layer": 1 + 2 + 2, "channel": 4 + 8 + 8, "neuron": 36 + 72 + 8}[granularity]
    assert report.thresholds.count == values
    assert report.memory_overhead == pytest.approx(100 * values / (16 + 16 + 4))

    hardened = load_model(output)
    stored = [t for t in hardened.graph.initializer if is_threshold(t.name)]
    assert sum(int(np.prod(t.dims)) for t in stored) == values
    assert fault_space(hardened, 32).restrict(["threshold"]).elements == values
    # Images that nothing was learnt from, ten times as large, by numpy on its own.
    x = 10 * images(8, seed=1)
    limits = {
        name: (report.thresholds.lower.get(name, -np.inf), report.thresholds.values[name])
        for name in ("r", "d", "y")
    }

    def bound(name: str, v: Array) -> Array:
        low, high = limits[name]
        return np.clip(v, low, high) if clamp else np.where((v >= low) & (v <= high), v, 0)

    def conv(v: Array) -> Array:
        return np.einsum("oi,nihw->nohw", W, v) + BIAS.reshape(1, 4, 1, 1)

    d = bound("d", conv(bound("r", np.maximum(conv(x), 0))))
    y = bound("y", (d + x).mean(axis=(2, 3)) @ W + BIAS)
    for compute in (run, run_reference):
        np.testing.assert_allclose(compute(hardened, {"x": x})[0], y, rtol=1e-4, atol=1e-4)

    within = verify(original, output, data)
    assert within.passed
    outside = verify(original, output, Dataset(x, None, "louder"))
    assert outside.passed
    assert {layer.tensor for layer in outside.layers} == {"r", "d", "y"}
    counted = {layer.tensor: layer.values for layer in outside.layers}
    assert counted["r"] == int((np.maximum(conv(x), 0) > limits["r"][1]).sum())


def test_a_network_without_activations(tmp_path: Path) -> None:
    original = tmp_path / "linear.onnx"
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x) => (float[N, 4] y) { y = Gemm(x, w, b) }
        """,
        w=W,
        b=BIAS,
    )
    save_model(model, original)
    x = images(40)[:, :, 0, 0]
    settings = HardenSettings(method="ranger", protect="linear", slack=2.0)
    report = harden(original, Dataset(x, None, "noise"), settings=settings)
    assert [a.name for a in report.activations] == ["y"]
    assert report.fidelity.output_change == 0.0


@pytest.mark.parametrize("form", ["hard", "saturate", "smooth", "ramp"])
def test_rescaled_weights_leave_the_bounds_where_they_are(tmp_path: Path, form: str) -> None:
    original = tmp_path / "block.onnx"
    save_model(block(13), original)
    outputs = []
    for rescale in ("none", "channel"):
        settings = HardenSettings(method="ranger", protect="linear", rescale=rescale, form=form)
        output = tmp_path / f"{rescale}.onnx"
        harden(original, Dataset(images(), None, "noise"), output, settings=settings)
        assert verify(original, output, Dataset(images(), None, "noise")).passed
        outputs.append(run(load_model(output), {"x": 3 * images(8, seed=1)})[0])
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
