"""What is measured on models whose samples are more than one image: several inputs, whole calls."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from proact_onnx.campaign import (
    Campaign,
    DistributionStudy,
    Replay,
    Sensitivity,
    TrialResult,
    read_campaign,
)
from proact_onnx.campaign.reading import read_record
from proact_onnx.compare import MethodComparison
from proact_onnx.data import Dataset, Preprocessing, bundle, prepare_inputs
from proact_onnx.engine import Calls, Provider, Workload, choose_engine
from proact_onnx.engine.device import DeviceEngine
from proact_onnx.engine.inplace import InPlaceEngine
from proact_onnx.engine.portable import FreshSessionEngine
from proact_onnx.engine.prefix import PrefixCache
from proact_onnx.engine.select import FaultEngine
from proact_onnx.errors import CampaignError, DataError, ModelError, SettingsError
from proact_onnx.faults import fault_space
from proact_onnx.harden import harden
from proact_onnx.model import load_model, model_inputs
from proact_onnx.report.repeat import commands
from proact_onnx.settings import (
    HardenSettings,
    InjectSettings,
    ProfileSettings,
    RuntimeSettings,
    SensitivitySettings,
    Settings,
)
from tests.command_line import commands_in
from tests.numerics import Array, parse, run
from tests.test_any_model import (
    COUNT,
    Detector,
    TextTransformer,
    dataset,
    export,
    free_batch,
    noise,
    tokens,
)
from tests.test_campaign import through_q

RUNTIME = RuntimeSettings(provider="cpu", threads=1, batch_size=8)
RANGER = HardenSettings(method="ranger", protect="linear", slack=1.2)


class Recurrent(nn.Module):
    """Steps and a state in, scores and the next state out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.recurrent = nn.GRU(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, steps: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Map [T, N, 4] and [1, N, 5] to [T, N, 3] and [1, N, 5]."""
        found, state = self.recurrent(self.inner(steps).relu(), state)
        return self.head(nn.functional.elu(found)), state


def transformer(folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "text.onnx"
    export(TextTransformer(), path, tokens(), **free_batch(tokens()))
    return path


def steps() -> Mapping[str, Array]:
    """Whole calls: the batch, here one, is the second axis of both."""
    return {"steps": noise(6, 1, 4), "state": noise(1, 1, 5, seed=1)}


def recurrent(folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "steps.onnx"
    axes = {"steps": {0: "T", 1: "N"}, "state": {1: "N"}}
    one_call = {name: values[0] for name, values in steps().items()}
    export(Recurrent(), path, one_call, dynamo=False, opset_version=17, dynamic_axes=axes)
    return path


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[], Mapping[str, Array]]]] = {
    "batches": (transformer, tokens),
    "calls": (recurrent, steps),
}


def carry_out(
    model: Path, data: Dataset, record: Path, **settings: object
) -> tuple[list[TrialResult], float]:
    given = {"ber": (1e-3,), "trials": 6, "images": COUNT, "record_faults": True, **settings}
    inject = InjectSettings(**given)  # type: ignore[arg-type]
    result = Campaign(model, data, inject, runtime=RUNTIME).run(record)
    return read_campaign(record)[1], result.golden_accuracy


def faulty(path: Path, words: Mapping[str, object]) -> onnx.ModelProto:
    """The model with all parameters through Q15.16, and those bits of theirs flipped."""
    model = load_model(path)
    stored = {parameter.name for parameter in fault_space(model, 32).parameters}
    for tensor in model.graph.initializer:
        if tensor.name in stored:
            masks = dict(words.get(tensor.name, ()))  # type: ignore[call-overload]
            values = numpy_helper.to_array(tensor)
            changed = [through_q(float(v), masks.get(i, 0)) for i, v in enumerate(values.ravel())]
            array = np.array(changed, np.float32).reshape(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def answers(model: onnx.ModelProto, feeds: Mapping[str, Array], output: int, kind: str) -> Array:
    """An output for every sample, ``[N, ...]``."""
    if kind == "batches":
        return run(model, feeds)[output]
    calls = [{name: values[i] for name, values in feeds.items()} for i in range(COUNT)]
    return np.stack([run(model, call)[output] for call in calls])


@pytest.mark.parametrize("kind", KINDS)
def test_every_trial_equals_the_reference(tmp_path: Path, kind: str) -> None:
    make, samples = KINDS[kind]
    path, feeds = make(tmp_path), samples()
    found, accuracy = carry_out(path, dataset(feeds), tmp_path / "run.jsonl")
    assert accuracy == 1.0, "without labels the golden run's classes stand in"
    golden = answers(faulty(path, {}), feeds, 0, kind)
    seen = set()
    for trial in found:
        outputs = answers(faulty(path, trial.words or {}), feeds, 0, kind)
        if kind == "batches":
            same = outputs.argmax(axis=1) == golden.argmax(axis=1)
        else:
            off = np.abs(outputs - golden).reshape(COUNT, -1).max(axis=1)
            same = off <= 0.01 * np.abs(golden).reshape(COUNT, -1).max(axis=1)
        assert (trial.verdict.images, trial.verdict.nonfinite) == (COUNT, 0)
        assert trial.verdict.correct == same.sum()
        assert trial.verdict.sdc == COUNT - same.sum()
        seen.add(trial.verdict.sdc)
    assert len(seen) > 1, "the trials differ"


@pytest.mark.parametrize("kind", KINDS)
def test_all_engines_give_the_same(tmp_path: Path, kind: str) -> None:
    make, samples = KINDS[kind]
    model = load_model(make(tmp_path))
    inputs = model_inputs(model)
    records = prepare_inputs(dataset(samples()).images, Preprocessing(), inputs)
    names = [parameter.name for parameter in fault_space(model, 32).parameters]
    arguments = (Provider.CPU, 1, 8)
    chosen = choose_engine(model, names, records, *arguments)
    assert chosen.notice == "engine: in place on the CPU"
    engines: list[FaultEngine] = [
        chosen.engine,
        DeviceEngine(model, names, *arguments),
        FreshSessionEngine(model, names, *arguments),
    ]
    some = np.array([0, 3, 4, 17, 29])
    expected = answers(model, samples(), 0, kind)
    for engine in engines:
        np.testing.assert_allclose(engine.run(records), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(engine.run(records, some), expected[some], rtol=1e-4, atol=1e-5)
        engine.write(names[0], np.array([1]), np.array([3.0], np.float32))
    disturbed = [engine.run(records, some) for engine in engines]
    assert np.abs(disturbed[0] - expected[some]).max() > 1e-3
    for other in disturbed[1:]:
        np.testing.assert_allclose(other, disturbed[0], rtol=1e-4, atol=1e-5)


def test_trials_on_several_inputs_start_at_their_first_fault(tmp_path: Path) -> None:
    """Behind the attention nothing needs the mask, so the network can be cut there."""
    model = load_model(transformer(tmp_path))
    records = prepare_inputs(dataset(tokens()).images, Preprocessing(), model_inputs(model))
    bits = {p.name: 32 * p.size for p in fault_space(model, 32).parameters}
    engine = InPlaceEngine(model, list(bits), 1, 8)
    workload = Workload(bits, 10**9, 5)
    stages = PrefixCache(model, engine, records, engine.run(records), workload, 1 << 26, 1, 8)
    stage = stages.for_faults(["head.bias"])
    assert stage is not stages.whole
    assert stage.values.shape[0] == COUNT
    chosen = np.array([1, 2, 20])
    for changed in (stage.engine, engine):
        changed.write("head.bias", np.array([0]), np.array([5.0], np.float32))
    np.testing.assert_array_equal(stage.run(chosen), engine.run(records, chosen))


def test_a_text_transformer_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = transformer(tmp_path)
    labels = run(load_model(path), tokens())[0].argmax(axis=1)
    np.savez(tmp_path / "samples.npz", **tokens(), labels=labels)
    command = commands_in(tmp_path, monkeypatch, capsys)
    for words in (
        "inspect text.onnx",
        "harden text.onnx --data samples.npz --method ranger --protect linear --slack 1.2",
        "verify text.onnx --data samples.npz",
        "deploy-check text.hardened.onnx --original text.onnx --data samples.npz "
        "--runtimes reference,onnxruntime --rounds 1",
        "inject text.onnx text.hardened.onnx --data samples.npz --ber 1e-4 --trials 40 --images 30",
        "replay text.campaign.jsonl --trial 3",
        "profile text.onnx --data samples.npz --ber 1e-3 --trials 2",
        "sensitivity text.onnx --data samples.npz --trials 1 --layers *head* --bits 28-30",
        "compare text.onnx --data samples.npz --test-data samples.npz --ber 1e-4 --trials 4 "
        "--images 8 --methods none,ranger-layer-linear --distance-ber 0",
    ):
        outcome = command(*words.split())
        assert outcome.code == 0, (words, outcome.err)
    sdc = {}
    for name in ("text", "text.hardened"):
        header, trials = read_campaign(tmp_path / f"{name}.campaign.jsonl")
        assert header.golden["accuracy"] == 1.0
        sdc[name] = sum(trial.verdict.sdc for trial in trials)
    assert sdc["text"] > 100
    assert sdc["text.hardened"] < sdc["text"] / 3


def test_a_recurrent_network_errs_less_when_it_is_bounded(tmp_path: Path) -> None:
    original, hardened = recurrent(tmp_path), tmp_path / "hardened.onnx"
    data = dataset(steps())
    harden(original, data, hardened, test=data, settings=RANGER)
    errors = []
    for path in (original, hardened):
        found, _ = carry_out(path, data, tmp_path / f"{path.stem}.jsonl", trials=20, ber=(1e-3,))
        errors.append(np.mean([trial.verdict.relative_l2 for trial in found]))
    assert errors[1] < errors[0] / 3


def test_a_speech_detector_with_a_scalar_input(tmp_path: Path, shared_dir: Path) -> None:
    model = shared_dir / "corpus" / "silero_vad_16k_op15.onnx"
    if not model.exists():
        pytest.skip(f"no {model.name} in the corpus")
    rng = np.random.default_rng(0)
    feeds = {
        "input": (0.1 * rng.standard_normal((6, 1, 512))).astype(np.float32),
        "state": np.zeros((6, 2, 1, 128), np.float32),
        "sr": np.full(6, 16000, np.int64),
    }
    hardened = tmp_path / "hardened.onnx"
    harden(model, dataset(feeds), hardened, test=dataset(feeds), settings=RANGER)
    errors = []
    for path in (model, hardened):
        few = {"images": 6, "trials": 6, "ber": (1e-5,), "record_faults": False}
        found, accuracy = carry_out(path, dataset(feeds), tmp_path / f"{path.stem}.jsonl", **few)
        assert accuracy == 1.0
        errors.append(np.mean([trial.verdict.relative_l2 for trial in found]))
    assert errors[1] < errors[0]


def test_another_output_can_be_judged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, feeds = tmp_path / "detector.onnx", {"x": noise(3, 16, 16)}
    options = free_batch(feeds) | {"output_names": ["boxes", "scores"]}
    export(Detector(), path, feeds, **options)
    record, first = tmp_path / "run.jsonl", tmp_path / "first.jsonl"
    data = dataset(feeds)
    found, _ = carry_out(path, data, record, judged_output="scores")
    golden = run(faulty(path, {}), feeds)[1].reshape(COUNT, -1)
    for trial in found:
        outputs = run(faulty(path, trial.words or {}), feeds)[1].reshape(COUNT, -1)
        off = np.abs(outputs - golden) > 0.01 * np.abs(golden).max(axis=1, keepdims=True)
        assert trial.verdict.sdc == off.any(axis=1).sum()
        assert trial.verdict.deviating == pytest.approx(off.mean())
    replay = Replay(record)
    again = replay.run(replay.find(2), path, data, runtime=RUNTIME)
    assert again.reproduced
    assert read_campaign(record)[0].identity["judged_output"] == "scores"
    [command] = commands(read_record(record))
    assert "--judged-output scores" in command

    others, _ = carry_out(path, data, first)
    assert "judged_output" not in read_campaign(first)[0].identity
    assert [t.words for t in others] == [t.words for t in found], "the faults are the same"
    assert [t.verdict for t in others] != [t.verdict for t in found]
    with pytest.raises(CampaignError, match="its judged_output is None, this one's is scores"):
        carry_out(path, data, first, judged_output="scores")
    with pytest.raises(ModelError, match="has no output 'score': choose among boxes, scores"):
        carry_out(path, data, first, judged_output="score")
    settings = Settings(inject=InjectSettings(judged_output="scores"))
    with pytest.raises(SettingsError, match="compared by the first output of a model"):
        MethodComparison(path, [], tmp_path, settings, data, data)


def test_sensitivity_and_profile_of_whole_calls(tmp_path: Path) -> None:
    path, data = recurrent(tmp_path), dataset(steps())
    inject = InjectSettings(layers=("*head*",))
    study = Sensitivity(path, data, SensitivitySettings(2, 5), inject, runtime=RUNTIME)
    record = tmp_path / "atlas.jsonl"
    assert len(study.run(record).cells) == len(study.cells)
    replay = Replay(record)
    name = read_campaign(record)[1][0].fault
    assert replay.run(replay.find(1, name), path, data, runtime=RUNTIME).reproduced
    profile = ProfileSettings(ber=1e-3, trials=2, images=0)
    found = DistributionStudy(path, data, profile, runtime=RUNTIME).run()
    model = faulty(path, {})
    [relu] = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    model.graph.output.append(onnx.ValueInfoProto(name=relu))
    values = answers(model, steps(), 2, "calls")
    layer = next(layer for layer in found.layers if layer.tensor == relu)
    assert layer.golden.greatest == pytest.approx(values.max(), rel=1e-5)
    assert layer.golden.total == pytest.approx(values.sum(), rel=1e-4)
    assert found.golden_accuracy is None


def test_the_digest_covers_every_input() -> None:
    feeds = tokens()
    other = {**feeds, "mask": 1 - feeds["mask"]}
    named = {"tokens": feeds["ids"], "mask": feeds["mask"]}
    narrow = {"ids": feeds["ids"].astype(np.int32), "mask": feeds["mask"]}
    digests = {dataset(each).digest for each in (feeds, other, named, narrow)}
    assert len(digests) == 4
    assert dataset(tokens()).digest == dataset(feeds).digest
    image = noise(3, 4)
    expected = hashlib.sha256(f"<f4{image.shape};".encode() + image.tobytes() + b"none;")
    assert Dataset(image, None, "n").digest == expected.hexdigest(), "as it always was"


def test_a_call_is_given_aligned_numbers_that_lie_together() -> None:
    arrays = {"flag": np.ones((5, 3), bool), "x": noise(2)[:5], "n": np.arange(5)}
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (bool[N, 3] flag, float[N, 2] x, int64[N] n) => (float[N, 2] y) { y = Relu(x) }"""
    )
    inputs = model_inputs(model)
    records = prepare_inputs(bundle(arrays, "s"), Preprocessing(), inputs)
    for size in (1, 2, 5):
        calls = Calls.of(inputs, records, size)
        fed = [calls.feeds(batch) for batch, _ in calls.cut(records)]
        for name, values in arrays.items():
            parts = [feeds[name] for feeds in fed]
            assert all(part.flags.c_contiguous and part.flags.aligned for part in parts)
            np.testing.assert_array_equal(np.concatenate(parts), values)


@pytest.mark.parametrize(
    ("shapes", "feeds", "error", "message"),
    [
        (
            "float[N, 2] a, float[N, 2] b",
            {"a": noise(2)},
            DataError,
            "the model's input 'b' is not in the data, which has a",
        ),
        (
            "float[2, 2] a, float[3, 2] b",
            {"a": noise(2), "b": noise(2)},
            DataError,
            r"first axes of the model's inputs are no batch, for they differ \(a 2, b 3\)",
        ),
        (
            "float[N, 2] a, float[N, 2] b",
            {"a": noise(1, 2), "b": noise(2)},
            DataError,
            "some arrays hold a sample of a batch and others all that a call is given",
        ),
    ],
)
def test_data_that_do_not_fit(
    tmp_path: Path,
    shapes: str,
    feeds: Mapping[str, Array],
    error: type[Exception],
    message: str,
) -> None:
    text = f'<ir_version: 8, opset_import: ["": 17]> net ({shapes}) => (float[N, 2] y)'
    onnx.save(
        parse(text + "{ c = Mul(a, w)  y = Add(c, c) }", w=np.ones(2, np.float32)), tmp_path / "m"
    )
    data = Dataset(bundle(feeds, "samples"), None, "samples")
    with pytest.raises(error, match=message):
        Campaign(tmp_path / "m", data, InjectSettings(trials=1))


def test_an_output_that_changes_its_shape_is_refused(tmp_path: Path) -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2] a, float[N, 2] b) => (int64[2, M] y)
        { c = Mul(a, w)  d = Greater(c, b)  y = NonZero(d) }""",
        w=np.ones(2, np.float32),
    )
    onnx.save(model, tmp_path / "m.onnx")
    data = dataset({"a": noise(1, 2), "b": noise(1, 2, seed=1)})
    with pytest.raises(ModelError, match=r"output .y. has shape .* for some samples"):
        carry_out(tmp_path / "m.onnx", data, tmp_path / "run.jsonl")


def test_methods_that_train_say_what_they_cannot(tmp_path: Path) -> None:
    told = "trains on batches of one input, and .* has 2 inputs: use --method ranger"
    for make, samples in KINDS.values():
        for method in ("proact", "fitact", "brelu"):
            with pytest.raises(ModelError, match=f"{method} {told}"):
                harden(make(tmp_path), dataset(samples()), settings=HardenSettings(method=method))


def test_methods_that_search_take_several_inputs(tmp_path: Path) -> None:
    path, data = transformer(tmp_path), dataset(tokens())
    few = HardenSettings(method="ftclipact", search_trials=2, search_rounds=1, search_images=8)
    report = harden(path, data, tmp_path / "a.onnx", test=data, settings=few)
    assert report.evaluations > 0
    assert set(report.thresholds.values) == {a.tensor for a in report.activations}
    few = replace(few, method="auto", max_accuracy_drop=50.0, max_memory_overhead=50.0)
    report = harden(path, data, tmp_path / "b.onnx", test=data, settings=few)
    assert report.choice is not None
    assert all(candidate.accuracies for candidate in report.choice.candidates)
