"""Campaigns, against a slow reference: Python integers, a new session a trial, numpy scores."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.campaign import (
    Campaign,
    CampaignResult,
    TrialResult,
    Verdict,
    read_campaign,
)
from proact_onnx.data import Dataset, Preprocessing
from proact_onnx.errors import CampaignError, DataError, ModelError, SettingsError
from proact_onnx.faults import FaultModel, Rate, fault_space
from proact_onnx.settings import InjectSettings, Protocol, RuntimeSettings
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
    inject = InjectSettings(**{"ber": (1e-3,), "trials": 5, "images": COUNT, **settings})  # type: ignore[arg-type]
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
            faults = FaultModel(Rate(ber)).draw(space, seed, trial)
            masks = {
                name: dict(zip(elements.tolist(), bits.tolist(), strict=True))
                for name, (elements, bits) in faults.words.items()
            }
            scores = reference(network(), store, masks)
            finite = np.isfinite(scores).all(axis=1)
            classes = scores.argmax(axis=1)
            flips = sum(bin(m).count("1") for hit in masks.values() for m in hit.values())
            expected.append(
                TrialResult(
                    fault=f"ber={ber!r}",
                    trial=trial,
                    sites=flips,
                    flips=flips,
                    verdict=Verdict(
                        images=COUNT,
                        correct=int((finite & (classes == labels)).sum()),
                        golden_correct=int((golden == labels).sum()),
                        sdc=int((finite & (classes != golden)).sum()),
                        nonfinite=int((~finite).sum()),
                        # Of four classes, every one is among the five leading ones.
                        sdc5=0,
                    ),
                )
            )
    assert found == expected
    assert any(trial.flips == 0 for trial in found)
    assert any(trial.verdict.sdc > 0 for trial in found)
    assert any(trial.verdict.nonfinite > 0 for trial in found) == (number_format == "float32")
    for trial in found:
        if trial.flips == 0:
            assert trial.verdict.correct == trial.verdict.golden_correct
            assert trial.verdict.sdc == trial.verdict.nonfinite == 0
    drops = [
        (t.verdict.golden_correct - t.verdict.correct) / COUNT
        for t in found
        if t.fault == "ber=0.02"
    ]
    assert result.summaries[2].drop.mean == pytest.approx(np.mean(drops))
    assert result.summaries[2].worst == pytest.approx(result.golden_accuracy - max(drops))


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
    assert [trial.key for trial in found] == [
        *(("ber=0.001", number) for number in range(5)),
        *(("ber=0.01", number) for number in range(5)),
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
import os, random, signal, sys, time
from pathlib import Path
from proact_onnx.campaign import Campaign
from proact_onnx.data import load_dataset
from proact_onnx.progress import LogReporter
from proact_onnx.settings import InjectSettings, RuntimeSettings

class Slow(LogReporter):
    def advance(self, steps=1):
        time.sleep(0.002)

model, data, record = map(Path, sys.argv[1:])
settings = InjectSettings(ber=(1e-4, 1e-3), flips=(2,), trials=200, images=13)
runtime = RuntimeSettings(provider="cpu", threads=1)
dataset = load_dataset(data)
moments, kills = random.Random(4), 0
for attempt in range(25):
    child = os.fork()
    if child == 0:
        Campaign(model, dataset, settings, runtime=runtime).run(record, Slow())
        os._exit(0)
    time.sleep(moments.uniform(0.0, 0.35))
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_a_campaign_killed_and_resumed_equals_one_that_was_not(model: Path, tmp_path: Path) -> None:
    record, data = tmp_path / "run.jsonl", tmp_path / "data.npz"
    np.savez(data, images=images(), labels=dataset().labels)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(data), str(record)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) >= 20
    settings = {"ber": (1e-4, 1e-3), "flips": (2,), "trials": 200, "images": 13}
    interrupted = len(read_campaign(record)[1])
    assert 0 < interrupted < 600
    carry_out(model, record, **settings)
    carry_out(model, tmp_path / "whole.jsonl", **settings)
    resumed = record.read_bytes().splitlines()[1:]
    assert len(resumed) == 600
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
        "bits": {"bits": "0-7"},
        "per_class": {"per_class": True},
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
    assert all(trial.verdict.images == 11 for trial in found)
    low, high = found[:30], found[30:]
    assert [trial.verdict.golden_correct for trial in low] == [
        trial.verdict.golden_correct for trial in high
    ]
    shares = [trial.verdict.golden_correct / 11 for trial in low]
    assert len(set(shares)) > 2
    assert np.mean(shares) == pytest.approx(result.golden_accuracy, abs=0.08)
    for trial in found:
        if trial.flips == 0:
            assert trial.verdict.correct == trial.verdict.golden_correct


@pytest.mark.parametrize("asked", [COUNT, COUNT + 1])
def test_all_images_are_taken_when_no_fewer_are_asked_for(
    model: Path, tmp_path: Path, asked: int
) -> None:
    _, found = carry_out(model, tmp_path / "run.jsonl", images=asked, trials=2)
    assert [trial.verdict.images for trial in found] == [COUNT, COUNT]


def test_without_labels_accuracy_is_agreement_with_the_golden_run(
    model: Path, tmp_path: Path
) -> None:
    unlabelled = Dataset(images(), None, "synthetic")
    result, found = carry_out(model, tmp_path / "run.jsonl", unlabelled, trials=20)
    assert not result.labelled
    assert result.golden_accuracy == 1.0
    for trial in found:
        assert trial.verdict.golden_correct == COUNT
        assert trial.verdict.correct + trial.verdict.sdc + trial.verdict.nonfinite == COUNT
    assert any(trial.verdict.sdc for trial in found)


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
    expected = {
        "accuracy": result.golden_accuracy,
        "float_accuracy": result.float_accuracy,
        "images": COUNT,
        "fault_space_bits": result.bits,
        "saturated": 0,
    }
    assert expected.items() <= head["golden"].items()
    names = [tensor.name for tensor in network().graph.initializer]
    assert sorted(entry["name"] for entry in head["golden"]["fault_space"]) == sorted(names)
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

    def expect(self, total: int) -> None:
        self.begun[-1] = (self.begun[-1][0], total)

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def warn(self, text: str) -> None:
        self.notices.append(text)


def test_progress_counts_what_was_done_before(model: Path, tmp_path: Path) -> None:
    carry_out(model, tmp_path / "run.jsonl", trials=3)
    listener = Listener()
    settings = InjectSettings(ber=(1e-3,), trials=5, images=COUNT)
    Campaign(model, dataset(), settings, runtime=RUNTIME).run(tmp_path / "run.jsonl", listener)
    assert listener.begun == [("model.onnx ber=0.001", 5)]
    assert listener.steps == [1] * 5
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


def test_fault_models_are_all_combinations(model: Path, tmp_path: Path) -> None:
    result, found = carry_out(
        model,
        tmp_path / "run.jsonl",
        ber=(1e-3, 1e-4),
        flips=(2,),
        effect=("flip", "stuck-at-1"),
        burst=(1, 2),
        trials=3,
    )
    amounts = ["ber=0.001", "ber=0.0001", "flips=2"]
    tails = ["", " burst=2", " stuck-at-1", " stuck-at-1 burst=2"]
    expected = [f"{amount}{tail}" for amount in amounts for tail in tails]
    assert list(dict.fromkeys(trial.fault for trial in found)) == expected
    assert len(found) == 3 * len(expected)
    assert [summary.ber for summary in result.summaries] == [1e-4] * 4 + [1e-3] * 4 + [None] * 4
    for trial in found:
        if trial.fault.startswith("flips=2"):
            assert trial.sites == (4 if "burst" in trial.fault else 2)
        assert (trial.flips == trial.sites) or "stuck" in trial.fault


def stuck(bit: int) -> Callable[[float, int], float]:
    """Store in Q15.16 with faulty bits held at 0 or 1."""

    def store(value: float, mask: int = 0) -> float:
        integer = round(Fraction(value) * 65536) % 2**32
        word = integer | mask if bit else integer & ~mask
        return float(Fraction(word - 2**32 * (word >> 31), 65536))

    return store


@pytest.mark.parametrize("bit", [0, 1])
def test_stuck_bits_equal_the_reference(model: Path, tmp_path: Path, bit: int) -> None:
    _, found = carry_out(
        model, tmp_path / "run.jsonl", ber=(1e-3,), effect=(f"stuck-at-{bit}",), trials=6
    )
    labels = dataset().labels
    for trial in found:
        drawn = FaultModel(Rate(1e-3)).draw(fault_space(network(), 32), 0, trial.trial)
        masks = {
            n: dict(zip(e.tolist(), m.tolist(), strict=True)) for n, (e, m) in drawn.words.items()
        }
        scores = reference(network(), stuck(bit), masks)
        assert trial.verdict.correct == (scores.argmax(axis=1) == labels).sum()
        assert trial.sites == drawn.sites
    assert sum(trial.flips for trial in found) < sum(trial.sites for trial in found)


def test_an_exhaustive_campaign_visits_every_bit_and_leaves_nothing_open(
    model: Path, tmp_path: Path
) -> None:
    result, found = carry_out(
        model,
        tmp_path / "run.jsonl",
        ber=(),
        exhaustive=True,
        targets=("bias",),
        layers=("dense",),
        trials=None,
        record_faults=True,
    )
    sites = [(name, *pair) for trial in found for name, [pair] in (trial.words or {}).items()]
    assert sorted(sites) == [("b2", element, 1 << bit) for element in range(4) for bit in range(32)]
    [summary] = result.summaries
    assert summary.trials == result.bits == 128
    assert summary.accuracy.low == summary.accuracy.high == summary.accuracy.mean
    labels = dataset().labels
    expected = [
        (reference(network(), through_q, {"b2": {element: mask}}).argmax(axis=1) == labels).mean()
        for _, element, mask in sites
    ]
    assert summary.accuracy.mean == pytest.approx(np.mean(expected))


def test_single_upsets_are_as_many_as_the_margin_asks_for(model: Path, tmp_path: Path) -> None:
    settings = {"ber": (), "single": True, "trials": None, "margin": 10.0, "images": 5}
    result, found = carry_out(model, tmp_path / "run.jsonl", record_faults=True, **settings)
    bits = result.bits
    # Leveugle et al. (2009) with p = 0.5 and t = 1.96.
    sample = bits / (1 + 0.1**2 * (bits - 1) / (1.959964**2 * 0.25))
    assert len(found) == math.ceil(sample) == 96
    hit = [(name, *pair) for trial in found for name, [pair] in (trial.words or {}).items()]
    assert len(set(hit)) == 96
    _, fewer = carry_out(model, tmp_path / "b.jsonl", **{**settings, "trials": 7})
    assert len(fewer) == 7


def test_a_pilot_chooses_the_images_and_the_rest_keeps_to_it(tmp_path: Path) -> None:
    """Faults that differ much need few images, faults that all do the same need many."""
    model = save(network(), tmp_path / "model.onnx")
    feed = np.random.default_rng(2).standard_normal((600, 1, 6, 6)).astype(np.float32)
    many = Dataset(feed, run(network(), {"x": feed})[0].argmax(axis=1), "synthetic")
    settings = {"images": 0, "trials": 40, "ber": (1e-3, 1e-2)}
    _, differing = carry_out(model, tmp_path / "a.jsonl", many, **settings)
    _, alike = carry_out(
        model, tmp_path / "b.jsonl", many, **{**settings, "ber": (0.5,), "bits": "11-13"}
    )
    for trials in (differing[:40], differing[40:], alike):
        assert {trial.verdict.images for trial in trials[:30]} == {32}
        assert len({trial.verdict.images for trial in trials[30:]}) == 1
    assert differing[39].verdict.images < alike[39].verdict.images
    interrupted = tmp_path / "c.jsonl"
    _, fewer = carry_out(model, interrupted, many, **{**settings, "trials": 33})
    assert fewer == differing[:33] + differing[40:73]
    carry_out(model, interrupted, many, **settings)
    by_key = {trial.key: trial for trial in read_campaign(interrupted)[1]}
    assert by_key == {trial.key: trial for trial in differing}


def test_a_half_width_stops_the_campaign(model: Path, tmp_path: Path) -> None:
    settings = {"trials": None, "images": 20, "ber": (1e-3,)}
    wide, few = carry_out(model, tmp_path / "a.jsonl", half_width=8.0, **settings)
    narrow, more = carry_out(model, tmp_path / "b.jsonl", half_width=2.5, **settings)
    assert wide.summaries[0].accuracy.half_width <= 0.08
    assert narrow.summaries[0].accuracy.half_width <= 0.025
    assert 100 <= len(few) < len(more)
    assert more[: len(few)] == few
    capped, found = carry_out(
        model, tmp_path / "c.jsonl", half_width=0.1, **{**settings, "trials": 110}
    )
    assert len(found) == 110
    assert capped.summaries[0].accuracy.half_width > 0.001
    listener = Listener()
    inject = InjectSettings(ber=(1e-3,), images=20, half_width=8.0)
    Campaign(model, dataset(), inject, runtime=RUNTIME).run(tmp_path / "a.jsonl", listener)
    assert listener.begun == [("model.onnx ber=0.001", len(few))]


def test_the_paper_s_protocol_is_500_maps_on_all_images(model: Path, tmp_path: Path) -> None:
    inject = InjectSettings(protocol=Protocol.PAPER, ber=(1e-4,))
    Campaign(model, dataset(), inject, runtime=RUNTIME).run(tmp_path / "run.jsonl")
    _, found = read_campaign(tmp_path / "run.jsonl")
    assert len(found) == 500
    assert {trial.verdict.images for trial in found} == {COUNT}


def test_classes_are_counted(model: Path, tmp_path: Path) -> None:
    result, found = carry_out(model, tmp_path / "run.jsonl", per_class=True, trials=4)
    labels = dataset().labels
    scores = reference(network(), through_q, {})
    right = scores.argmax(axis=1) == labels
    assert result.golden_classes == tuple(
        (int((labels == label).sum()), int(right[labels == label].sum())) for label in range(4)
    )
    for trial in found:
        assert trial.verdict.classes is not None
        images_of, correct = zip(*trial.verdict.classes, strict=True)
        assert sum(images_of) == COUNT
        assert sum(correct) == trial.verdict.correct
    assert result.summaries[0].classes is not None


def test_sdc_5_is_a_class_that_the_golden_run_did_not_lead_with(tmp_path: Path) -> None:
    """Twelve classes; the scores are the inputs, shifted by a bias that faults change."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 12] x) => (float[N, 12] y) { [shift] y = Add (x, b) }"""
    identity = parse(text, b=np.zeros(12, np.float32))
    feed = np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)
    data = Dataset(feed, feed.argmax(axis=1), "synthetic")
    path = save(identity, tmp_path / "identity.onnx")
    settings = {"ber": (), "exhaustive": True, "trials": None, "images": 50, "bits": "16-18"}
    _, found = carry_out(path, tmp_path / "run.jsonl", data, record_faults=True, **settings)
    leading = np.argsort(feed, axis=1)[:, -5:]
    assert len(found) == 36
    for trial in found:
        [(element, mask)] = (trial.words or {})["b"]
        shifted = feed.copy()
        shifted[:, element] += mask / 65536
        top = shifted.argmax(axis=1)
        assert trial.verdict.sdc == (top != feed.argmax(axis=1)).sum()
        assert trial.verdict.sdc5 == (top[:, None] != leading).all(axis=1).sum()
    assert any(0 < (trial.verdict.sdc5 or 0) < trial.verdict.sdc for trial in found)


def images_to_images() -> onnx.ModelProto:
    weight = np.random.default_rng(3).standard_normal((1, 1, 3, 3)).astype(np.float32)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, 6, 6] x) => (float[N, 1, 6, 6] y) {
            [conv] y = Conv <pads = [1, 1, 1, 1]> (x, w)
        }""",
        w=weight,
    )


@pytest.mark.parametrize("number_format", ["Q15.16", "float32"])
def test_outputs_that_are_no_scores_are_compared_by_element(
    tmp_path: Path, number_format: str
) -> None:
    model = images_to_images()
    store = through_q if number_format == "Q15.16" else through_float32
    path = save(model, tmp_path / "model.onnx")
    data = Dataset(images(), None, "synthetic")
    settings = {"ber": (2e-2,), "trials": 12, "images": COUNT, "tolerance": 0.05}
    result, found = carry_out(
        path, tmp_path / "run.jsonl", data, format=number_format, record_faults=True, **settings
    )
    assert not result.classifier
    assert result.golden_accuracy == 1.0
    golden = reference(model, store, {}).reshape(COUNT, -1).astype(np.float64)
    allowed = 0.05 * np.abs(golden).max(axis=1, keepdims=True)
    for trial in found:
        masks = {name: dict(pairs) for name, pairs in (trial.words or {}).items()}
        faulty = reference(model, store, masks).reshape(COUNT, -1).astype(np.float64)
        finite = np.isfinite(faulty).all(axis=1)
        with np.errstate(invalid="ignore"):
            near = np.abs(faulty - golden) <= allowed
        assert trial.verdict.nonfinite == (~finite).sum()
        assert trial.verdict.sdc == (finite & ~near.all(axis=1)).sum()
        assert trial.verdict.correct == near.all(axis=1).sum()
        assert trial.verdict.deviating == pytest.approx((~near).mean())
        if finite.any():
            norms = np.linalg.norm(faulty - golden, axis=1) / np.linalg.norm(golden, axis=1)
            assert trial.verdict.relative_l2 == pytest.approx(norms[finite].mean(), 1e-4, 1e-7)
        assert trial.verdict.sdc5 is None
    assert any(trial.verdict.nonfinite for trial in found) == (number_format == "float32")
    assert any(0 < (trial.verdict.deviating or 0) < 1 for trial in found)


def test_an_output_without_a_batch_axis_is_refused(tmp_path: Path) -> None:
    total = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, 6, 6] x) => (float y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            y = ReduceSum <keepdims = 0> (a)
        }""",
        w=np.ones((1, 1, 3, 3), np.float32),
    )
    with pytest.raises(ModelError, match="does not keep its images apart: its output 'y' has"):
        carry_out(save(total, tmp_path / "total.onnx"), tmp_path / "run.jsonl")


def test_the_distance_of_activations_is_that_of_equation_9(model: Path, tmp_path: Path) -> None:
    result, found = carry_out(
        model, tmp_path / "run.jsonl", distance=True, record_faults=True, trials=8
    )
    _, plain = carry_out(model, tmp_path / "plain.jsonl", record_faults=True, trials=8)
    exposed = network()
    exposed.graph.output.insert(0, onnx.helper.make_tensor_value_info("r", 1, None))
    golden = reference(exposed, through_q, {}).astype(np.float64)
    for trial, without in zip(found, plain, strict=True):
        masks = {name: dict(pairs) for name, pairs in (trial.words or {}).items()}
        faulty = reference(exposed, through_q, masks).astype(np.float64)
        assert trial.distance == pytest.approx(np.square(faulty - golden).mean(), rel=1e-4)
        assert trial.verdict == without.verdict
        assert without.distance is None
    assert result.summaries[0].distance == pytest.approx(np.mean([t.distance for t in found]))


def test_a_model_without_activations_has_no_distance(tmp_path: Path) -> None:
    path = save(images_to_images(), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="no activation function whose values could be compared"):
        carry_out(path, tmp_path / "run.jsonl", Dataset(images(), None, "s"), distance=True)


@pytest.mark.parametrize("cache", [0, 64])
def test_the_cache_changes_no_number(tmp_path: Path, shared_dir: Path, cache: int) -> None:
    archive = np.load(shared_dir / "data" / "cifar10" / "test.npz")
    some = Dataset(archive["images"][:60], archive["labels"][:60], "CIFAR-10")
    path = shared_dir / "models" / "c10_resnet20_torchscript_op17.onnx"
    settings = InjectSettings(ber=(1e-7, 1e-5), flips=(1,), trials=25, images=20)
    runtime = RuntimeSettings(provider="cpu", threads=1, cache_memory=cache)
    Campaign(path, some, settings, runtime=runtime).run(tmp_path / "run.jsonl")
    Campaign(path, some, settings, runtime=RuntimeSettings(provider="cpu", threads=2)).run(
        tmp_path / "default.jsonl"
    )
    assert read_campaign(tmp_path / "run.jsonl")[1] == read_campaign(tmp_path / "default.jsonl")[1]


def test_integers_of_a_quantised_network_flip_in_place(shared_dir: Path, tmp_path: Path) -> None:
    archive = np.load(shared_dir / "data" / "cifar10" / "test.npz")
    some = Dataset(archive["images"][:40], archive["labels"][:40], "CIFAR-10")
    path = shared_dir / "models" / "c10_resnet20_int8_qdq.onnx"
    settings = InjectSettings(ber=(1e-4,), trials=4, images=40, record_faults=True)
    preprocessing = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    campaign = Campaign(path, some, settings, preprocessing, RUNTIME)
    result = campaign.run(tmp_path / "run.jsonl")
    assert result.golden_accuracy > 0.8
    pixels = archive["images"][:40].astype(np.float64) / 255
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    feed = ((pixels - mean) / std).astype(np.float32)
    for trial in read_campaign(tmp_path / "run.jsonl")[1]:
        faulty = onnx.load(path)
        hit = set()
        for tensor in faulty.graph.initializer:
            pairs = (trial.words or {}).get(tensor.name, [])
            values = numpy_helper.to_array(tensor).copy()
            flat = values.reshape(-1)
            for element, mask in pairs:
                own = np.dtype(f"u{values.dtype.itemsize}")
                flat[element : element + 1].view(own)[:] ^= own.type(mask)
                hit.add(str(values.dtype))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        scores = run(faulty, {faulty.graph.input[0].name: feed}, optimise=True)[0]
        right = (scores.argmax(axis=1) == archive["labels"][:40]).sum()
        # Two sessions may round scales differently, and a quantised value falls on either side.
        assert abs(trial.verdict.correct - int(right)) <= 2
        assert hit >= {"int8", "int32", "float32"}
