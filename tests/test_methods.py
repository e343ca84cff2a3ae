"""The hardening methods on the digits network, against activations read from ONNX Runtime."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proact_onnx.activations import Activation, find_activations
from proact_onnx.data import load_dataset
from proact_onnx.engine import ActivationProfile
from proact_onnx.errors import SettingsError
from proact_onnx.methods import METHODS, FitContext, LabelledBatch, proact, ranger, training
from proact_onnx.mirror.train import TrainedThresholds
from proact_onnx.model import load_model
from proact_onnx.progress import LogReporter
from proact_onnx.rewrite import expose, insert, prepare
from proact_onnx.settings import HardenSettings, OutOfRange, RuntimeSettings
from proact_onnx.thresholds import FloatArray, Thresholds
from tests.numerics import run

QUICK = HardenSettings(epochs=3, epochs_neuron=4, train_batch=50)


class Memory:
    """A checkpoint that notes what it is given, and may hold layers from before."""

    def __init__(self, known: Mapping[str, FloatArray] | None = None) -> None:
        self.known = dict(known or {})
        self.stored: list[str] = []

    def finished(self) -> Mapping[str, FloatArray]:
        return dict(self.known)

    def store(self, tensor: str, values: FloatArray) -> None:
        self.stored.append(tensor)
        self.known[tensor] = values

    def store_all(self, values: Mapping[str, FloatArray]) -> None:
        self.known.update(values)


class Record(LogReporter):
    """A reporter that notes what it is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.total = self.steps = 0

    def begin(self, task: str, total: int) -> None:
        self.total = total

    def advance(self, steps: int = 1) -> None:
        self.steps += steps

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def warn(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture(scope="module")
def context(digits_dir: Path) -> FitContext:
    model = prepare(load_model(digits_dir / "digits.onnx")).model
    data = load_dataset(digits_dir / "calibration.npz")
    images = (data.images / 16).astype(np.float32)
    activations = find_activations(model)
    tensors = [activation.tensor for activation in activations]
    values = run(expose(model, tensors), {model.graph.input[0].name: images[:400]})[1:]
    maxima = {name: value.max(axis=0) for name, value in zip(tensors, values, strict=True)}
    return FitContext(
        model=model,
        activations=activations,
        profile=ActivationProfile(maxima, 400),
        calibration=LabelledBatch(images[:400], data.labels[:400]),
        accept=LabelledBatch(images[400:800], data.labels[400:800]),
        settings=METHODS["proact"].resolve(QUICK),
        runtime=RuntimeSettings(),
        checkpoint=Memory(),
        reporter=LogReporter(),
    )


def fit(context: FitContext, **changes: object) -> dict[str, FloatArray]:
    """Run ProAct from the start, unless the changes hold a checkpoint."""
    settings = METHODS["proact"].resolve(changes.pop("settings", QUICK))
    given = {"checkpoint": Memory(), "settings": settings, **changes}
    return dict(proact.fit(replace(context, **given)).thresholds.values)


def maxima(context: FitContext, activation: Activation, granularity: str) -> np.ndarray:
    highest = context.profile.maxima[activation.tensor]
    if granularity == "hybrid":
        granularity = "neuron" if activation is context.activations[-1] else "layer"
    if granularity == "layer":
        return highest.max()
    if granularity == "neuron":
        return highest[None]
    return highest.reshape(len(highest), -1).max(axis=1).reshape(1, -1, *[1] * (highest.ndim - 1))


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron", "hybrid"])
@pytest.mark.parametrize("slack", [1.0, 1.25])
def test_ranger_takes_the_maxima(context: FitContext, granularity: str, slack: float) -> None:
    settings = HardenSettings(method="ranger", granularity=granularity, slack=slack)
    thresholds = ranger.fit(replace(context, settings=settings)).thresholds
    assert list(thresholds.values) == [a.tensor for a in context.activations]
    for activation in context.activations:
        expected = maxima(context, activation, granularity)
        value = thresholds.values[activation.tensor]
        assert value.dtype == np.float32
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected * slack, rtol=1e-7)


def test_neuron_wise_maxima_differ_between_neurons(context: FitContext) -> None:
    settings = replace(QUICK, method="ranger", granularity="neuron")
    thresholds = ranger.fit(replace(context, settings=settings)).thresholds
    first = thresholds.values[context.activations[0].tensor]
    assert first.shape == (1, 24, 8, 8)
    assert len(np.unique(first)) > 500


def test_ranger_needs_no_torch(digits_dir: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from proact_onnx.data import load_dataset
from proact_onnx.harden import harden
from proact_onnx.settings import HardenSettings, OutOfRange, RuntimeSettings
folder = Path({str(digits_dir)!r})
harden(folder / "digits.onnx", load_dataset(folder / "test.npz"),
       Path({str(tmp_path / "out.onnx")!r}), settings=HardenSettings(method="ranger"))
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.stdout.strip() == "False"
    assert (tmp_path / "out.onnx").exists()


@pytest.fixture(scope="module")
def trained(context: FitContext) -> tuple[dict[str, FloatArray], Memory, Record]:
    memory, record = Memory(), Record()
    found = METHODS["proact"].fit(replace(context, checkpoint=memory, reporter=record))
    return dict(found.thresholds.values), memory, record


def test_proact_trains_last_to_first(
    context: FitContext, trained: tuple[dict[str, FloatArray], Memory, Record]
) -> None:
    thresholds, memory, record = trained
    assert memory.stored == [a.tensor for a in reversed(context.activations)]
    assert list(thresholds) == [a.tensor for a in context.activations]
    assert record.steps == record.total == 6 * 3 + 4
    assert record.notices == []


def test_proact_lowers_thresholds(
    context: FitContext, trained: tuple[dict[str, FloatArray], Memory, Record]
) -> None:
    thresholds, _, _ = trained
    for activation in context.activations:
        profiled = maxima(context, activation, "hybrid")
        value = thresholds[activation.tensor]
        assert value.shape == profiled.shape
        assert value.dtype == np.float32
        assert (value >= 0).all()
        assert (value <= profiled * np.float32(QUICK.slack)).all()
        assert value.mean() < profiled.mean(), activation.name
    last = context.activations[-1].tensor
    assert len(np.unique(thresholds[last])) > 20


def accuracy(context: FitContext, thresholds: dict[str, FloatArray]) -> float:
    model = insert(context.model, Thresholds(thresholds)).model if thresholds else None
    model = model or context.model
    [scores] = run(model, {model.graph.input[0].name: context.accept.images})
    return float((scores.argmax(axis=1) == context.accept.labels).mean())


def test_proact_keeps_accuracy_of_the_deployed_model(
    context: FitContext, trained: tuple[dict[str, FloatArray], Memory, Record]
) -> None:
    drop = accuracy(context, {}) - accuracy(context, trained[0])
    assert drop <= QUICK.max_accuracy_drop / 100 + 1e-9


def training_that_asks_for(share: float) -> Callable[..., object]:
    """Training that asks for the maxima times ``share``."""

    def train(
        _: object, inputs: object, initial: Mapping[str, FloatArray], *rest: object, **more: object
    ) -> TrainedThresholds:
        asked = {name: values * np.float32(share) for name, values in initial.items()}
        return TrainedThresholds(asked, 0.0, 1)

    return train


def test_thresholds_that_cost_too_much_are_given_up(
    context: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far below zero is nothing a network survives, and neither are half and a quarter of it."""
    monkeypatch.setattr(training, "train_thresholds", training_that_asks_for(-100.0))
    record = Record()
    found = fit(context, reporter=record)
    for activation in context.activations:
        expected = maxima(context, activation, "hybrid") * np.float32(QUICK.slack)
        np.testing.assert_allclose(found[activation.tensor], expected, rtol=1e-6)
    floor = accuracy(context, {}) - QUICK.max_accuracy_drop / 100
    assert record.notices == [
        f"{activation.name}: trained thresholds bring accuracy below {floor:.2%}, so the profiled "
        "ones stay"
        for activation in reversed(context.activations)
    ]


def test_profiled_thresholds_that_cost_too_much_are_noticed(context: FitContext) -> None:
    """As if the calibration images had been too few to find the maxima."""
    low = {name: values * np.float32(0.3) for name, values in context.profile.maxima.items()}
    settings = replace(QUICK, epochs=0, epochs_neuron=0)
    record = Record()
    found = fit(context, profile=ActivationProfile(low, 4), settings=settings, reporter=record)
    cost = accuracy(context, {}) - accuracy(context, found)
    assert cost > 0.1
    assert record.notices == [
        f"the profiled thresholds alone cost {100 * cost:.2g} points of accuracy, and 1 are "
        "allowed: profile more calibration images, or raise the slack"
    ]


@pytest.mark.parametrize(
    ("asked", "kept"),
    [(1.0, 1.0), (0.9, 0.9), (-0.8, 0.1), (-2.6, 0.1)],
    ids=["nothing asked", "fits", "half way back", "a quarter of the way"],
)
def test_a_layer_goes_back_until_accuracy_holds(
    context: FitContext, monkeypatch: pytest.MonkeyPatch, asked: float, kept: float
) -> None:
    """With a drop that allows a tenth of the last layer's maxima but nothing below zero."""
    monkeypatch.setattr(training, "train_thresholds", training_that_asks_for(asked))
    last = context.activations[-1:]
    shares = {0.9: 0.9, 0.1: 0.1}
    profiled = maxima(context, last[0], "hybrid") * np.float32(QUICK.slack)
    cost = {
        share: accuracy(context, {}) - accuracy(context, {last[0].tensor: profiled * share})
        for share in (*shares, 0.0)
    }
    assert cost[0.9] <= cost[0.1] < cost[0.0], "zero thresholds cost more than small ones"
    allowed = 100 * (cost[0.1] + cost[0.0]) / 2
    settings = replace(QUICK, max_accuracy_drop=max(allowed, 0.0))
    found = fit(context, activations=last, settings=settings)
    np.testing.assert_allclose(found[last[0].tensor], profiled * kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("form", "kept"), [("hard", 1.0), ("saturate", 1.0), ("smooth", 1.2)])
def test_only_a_smooth_gate_may_rise_above_the_maxima(
    context: FitContext, monkeypatch: pytest.MonkeyPatch, form: str, kept: float
) -> None:
    monkeypatch.setattr(training, "train_thresholds", training_that_asks_for(1.2))
    found = fit(context, settings=replace(QUICK, form=form))
    for activation in context.activations:
        expected = maxima(context, activation, "hybrid") * np.float32(QUICK.slack * kept)
        np.testing.assert_allclose(found[activation.tensor], expected, rtol=1e-6)


def test_finished_layers_are_not_trained_again(
    context: FitContext, trained: tuple[dict[str, FloatArray], Memory, Record]
) -> None:
    thresholds, memory, _ = trained
    done = {name: thresholds[name] for name in memory.stored[:4]}
    rest, record = Memory(done), Record()
    found = fit(context, checkpoint=rest, reporter=record)
    assert rest.stored == memory.stored[4:]
    assert record.steps == record.total
    for name, value in thresholds.items():
        np.testing.assert_array_equal(found[name], value)


def test_proact_trains_one_threshold_per_neuron_everywhere(context: FitContext) -> None:
    settings = replace(QUICK, granularity="neuron", epochs_neuron=1)
    found = fit(context, settings=settings)
    for activation in context.activations:
        assert found[activation.tensor].shape == maxima(context, activation, "neuron").shape


def test_training_together_can_be_interrupted(context: FitContext) -> None:
    """A run that stops after its second epoch and goes on ends as one that was never stopped."""
    settings = METHODS["fitact"].resolve(replace(QUICK, method="fitact", epochs_together=4))

    class Stopping(Memory):
        def store_all(self, values: Mapping[str, FloatArray]) -> None:
            super().store_all(values)
            if values["counters"][0] == 2:
                raise KeyboardInterrupt

    whole = METHODS["fitact"].fit(replace(context, settings=settings, checkpoint=Memory()))
    stopped = Stopping()
    with pytest.raises(KeyboardInterrupt):
        METHODS["fitact"].fit(replace(context, settings=settings, checkpoint=stopped))
    record = Record()
    resumed = METHODS["fitact"].fit(
        replace(context, settings=settings, checkpoint=Memory(stopped.known), reporter=record)
    )
    assert record.steps == record.total == 4
    for tensor, values in whole.thresholds.values.items():
        np.testing.assert_array_equal(resumed.thresholds.values[tensor], values)


@pytest.mark.parametrize(
    ("method", "granularity"), [("fitact", "neuron"), ("brelu", "layer"), ("proact", "hybrid")]
)
def test_training_together(context: FitContext, method: str, granularity: str) -> None:
    chosen = replace(QUICK, method=method, epochs_together=3, progressive=False)
    settings = METHODS[method].resolve(chosen)
    assert settings.granularity == granularity
    assert settings.form == ("saturate" if method == "brelu" else "hard")
    found = METHODS[method].fit(replace(context, settings=settings, checkpoint=Memory()))
    values = found.thresholds.values
    assert found.evaluations == 0
    assert list(values) == [a.tensor for a in context.activations]
    for activation in context.activations:
        profiled = maxima(context, activation, granularity) * np.float32(QUICK.slack)
        assert values[activation.tensor].shape == profiled.shape
        assert (values[activation.tensor] <= profiled).all()
        assert values[activation.tensor].mean() < profiled.mean(), activation.name
    if method != "brelu":
        drop = accuracy(context, {}) - accuracy(context, dict(values))
        assert drop <= QUICK.max_accuracy_drop / 100 + 1e-9


def test_distillation_changes_what_is_learnt(context: FitContext) -> None:
    last = context.activations[-1:]
    taught, alone = (
        fit(context, activations=last, settings=replace(QUICK, distillation=distillation))
        for distillation in (True, False)
    )
    assert (taught[last[0].tensor] != alone[last[0].tensor]).any()


@pytest.mark.parametrize(
    ("method", "given", "used"),
    [
        ("ranger", None, 100.0),
        ("ranger", 99.0, 99.0),
        ("clip-percentile", None, 99.9),
        ("clip-percentile", 95.0, 95.0),
    ],
)
def test_percentiles_as_thresholds(
    context: FitContext, method: str, given: float | None, used: float
) -> None:
    settings = METHODS[method].resolve(replace(QUICK, method=method, percentile=given))
    values = METHODS[method].fit(replace(context, settings=settings)).thresholds.values
    tensors = [activation.tensor for activation in context.activations]
    exposed = expose(context.model, tensors)
    outputs = run(exposed, {exposed.graph.input[0].name: context.calibration.images})[1:]
    for tensor, activation in zip(tensors, outputs, strict=True):
        expected = np.percentile(activation.astype(np.float64), used) * QUICK.slack
        np.testing.assert_allclose(values[tensor], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, "hard"),
        ({"out_of_range": OutOfRange.CLAMP}, "saturate"),
        ({"out_of_range": OutOfRange.ZERO, "form": "smooth"}, "smooth"),
        ({"form": "saturate"}, "saturate"),
    ],
)
def test_what_becomes_of_values_out_of_range(options: dict[str, Any], form: str) -> None:
    resolved = METHODS["ranger"].resolve(HardenSettings(method="ranger", **options))
    assert (resolved.granularity, resolved.form) == ("layer", form)


def test_a_form_that_contradicts_what_becomes_of_values() -> None:
    with pytest.raises(SettingsError, match="form 'hard' does not clamp what is out of range"):
        HardenSettings(form="hard", out_of_range=OutOfRange.CLAMP)


@pytest.mark.parametrize("method", ["proact", "fitact", "brelu"])
def test_training_under_faults(context: FitContext, method: str) -> None:
    """The same seed trains under the same faults; thresholds differ from those without."""
    settings = replace(QUICK, method=method, epochs=1, epochs_neuron=1, epochs_together=2)

    def thresholds(**changes: object) -> np.ndarray:
        chosen = METHODS[method].resolve(replace(settings, **changes))
        given = replace(context, settings=chosen, checkpoint=Memory())
        found = METHODS[method].fit(given).thresholds.values
        return np.concatenate([np.ravel(values) for values in found.values()])

    first, again = thresholds(train_ber=1e-3), thresholds(train_ber=1e-3)
    np.testing.assert_array_equal(first, again)
    assert (first != thresholds(train_ber=0.0)).any()
    assert (first != thresholds(train_ber=1e-4)).any()


def test_training_under_faults_and_rescaled_weights_exclude_each_other(
    context: FitContext,
) -> None:
    with pytest.raises(SettingsError, match="train-ber puts faults into weights as they are"):
        fit(context, settings=replace(QUICK, train_ber=1e-5, rescale="channel"))
