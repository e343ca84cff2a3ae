"""Prefix reuse: a trial from an inner tensor gives the scores of the whole network, bit for bit."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from proact_onnx.engine import (
    FaultEngine,
    PrefixCache,
    Provider,
    Stage,
    Workload,
    prefix,
)
from proact_onnx.engine.cuts import Cut, Layout, choose_cuts, find_cuts
from proact_onnx.engine.device import DeviceEngine
from proact_onnx.engine.inplace import InPlaceEngine
from proact_onnx.engine.portable import FreshSessionEngine
from proact_onnx.faults import fault_space
from proact_onnx.model import image_input, load_model
from proact_onnx.rewrite import prepare
from tests.architectures import build
from tests.numerics import parse

MANY = 10**12
PLENTY = 1 << 30
HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)


def dense(batch: str = "N") -> onnx.ModelProto:
    """A chain of products; ``shared`` is used by the first layer and by the last."""
    rng = np.random.default_rng(0)
    return parse(
        f"""{HEADER} net (float[{batch}, 6] x) => (float[{batch}, 4] y) {{
            a = MatMul (x, w1)  s = Add (a, shared)  b = Relu (s)
            c = MatMul (b, w2)  d = Relu (c)
            e = Gemm (d, w3, b3)  f = Relu (e)
            g = Add (f, shared)  y = MatMul (g, w4)
        }}""",
        w1=draw(rng, 6, 8),
        shared=draw(rng, 8),
        w2=draw(rng, 8, 8),
        w3=draw(rng, 8, 8),
        b3=draw(rng, 8),
        w4=draw(rng, 8, 4),
    )


def skips() -> onnx.ModelProto:
    """Two residual blocks, which the runtime computes with the skip inside the convolution."""
    rng = np.random.default_rng(1)
    stored = {f"w{i}": draw(rng, 16, 16, 3, 3) for i in range(1, 5)}
    blocks = "".join(
        f"""
        {o}1 = Conv <pads = [1, 1, 1, 1]> ({i}, w{n}, b{n})
        {o}2 = Relu ({o}1)
        {o}3 = Conv <pads = [1, 1, 1, 1]> ({o}2, w{n + 1}, b{n + 1})
        {o}4 = Add ({o}3, {i})
        {o} = Relu ({o}4)"""
        for n, i, o in ((1, "stem", "one"), (3, "one", "two"))
    )
    return parse(
        f"""{HEADER} net (float[N, 3, 8, 8] x) => (float[N, 5] y) {{
            first = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
            stem = Relu (first)
            {blocks}
            pooled = GlobalAveragePool (two)
            flat = Flatten (pooled)
            y = Gemm <transB = 1> (flat, w5, b5)
        }}""",
        w0=draw(rng, 16, 3, 3, 3),
        w5=draw(rng, 5, 16),
        b5=draw(rng, 5),
        **{f"b{i}": draw(rng, 16) for i in range(5)},
        **stored,
    )


def heads() -> onnx.ModelProto:
    """Two branches that meet in a concatenation, then two heads."""
    rng = np.random.default_rng(2)
    return parse(
        f"""{HEADER} net (float[N, 3, 6, 6] x) => (float[N, 5] y, float[N, 2] z) {{
            a = Conv (x, w1)  b = Relu (a)
            c = Conv (b, w2)  d = Relu (c)
            e = Conv (b, w3)  f = Concat <axis = 1> (d, e)
            g = Conv (f, w4)  h = Relu (g)
            i = GlobalAveragePool (h)  j = Flatten (i)
            y = MatMul (j, w5)
            z = MatMul (j, w6)
        }}""",
        w1=draw(rng, 8, 3, 3, 3),
        w2=draw(rng, 8, 8, 3, 3),
        w3=draw(rng, 4, 8, 3, 3),
        w4=draw(rng, 8, 12, 1, 1),
        w5=draw(rng, 8, 5),
        w6=draw(rng, 8, 2),
    )


def squeezenet() -> onnx.ModelProto:
    """Branches and concatenations with pools between them, as an exporter writes them."""
    stream = io.BytesIO()
    torch.onnx.export(
        build("squeezenet"),
        (torch.zeros(2, 3, 32, 32),),
        stream,
        input_names=["x"],
        dynamic_axes={"x": {0: "batch"}},
        dynamo=False,
    )
    return prepare(onnx.load_from_string(stream.getvalue())).model


NETWORKS: dict[str, tuple[type, Callable[[], onnx.ModelProto]]] = {
    "dense": (InPlaceEngine, dense),
    "batch of 4": (InPlaceEngine, lambda: dense("4")),
    "skips": (InPlaceEngine, skips),
    "skips, weights as inputs": (DeviceEngine, skips),
    "heads": (InPlaceEngine, heads),
    "heads, weights as inputs": (DeviceEngine, heads),
    "squeezenet": (InPlaceEngine, squeezenet),
    "a session per trial": (FreshSessionEngine, dense),
}


def parameter_bits(model: onnx.ModelProto) -> dict[str, int]:
    return {p.name: p.size * 32 for p in fault_space(model, 32).parameters}


def noise(model: onnx.ModelProto, count: int) -> np.ndarray:
    shape = image_input(model).shape[1:]
    rng = np.random.default_rng(count)
    return rng.standard_normal((count, *(extent or 1 for extent in shape))).astype(np.float32)


def reuse(
    model: onnx.ModelProto,
    images: np.ndarray,
    per_trial: int = 0,
    budget: int = PLENTY,
    trials: int = MANY,
    kind: type = InPlaceEngine,
) -> PrefixCache:
    bits = parameter_bits(model)
    place = () if kind is InPlaceEngine else (Provider.CPU,)
    engine: FaultEngine = kind(model, list(bits), *place, 1, 4)
    workload = Workload(bits, trials, per_trial)
    return PrefixCache(model, engine, images, engine.run(images), workload, budget, 1, 4)


class Faults:
    """Random bits flipped in random elements of some parameters."""

    def __init__(self, model: onnx.ModelProto, names: list[str], rng: np.random.Generator) -> None:
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        self.names = names
        self._writes = []
        for name in names:
            flat = stored[name].reshape(-1)
            elements = rng.choice(flat.size, min(3, flat.size), replace=False)
            masks = (1 << rng.integers(32, size=len(elements))).astype(np.uint32)
            before = flat[elements]
            after = (before.view(np.uint32) ^ masks).view(np.float32)
            self._writes.append((name, elements, before, after))

    def scores(self, stage: Stage, chosen: np.ndarray) -> np.ndarray:
        for name, elements, _, after in self._writes:
            stage.engine.write(name, elements, after)
        try:
            return stage.run(chosen)
        finally:
            for name, elements, before, _ in self._writes:
                stage.engine.write(name, elements, before)


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32), strict=True)


def assert_reuse_changes_nothing(
    model: onnx.ModelProto, cache: PrefixCache, per_trial: int, trials: int
) -> set[str]:
    """Compare random trials with the whole network; returns where they started from."""
    rng = np.random.default_rng(0)
    total = len(cache.whole.values)
    parameters = list(parameter_bits(model))
    started = set()
    for _ in range(trials):
        first = int(rng.integers(len(parameters)))
        some = rng.random(len(parameters) - first) < 0.3
        names = [parameters[first], *itertools.compress(parameters[first + 1 :], some[1:])]
        faults = Faults(model, names, rng)
        chosen = np.sort(rng.choice(total, per_trial or total, replace=False))
        stage = cache.for_faults(names)
        started.add(stage.tensor)
        assert_same_bits(faults.scores(stage, chosen), faults.scores(cache.whole, chosen))
        assert_same_bits(stage.run(chosen), cache.whole.run(chosen))
    return started


@pytest.mark.parametrize("per_trial", [0, 1, 4, 5])
@pytest.mark.parametrize("network", NETWORKS)
def test_trials_give_the_whole_network_s_scores(network: str, per_trial: int) -> None:
    kind, build_network = NETWORKS[network]
    model = build_network()
    cache = reuse(model, noise(model, 10), per_trial, kind=kind)
    assert cache.planned
    started = assert_reuse_changes_nothing(model, cache, per_trial, 30)
    # In batches of 4, trials of 1 and of 5 leave an image alone, which may be computed otherwise.
    if per_trial in (0, 4):
        assert started >= set(cache.planned)
        assert cache.discarded == 0


def test_values_that_depend_on_the_other_images_of_a_batch_are_not_reused() -> None:
    """A row alone is multiplied in another order of additions, so trials with one would differ."""
    model = dense()
    bits = list(parameter_bits(model))
    engine = InPlaceEngine(model, bits, 1, 4)
    images = noise(model, 8)
    alone = np.concatenate([engine.run(images[i : i + 1]) for i in range(8)])
    if alone.tobytes() == engine.run(images).tobytes():
        pytest.skip("on this machine a row alone gives the same bits")
    assert reuse(model, images, 5).for_faults(["w4"]).tensor == "x"
    assert reuse(model, images, 6).for_faults(["w4"]).tensor == "g"


def test_a_trained_residual_network_is_reused_at_every_block(shared_dir: Path) -> None:
    model = prepare(load_model(shared_dir / "models" / "c10_resnet20_torchscript_op17.onnx")).model
    cache = reuse(model, noise(model, 6))
    assert len(cache.planned) == 10
    started = assert_reuse_changes_nothing(model, cache, 0, 40)
    assert len(started) >= 8
    assert cache.discarded == 0


def test_normalisation_that_is_not_folded_is_behind_the_cut_too(shared_dir: Path) -> None:
    loaded = load_model(shared_dir / "models" / "c10_resnet32_torchscript_op13_bn.onnx")
    model = prepare(loaded, fold_batchnorm=False).model
    cache = reuse(model, noise(model, 4), kind=DeviceEngine)
    assert len(cache.planned) >= 16
    assert_reuse_changes_nothing(model, cache, 0, 8)
    assert cache.made > 0


def test_stages_start_as_late_as_the_faults_allow() -> None:
    model = dense()
    cache = reuse(model, noise(model, 4))
    assert cache.planned == ("a", "b", "d", "g")
    starts = {
        "w1": "x",
        # Used by the last layer too, but by the first layer first.
        "shared": "a",
        "w2": "b",
        "w3": "d",
        "b3": "d",
        "w4": "g",
    }
    for name, tensor in starts.items():
        assert cache.for_faults([name]).tensor == tensor
    assert cache.for_faults(["w4", "w2", "w3"]).tensor == "b"
    assert cache.for_faults([]).tensor == "x"
    assert cache.for_faults(["unheard of", "w4"]).tensor == "x"


def test_stages_are_made_when_asked_for_and_once() -> None:
    model = dense()
    cache = reuse(model, noise(model, 4))
    assert (cache.made, cache.discarded) == (0, 0)
    cache.for_faults(["w1"])
    assert cache.made == 0
    stage = cache.for_faults(["w4"])
    assert cache.made == 1
    assert cache.for_faults(["w4"]) is stage


class _Rounding:
    """An engine that rounds in the last place otherwise, on some images or under faults only."""

    def __init__(self, engine: FaultEngine, kind: str) -> None:
        self._engine = engine
        self._kind = kind
        self._disturbed = False
        self.name, self.provider = engine.name, engine.provider

    def run(self, images: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        scores = self._engine.run(images, chosen)
        if self._kind == "last image" and len(scores) > 4:
            scores[-1] = np.nextafter(scores[-1], np.inf)
        if self._kind == "under faults" and self._disturbed:
            scores = np.nextafter(scores, np.float32(np.inf))
        return scores

    def write(self, parameter: str, elements: np.ndarray, values: np.ndarray) -> None:
        self._disturbed = not self._disturbed
        if self._kind == "not undone" and not self._disturbed:
            return
        self._engine.write(parameter, elements, values)


@pytest.mark.parametrize("kind", ["last image", "under faults", "not undone"])
def test_a_stage_that_differs_is_discarded_and_an_earlier_one_serves(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dense()
    cache = reuse(model, noise(model, 9))

    honest = prefix._open_alike

    def open_it(whole: FaultEngine, part: onnx.ModelProto, *arguments: Any) -> FaultEngine:
        engine = honest(whole, part, *arguments)
        return _Rounding(engine, kind) if image_input(part).name == "g" else engine

    monkeypatch.setattr(prefix, "_open_alike", open_it)
    assert cache.for_faults(["w4"]).tensor == "d"
    assert cache.for_faults(["w4"]).tensor == "d"
    assert (cache.made, cache.discarded) == (1, 1)
    assert_reuse_changes_nothing(model, cache, 0, 10)


def test_without_memory_nothing_is_planned() -> None:
    model = dense()
    cache = reuse(model, noise(model, 4), budget=0)
    assert (cache.planned, cache.bytes) == ((), 0)
    assert cache.for_faults(["w4"]) is cache.whole


def test_few_trials_on_a_small_network_do_not_pay_for_stages() -> None:
    model = skips()
    assert reuse(model, noise(model, 4), trials=3).planned == ()
    assert reuse(model, noise(model, 4)).planned != ()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.99, 1.0])
def test_plans_keep_to_the_budget(share: float) -> None:
    model = skips()
    everything = reuse(model, noise(model, 9)).bytes
    budget = int(share * everything)
    assert reuse(model, noise(model, 9), budget=budget).bytes <= budget


def test_a_network_that_cannot_be_measured_is_run_whole() -> None:
    """An output without images is no score, and no tensor has a batch axis."""
    model = parse(
        f"""{HEADER} net (float[2, 3] x) => (float y) {{
            a = Mul (x, w1)  b = ReduceSum <keepdims = 0> (a)  y = Mul (b, w2)
        }}""",
        w1=np.ones(3, np.float32),
        w2=np.ones((), np.float32),
    )
    images = np.ones((4, 3), np.float32)
    engine = FreshSessionEngine(model, ["w1"], Provider.CPU, 1, 4)
    workload = Workload({"w1": 96, "w2": 32}, MANY)
    cache = PrefixCache(model, engine, images, engine.run(images), workload, PLENTY, 1, 4)
    assert cache.for_faults(["w2"]) is cache.whole


def test_sizes_and_operations_are_those_counted_by_hand() -> None:
    model = heads()
    layout = find_cuts(model, list(parameter_bits(model)), noise(model, 2))
    macs = {"w1": 8 * 16 * 27, "w2": 8 * 4 * 72, "w3": 4 * 4 * 72, "w4": 8 * 4 * 12}
    assert [cut.info.name for cut in layout.cuts] == ["b", "f", "j"]
    b, f, j = layout.cuts
    relu = 8 * 16
    assert b.skipped == macs["w1"] + relu
    assert f.skipped == b.skipped + macs["w2"] + macs["w3"] + 8 * 4 + 12 * 4
    assert j.skipped == f.skipped + macs["w4"] + 3 * 8 * 4 + 2 * 8 - 8 * 4 - 8
    assert layout.total == j.skipped + 8 * 5 + 8 * 2
    assert (b.elements, b.image_bytes) == (8 * 16, 4 * 8 * 16)
    assert j.parameter_bytes == 4 * (8 * 5 + 8 * 2)
    # Both branches read b, which lies beside their outputs.
    assert b.batch_bytes == 4 * (8 * 16 + 8 * 4 + 8 * 4)
    assert [(d.dim_param or d.dim_value) for d in j.info.type.tensor_type.shape.dim] == ["N", 8]


def test_the_choice_is_the_best_of_all_that_fit() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        skipped = np.sort(rng.integers(1, 10**6, size=6))
        cuts = tuple(
            Cut(onnx.ValueInfoProto(name=str(i)), i, int(skipped[i]), 1, int(size), 0, 0)
            for i, size in enumerate(rng.integers(1, 100, size=6))
        )
        layout = Layout(cuts, int(skipped[-1]) + 1, {f"p{i}": i for i in range(8)})
        bits = {f"p{i}": int(count) for i, count in enumerate(rng.integers(1, 50, size=8))}
        rates = ((), (0.01,), (0.001, 0.1))[int(rng.integers(3))]
        workload = Workload(bits, 10**8, 5, rates)
        budget = int(rng.integers(50, 400)) * 1000

        def saving(
            chosen: tuple[Cut, ...],
            workload: Workload = workload,
            layout: Layout = layout,
        ) -> float:
            """MACs saved by trials, less those of making the stages, summed trial by trial."""
            total = -len(chosen) * (1000 * layout.total + 1e10)
            for name, first in layout.first_uses.items():
                usable = [cut.skipped - 1 for cut in chosen if cut.position < first]
                total += (
                    workload.trials * 5 * first_faulted(workload, name) * max(usable, default=0)
                )
            return total

        best = max(
            saving(some)
            for count in range(7)
            for some in itertools.combinations(cuts, count)
            if sum(cut.bytes(1000, 1) for cut in some) <= 0.994 * budget
        )
        chosen = choose_cuts(layout, workload, 1000, 1, budget)
        assert sum(cut.bytes(1000, 1) for cut in chosen) <= budget
        assert saving(chosen) >= best * (1 - 1e-9)


def first_faulted(workload: Workload, name: str) -> float:
    """Probability that a parameter is the first one with faults."""
    names = list(workload.bits)
    before = sum(workload.bits[other] for other in names[: names.index(name)])
    if not workload.rates:
        return workload.bits[name] / sum(workload.bits.values())
    return float(
        np.mean([(1 - r) ** before * (1 - (1 - r) ** workload.bits[name]) for r in workload.rates])
    )
