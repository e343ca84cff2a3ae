"""Which functions are found, from which sides they are bounded, and what bounds do to each."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from proact_onnx.activations import activation_outputs, find_activations
from proact_onnx.data import Dataset
from proact_onnx.functions import Sides, find_functions
from proact_onnx.harden import harden
from proact_onnx.model import load_model
from proact_onnx.rewrite import prepare
from proact_onnx.settings import HardenSettings
from proact_onnx.verify import verify
from tests.numerics import Array, parse, run, run_reference

CASES: dict[str, tuple[nn.Module, str, Sides]] = {
    "relu": (nn.ReLU(), "Relu", Sides.RECTIFIED),
    "relu6": (nn.ReLU6(), "Clip", Sides.RECTIFIED),
    "softplus": (nn.Softplus(), "Softplus", Sides.RECTIFIED),
    "elu": (nn.ELU(), "Elu", Sides.ABOVE),
    "celu": (nn.CELU(2.0), "Celu", Sides.ABOVE),
    "selu": (nn.SELU(), "Selu", Sides.ABOVE),
    "hardswish": (nn.Hardswish(), "HardSwish", Sides.ABOVE),
    "silu": (nn.SiLU(), "Swish", Sides.ABOVE),
    "mish": (nn.Mish(), "Mish", Sides.ABOVE),
    "gelu": (nn.GELU(), "Gelu", Sides.ABOVE),
    "gelu by tanh": (nn.GELU("tanh"), "Gelu", Sides.ABOVE),
    "leaky": (nn.LeakyReLU(0.1), "LeakyRelu", Sides.BOTH),
    "prelu": (nn.PReLU(6), "PRelu", Sides.BOTH),
    "hardtanh": (nn.Hardtanh(-2.0, 3.0), "Clip", Sides.BOTH),
}
NARROW = {"sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "hardsigmoid": nn.Hardsigmoid()}


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, 3)).eval()


def export(module: nn.Module, path: Path, *, dynamo: bool, opset: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(2, 5),),
            str(path),
            input_names=["x"],
            opset_version=opset,
            verbose=False,
            dynamo=dynamo,
            **({} if dynamo else {"dynamic_axes": {"x": {0: "N"}}}),
        )


def noise(count: int, scale: float = 1.0, seed: int = 0) -> Array:
    generator = np.random.default_rng(seed)
    return (scale * generator.standard_normal((count, 5))).astype(np.float32)


@pytest.mark.parametrize(("dynamo", "opset"), [(False, 12), (False, 17), (True, 18), (True, 20)])
@pytest.mark.parametrize("case", CASES)
def test_what_torch_writes_is_found(tmp_path: Path, case: str, dynamo: bool, opset: int) -> None:
    module, op, sides = CASES[case]
    path = tmp_path / "net.onnx"
    export(network(module), path, dynamo=dynamo, opset=opset)
    model = prepare(load_model(path)).model
    [found] = find_activations(model)
    assert (found.op, found.sides, found.shape) == (op, sides, (6,))
    # The last layer reads it, and the first one feeds nothing else.
    assert model.graph.node[-1].input[0] == found.tensor
    [_, head] = find_activations(model, linear=True)
    assert head.tensor == model.graph.output[0].name


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("case", NARROW)
def test_functions_that_end_by_nature_are_left(tmp_path: Path, case: str, dynamo: bool) -> None:
    path = tmp_path / "net.onnx"
    export(network(NARROW[case]), path, dynamo=dynamo, opset=18)
    model = prepare(load_model(path)).model
    assert find_activations(model) == []
    assert len(find_activations(model, linear=True)) == 1
    [function] = find_functions(model)
    assert function.is_narrow and (function.highest, abs(function.lowest)) in ((1, 0), (1, 1))


@pytest.mark.parametrize(
    ("form", "granularity"),
    [("hard", "layer"), ("saturate", "layer"), ("smooth", "neuron"), ("ramp", "neuron")],
)
@pytest.mark.parametrize("case", CASES)
def test_bounds_against_torch(tmp_path: Path, case: str, granularity: str, form: str) -> None:
    """The network in torch, with bounds by formula, gives what the hardened file gives."""
    module = network(CASES[case][0])
    original, output = tmp_path / "net.onnx", tmp_path / "out.onnx"
    export(module, original, dynamo=False, opset=17)
    settings = HardenSettings(method="ranger", granularity=granularity, form=form)
    calibration = Dataset(np.concatenate([noise(2)] * 30), None, "noise")
    report = harden(original, calibration, output, settings=settings)
    [activation] = report.activations
    upper = report.thresholds.values[activation.tensor].astype(np.float64)
    lower = report.thresholds.lower.get(activation.tensor)
    assert (lower is not None) == (CASES[case][2] is Sides.BOTH)

    first, function, last = module
    with torch.no_grad():
        seen = function(first(torch.from_numpy(noise(2)))).numpy()
    axis = None if granularity == "layer" else 0
    np.testing.assert_allclose(
        upper, 1.01 * np.maximum(seen.max(axis=axis, keepdims=axis is not None), 0), rtol=1e-4
    )
    x = noise(50, scale=8.0, seed=1)
    with torch.no_grad():
        v = function(first(torch.from_numpy(x))).numpy().astype(np.float64)
    low = -np.inf if lower is None else lower.astype(np.float64)
    limit = np.where((v < 0) & np.isfinite(low), -low, upper)
    reach = v if lower is None else np.abs(v)
    inside = (v >= low) & (v <= upper)
    with np.errstate(all="ignore"):
        z = 20 / np.abs(limit) * (limit - reach)
        bounded = {
            "hard": np.where(inside, v, 0),
            "saturate": np.clip(v, low, upper),
            "smooth": np.nan_to_num(np.where(z > -16, v / (1 + np.exp(-z)), 0)),
            "ramp": np.where(inside, v, np.sign(v) * np.maximum(2 * limit - np.abs(v), 0)),
        }[form]
    assert (bounded != v).mean() > 0.1 or form == "saturate" or case in ("relu6", "hardtanh")
    with torch.no_grad():
        wanted = last(torch.from_numpy(bounded.astype(np.float32))).numpy()
    hardened = load_model(output)
    for compute in (run, run_reference):
        np.testing.assert_allclose(compute(hardened, {"x": x})[0], wanted, rtol=1e-3, atol=1e-3)
    assert activation_outputs(hardened) == [activation.tensor]
    assert find_activations(hardened) == []
    assert verify(original, output, calibration).passed
    assert verify(original, output, Dataset(x, None, "noise")).passed


@pytest.mark.parametrize("method", ["proact", "fitact", "brelu", "ftclipact", "clip-percentile"])
@pytest.mark.parametrize("case", ["leaky", "gelu", "hardtanh"])
def test_methods_bound_both_sides(tmp_path: Path, case: str, method: str) -> None:
    """Thresholds end within the profiled range, and the trained ones move."""
    original, output = tmp_path / "net.onnx", tmp_path / "out.onnx"
    export(network(CASES[case][0]), original, dynamo=False, opset=17)
    settings = HardenSettings(
        method=method, protect="linear", epochs=3, epochs_neuron=3, epochs_together=3
    )
    calibration = Dataset(noise(300, 3.0), None, "noise")
    report = harden(original, calibration, output, settings=settings)
    profiled = harden(
        original,
        calibration,
        tmp_path / "ranger.onnx",
        settings=HardenSettings(
            method="ranger", protect="linear", granularity=METHOD_GRANULARITY.get(method, "layer")
        ),
    )
    assert len(report.activations) == 2
    moved = 0
    for ours, theirs, sign in (
        (report.thresholds.values, profiled.thresholds.values, 1),
        (report.thresholds.lower, profiled.thresholds.lower, -1),
    ):
        assert ours.keys() == theirs.keys()
        for tensor, values in ours.items():
            assert (sign * values >= 0).all()
            assert (sign * values <= sign * theirs[tensor] * 1.00001).all()
            moved += int((np.abs(values - theirs[tensor]) > 1e-6).sum())
    if method == "ftclipact":
        for tensor, lower in report.thresholds.lower.items():
            ratio = profiled.thresholds.lower[tensor] / profiled.thresholds.values[tensor]
            found = lower / report.thresholds.values[tensor]
            np.testing.assert_allclose(found, ratio, rtol=1e-5)
    else:
        assert moved > 0
    assert verify(original, output, calibration).passed


METHOD_GRANULARITY = {"proact": "hybrid", "fitact": "neuron"}


def test_nothing_is_found_twice_in_a_file_that_is_hardened() -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x) => (float[N, 4] y)
        { s = Sigmoid(x)  p = Mul(x, s)  y = LeakyRelu(p) }
        """
    )
    assert [(f.op, f.output) for f in find_functions(model)] == [("Swish", "p"), ("LeakyRelu", "y")]


@pytest.mark.parametrize(
    "body",
    [
        "s = Sigmoid(n)  y = Mul(x, s)",  # A gate that grows as x falls.
        "t = Tanh(x)  y = Mul(x, t)",  # Never negative.
        "s = Sigmoid(x)  y = Mul(z, s)",  # The gate of another tensor.
        "c = Less(x, one)  y = Where(c, z, x)",  # A choice between tensors.
    ],
)
def test_what_is_no_function_of_one_tensor_or_has_no_floor(body: str) -> None:
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { n = Neg(x) BODY }
    """
    model = parse(text.replace("BODY", body), one=np.float32(1))
    onnx.checker.check_model(model, full_check=True)
    found = [(f.op, f.sides) for f in find_functions(model) if f.needs_bound]
    expected = {
        "s = Sigmoid(n)": [("Swish", Sides.BOTH)],
        "t = Tanh(x)": [("Gelu", Sides.RECTIFIED)],
    }
    assert found == next((v for k, v in expected.items() if body.startswith(k)), [])
