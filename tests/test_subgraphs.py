"""Networks with branches and loops, hardened inside them: from the file to the fault."""

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from proact_onnx.activations import find_activations
from proact_onnx.campaign import Campaign
from proact_onnx.data import Dataset, bundle
from proact_onnx.deploy import check_deployment
from proact_onnx.engine import Provider, Session, profile_activations
from proact_onnx.errors import DataError, ModelError
from proact_onnx.harden import HardenReport, harden
from proact_onnx.inspection import inspect_model
from proact_onnx.messages import nested_graphs, with_values
from proact_onnx.model import load_model
from proact_onnx.rewrite import prepare
from proact_onnx.settings import DeploySettings, HardenSettings, InjectSettings, RuntimeSettings
from proact_onnx.verify import verify
from tests.numerics import Array, parse, run, run_reference

COUNT = 40


class Branches(nn.Module):
    """One of two layers, by the sum of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            torch.cond(
                x.sum() > 0,
                lambda x: self.a(x).relu(),
                lambda x: nn.functional.silu(self.b(x)),
                (x,),
            )
        )


class While(nn.Module):
    """A layer run four times."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, x = torch._higher_order_ops.while_loop(
            lambda i, _: i < 4, lambda i, h: (i + 1, torch.relu(self.a(h))), (torch.tensor(0), x)
        )
        return self.head(x)


class Scripted(nn.Module):
    """A loop with a branch in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        turns = 0
        while turns < 3 and bool(x.sum() > -100.0):
            x = torch.relu(self.a(x))
            if bool(x.sum() > 1.0):
                x = nn.functional.gelu(self.a(x))
            turns += 1
        return self.head(x)


@cache
def exported(make: Callable[[], nn.Module]) -> bytes:
    torch.manual_seed(0)
    module, example = make().eval(), (torch.randn(1, 6),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(module, Scripted):
            buffer = io.BytesIO()
            torch.onnx.export(
                torch.jit.script(module), example, buffer, dynamo=False, opset_version=17
            )
            return buffer.getvalue()
        program = torch.onnx.export(module, example, dynamo=True, verbose=False)
        return program.model_proto.SerializeToString()


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((COUNT, *shape)).astype(np.float32)


def ranger(path: Path, data: Dataset, **options: object) -> HardenReport:
    settings = HardenSettings(**{"method": "ranger", **options})
    return harden(path, data, test=data, settings=settings, force=True)


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "branches": (Branches, ["Relu", "Swish"]),
    "while": (While, ["Relu"]),
    "loop and branch": (Scripted, ["Gelu", "Relu"]),
}


@pytest.mark.parametrize("form", ["hard", "smooth", "saturate", "ramp", "tent"])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_networks(tmp_path: Path, name: str, form: str) -> None:
    """Clean outputs stay; a huge weight in a branch or a body goes no further than its bound."""
    make, functions = NETWORKS[name]
    original = tmp_path / "net.onnx"
    original.write_bytes(exported(make))
    images = noise(6)
    data = Dataset(images, None, "noise")
    report = ranger(original, data, form=form, slack=1.5)
    assert sorted(a.op for a in report.activations) == functions
    assert all(activation.is_inner for activation in report.activations)
    assert all(value.shape == () for value in report.thresholds.values.values())
    before, hardened = load_model(original), load_model(report.output)
    onnx.checker.check_model(hardened, full_check=True)
    assert verify(original, report.output, data).passed
    expected = outputs(before, images)
    if form != "smooth":
        np.testing.assert_allclose(outputs(hardened, images), expected, rtol=1e-5, atol=1e-6)
        [name] = [info.name for info in hardened.graph.input]
        for image, wanted in zip(images[:5], expected, strict=False):
            [actual] = run_reference(hardened, {name: image[None]})
            np.testing.assert_allclose(actual, wanted[None], rtol=1e-4, atol=1e-5)
    largest = np.abs(expected).max()
    unprotected = [np.abs(outputs(planted(before, value), images)).max() for value in HUGE]
    bounded = [np.abs(outputs(planted(hardened, value), images)).max() for value in HUGE]
    assert not max(unprotected) < 1e6 * largest
    assert max(bounded) < 10 * largest


HUGE = (1e30, -1e30)


def planted(model: onnx.ModelProto, value: float) -> onnx.ModelProto:
    """Write a value over a weight that only a branch, or only a body, reads."""
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weight = stored["a.weight"].copy()
    weight[0, 0] = value
    return with_values(model, {"a.weight": weight})


def outputs(model: onnx.ModelProto, images: Array) -> Array:
    """The first output for every image, each run by itself."""
    session = Session(model, Provider.CPU, 1, 1)
    return session.run(images)


MODEL = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 4] x) => (float[N, 3] y)
{
  s = ReduceMax<keepdims = 0>(x)
  high = Greater(s, limit)
  [choice] h = If(high) <
    then_branch = yes () => (float[n, 4] p) <float[4] shift = {1.0, 2.0, 3.0, 4.0}> {
      a = MatMul(x, w)
      c = Add(a, shift)
      [inner] p = Relu(c)
    },
    else_branch = no () => (float[n, 4] q) <float[4] shift = {-1.0, 2.0, -3.0, 4.0}> {
      a = MatMul(x, v)
      c = Add(a, shift)
      [inner] p = LeakyRelu(c)
      q = Mul(p, half)
    }
  >
  {after}
}
"""
TAIL = "u = MatMul(h, d)  [tail] r = Relu(u)  y = MatMul(r, e)"


def write(path: Path, limit: float, after: str = TAIL, text: str = MODEL) -> Path:
    generator = np.random.default_rng(0)
    shapes = {"w": (4, 4), "v": (4, 4), "d": (4, 5), "e": (4, 3) if "d" not in after else (5, 3)}
    weights = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
        if f" {name})" in text + after
    }
    model = parse(
        text.replace("{after}", after),
        limit=np.float32(limit),
        half=np.float32(0.5),
        **weights,
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def test_profiles_are_those_of_the_samples_that_run_a_branch(tmp_path: Path) -> None:
    model = prepare(load_model(write(tmp_path / "net.onnx", limit=1.0))).model
    images = noise(4)
    profile = profile_activations(
        model, find_activations(model), images, provider=Provider.CPU, batch_size=1
    )
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    runs = images.max(axis=1) > 1.0
    assert 0 < runs.sum() < COUNT
    rectified = np.maximum(images[runs] @ weights["w"] + weights["shift"], 0)
    leaky = images[~runs] @ weights["v"] + weights["shift_2"]
    leaky = np.where(leaky < 0, np.float32(0.01) * leaky, leaky)
    assert profile.maxima["p"] == pytest.approx(rectified.max(), rel=1e-6)
    assert profile.maxima["p_2"] == pytest.approx(leaky.max(), rel=1e-6)
    assert profile.minima == {"p_2": pytest.approx(leaky.min(), rel=1e-6)}
    assert profile.maxima["r"].shape == (5,)


def test_values_that_are_not_finite_name_the_activation(tmp_path: Path) -> None:
    original = write(tmp_path / "net.onnx", limit=100.0)
    images = noise(4)
    images[:] = 3e38
    with pytest.raises(DataError, match="activation 'inner' takes values that are not finite"):
        ranger(original, Dataset(images, None, "noise"), calibration_images=10**6)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, ()),
        ({"granularity": "neuron"}, (1, 5)),
        ({"granularity": "auto", "max_memory_overhead": 100.0}, (1, 5)),
        ({"method": "clip-percentile"}, ()),
        ({"method": "ranger", "percentile": 99.0}, ()),
        ({"method": "ftclipact", "search_trials": 2, "search_images": 4, "search_rounds": 1}, ()),
    ],
    ids=str,
)
def test_whatever_the_method_each_branch_has_one_threshold_at_its_extreme(
    tmp_path: Path, options: dict[str, object], shape: tuple[int, ...]
) -> None:
    original = write(tmp_path / "net.onnx", limit=100.0)
    data = Dataset(noise(4), None, "noise")
    plain = ranger(original, data).thresholds
    found = ranger(original, data, **options).thresholds
    assert found.values["r"].shape == shape
    for side in ("values", "lower"):
        np.testing.assert_array_equal(getattr(found, side)["p_2"], getattr(plain, side)["p_2"])


def test_a_branch_that_no_sample_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = write(tmp_path / "net.onnx", limit=100.0)
    data = Dataset(noise(4), None, "noise")
    with caplog.at_level(logging.INFO):
        report = ranger(original, data)
    assert [activation.tensor for activation in report.activations] == ["p_2", "r"]
    [left] = report.unprotected
    assert (left.name, left.op) == ("inner", "Relu")
    assert left.reason == ("no calibration sample runs the subgraph of 'choice' that it lies in")
    assert (
        "no calibration sample runs the subgraphs in which 1 activations lie, such as 'inner': "
        "they are left without a bound" in caplog.text
    )
    inspected = inspect_model(report.output)
    assert set(inspected.protected) == {"p_2/hyrelu/threshold", "r/hyrelu/threshold"}
    assert [activation.tensor for activation in inspected.activations] == ["p"]


def test_a_model_none_of_whose_activations_is_run(tmp_path: Path) -> None:
    text = MODEL.replace("[inner] p = LeakyRelu(c)", "p = Neg(c)")
    original = write(tmp_path / "net.onnx", 100.0, "y = MatMul(h, e)", text)
    with pytest.raises(
        ModelError, match=r"no calibration sample runs the subgraphs of \S+net.onnx"
    ):
        ranger(original, Dataset(noise(4), None, "noise"))


def test_faults_hit_what_branches_store(tmp_path: Path) -> None:
    original = write(tmp_path / "net.onnx", limit=100.0)
    data = Dataset(noise(4), None, "noise")
    report = ranger(original, data)
    names = {"w": 16, "shift": 4, "v": 16, "shift_2": 4, "d": 20, "e": 15}
    stored = {p.name: p.size for p in inspect_model(original).stored}
    assert stored == names
    thresholds = {f"{t}/hyrelu/threshold" for t in ("p_2", "r")} | {"p_2/hyrelu/lower_threshold"}
    assert {p.name for p in inspect_model(report.output).stored} == {*names, *thresholds}
    assert report.memory_overhead == pytest.approx(100 * 3 / sum(names.values()))

    def accuracy(path: Path, layer: str) -> float:
        settings = InjectSettings(ber=(0.05,), trials=10, images=COUNT, layers=(layer,))
        record = tmp_path / f"{path.stem}.{layer}.jsonl"
        return Campaign(path, data, settings).run(record).summaries[0].accuracy.mean

    assert accuracy(original, "shift_2") < 0.8
    assert accuracy(original, "shift") == 1.0, "its branch does not run"
    assert accuracy(report.output, "shift_2") < 1.0


def test_a_hardened_file_in_runtimes_and_with_a_monitor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = write(tmp_path / "net.onnx", limit=100.0)
    data = Dataset(noise(4), None, "noise")
    with caplog.at_level(logging.INFO):
        report = ranger(original, data, monitor=True)
    assert report.monitor is not None
    assert report.monitor.monitor.layers == ("r",)
    assert "1 activations lie in subgraphs" in caplog.text
    assert "and the monitor does not watch them" in caplog.text
    assert verify(original, report.output, data).passed
    checked = check_deployment(
        report.output, original, data, DeploySettings(("onnxruntime", "reference"), rounds=1)
    )
    for finding in checked.findings:
        assert finding.failure is None


def test_verify_counts_the_samples_that_a_bound_in_a_branch_clips(tmp_path: Path) -> None:
    original = write(tmp_path / "net.onnx", limit=100.0, after="y = MatMul(h, e)")
    report = ranger(original, Dataset(noise(4), None, "noise"))
    images = 1.5 * noise(4, seed=1)
    weights = {
        p.name: onnx.numpy_helper.to_array(p) for p in load_model(original).graph.initializer
    }
    leaky = images @ weights["v"] + np.float32([-1, 2, -3, 4])
    leaky = np.where(leaky < 0, np.float32(0.01) * leaky, leaky)
    upper, lower = report.thresholds.values["p_2"], report.thresholds.lower["p_2"]
    clipped = np.flatnonzero(((leaky > upper) | (leaky < lower)).any(axis=1))
    assert 0 < len(clipped) < COUNT
    data, runtime = Dataset(images, None, "noise"), RuntimeSettings(batch_size=1)
    found = verify(original, report.output, data, runtime=runtime)
    [layer] = found.layers
    assert layer.tensor == "p_2"
    np.testing.assert_array_equal(layer.samples, clipped)
    assert found.untouched == COUNT - len(clipped)
    assert found.passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ftclipact"}, "method ftclipact looks at the main graph alone: use --method r"),
        ({"method": "proact"}, "method proact looks at the main graph alone: use --method ranger"),
        ({"monitor": True}, "the monitor watches the main graph alone: leave --monitor out"),
    ],
)
def test_what_looks_at_the_main_graph_alone_says_so(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    original = write(tmp_path / "net.onnx", limit=100.0, after="y = MatMul(h, e)")
    with pytest.raises(ModelError, match=f"all activations of .* lie in subgraphs, and {message}"):
        ranger(original, Dataset(noise(4), None, "noise"), **options)


def test_a_loop_whose_samples_are_all_that_a_call_is_given(tmp_path: Path) -> None:
    """Turns, state and steps differ from call to call; a scan lies in the loop."""
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[4] x, int64 n, float[3, 4] z) => (float[4] y)
        {
          y = Loop(n, go, x) <body = turn (int64 i, bool c, float[4] v) => (bool d, float[4] w) {
            d = Identity(c)
            m = MatMul(v, k)
            w, s = Scan(m, z) <num_scan_inputs = 1, body = step (float[4] a, float[4] b) =>
                (float[4] o, float[4] t) { e = Add(a, b)  o = Relu(e)  t = Neg(o) }>
          }>
        }
        """,
        k=np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32),
        go=np.array(True),
    )
    original = tmp_path / "net.onnx"
    onnx.save(model, original)
    turns = np.random.default_rng(1).integers(1, 4, COUNT)
    feeds = {"x": noise(4), "n": turns, "z": noise(3, 4, seed=1)}
    data = Dataset(bundle(feeds, "noise"), None, "noise")
    report = ranger(original, data, slack=1.5)
    assert [(a.tensor, a.owner) for a in report.activations] == [("o", "Loop")]
    assert verify(original, report.output, data).passed
    hardened = load_model(report.output)
    for sample in range(COUNT):
        feed = {name: np.asarray(values[sample]) for name, values in feeds.items()}
        np.testing.assert_array_equal(run(hardened, feed)[0], run(model, feed)[0])


def test_a_voice_detector_full_of_branches(tmp_path: Path, shared_dir: Path) -> None:
    """Of its Ifs some squeeze what the samples decide, and some what the model fixes."""
    original = shared_dir / "corpus" / "silero_vad_16k_op15.onnx"
    model = load_model(original)
    feeds = {
        "input": noise(1, 512)[:9],
        "state": np.zeros((9, 2, 1, 128), np.float32),
        "sr": np.full(9, 16000),
    }
    data = Dataset(bundle(feeds, "noise"), None, "noise")
    output = tmp_path / "hardened.onnx"
    settings = HardenSettings(method="ranger", slack=1.5)
    report = harden(original, data, output, test=data, settings=settings)
    assert [activation.op for activation in report.activations] == ["Relu"] * 5
    assert report.fidelity.output_change < 1e-5
    hardened = load_model(output)
    assert (choices(model), choices(hardened)) == (12, 7)
    assert not any(graph.initializer for graph in nested_graphs(hardened.graph))
    for sample in range(2):
        feed = {name: np.asarray(values[sample]) for name, values in feeds.items()}
        for ours, theirs in zip(run(hardened, feed), run(model, feed), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert verify(original, output, data).passed


def choices(model: onnx.ModelProto) -> int:
    """Number of Ifs, at any depth."""
    graphs = [model.graph, *nested_graphs(model.graph)]
    return sum(node.op_type == "If" for graph in graphs for node in graph.node)
