"""The search of FT-ClipAct, and what it measures, against sessions of the faulty model."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.activations import find_activations
from proact_onnx.campaign.images import choose_images
from proact_onnx.engine import ActivationProfile
from proact_onnx.errors import ModelError
from proact_onnx.faults import FaultModel, Rate, fault_space, parse_format
from proact_onnx.methods import METHODS, FitContext, LabelledBatch, ftclipact
from proact_onnx.methods.ftclipact import search
from proact_onnx.methods.layer_spaces import layer_spaces
from proact_onnx.rewrite import expose, insert
from proact_onnx.settings import HardenSettings
from proact_onnx.thresholds import Thresholds, pack
from tests.numerics import parse, run
from tests.test_methods import Memory, Record, context
from tests.test_series import Shuffling

__all__ = ["context"]
QUICK = HardenSettings(
    method="ftclipact", search_ber=(1e-5, 1e-3), search_trials=2, search_images=16, search_rounds=2
)


@pytest.fixture
def quick(context: FitContext) -> FitContext:
    settings = METHODS["ftclipact"].resolve(QUICK)
    return replace(context, settings=settings, checkpoint=Memory(), reporter=Record())


@pytest.mark.parametrize(
    ("measure", "best"),
    [
        (lambda t: -abs(t - 3.1), 3.0),
        (lambda t: t, 8.0),
        (lambda t: -t, 0.0625),
        (lambda t: 1.0 if t >= 4.0 else 0.0, 8.0),
    ],
    ids=["a peak", "the maximum", "near zero", "of equals the highest"],
)
def test_search(measure: Callable[[float], float], best: float) -> None:
    tried: list[float] = []

    def watched(thresholds: Sequence[float]) -> list[float]:
        tried.extend(thresholds)
        return [measure(threshold) for threshold in thresholds]

    assert search(watched, 8.0, 6) == pytest.approx(best)
    assert len(tried) == len(set(tried)), "no threshold is measured twice"
    assert min(tried) > 0.0 and max(tried) == 8.0


def test_parameters_belong_to_the_first_activation_they_reach() -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 3] x) => (float[N, 3] y)
    <float[3, 3] w1 = {1,0,0,0,1,0,0,0,1}, float[3] b1 = {0,0,0}, float[3, 3] w2 =
    {1,0,0,0,1,0,0,0,1}, float[3, 3] skip = {1,0,0,0,1,0,0,0,1},
    float[3, 3] last = {1,0,0,0,1,0,0,0,1}>
    {
        h = Gemm(x, w1, b1)  a = Relu(h)  g = MatMul(a, w2)  s = MatMul(x, skip)
        m = Add(g, s)  b = Relu(m)  y = MatMul(b, last)
    }
    """)
    activations = find_activations(model)
    found = layer_spaces(model, activations, fault_space(model, 32))
    names = {tensor: [p.name for p in space.parameters] for tensor, space in found.items()}
    assert names == {"a": ["w1", "b1"], "b": ["w2", "skip"]}


def test_the_area_is_that_of_faulty_models(quick: FitContext) -> None:
    """A threshold before another that was found, measured with a session for every fault map."""
    profiled = pack(ftclipact.profiled_thresholds(quick))
    *_, activation, last = quick.activations
    thresholds = {**profiled, last.tensor: (profiled[last.tensor] * 0.5).astype(np.float32)}
    tried = np.float32(profiled[activation.tensor] * 0.6)
    with ftclipact.open_trials(quick, profiled) as trials:
        measure = trials.measure(activation, thresholds)
        assert measure is not None
        highest, found, again = measure([float(profiled[activation.tensor]), *[float(tried)] * 2])
        assert trials.evaluations == 2 * 2 * 2 * 16, "no case is measured twice"
    assert found == again != highest

    thresholds[activation.tensor] = np.array(tried)
    model = insert(quick.model, Thresholds(thresholds)).model
    number_format = parse_format("Q15.16")
    space = fault_space(model, 32).restrict(["weight", "bias"])
    layer = layer_spaces(quick.model, quick.activations, space)[activation.tensor]
    images, labels = quick.calibration.images[:1000], quick.calibration.labels[:1000]
    areas = []
    for rate in (1e-5, 1e-3):
        shares = []
        for trial in range(2):
            faults = FaultModel(Rate(rate)).draw(layer, 0, trial)
            chosen = choose_images(len(labels), 16, 0, trial, labels)
            [scores] = run(stored(model, number_format, faults), {"input": images[chosen]})
            shares.append(np.mean(scores.argmax(axis=1) == labels[chosen]))
        areas.append(np.mean(shares))
    assert found == pytest.approx(np.mean(areas), abs=1e-12)


def stored(model: onnx.ModelProto, number_format, faults) -> onnx.ModelProto:
    """The model with its weights and biases through the format, and faults in them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = {p.name for p in fault_space(model, 32).restrict(["weight", "bias"]).parameters}
    for tensor in copy.graph.initializer:
        if tensor.name not in names:
            continue
        values = numpy_helper.to_array(tensor)
        words = number_format.encode(values).reshape(-1)
        if tensor.name in faults.words:
            elements, masks = faults.words[tensor.name]
            words[elements] ^= masks
        decoded = number_format.decode(words).astype(np.float32).reshape(values.shape)
        tensor.CopyFrom(numpy_helper.from_array(decoded, tensor.name))
    return copy


def test_thresholds_are_found_and_counted(quick: FitContext) -> None:
    fitted = ftclipact.fit(quick)
    profiled = ftclipact.profiled_thresholds(quick).values
    assert list(fitted.thresholds.values) == [a.tensor for a in quick.activations]
    for tensor, value in fitted.thresholds.values.items():
        assert value.shape == () and value.dtype == np.float32
        assert 0 < value <= profiled[tensor]
    assert any(v < profiled[t] for t, v in fitted.thresholds.values.items())
    assert fitted.evaluations % (2 * 2 * 16) == 0
    memory, record = quick.checkpoint, quick.reporter
    assert memory.stored == [a.tensor for a in reversed(quick.activations)]
    assert record.total == record.steps == len(quick.activations)
    assert record.notices == [
        f"ftclipact classified {fitted.evaluations:,} images under fault to find 7 thresholds"
    ]

    done = {name: memory.known[name] for name in memory.stored[:3]}
    resumed = ftclipact.fit(replace(quick, checkpoint=Memory(done)))
    assert 0 < resumed.evaluations < fitted.evaluations
    for tensor, value in fitted.thresholds.values.items():
        assert resumed.thresholds.values[tensor] == value


@pytest.mark.parametrize(("places", "block_size"), [(3, 1), (7, 5)])
def test_who_runs_the_trials_changes_nothing(
    quick: FitContext, places: int, block_size: int
) -> None:
    executor = Shuffling(places, block_size)
    expected, found = (
        ftclipact.fit(replace(quick, checkpoint=Memory(), **changes))
        for changes in ({}, {"executor": executor})
    )
    assert found == expected
    run = {
        (block.fault, block.stored, trial) for block in executor.blocks for trial in block.trials
    }
    assert len(run) * 16 == found.evaluations
    assert max(len(block.trials) for block in executor.blocks) == min(2, block_size)


TWO_SIDED = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 8] x) => (float[N, 4] y) {
    h = Gemm (x, w1)  a = LeakyRelu <alpha = 0.5> (h)  g = MatMul (a, w2)
    b = LeakyRelu <alpha = 0.5> (g)  y = MatMul (b, w3)
}"""


def test_two_sided_thresholds_are_tried_together(quick: FitContext) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 16), "w2": (16, 16), "w3": (16, 4)}
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    model, images = parse(TWO_SIDED, **weights), rng.standard_normal((64, 8)).astype(np.float32)
    values = dict(zip(("y", "a", "b"), run(expose(model, ["a", "b"]), {"x": images}), strict=True))
    labels = values["y"].argmax(axis=1)
    given = replace(
        quick,
        model=model,
        activations=find_activations(model),
        profile=ActivationProfile(
            {name: values[name].max(axis=0) for name in "ab"},
            64,
            {name: values[name].min(axis=0) for name in "ab"},
        ),
        calibration=LabelledBatch(images, labels),
        settings=replace(quick.settings, format="float32", search_ber=(1e-12, 2e-12)),
    )
    profiled = pack(ftclipact.profiled_thresholds(given))
    with ftclipact.open_trials(given, profiled) as trials:
        measure = trials.measure(given.activations[0], profiled)
        assert measure is not None
        # Faults are so rare that none is drawn: what is left is what the thresholds cost.
        [found] = measure([float(0.3 * profiled["a"].max())])

    tried = 0.3 * profiled["a"]
    within = (values["a"] >= -tried[0]) & (values["a"] <= tried[1])
    b = np.where(within, values["a"], 0) @ weights["w2"]
    b = np.where(b < 0, b / 2, b)
    b = np.where((b >= -profiled["b"][0]) & (b <= profiled["b"][1]), b, 0)
    right = (b @ weights["w3"]).argmax(axis=1) == labels
    chosen = [choose_images(64, 16, 0, trial, labels) for trial in range(2)]
    assert 0.3 < right.mean() < 0.9
    assert found == np.mean([right[some].mean() for some in chosen])


def test_only_layer_wise(quick: FitContext) -> None:
    settings = replace(quick.settings, granularity="neuron")
    with pytest.raises(ModelError, match="one threshold for each layer, not neuron-wise ones"):
        ftclipact.fit(replace(quick, settings=settings))


def test_only_classifiers(quick: FitContext) -> None:
    unlabelled = LabelledBatch(quick.calibration.images, None)
    with pytest.raises(ModelError, match="use --method ranger"):
        ftclipact.fit(replace(quick, calibration=unlabelled))
