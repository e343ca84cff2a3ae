"""The search of FT-ClipAct, and what it measures, against sessions of the faulty model."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.activations import find_activations
from proact_onnx.errors import ModelError
from proact_onnx.faults import FaultModel, Rate, fault_space, parse_format
from proact_onnx.methods import METHODS, FitContext, LabelledBatch, ftclipact
from proact_onnx.methods.ftclipact import layer_spaces, search
from proact_onnx.rewrite import insert
from proact_onnx.settings import HardenSettings
from proact_onnx.thresholds import Thresholds, pack
from tests.numerics import parse, run
from tests.test_methods import Memory, Record, context

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

    def watched(threshold: float) -> float:
        tried.append(threshold)
        return measure(threshold)

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
    """One threshold of the last layer, measured with a session for every fault map."""
    profiled = pack(ftclipact.profiled_thresholds(quick))
    trials = ftclipact._LayerTrials(quick, profiled)
    activation = quick.activations[-1]
    thresholds = dict(profiled)
    measure = trials.measure(activation, thresholds)
    assert measure is not None
    tried = np.float32(profiled[activation.tensor] * 0.6)
    found = measure(float(tried))

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
            chosen = ftclipact.choose_images(len(labels), 16, 0, trial, labels)
            [scores] = run(stored(model, number_format, faults), {"input": images[chosen]})
            shares.append(np.mean(scores.argmax(axis=1) == labels[chosen]))
        areas.append(np.mean(shares))
    assert found == pytest.approx(np.mean(areas), abs=1e-12)
    assert trials.evaluations == 2 * 2 * 16


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


def test_only_layer_wise(quick: FitContext) -> None:
    settings = replace(quick.settings, granularity="neuron")
    with pytest.raises(ModelError, match="one threshold for each layer, not neuron-wise ones"):
        ftclipact.fit(replace(quick, settings=settings))


def test_only_classifiers(quick: FitContext) -> None:
    unlabelled = LabelledBatch(quick.calibration.images, None)
    with pytest.raises(ModelError, match="use --method ranger"):
        ftclipact.fit(replace(quick, calibration=unlabelled))
