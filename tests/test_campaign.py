"""Campaigns, against a slow reference: Python integers, a new session a trial, numpy scores."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.campaign import Campaign, CampaignResult, TrialResult, read_campaign
from proact_onnx.data import Dataset, Preprocessing
from proact_onnx.errors import CampaignError, DataError, ModelError, SettingsError
from proact_onnx.faults import draw_faults, fault_space
from proact_onnx.settings import InjectSettings, RuntimeSettings
from tests.numerics import parse, run

ROOT = Path(__file__).parents[1]
RUNTIME = RuntimeSettings(provider="cpu", threads=1, batch_size=16)
COUNT = 40

NETWORK = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 1, 6, 6] x) => (float[N, 4] y) {
    [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    f = Flatten (r)
    [dense] y = Gemm (f, w2, b2)
}"""


def network(scale: float = 1.0) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 1, 3, 3), "b1": (8,), "w2": (288, 4), "b2": (4,)}
    weights = {
        name: (scale * rng.standard_normal(shape) / 3).astype(np.float32)
        for name, shape in shapes.items()
    }
    return parse(NETWORK, **weights)


def images(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 1, 6, 6)).astype(np.float32)


def dataset() -> Dataset:
    """Labels the network mostly agrees with."""
    labels = run(network(), {"x": images()})[0].argmax(axis=1)
    labels[::5] = (labels[::5] + 1) % 4
    return Dataset(images(), labels, "synthetic")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(network(), tmp_path / "model.onnx")


def save(network: onnx.ModelProto, path: Path) -> Path:
    onnx.save_model(network, path)
    return path


def carry_out(
    model: Path,
    record: Path,
    data: Dataset | None = None,
    runtime: RuntimeSettings = RUNTIME,
    **settings: object,
) -> tuple[CampaignResult, list[TrialResult]]:
    inject = InjectSettings(**{"ber": (1e-3,), "trials": 5, **settings})  # type: ignore[arg-type]
    result = Campaign(model, data or dataset(), inject, runtime=runtime).run(record)
    return result, read_campaign(record)[1]


def through_q(value: float, mask: int = 0) -> float:
    """Store in Q15.16, flip, read back: exact rational arithmetic."""
    integer = min(max(round(Fraction(value) * 65536), -(2**31)), 2**31 - 1)
    word = (integer % 2**32) ^ mask
    return float(Fraction(word - 2**32 * (word >> 31), 65536))


def through_float32(value: float, mask: int = 0) -> float:
    word = int(np.float32(value).view(np.uint32)) ^ mask
    return float(np.uint32(word).view(np.float32))


def reference(
    network: onnx.ModelProto, store: Callable[[float, int], float], masks: dict[str, dict[int, int]]
) -> np.ndarray:
    """Scores with every parameter stored and its faulty bits flipped, one by one."""
    faulty = onnx.ModelProto()
    faulty.CopyFrom(network)
    for tensor in faulty.graph.initializer:
        values = numpy_helper.to_array(tensor)
        stored = [
            store(float(value), masks.get(tensor.name, {}).get(index, 0))
            for index, value in enumerate(values.ravel())
        ]
        array = np.array(stored, np.float64).astype(np.float32).reshape(values.shape)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return run(faulty, {"x": images()})[0]


@pytest.mark.parametrize(
    ("number_format", "store"), [("Q15.16", through_q), ("float32", through_float32)]
)
def test_every_trial_equals_the_reference(
    model: Path, tmp_path: Path, number_format: str, store: Callable[[float, int], float]
) -> None:
    bers, trials, seed = (1e-5, 1e-3, 2e-2), 8, 11
    result, found = carry_out(
        model, tmp_path / "run.jsonl", ber=bers, trials=trials, seed=seed, format=number_format
    )
    labels = dataset().labels
    golden_scores = reference(network(), store, {})
    golden = golden_scores.argmax(axis=1)
    assert result.golden_accuracy == (golden == labels).mean()
    space = fault_space(network(), 32)
    expected = []
    for ber in bers:
        for trial in range(trials):
            faults = draw_faults(space, ber, seed, trial)
            masks = {
                name: dict(zip(elements.tolist(), bits.tolist(), strict=True))
                for name, (elements, bits) in faults.words.items()
            }
            scores = reference(network(), store, masks)
            finite = np.isfinite(scores).all(axis=1)
            classes = scores.argmax(axis=1)
            expected.append(
                TrialResult(
                    ber=ber,
                    trial=trial,
                    flips=sum(bin(m).count("1") for hit in masks.values() for m in hit.values()),
                    images=COUNT,
                    correct=int((finite & (classes == labels)).sum()),
                    golden_correct=int((golden == labels).sum()),
                    sdc=int((finite & (classes != golden)).sum()),
                    nonfinite=int((~finite).sum()),
                )
            )
    assert found == expected
    assert any(trial.flips == 0 for trial in found)
    assert any(trial.sdc > 0 for trial in found)
    assert any(trial.nonfinite > 0 for trial in found) == (number_format == "float32")
    for trial in found:
        if trial.flips == 0:
            assert trial.correct == trial.golden_correct
            assert trial.sdc == trial.nonfinite == 0
    drops = [(t.golden_correct - t.correct) / COUNT for t in found if t.ber == 2e-2]
    assert result.summaries[2].drop.mean == pytest.approx(np.mean(drops))


def test_the_engine_s_parameters_are_whole_again_after_every_trial(
    model: Path, tmp_path: Path
) -> None:
    """A trial's numbers do not depend on the trials before it."""
    _, ascending = carry_out(model, tmp_path / "a.jsonl", ber=(1e-3, 0.3), trials=6)
    _, alone = carry_out(model, tmp_path / "b.jsonl", ber=(1e-3,), trials=6)
    _, reverse = carry_out(model, tmp_path / "c.jsonl", ber=(0.3, 1e-3), trials=6)
    assert ascending[:6] == alone == reverse[6:]
    assert ascending[6:] == reverse[:6]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_does_not_change_the_numbers(
    model: Path, tmp_path: Path, batch_size: int
) -> None:
    other = RuntimeSettings(provider="cpu", threads=1, batch_size=batch_size)
    _, found = carry_out(model, tmp_path / "a.jsonl", trials=10)
    assert carry_out(model, tmp_path / "b.jsonl", runtime=other, trials=10)[1] == found


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_model_with_a_fixed_batch_gives_the_same_numbers(
    model: Path, tmp_path: Path, batch: int
) -> None:
    fixed = network()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch
    path = save(fixed, tmp_path / "fixed.onnx")
    for settings in ({}, {"images": 9}):
        number = len(settings)
        _, expected = carry_out(model, tmp_path / f"a{number}.jsonl", **settings)
        _, found = carry_out(path, tmp_path / f"b{number}.jsonl", **settings)
        assert found == expected


def test_more_trials_and_rates_continue_the_same_record(model: Path, tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    carry_out(model, record, ber=(1e-3,), trials=3)
    first = record.read_bytes()
    result, found = carry_out(model, record, ber=(1e-3, 1e-2), trials=5)
    assert record.read_bytes().startswith(first)
    assert [(trial.ber, trial.trial) for trial in found] == [
        *((1e-3, number) for number in range(5)),
        *((1e-2, number) for number in range(5)),
    ]
    _, at_once = carry_out(model, tmp_path / "whole.jsonl", ber=(1e-3, 1e-2), trials=5)
    assert found == at_once
    assert [summary.trials for summary in result.summaries] == [5, 5]
    fewer, still = carry_out(model, record, ber=(1e-2,), trials=2)
    assert still == found
    assert [(summary.ber, summary.trials) for summary in fewer.summaries] == [(1e-2, 2)]


def test_a_rate_asked_for_twice_is_run_once(model: Path, tmp_path: Path) -> None:
    result, found = carry_out(model, tmp_path / "run.jsonl", ber=(1e-3, 1e-3), trials=4)
    assert len(found) == 4
    assert [summary.trials for summary in result.summaries] == [4]


SCRIPT = """
import sys, time
from pathlib import Path
from proact_onnx.campaign import Campaign
from proact_onnx.data import load_dataset
from proact_onnx.progress import LogReporter
from proact_onnx.settings import InjectSettings, RuntimeSettings

class Slow(LogReporter):
    def advance(self, steps=1):
        time.sleep(0.003)

model, data, record = map(Path, sys.argv[1:])
settings = InjectSettings(ber=(1e-4, 1e-3), trials=60, images=13)
runtime = RuntimeSettings(provider="cpu", threads=1)
Campaign(model, load_dataset(data), settings, runtime=runtime).run(record, Slow())
"""


def test_a_campaign_killed_and_resumed_equals_one_that_was_not(model: Path, tmp_path: Path) -> None:
    record, data = tmp_path / "run.jsonl", tmp_path / "data.npz"
    np.savez(data, images=images(), labels=dataset().labels)
    rng = np.random.default_rng(4)
    kills = 0
    for wanted in (1, 1 + int(rng.integers(10, 40)), 1 + int(rng.integers(60, 100))):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(model), str(data), str(record)], cwd=ROOT
        )
        while process.poll() is None:
            if record.exists() and record.read_bytes().count(b"\n") >= wanted:
                time.sleep(float(rng.uniform(0, 0.01)))
                process.send_signal(signal.SIGKILL)
                process.wait()
        kills += process.returncode == -signal.SIGKILL
    assert kills > 0
    settings = {"ber": (1e-4, 1e-3), "trials": 60, "images": 13}
    interrupted = len(read_campaign(record)[1])
    carry_out(model, record, **settings)
    carry_out(model, tmp_path / "whole.jsonl", **settings)
    assert 0 < interrupted <= 120
    resumed = record.read_bytes().splitlines()[1:]
    assert len(resumed) == 120
    assert resumed == (tmp_path / "whole.jsonl").read_bytes().splitlines()[1:]


def test_another_campaign_s_record_is_refused(model: Path, tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    carry_out(model, record)
    before = record.read_bytes()
    relabelled = Dataset(images(), np.zeros(COUNT, np.int64), "synthetic")
    changed = save(network(1.5), tmp_path / "other.onnx")
    for field, arguments in {
        "seed": {"seed": 1},
        "format": {"format": "Q7.8"},
        "images": {"images": 9},
        "targets": {"targets": ("weight",)},
        "layers": {"layers": ("conv",)},
        "data": {"data": relabelled},
    }.items():
        with pytest.raises(CampaignError, match=f"holds another campaign: its {field} is"):
            carry_out(model, record, **arguments)
    with pytest.raises(CampaignError, match="holds another campaign: its model is"):
        carry_out(changed, record)
    assert record.read_bytes() == before


def test_each_trial_has_images_of_its_own_shared_by_rates_and_models(
    model: Path, tmp_path: Path
) -> None:
    other = network()
    other.graph.node[-1].name = "another name for the last layer"
    twin = save(other, tmp_path / "twin.onnx")
    settings = {"ber": (1e-6, 1e-3), "trials": 30, "images": 11}
    result, found = carry_out(model, tmp_path / "a.jsonl", **settings)
    _, paired = carry_out(twin, tmp_path / "b.jsonl", **settings)
    assert found == paired
    assert all(trial.images == 11 for trial in found)
    low, high = found[:30], found[30:]
    assert [trial.golden_correct for trial in low] == [trial.golden_correct for trial in high]
    shares = [trial.golden_correct / 11 for trial in low]
    assert len(set(shares)) > 2
    assert np.mean(shares) == pytest.approx(result.golden_accuracy, abs=0.08)
    for trial in found:
        if trial.flips == 0:
            assert trial.correct == trial.golden_correct


@pytest.mark.parametrize("asked", [0, COUNT, COUNT + 1])
def test_all_images_are_taken_when_no_fewer_are_asked_for(
    model: Path, tmp_path: Path, asked: int
) -> None:
    _, found = carry_out(model, tmp_path / "run.jsonl", images=asked, trials=2)
    assert [trial.images for trial in found] == [COUNT, COUNT]


def test_without_labels_accuracy_is_agreement_with_the_golden_run(
    model: Path, tmp_path: Path
) -> None:
    unlabelled = Dataset(images(), None, "synthetic")
    result, found = carry_out(model, tmp_path / "run.jsonl", unlabelled, trials=20)
    assert not result.labelled
    assert result.golden_accuracy == 1.0
    for trial in found:
        assert trial.golden_correct == COUNT
        assert trial.correct + trial.sdc + trial.nonfinite == COUNT
    assert any(trial.sdc for trial in found)


def test_saturated_parameters_are_counted_and_the_golden_run_has_them(
    tmp_path: Path,
) -> None:
    model = save(network(20.0), tmp_path / "large.onnx")
    result, _ = carry_out(model, tmp_path / "run.jsonl", format="Q3.4", trials=1)
    stored = np.concatenate(
        [numpy_helper.to_array(tensor).ravel() for tensor in network(20.0).graph.initializer]
    )
    rounded = np.array([round(Fraction(float(value)) * 16) for value in stored])
    outside = int(((rounded < -128) | (rounded > 127)).sum())
    assert result.saturated == outside > 0
    assert result.bits == 8 * stored.size
    scores = reference(
        network(20.0),
        lambda value, _: min(max(round(Fraction(value) * 16), -128), 127) / 16,
        {},
    )
    labels = dataset().labels
    assert result.golden_accuracy == (scores.argmax(axis=1) == labels).mean()
    plain = run(network(20.0), {"x": images()})[0].argmax(axis=1)
    assert result.float_accuracy == (plain == labels).mean()


def test_only_the_targets_asked_for_are_hit(model: Path, tmp_path: Path) -> None:
    result, found = carry_out(
        model, tmp_path / "run.jsonl", ber=(1.0,), trials=1, targets=("bias",), layers=("conv",)
    )
    assert result.bits == found[0].flips == 8 * 32


def test_constants_in_the_graph_and_a_rectifier_spelt_as_max_can_be_measured(
    tmp_path: Path,
) -> None:
    """Preparing removes the zero of Max: it must not be looked for as a parameter."""
    text = NETWORK.replace(
        "r = Relu (a)", "zero = Constant <value = float[1] {0.0}> () r = Max (a, zero)"
    )
    spelt = parse(text)
    spelt.graph.initializer.extend(network().graph.initializer)
    _, expected = carry_out(save(network(), tmp_path / "a.onnx"), tmp_path / "a.jsonl")
    _, found = carry_out(save(spelt, tmp_path / "b.onnx"), tmp_path / "b.jsonl")
    assert found == expected


def test_the_header_tells_what_was_measured(model: Path, tmp_path: Path) -> None:
    result, _ = carry_out(model, tmp_path / "run.jsonl", seed=5)
    head = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[0])
    assert head["golden"] == {
        "accuracy": result.golden_accuracy,
        "float_accuracy": result.float_accuracy,
        "images": COUNT,
        "fault_space_bits": result.bits,
        "saturated": 0,
    }
    assert head["identity"]["seed"] == 5
    assert head["identity"]["data"] == dataset().digest
    assert head["made_by"]["engine"] == "engine: in place on the CPU"
    assert result.bits == 32 * sum(
        numpy_helper.to_array(tensor).size for tensor in network().graph.initializer
    )


class Listener:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int]] = []
        self.steps: list[int] = []
        self.notices: list[str] = []

    def begin(self, task: str, total: int) -> None:
        self.begun.append((task, total))

    def advance(self, steps: int = 1) -> None:
        self.steps.append(steps)

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def warn(self, text: str) -> None:
        self.notices.append(text)


def test_progress_counts_what_was_done_before(model: Path, tmp_path: Path) -> None:
    carry_out(model, tmp_path / "run.jsonl", trials=3)
    listener = Listener()
    settings = InjectSettings(ber=(1e-3,), trials=5)
    Campaign(model, dataset(), settings, runtime=RUNTIME).run(tmp_path / "run.jsonl", listener)
    assert listener.begun == [("model.onnx", 5)]
    assert listener.steps == [3, 1, 1]
    assert "model.onnx: engine: in place on the CPU" in listener.notices


def test_a_parameter_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    broken = network()
    values = numpy_helper.to_array(broken.graph.initializer[1]).copy()
    values[2] = np.nan
    broken.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "b1"))
    path = save(broken, tmp_path / "broken.onnx")
    with pytest.raises(ModelError) as caught:
        carry_out(path, tmp_path / "run.jsonl")
    assert str(caught.value) == (
        "parameter 'b1' holds NaN, which no memory format can be asked to keep: repair the model"
    )
    assert not (tmp_path / "run.jsonl").exists()


@pytest.mark.parametrize(
    ("last", "declared", "shape"),
    [
        ("Relu (a)", "float[N, 8, 6, 6]", "[40, 8, 6, 6]"),
        ("ReduceSum <keepdims = 0> (a)", "float", "[3]"),
    ],
)
def test_what_is_no_classifier_is_refused(
    tmp_path: Path, last: str, declared: str, shape: str
) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 1, 6, 6] x) => (TYPE y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        y = LAST
    }""".replace("LAST", last).replace("TYPE", declared)
    other = parse(text)
    other.graph.initializer.extend(list(network().graph.initializer)[:2])
    path = save(other, tmp_path / "other.onnx")
    with pytest.raises(ModelError) as caught:
        carry_out(path, tmp_path / "run.jsonl")
    assert str(caught.value) == (
        f"the model's first output has shape {shape}, which is not a vector of class scores per "
        "image: only classifiers can be measured"
    )


def test_a_golden_run_without_a_finite_output_is_refused(tmp_path: Path) -> None:
    huge = save(network(1e38), tmp_path / "huge.onnx")
    with pytest.raises(ModelError) as caught:
        carry_out(huge, tmp_path / "run.jsonl", format="float32")
    assert str(caught.value) == (
        "huge.onnx gives no finite output once its parameters are stored as float32: choose a "
        "--format with a wider range"
    )


def test_labels_beyond_the_model_s_classes_are_refused(model: Path, tmp_path: Path) -> None:
    wrong = Dataset(images(), np.full(COUNT, 4), "synthetic")
    with pytest.raises(DataError, match="label 4 of image 0 of synthetic is no class"):
        carry_out(model, tmp_path / "run.jsonl", wrong)


def test_targets_that_the_model_lacks_are_refused(model: Path) -> None:
    with pytest.raises(SettingsError, match="stores no parameter of kind threshold"):
        Campaign(model, dataset(), InjectSettings(targets=("threshold",)))


def test_a_trained_network_has_its_known_accuracy(shared_dir: Path, tmp_path: Path) -> None:
    archive = np.load(shared_dir / "data" / "cifar10" / "test.npz")
    some = Dataset(archive["images"][:200], archive["labels"][:200], "CIFAR-10")
    path = shared_dir / "models" / "c10_tiny_resnet8_torchscript_op17.onnx"
    settings = InjectSettings(ber=(1e-9, 1e-3), trials=3, images=50)
    campaign = Campaign(path, some, settings, Preprocessing(scale=1.0), RUNTIME)
    result = campaign.run(tmp_path / "run.jsonl")
    assert 0.82 < result.golden_accuracy < 0.94
    assert abs(result.golden_accuracy - result.float_accuracy) < 0.02
    assert result.summaries[1].accuracy.mean < 0.6 < result.summaries[0].accuracy.mean
