"""Quantised networks from end to end: inspected, hardened, and hurt."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from proact_onnx.campaign import Campaign, read_campaign
from proact_onnx.data import Dataset, Preprocessing
from proact_onnx.errors import ModelError
from proact_onnx.harden import HardenReport, harden
from proact_onnx.inspection import inspect_model
from proact_onnx.model import is_threshold
from proact_onnx.progress import LogReporter
from proact_onnx.rewrite import threshold_name
from proact_onnx.settings import HardenSettings, InjectSettings, RuntimeSettings
from tests.command_line import Command
from tests.numerics import Array, run

CPU = RuntimeSettings(provider="cpu", threads=1)
QDQ = "c10_resnet20_int8_qdq.onnx"
QDQ_RELU = "c10_resnet20_int8_qdq_relu.onnx"
QOPERATOR = "c10_tiny_resnet8_int8_qoperator.onnx"
PIXELS = Preprocessing(scale=1)
COLOURS = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MODELS = {QDQ: COLOURS, QDQ_RELU: COLOURS, QOPERATOR: PIXELS}


class Notices(LogReporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


def images(shared_dir: Path, part: str, count: int) -> Dataset:
    archive = np.load(shared_dir / "data" / "cifar10" / f"{part}.npz")
    return Dataset(archive["images"][:count], archive["labels"][:count], part)


def hardened(
    shared_dir: Path, folder: Path, name: str, granularity: str, **settings: Any
) -> tuple[HardenReport, list[str]]:
    notices = Notices()
    report = harden(
        shared_dir / "models" / name,
        images(shared_dir, "train", 400),
        folder / "hard.onnx",
        test=images(shared_dir, "test", 300),
        settings=HardenSettings(
            **{"method": "ranger", "calibration_images": 300, **settings}, granularity=granularity
        ),
        preprocessing=MODELS[name],
        runtime=CPU,
        reporter=notices,
    )
    return report, notices.texts


@pytest.mark.parametrize(
    ("name", "activations"), [(QDQ, 19), (QDQ_RELU, 19), (QOPERATOR, 7)], ids=["qdq", "relu", "qop"]
)
def test_hardening_changes_what_codes_say_only_beyond_the_bounds(
    shared_dir: Path, tmp_path: Path, name: str, activations: int
) -> None:
    path = shared_dir / "models" / name
    assert len(inspect_model(path).activations) == activations
    report, notices = hardened(shared_dir, tmp_path, name, "layer")
    assert len(report.activations) == activations
    before, after = report.fidelity.accuracy_before, report.fidelity.accuracy_after
    assert before is not None and after is not None
    assert abs(after - before) <= 0.01
    assert any("half a step below the top code" in text for text in notices)
    model = onnx.load(report.output)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    writers = {output: node for node in model.graph.node for output in node.output}
    for activation in report.activations:
        # Independent of the tool: the largest code's value, from the node in front of the Relu.
        relu = next(
            node
            for node in model.graph.node
            if node.op_type == "Relu" and node.name == activation.name
        )
        source = writers[relu.input[0]]
        scale, point = (numpy_helper.to_array(stored[name]) for name in source.input[1:])
        top = (np.iinfo(point.dtype).max - int(point)) * float(scale)
        threshold = float(numpy_helper.to_array(stored[threshold_name(activation.tensor)]))
        assert threshold < top


def test_a_saturated_channel_becomes_zero(shared_dir: Path, tmp_path: Path) -> None:
    """High bits of two int32 biases saturate their channels; the hardened network drops them."""
    report, _ = hardened(shared_dir, tmp_path, QOPERATOR, "channel")
    some = images(shared_dir, "test", 200)
    feed = some.images.astype(np.float32)

    def accuracy(path: Path, flip: bool) -> float:
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name == "onnx::Conv_142_quantized" and flip:
                values = numpy_helper.to_array(tensor).copy()
                values[::16] ^= np.int32(1 << 22)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        [scores] = run(model, {"input": feed}, optimise=True)
        return float((scores.argmax(axis=1) == some.labels).mean())

    original = shared_dir / "models" / QOPERATOR
    assert accuracy(original, flip=False) > 0.85
    assert accuracy(report.output, flip=False) > 0.85
    assert accuracy(report.output, flip=True) > accuracy(original, flip=True) + 0.2


def test_clamping_at_the_top_code_is_the_quantisers_own_work(
    shared_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"bound every activation already.*--granularity channel"):
        hardened(shared_dir, tmp_path, QOPERATOR, "layer", form="saturate", slack=3.0)
    report, _ = hardened(shared_dir, tmp_path, QOPERATOR, "channel", form="saturate")
    assert report.thresholds.count == 240


def test_codes_that_saturate_legitimately_are_kept(shared_dir: Path, tmp_path: Path) -> None:
    """Where the range of a layer cuts off what it should pass, zeroing would hurt."""
    model = onnx.load(shared_dir / "models" / QOPERATOR)
    for tensor in model.graph.initializer:
        if tensor.name == "/Add_2_output_0_scale":
            narrow = numpy_helper.to_array(tensor) / np.float32(6)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(narrow), tensor.name))
    onnx.save(model, tmp_path / "narrow.onnx")
    notices = Notices()
    report = harden(
        tmp_path / "narrow.onnx",
        images(shared_dir, "train", 400),
        tmp_path / "hard.onnx",
        settings=HardenSettings(
            method="ranger", granularity="channel", calibration_images=200, accept_images=100
        ),
        preprocessing=PIXELS,
        runtime=CPU,
        reporter=notices,
    )
    assert any("setting saturated codes to zero would cost" in text for text in notices.texts)
    before, after = report.fidelity.accuracy_before, report.fidelity.accuracy_after
    assert before is not None and after is not None
    assert after >= before - 0.01


class OneBatch(CalibrationDataReader):
    """The example's calibration images, once."""

    def __init__(self, folder: Path) -> None:
        images = np.load(folder / "calibration.npz")["images"][:200]
        self.batches = iter([{"input": images.astype(np.float32) / 16}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_thresholds_are_trained_through_quantisers(
    project: Path, command: Command, form: QuantFormat
) -> None:
    """Those of `ranger` are where they start; the example network loses nothing by going lower."""
    small = project / "small.onnx"
    reader = OneBatch(project)
    quantize_static(project / "digits.onnx", small, reader, quant_format=form, per_channel=True)
    images = ("--calibration-images", 300, "--accept-images", 200, "--threads", 1)
    for method, *settings in (
        ("proact", "--epochs", 2, "--epochs-neuron", 2, "--train-batch", 50),
        ("ranger", "--granularity", "hybrid"),
    ):
        output = project / f"{method}.onnx"
        outcome = command(
            "harden", small, "--output", output, "--method", method, *settings, *images
        )
        assert outcome.code == 0, outcome.err
    trained, profiled = (
        {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in onnx.load(project / f"{method}.onnx").graph.initializer
            if is_threshold(tensor.name)
        }
        for method in ("proact", "ranger")
    )
    assert len(trained) == 7
    assert trained.keys() == profiled.keys()
    for name, values in trained.items():
        assert (values <= profiled[name]).all()
        assert (values < 0.97 * profiled[name]).any(), name
    test = np.load(project / "test.npz")
    for path in (small, project / "proact.onnx"):
        [scores] = run(onnx.load(path), {"input": test["images"].astype(np.float32) / 16})
        assert (scores.argmax(axis=1) == test["labels"]).mean() > 0.98


def test_a_network_without_relu_is_trained(shared_dir: Path, tmp_path: Path) -> None:
    """Its Relu are written out, and every threshold lies below the top code."""
    images = {"calibration_images": 40, "accept_images": 40}
    brief = {"epochs": 1, "epochs_neuron": 1, "train_batch": 10, "learning_rate": 0.05}
    (tmp_path / "ranger").mkdir()
    profiled, _ = hardened(shared_dir, tmp_path / "ranger", QDQ, "hybrid", **images)
    report, _ = hardened(shared_dir, tmp_path, QDQ, "hybrid", method="proact", **images, **brief)
    assert len(report.activations) == 19
    before, after = report.fidelity.accuracy_before, report.fidelity.accuracy_after
    assert before is not None and after is not None
    assert after >= before - 0.03
    model = onnx.load(report.output)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    writers = {output: node for node in model.graph.node for output in node.output}
    relus = {node.name: node for node in model.graph.node if node.op_type == "Relu"}
    trained = 0
    for activation in report.activations:
        source = writers[relus[activation.name].input[0]]
        scale, point = (numpy_helper.to_array(stored[name]) for name in source.input[1:])
        top = (np.iinfo(point.dtype).max - int(point)) * float(scale)
        threshold = report.thresholds.values[activation.tensor]
        start = profiled.thresholds.values[activation.tensor]
        assert (threshold < top).all()
        assert (threshold <= start).all()
        trained += bool((threshold < 0.97 * start).any())
    # A layer may go back where it costs too much.
    assert trained >= 15


def reference_scores(path: Path, feed: Array, words: dict[str, list[tuple[int, int]]]) -> Array:
    """Scores of a file whose words were changed by hand, without any optimisation."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        flat = values.reshape(-1).view(f"u{values.dtype.itemsize}")
        for element, mask in words.get(tensor.name, []):
            flat[element] ^= flat.dtype.type(mask)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    scores: Array = run(model, {"input": feed})[0]
    return scores


@pytest.mark.parametrize("kind", ["weight", "bias", "quant-scale", "zero-point"])
def test_faults_hit_the_words_of_the_file(shared_dir: Path, tmp_path: Path, kind: str) -> None:
    path = shared_dir / "models" / QOPERATOR
    some = images(shared_dir, "test", 24)
    settings = InjectSettings(flips=(6,), trials=4, images=24, targets=(kind,), record_faults=True)
    Campaign(path, some, settings, PIXELS, CPU).run(tmp_path / "run.jsonl")
    for trial in read_campaign(tmp_path / "run.jsonl")[1]:
        words = {name: list(pairs) for name, pairs in (trial.words or {}).items()}
        assert sum(len(pairs) for pairs in words.values()) >= 1
        scores = reference_scores(path, some.images.astype(np.float32), words)
        correct = (scores.argmax(axis=1) == some.labels).sum()
        # The pool in front of the scores may round a mean half way between two codes either way.
        assert abs(trial.verdict.correct - int(correct)) <= 2


def test_scales_that_stop_the_runtime_do_not_stop_the_campaign(
    shared_dir: Path, tmp_path: Path
) -> None:
    path = shared_dir / "models" / QOPERATOR
    some = images(shared_dir, "test", 8)
    settings = InjectSettings(ber=(0.05,), trials=40, images=8, targets=("quant-scale",))
    result = Campaign(path, some, settings, PIXELS, CPU).run(tmp_path / "run.jsonl")
    assert result.summaries[0].trials == 40


def test_inspect_and_inject_say_what_a_format_applies_to(
    shared_dir: Path, command: Command
) -> None:
    path = str(shared_dir / "models" / QOPERATOR)
    shown = command("inspect", path).out
    assert [line.split() for line in shown.splitlines() if "float32" in line] == [
        ["quant-scale", "float32", "361", "11,552"]
    ]
    assert ["weight", "int8", "77,360", "618,880"] in [line.split() for line in shown.splitlines()]
