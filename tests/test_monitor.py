"""The monitor of a file: its levels, false alarms, and what campaigns say it notices."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from proact_onnx.alarm_levels import calibrate_monitor, measure_false_alarms
from proact_onnx.campaign import (
    Alarms,
    Campaign,
    Replay,
    Sensitivity,
    TrialResult,
    read_campaign,
    read_record,
)
from proact_onnx.data import Dataset, load_dataset
from proact_onnx.engine import Session
from proact_onnx.engine.layout import LayoutError
from proact_onnx.errors import CampaignError, ModelError
from proact_onnx.harden import harden
from proact_onnx.model import load_model, provenance, save_model, set_provenance
from proact_onnx.monitor import Monitor, read_monitor, separate_counts
from proact_onnx.rewrite import Form, add_monitor, insert, prepare, rescale
from proact_onnx.settings import (
    HardenSettings,
    InjectSettings,
    RuntimeSettings,
    SensitivitySettings,
)
from proact_onnx.thresholds import Thresholds
from proact_onnx.verify import verify
from tests.numerics import parse, run

RUNTIME = RuntimeSettings(provider="cpu", threads=1, batch_size=16)
IMAGES = 48
RATE = 2e-3

NETWORK = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 1, 6, 6] x) => (float[N, 4] y) {
    [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    [deeper] c = Conv (r, w2, b2)
    s = Relu (c)
    f = Flatten (s)
    [dense] h = Gemm (f, w3, b3)
    t = Relu (h)
    [last] y = Gemm (t, w4, b4)
}"""
SHAPES = {"w1": (6, 1, 3, 3), "b1": (6,), "w2": (6, 6, 3, 3), "b2": (6,)}
SHAPES |= {"w3": (96, 12), "b3": (12,), "w4": (12, 4), "b4": (4,)}


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return parse(
        NETWORK,
        **{
            name: (rng.standard_normal(shape) / 3).astype(np.float32)
            for name, shape in SHAPES.items()
        },
    )


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 1, 6, 6)).astype(np.float32)


def dataset() -> Dataset:
    labels = run(network(), {"x": images(IMAGES, 1)})[0].argmax(axis=1)
    labels[::5] = (labels[::5] + 1) % 4
    return Dataset(images(IMAGES, 1), labels, "synthetic")


def monitored(form: Form = Form.HARD, monitor: bool = True) -> onnx.ModelProto:
    """The network with thresholds that some clean images exceed, and levels to match."""
    thresholds = {
        "r": np.full((1, 6, 1, 1), 2.0, np.float32),
        "s": np.array(2.0, np.float32),
        "t": np.full((1, 12), 2.0, np.float32),
    }
    inserted = insert(prepare(network()).model, Thresholds(thresholds), form, monitored=monitor)
    if not monitor:
        return inserted.model
    model = add_monitor(inserted.model, inserted.bounds)
    levels = Monitor("out_of_bounds", ("r", "s", "t"), (8, 4, 3), 100)
    set_provenance(model, {"monitor": levels.spell()})
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save_model(monitored(), path)
    return path


def carry_out(
    model: Path, record: Path, runtime: RuntimeSettings = RUNTIME, **settings: object
) -> list[TrialResult]:
    given = {"ber": (RATE,), "trials": 8, "images": IMAGES, **settings}
    Campaign(model, dataset(), InjectSettings(**given), runtime=runtime).run(record)  # type: ignore[arg-type]
    return read_campaign(record)[1]


def through_q(value: float, mask: int) -> float:
    """Store in Q15.16, flip, read back: exact rational arithmetic."""
    integer = min(max(round(Fraction(value) * 65536), -(2**31)), 2**31 - 1)
    word = (integer % 2**32) ^ mask
    return float(Fraction(word - 2**32 * (word >> 31), 65536))


def faulty(model: onnx.ModelProto, words: dict[str, list[tuple[int, int]]]) -> onnx.ModelProto:
    """A copy with all floating-point parameters stored in Q15.16, some bits flipped."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or (not values.shape and "threshold" not in tensor.name):
            continue
        masks = dict(words.get(tensor.name, []))
        stored = [through_q(float(v), masks.get(i, 0)) for i, v in enumerate(values.ravel())]
        array = np.array(stored, np.float64).astype(np.float32).reshape(values.shape)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("number_of_images", [IMAGES, 20])
def test_every_trial_counts_the_alarms_of_a_fresh_session(
    form: Form, number_of_images: int, tmp_path: Path
) -> None:
    """Thresholds are flipped too, and are read by the bound and by the monitor."""
    network = monitored(form)
    save_model(network, tmp_path / "model.onnx")
    found = carry_out(
        tmp_path / "model.onnx",
        tmp_path / "run.jsonl",
        record_faults=True,
        images=number_of_images,
        layers=("*",),
    )
    levels = np.array([8, 4, 3])
    x = images(IMAGES, 1)
    scores, counts = run(faulty(network, {}), {"x": x})
    golden, before = scores.argmax(axis=1), (counts > levels).any(axis=1)
    assert 0 < before.sum() < IMAGES
    for trial in found:
        assert trial.words is not None
        scores, counts = run(faulty(network, dict(trial.words)), {"x": x})
        raised = (counts > levels).any(axis=1)
        finite = np.isfinite(scores).all(axis=1)
        sdc = finite & (scores.argmax(axis=1) != golden)
        parts = (raised, raised & ~before, raised & sdc, raised & ~finite)
        alarms = trial.verdict.alarms
        assert alarms is not None
        if number_of_images == IMAGES:
            assert alarms == Alarms(*(int(part.sum()) for part in parts))
        else:
            assert 0 <= alarms.new <= alarms.raised <= trial.verdict.images
            assert alarms.sdc <= trial.verdict.sdc
    hit = {name for trial in found for name in trial.words or ()}
    assert any(name.endswith("threshold") for name in hit)
    assert any(trial.verdict.alarms != found[0].verdict.alarms for trial in found)


@pytest.mark.parametrize("form", list(Form))
def test_the_monitor_changes_nothing_else_a_trial_measures(form: Form, tmp_path: Path) -> None:
    save_model(monitored(form), tmp_path / "with.onnx")
    plain = monitored(form, monitor=False)
    save_model(plain, tmp_path / "without.onnx")
    watched = carry_out(tmp_path / "with.onnx", tmp_path / "with.jsonl")
    others = carry_out(tmp_path / "without.onnx", tmp_path / "without.jsonl")
    for one, other in zip(watched, others, strict=True):
        fields = ("sites", "flips")
        assert [getattr(one, f) for f in fields] == [getattr(other, f) for f in fields]
        assert one.verdict.alarms is not None
        assert other.verdict.alarms is None
        for field in ("images", "correct", "golden_correct", "sdc", "nonfinite"):
            assert getattr(one.verdict, field) == getattr(other.verdict, field)
    assert b"alarms" not in (tmp_path / "without.jsonl").read_bytes()
    assert b'"monitor"' not in (tmp_path / "without.jsonl").read_bytes()


def refuse(*_: object) -> None:
    raise LayoutError("not wanted here")


@pytest.mark.parametrize(
    ("number_of_images", "engine", "refused"),
    [
        (0, "in place", []),
        (20, "in place", []),
        (20, "weights as inputs", ["InPlaceEngine"]),
        (20, "a session per trial", ["InPlaceEngine", "DeviceEngine"]),
    ],
)
def test_prefix_reuse_changes_no_count(
    model: Path,
    tmp_path: Path,
    number_of_images: int,
    engine: str,
    refused: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counts of layers before a trial's first fault are those of the golden run."""
    for kind in refused:
        monkeypatch.setattr(f"proact_onnx.engine.select.{kind}", refuse)
    # Opening a session for a part never pays in so small a network.
    monkeypatch.setattr("proact_onnx.engine.cuts._OPENING", 0.0)
    monkeypatch.setattr("proact_onnx.engine.cuts._OPENING_BYTE", 0.0)
    settings = {"single": True, "ber": (), "trials": 120, "images": number_of_images}
    notices: list[str] = []
    told = "proact_onnx.progress.LogReporter.notice"
    monkeypatch.setattr(told, lambda _, text: notices.append(text))
    reused = carry_out(model, tmp_path / "reused.jsonl", **settings)
    assert f"engine: {engine} on" in notices[0]
    [started] = [text for text in notices if "prefix reuse" in text]
    assert "started from 0 " not in started
    assert "did not prove" not in started
    anew = RuntimeSettings(provider="cpu", threads=1, batch_size=16, cache_memory=0)
    assert carry_out(model, tmp_path / "anew.jsonl", anew, **settings) == reused
    assert len({trial.verdict.alarms for trial in reused}) > 3


def test_a_trial_without_a_change_has_the_false_alarms(model: Path, tmp_path: Path) -> None:
    [trial] = carry_out(model, tmp_path / "run.jsonl", ber=(0.0,), trials=1)
    counts = run(faulty(monitored(), {}), {"x": images(IMAGES, 1)})[1]
    false = int((counts > [8, 4, 3]).any(axis=1).sum())
    assert trial.verdict.alarms == Alarms(raised=false, new=0, sdc=0, nonfinite=0)
    assert read_record(tmp_path / "run.jsonl").result.alarms == false  # type: ignore[union-attr]


def test_outputs_that_are_no_scores(tmp_path: Path) -> None:
    """Images off by more than the tolerance take the place of those with another class."""
    network = monitored()
    [node] = [n for n in network.graph.node if "y" in n.output]
    node.output[0] = "logits"
    network.graph.node.append(onnx.helper.make_node("Reshape", ["logits", "pairs"], ["y"]))
    pairs = np.array([-1, 2, 2], np.int64)
    network.graph.initializer.append(numpy_helper.from_array(pairs, "pairs"))
    shape = network.graph.output[0].type.tensor_type.shape
    shape.dim[1].dim_value = 2
    shape.dim.add().dim_value = 2
    save_model(network, tmp_path / "model.onnx")
    data = Dataset(images(IMAGES, 1), None, "synthetic")
    inject = InjectSettings(ber=(RATE,), trials=6, images=IMAGES, record_faults=True)
    Campaign(tmp_path / "model.onnx", data, inject, runtime=RUNTIME).run(tmp_path / "run.jsonl")
    golden = run(faulty(network, {}), {"x": images(IMAGES, 1)})[0]
    for trial in read_campaign(tmp_path / "run.jsonl")[1]:
        values, counts = run(faulty(network, dict(trial.words or {})), {"x": images(IMAGES, 1)})
        allowed = inject.tolerance * np.abs(golden).max(axis=(1, 2), keepdims=True)
        off = (np.abs(values - golden) > allowed).any(axis=(1, 2))
        raised = (counts > [8, 4, 3]).any(axis=1)
        alarms = trial.verdict.alarms
        assert alarms is not None
        assert (alarms.raised, alarms.sdc) == (raised.sum(), (raised & off).sum())


def test_distances_do_not_change_alarms(model: Path, tmp_path: Path) -> None:
    without = carry_out(model, tmp_path / "a.jsonl")
    measured = carry_out(model, tmp_path / "b.jsonl", distance=True)
    assert [t.verdict for t in measured] == [t.verdict for t in without]
    assert all(t.distance is not None for t in measured)


def test_records_are_continued_and_refused_as_ever(model: Path, tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    whole = carry_out(model, record, trials=6)
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:4]))
    assert carry_out(model, record, trials=6) == whole
    line = json.loads(lines[1])
    line["alarms"]["new"] = -1
    record.write_bytes(lines[0] + json.dumps(line).encode() + b"\n")
    with pytest.raises(CampaignError, match="damaged at line 2"):
        read_campaign(record)


def test_other_commands_take_a_monitored_file(model: Path, tmp_path: Path) -> None:
    found = carry_out(model, tmp_path / "run.jsonl", trials=3)
    replay = Replay(tmp_path / "run.jsonl")
    assert replay.run(found[2], model, dataset(), RUNTIME).reproduced
    cells = SensitivitySettings(trials=1, images=8)
    atlas = Sensitivity(model, dataset(), cells, InjectSettings(bits="30"), runtime=RUNTIME)
    assert len(atlas.run(tmp_path / "atlas.jsonl").cells) == 11
    assert read_campaign(tmp_path / "atlas.jsonl")[1][0].verdict.alarms is not None


@pytest.mark.parametrize("form", list(Form))
def test_verify_sees_every_bound_once(form: Form, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "original.onnx")
    reports = []
    for name, monitor in (("with", True), ("without", False)):
        save_model(monitored(form, monitor), tmp_path / f"{name}.onnx")
        report = verify(
            tmp_path / "original.onnx", tmp_path / f"{name}.onnx", dataset(), runtime=RUNTIME
        )
        reports.append([(layer.tensor, layer.values) for layer in report.layers])
    assert reports[0] == reports[1]
    assert len(reports[0]) == 3


def test_counts_apart_are_the_columns_together() -> None:
    model = monitored()
    x = images(9, 3)
    scores, together = run(model, {"x": x})
    monitor = read_monitor(model)
    assert monitor is not None
    names = separate_counts(model, monitor)
    onnx.checker.check_model(model, full_check=True)
    assert [info.name for info in model.graph.output] == ["y", *names]
    same, *apart = run(model, {"x": x})
    np.testing.assert_array_equal(np.hstack(apart), together)
    np.testing.assert_array_equal(same, scores)


def test_a_monitor_that_was_taken_apart_is_refused() -> None:
    model = monitored()
    joined = model.graph.node[-1]
    assert joined.op_type == "Concat"
    del joined.input[1:]
    monitor = read_monitor(model)
    assert monitor is not None
    with pytest.raises(ModelError, match="no longer the monitor that hardening wrote"):
        separate_counts(model, monitor)


def test_a_file_without_the_output_or_the_metadata_has_no_monitor() -> None:
    model = monitored()
    del model.graph.output[1:]
    assert read_monitor(model) is None
    assert read_monitor(monitored(monitor=False)) is None


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"output": "out_of_bounds", "layers": ["r"]}'])
def test_metadata_that_cannot_be_understood(text: str) -> None:
    model = monitored()
    set_provenance(model, {"monitor": text})
    with pytest.raises(ModelError, match=r"'proact_onnx\.monitor' cannot be understood: harden"):
        read_monitor(model)


def test_levels_are_the_highest_counts_of_clean_images() -> None:
    model = monitored()
    sets = [images(30, 5), images(21, 6)]
    found = calibrate_monitor(Session(model, batch_size=8), ["r", "s", "t"], sets)
    counts = [run(model, {"x": x})[1] for x in sets]
    assert found.alarm_levels == tuple(np.vstack(counts).max(axis=0).astype(int).tolist())
    assert (found.output, found.layers, found.calibration_images) == (
        "out_of_bounds",
        ("r", "s", "t"),
        51,
    )
    fresh = images(400, 7)
    report = measure_false_alarms(Session(model, batch_size=64), found, fresh)
    above = run(model, {"x": fresh})[1] > np.array(found.alarm_levels)
    assert report.layer_alarms == tuple(above.sum(axis=0).tolist())
    assert report.alarms == above.any(axis=1).sum() > 0
    assert report.images == 400
    assert report.highest == tuple(run(model, {"x": fresh})[1].max(axis=0).astype(int).tolist())
    # Clopper and Pearson's limits, by the F distribution.
    assert report.false_alarms.low < report.alarms / 400 < report.false_alarms.high


def test_the_name_gives_way_to_a_tensor_of_the_model() -> None:
    model = network()
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "out_of_bounds"
    inserted = insert(model, Thresholds({"r": np.array(1.0, np.float32)}), monitored=True)
    assert add_monitor(inserted.model, inserted.bounds).graph.output[-1].name == "out_of_bounds_2"


def test_an_old_opset_is_raised() -> None:
    model = network()
    model.opset_import[0].version = 9
    inserted = insert(model, Thresholds({"r": np.array(1.0, np.float32)}), monitored=True)
    assert inserted.raised_opset == 12
    assert add_monitor(inserted.model, inserted.bounds).opset_import[0].version == 12


def test_weights_can_be_rescaled_between_bounds_and_monitor() -> None:
    plain = monitored(monitor=False)
    inserted = insert(network(), Thresholds({"r": np.full((1, 6, 1, 1), 1.0, np.float32)}))
    x = {"x": images(9, 3)}
    counts = run(add_monitor(rescale(inserted.model).model, inserted.bounds), x)[1]
    np.testing.assert_array_equal(counts, run(add_monitor(inserted.model, inserted.bounds), x)[1])
    assert counts.any()
    assert len(plain.graph.output) == 1


def rows_network() -> onnx.ModelProto:
    """A model whose activation has rows of images along its first axis, not images."""
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4, 6] x) => (float[N, 3] y) {
            rows = Reshape (x, flat)
            h = MatMul (rows, w1)
            r = Relu (h)
            back = Reshape (r, images)
            y = MatMul (back, w2)
        }""",
        flat=np.array([-1, 6], np.int64),
        images=np.array([-1, 32], np.int64),
        w1=np.ones((6, 8), np.float32),
        w2=np.ones((32, 3), np.float32),
    )


def test_a_layer_that_mixes_images_is_refused(tmp_path: Path) -> None:
    onnx.save(rows_network(), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    values = rng.standard_normal((40, 4, 6)).astype(np.float32)
    data = Dataset(values, None, "synthetic")
    settings = HardenSettings(method="ranger", monitor=True)
    with pytest.raises(ModelError, match="the first axis of activation 'r' is not the batch"):
        harden(tmp_path / "model.onnx", data, tmp_path / "out.onnx", settings=settings)
    assert not (tmp_path / "out.onnx").exists()


def test_harden_writes_a_monitor_and_measures_it(digits_dir: Path, tmp_path: Path) -> None:
    calibration = load_dataset(digits_dir / "calibration.npz")
    test = load_dataset(digits_dir / "test.npz")
    settings = HardenSettings(
        method="ranger", percentile=99.0, monitor=True, calibration_images=400, accept_images=200
    )
    report = harden(
        digits_dir / "digits.onnx", calibration, tmp_path / "out.onnx", test=test, settings=settings
    )
    assert report.monitor is not None
    model = load_model(tmp_path / "out.onnx")
    assert read_monitor(model) == report.monitor.monitor
    assert json.loads(provenance(model)["monitor"])["calibration_images"] == 600
    assert report.monitor.monitor.layers == tuple(a.tensor for a in report.activations)
    [info] = model.graph.input
    shape = [d.dim_value for d in info.type.tensor_type.shape.dim[1:]]
    x = test.images.reshape(len(test), *shape).astype(np.float32) / np.float32(255)
    counts = run(model, {info.name: x})[1]
    above = (counts > np.array(report.monitor.monitor.alarm_levels)).any(axis=1)
    assert report.monitor.alarms == above.sum()
    # As docs/monitor.md has it for devices, where there is no more than the file.
    session = onnxruntime.InferenceSession(
        tmp_path / "out.onnx", providers=["CPUExecutionProvider"]
    )
    facts = json.loads(session.get_modelmeta().custom_metadata_map["proact_onnx.monitor"])
    [found] = session.run([facts["output"]], {info.name: x})
    alarm = (found > np.array(facts["alarm_levels"])).any(axis=1)
    np.testing.assert_array_equal(alarm, above)
    plain = harden(
        digits_dir / "digits.onnx",
        calibration,
        tmp_path / "plain.onnx",
        test=test,
        settings=HardenSettings(
            method="ranger", percentile=99.0, calibration_images=400, accept_images=200
        ),
    )
    assert plain.monitor is None
    same = run(load_model(tmp_path / "plain.onnx"), {info.name: x})[0]
    scores = run(model, {info.name: x})[0]
    np.testing.assert_array_equal(scores.view(np.uint32), same.view(np.uint32))
    assert plain.memory_overhead == report.memory_overhead
    assert plain.fidelity == report.fidelity
