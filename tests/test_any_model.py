"""Networks that are no chain of convolutions: heads, sequences, transformers, several inputs."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from proact_onnx.activations import find_activations
from proact_onnx.data import Dataset, bundle, load_dataset
from proact_onnx.errors import DataError, ModelError
from proact_onnx.harden import HardenReport, harden
from proact_onnx.model import load_model
from proact_onnx.rewrite import prepare
from proact_onnx.settings import HardenSettings
from proact_onnx.verify import verify
from tests.numerics import Array, parse, run, run_reference

COUNT = 30


class Detector(nn.Module):
    """Boxes and scores at two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1))
        self.boxes = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)])
        self.scores = nn.ModuleList([nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.one(x)
        levels = [first, self.two(first)]
        boxes = [head(v).flatten(2) for head, v in zip(self.boxes, levels, strict=True)]
        scores = [head(v).flatten(2) for head, v in zip(self.scores, levels, strict=True)]
        return torch.cat(boxes, 2), torch.cat(scores, 2).sigmoid()


class Segmenter(nn.Module):
    """Down and up again, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Hardswish())
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 3, 2, 2), nn.PReLU(3))
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(nn.functional.max_pool2d(self.down(x), 2))
        return self.head(nn.functional.interpolate(up, scale_factor=2.0, mode="nearest") + x)


class Sequence(nn.Module):
    """A recurrent layer whose output has the time steps first."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.recurrent = kind(8, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.recurrent(self.inner(x).relu().transpose(0, 1))
        return self.head(nn.functional.elu(steps)[-1])


class VisionTransformer(nn.Module):
    """Patches, two encoder layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.encoder = nn.Sequential(*[Block(16) for _ in range(2)])
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = self.qkv(self.norms[0](x)).chunk(3, -1)
        weights = query @ key.transpose(1, 2) / 4.0
        if mask is not None:
            weights = weights.masked_fill(mask[:, None, :] == 0, -1e9)
        x = x + self.out(weights.softmax(-1) @ value)
        return x + self.narrow(nn.functional.gelu(self.wide(self.norms[1](x))))


class TextTransformer(nn.Module):
    """Token indices and a mask in, class scores out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.block = Block(16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.block(self.embed(ids), mask)
        return self.head(torch.tanh(x[:, 0]))


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((COUNT, *shape)).astype(np.float32)


def tokens(seed: int = 0) -> Mapping[str, Array]:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, 20, (COUNT, 7))
    mask = (np.arange(7) < generator.integers(3, 8, (COUNT, 1))).astype(np.int64)
    return {"ids": ids, "mask": mask}


def export(module: nn.Module, path: Path, feeds: Mapping[str, Array], **options: object) -> None:
    inputs = tuple(torch.from_numpy(value[:2]) for value in feeds.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), inputs, str(path), input_names=list(feeds), verbose=False, **options
        )


def free_batch(feeds: Mapping[str, Array]) -> dict[str, object]:
    axes = {name: {0: "N"} for name in feeds}
    return {"dynamo": False, "opset_version": 17, "dynamic_axes": axes}


MODELS: dict[str, tuple[Callable[[], nn.Module], Mapping[str, Array], list[str], int]] = {
    "detector": (Detector, {"x": noise(3, 16, 16)}, ["Swish", "LeakyRelu"], 4),
    "segmenter": (Segmenter, {"x": noise(3, 16, 16)}, ["HardSwish", "PRelu"], 1),
    "lstm": (lambda: Sequence(nn.LSTM), {"x": noise(4, 6)}, ["Relu", "Elu"], 1),
    "gru": (lambda: Sequence(nn.GRU), {"x": noise(4, 6)}, ["Relu", "Elu"], 1),
    "vision transformer": (VisionTransformer, {"x": noise(3, 16, 16)}, ["Gelu"] * 2, 12),
    "text transformer": (TextTransformer, tokens(), ["Gelu"], 6),
}


def dataset(feeds: Mapping[str, Array]) -> Dataset:
    if len(feeds) == 1:
        return Dataset(next(iter(feeds.values())), None, "noise")
    return Dataset(bundle(feeds, "noise"), None, "noise")


@pytest.mark.parametrize("protect", ["activations", "linear"])
@pytest.mark.parametrize("name", MODELS)
def test_hardened_networks_answer_as_before(tmp_path: Path, name: str, protect: str) -> None:
    make, feeds, functions, linear = MODELS[name]
    torch.manual_seed(0)
    original, output = tmp_path / "net.onnx", tmp_path / "out.onnx"
    export(make(), original, feeds, **free_batch(feeds))
    settings = HardenSettings(method="ranger", protect=protect, slack=1.5)
    data = dataset(feeds)
    report = harden(original, data, output, test=data, settings=settings)
    found = [a.op for a in report.activations if a.op not in ("Conv", "Gemm", "MatMul")]
    assert found == functions
    assert len(report.activations) == len(functions) + (linear if protect == "linear" else 0)
    assert report.fidelity.output_change < 1e-5
    hardened = load_model(output)
    onnx.checker.check_model(hardened, full_check=True)
    before, after = run(load_model(original), feeds), run(hardened, feeds)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
    for one, other in zip(before, run_reference(hardened, feeds), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)
    assert verify(original, output, data).passed
    if protect == "linear":
        assert report.coverage.bounded + report.coverage.by_nature > 0.7


@pytest.mark.parametrize("name", ["vision transformer", "lstm"])
def test_what_the_new_exporter_writes(tmp_path: Path, name: str) -> None:
    make, feeds, functions, linear = MODELS[name]
    torch.manual_seed(0)
    original, output = tmp_path / "net.onnx", tmp_path / "out.onnx"
    export(make(), original, feeds, dynamo=True, opset_version=20)
    data = dataset(feeds)
    settings = HardenSettings(method="ranger", protect="linear", slack=1.5)
    report = harden(original, data, output, test=data, settings=settings)
    assert len(report.activations) == len(functions) + linear
    assert report.fidelity.output_change < 1e-5
    assert verify(original, output, data).passed


def test_data_with_a_name_for_each_input(tmp_path: Path) -> None:
    original = tmp_path / "net.onnx"
    torch.manual_seed(0)
    export(TextTransformer(), original, tokens(), **free_batch(tokens()))
    np.savez(tmp_path / "data.npz", **tokens(), labels=np.zeros(COUNT, np.int64))
    data = load_dataset(tmp_path / "data.npz")
    assert data.labels is not None and data.images.dtype.names == ("ids", "mask")
    report = harden(original, data, settings=HardenSettings(method="ranger"))
    assert len(report.activations) == 1

    with pytest.raises(ModelError, match=r"method proact trains on batches of .* has 2 inputs"):
        harden(original, data, tmp_path / "other.onnx")
    for feeds, message in (
        ({"ids": tokens()["ids"]}, "the model's input 'mask' is not in the data, which has ids"),
        ({**tokens(), "mask": noise(7)}, "'mask' have type float32, and the model takes int64"),
        ({**tokens(), "mask": noise(7, 7, 7)}, r"'mask' have shape \(7, 7, 7\), and the model's"),
        ({**tokens(), "mask": np.ones(3)}, r"numbers of samples \(ids 30, mask 3\)"),
    ):
        with pytest.raises(DataError, match=message):
            harden(original, dataset(dict(feeds)) if len(feeds) > 1 else only(feeds), force=True)


def only(feeds: Mapping[str, Array]) -> Dataset:
    return Dataset(bundle(feeds, "noise"), None, "noise")


def test_inputs_named_like_images_have_a_mark(tmp_path: Path) -> None:
    marked = {"input:x": noise(3), "input:data": noise(2)}
    np.savez(tmp_path / "data.npz", **marked)
    data = load_dataset(tmp_path / "data.npz")
    assert data.images.dtype.names == ("x", "data")
    np.testing.assert_array_equal(data.images["data"], noise(2))


STATE = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 4] x, float[2, N, 3] state, int64 rate) => (float[N, 3] y, float[2, N, 3] next)
{
  h = MatMul(x, w)
  r = Relu(h)
  s = ReduceSum<keepdims = 0>(state, first)
  a = Add(r, s)
  f = Cast<to = 1>(rate)
  y = Mul(a, f)
  next = LeakyRelu(state)
}
"""


def test_all_that_a_call_is_given(tmp_path: Path) -> None:
    """A state whose batch is not its first axis, and a number without any axis."""
    generator = np.random.default_rng(0)
    model = parse(
        STATE, w=generator.standard_normal((4, 3)).astype(np.float32), first=np.int64([0])
    )
    original, output = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(model, original)
    feeds = {
        "x": noise(1, 4),
        "state": noise(2, 1, 3, seed=1),
        "rate": np.full(COUNT, 2, np.int64),
    }
    data = dataset(feeds)
    report = harden(original, data, output, test=data, settings=HardenSettings(method="ranger"))
    assert [a.op for a in report.activations] == ["Relu", "LeakyRelu"]
    leaky = np.where(feeds["state"] < 0, 0.01 * feeds["state"], feeds["state"])
    assert report.thresholds.values["next"] == pytest.approx(1.01 * leaky.max())
    assert report.fidelity.output_change == 0.0
    assert verify(original, output, data).passed
    with pytest.raises(ModelError, match="or use granularity 'layer'"):
        harden(
            original,
            data,
            output,
            settings=HardenSettings(method="ranger", granularity="neuron"),
            force=True,
        )


LOOP = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 4] x) => (float[N, 4] y)
{
  a = LeakyRelu(x)
  l = Loop(times, go, a) <body = b (int64 i, bool c, float[N, 4] v) => (bool d, float[N, 4] w2)
    { d = Identity(c)  [inner] t = Relu(v)  w2 = Add(t, a) }>
  m = MatMul(l, w)
  y = Add(m, a)
}
"""

FUNCTIONS = """
<ir_version: 9, opset_import: ["": 18, "local": 1]>
net (float[N, 4] x) => (float[N, 4] y)
{ h = MatMul(x, w)  s = local.gate(h)  y = MatMul(s, w) }
<domain: "local", opset_import: ["": 18]>
gate (v) => (o) { s = Sigmoid(v)  o = Mul(v, s) }
"""


@pytest.mark.parametrize(
    ("text", "functions", "linear"),
    [(LOOP, ["LeakyRelu", "Relu"], 1), (FUNCTIONS, ["Swish"], 1)],
    ids=["loop", "functions"],
)
def test_subgraphs_and_functions(
    tmp_path: Path, text: str, functions: list[str], linear: int
) -> None:
    generator = np.random.default_rng(0)
    weights = {"w": generator.standard_normal((4, 4)).astype(np.float32)}
    if "Loop" in text:
        weights |= {"times": np.int64(3), "go": np.array(True)}
    model = parse(text, **weights)
    onnx.checker.check_model(model, full_check=True)
    original, output = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(model, original)
    prepared = prepare(load_model(original)).model
    assert [a.op for a in find_activations(prepared)] == functions
    data = dataset({"x": noise(4)})
    report: HardenReport = harden(
        original,
        data,
        output,
        test=data,
        settings=HardenSettings(method="ranger", protect="linear", slack=1.5),
    )
    assert len(report.activations) == len(functions) + linear
    assert report.unprotected == ()
    assert report.fidelity.output_change < 1e-6
    assert verify(original, output, data).passed
