"""The pipeline from a model file to a hardened one."""

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.data import Dataset, Preprocessing, load_dataset
from proact_onnx.errors import DataError, ModelError, OutputError, ProactError, SettingsError
from proact_onnx.harden import HardenReport, harden, hardened_path, split_roles
from proact_onnx.methods import METHODS
from proact_onnx.model import (
    image_input,
    is_threshold,
    load_model,
    model_digest,
    provenance,
)
from proact_onnx.progress import LogReporter
from proact_onnx.rewrite import threshold_name
from proact_onnx.settings import HardenSettings
from tests.numerics import operators, parse, random_feed, run, run_reference
from tests.test_corpus import CORPUS, LIGHT, LIGHT_MODELS

PIXELS = Preprocessing(scale=1 / 16)
RANGER = HardenSettings(method="ranger", calibration_images=500, accept_images=100)
PROACT = HardenSettings(
    calibration_images=500, accept_images=300, epochs=5, epochs_neuron=10, train_batch=64
)


class Record(LogReporter):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.tasks: dict[str, list[int]] = {}

    def begin(self, task: str, total: int) -> None:
        self.tasks[task] = [total, 0]

    def advance(self, steps: int = 1) -> None:
        next(reversed(self.tasks.values()))[1] += steps

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def warn(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture(scope="module")
def calibration(digits_dir: Path) -> Dataset:
    return load_dataset(digits_dir / "calibration.npz")


@pytest.fixture(scope="module")
def test_set(digits_dir: Path) -> Dataset:
    return load_dataset(digits_dir / "test.npz")


@pytest.fixture
def digits(digits_dir: Path, calibration: Dataset, test_set: Dataset, tmp_path: Path):
    """Harden the digits network into ``tmp_path``."""

    def harden_digits(**options: object) -> HardenReport:
        given = {"test": test_set, "settings": RANGER, "preprocessing": PIXELS, **options}
        output = given.pop("output", tmp_path / "out.onnx")
        return harden(digits_dir / "digits.onnx", calibration, output, **given)

    return harden_digits


Harden = Callable[..., HardenReport]


def feed(model: onnx.ModelProto, data: Dataset) -> dict[str, np.ndarray]:
    return {image_input(model).name: (data.images / 16).astype(np.float32)}


def classes(path: Path, data: Dataset) -> np.ndarray:
    """What ONNX Runtime makes of the images."""
    model = onnx.load(path)
    [scores] = run(model, feed(model, data))
    return scores.argmax(axis=1)


def accuracy(path: Path, data: Dataset) -> float:
    return float((classes(path, data) == data.labels).mean())


@pytest.mark.parametrize("settings", [RANGER, PROACT], ids=["ranger", "proact"])
def test_digits(
    digits: Harden,
    digits_dir: Path,
    calibration: Dataset,
    test_set: Dataset,
    tmp_path: Path,
    settings: HardenSettings,
) -> None:
    record = Record()
    report = digits(settings=settings, reporter=record)
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]
    original, hardened = onnx.load(digits_dir / "digits.onnx"), onnx.load(report.output)
    onnx.checker.check_model(hardened, full_check=True)
    assert hardened.graph.input == original.graph.input
    assert hardened.graph.output == original.graph.output
    assert hardened.opset_import == original.opset_import
    assert hardened.producer_name == original.producer_name
    assert report.raised_opset is None
    assert report.refusals == ()
    assert record.notices == []
    assert {total == done for total, done in record.tasks.values()} == {True}

    assert operators(hardened).count("Where") == len(report.activations) == 7
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in hardened.graph.initializer}
    for activation in report.activations:
        value = report.thresholds.values[activation.tensor]
        np.testing.assert_array_equal(stored[threshold_name(activation.tensor)], value)
    count = 7 if settings.method == "ranger" else 6 + 96
    assert report.thresholds.count == count
    # BatchNormalization's four arrays become one bias for each of the six convolutions.
    parameters = 82_138
    assert report.memory_overhead == pytest.approx(100 * count / parameters)

    assert report.labelled
    assert report.test_images == 697
    assert report.fidelity.accuracy_before == pytest.approx(
        accuracy(digits_dir / "digits.onnx", test_set), abs=1e-9
    )
    assert report.fidelity.accuracy_after == pytest.approx(
        accuracy(report.output, test_set), abs=1e-9
    )
    assert report.fidelity.accuracy_before - report.fidelity.accuracy_after < 0.02
    assert report.seconds > 0

    recorded = provenance(hardened)
    assert recorded["version"] == importlib.metadata.version("proact-onnx")
    assert recorded["method"] == settings.method
    resolved = METHODS[settings.method].resolve(settings)
    assert json.loads(recorded["settings"]) == json.loads(json.dumps(dataclasses.asdict(resolved)))
    assert recorded["original_sha256"] == model_digest(digits_dir / "digits.onnx")
    assert recorded["calibration_sha256"] == calibration.digest
    assert len(recorded["thresholds_sha256"]) == 64


@pytest.mark.parametrize("settings", [RANGER, PROACT], ids=["ranger", "proact"])
def test_the_same_seed_gives_the_same_file(
    digits: Harden, tmp_path: Path, settings: HardenSettings
) -> None:
    quick = dataclasses.replace(settings, calibration_images=100, epochs=1, epochs_neuron=1)
    one, again = (digits(settings=quick, output=tmp_path / f"{n}.onnx") for n in "12")
    assert one.output.read_bytes() == again.output.read_bytes()
    other = digits(settings=dataclasses.replace(quick, seed=1), output=tmp_path / "3.onnx")
    digests = [provenance(onnx.load(r.output))["thresholds_sha256"] for r in (one, other)]
    assert digests[0] != digests[1]


def test_metadata_stays(digits_dir: Path, calibration: Dataset, tmp_path: Path) -> None:
    model = onnx.load(digits_dir / "digits.onnx")
    model.doc_string = "a net"
    model.model_version = 3
    onnx.helper.set_model_props(model, {"author": "someone"})
    onnx.save(model, tmp_path / "net.onnx")
    report = harden(tmp_path / "net.onnx", calibration, settings=RANGER, preprocessing=PIXELS)
    assert report.output == hardened_path(tmp_path / "net.onnx") == tmp_path / "net.hardened.onnx"
    hardened = onnx.load(report.output)
    assert (hardened.doc_string, hardened.model_version) == ("a net", 3)
    assert ("author", "someone") in {(p.key, p.value) for p in hardened.metadata_props}
    assert onnx.load(tmp_path / "net.onnx") == model, "the input is only read"


def test_without_test_images_some_are_kept_apart(digits: Harden) -> None:
    report = digits(test=None)
    assert report.test_images == RANGER.accept_images
    assert report.fidelity.accuracy_after > 0.9


def test_roles_are_disjoint(calibration: Dataset, test_set: Dataset) -> None:
    numbered = Dataset(np.arange(100.0).reshape(100, 1), None, "numbers")
    settings = HardenSettings(calibration_images=2000, accept_images=1000)
    parts = split_roles(numbered, None, settings)
    assert [len(part) for part in parts] == [50, 25, 25]
    assert len(np.unique(np.concatenate([part.images for part in parts]))) == 100
    fit, accept, report = split_roles(calibration, test_set, settings)
    assert (len(fit), len(accept)) == (733, 366)
    assert report is test_set
    for total in range(3, 30):
        parts = split_roles(numbered.take(range(total)), None, RANGER)
        assert all(len(part) for part in parts)
        assert sum(map(len, parts)) <= total
    smallest = split_roles(numbered.take(range(3)), None, settings)
    assert [len(part) for part in smallest] == [1, 1, 1]


def test_without_labels_the_models_own_classes_stand_in(
    digits: Harden, digits_dir: Path, test_set: Dataset
) -> None:
    unlabelled = Dataset(test_set.images, None, "images only")
    report = digits(test=unlabelled)
    assert not report.labelled
    assert report.fidelity.accuracy_before == 1.0
    one, other = (classes(p, test_set) for p in (digits_dir / "digits.onnx", report.output))
    assert report.fidelity.accuracy_after == pytest.approx((one == other).mean(), abs=1e-9)


def test_proact_trains_without_labels(
    digits: Harden, calibration: Dataset, tmp_path: Path, digits_dir: Path
) -> None:
    quick = dataclasses.replace(PROACT, calibration_images=100, epochs=1, epochs_neuron=1)
    unlabelled = Dataset(calibration.images, None, "images only")
    report = harden(
        digits_dir / "digits.onnx", unlabelled, tmp_path / "o.onnx",
        settings=quick, preprocessing=PIXELS,
    )  # fmt: skip
    assert report.fidelity.accuracy_before == 1.0
    assert report.fidelity.accuracy_after > 0.95


def test_guessing_is_noticed(digits: Harden) -> None:
    record = Record()
    digits(preprocessing=Preprocessing(mean=(50.0,), scale=1.0), reporter=record)
    [notice] = record.notices
    assert "hardly better than guessing among 10 classes: check the preprocessing" in notice


def test_from_python_a_warning_reaches_the_log(
    digits: Harden, caplog: pytest.LogCaptureFixture
) -> None:
    digits(preprocessing=Preprocessing(mean=(50.0,), scale=1.0))
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.name == "proact_onnx"
    assert "hardly better than guessing" in record.message


def test_an_existing_output_stays(digits: Harden, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    output.write_text("precious")
    with pytest.raises(OutputError, match=r"out\.onnx already exists: .* overwrite with --force"):
        digits()
    assert output.read_text() == "precious"
    assert provenance(onnx.load(digits(force=True).output))["method"] == "ranger"
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.parametrize("force", [False, True])
def test_the_input_is_never_written_over(
    digits: Harden, digits_dir: Path, tmp_path: Path, force: bool
) -> None:
    before = (digits_dir / "digits.onnx").read_bytes()
    alias = tmp_path / "alias.onnx"
    alias.symlink_to(digits_dir / "digits.onnx")
    for output in (digits_dir / "digits.onnx", digits_dir / "." / "digits.onnx", alias):
        with pytest.raises(OutputError, match="is the model that was read: choose another name"):
            digits(output=output, force=force)
    assert (digits_dir / "digits.onnx").read_bytes() == before


class Untouched(LogReporter):
    """Fails as soon as work starts that a hopeless output would waste."""

    def begin(self, task: str, total: int) -> None:
        raise AssertionError(task)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_found_before_the_work(digits: Harden, tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o500)
    with pytest.raises(OutputError, match=r"cannot write .*sealed/out\.onnx: Permission denied"):
        digits(output=folder / "out.onnx", settings=PROACT, reporter=Untouched())
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_file_in_place_of_the_folder_is_found_before_the_work(
    digits: Harden, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match=r"cannot write .*file/out\.onnx: Not a directory"):
        digits(output=tmp_path / "file" / "out.onnx", settings=PROACT, reporter=Untouched())
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_missing_folder_is_found_before_the_work(digits: Harden, tmp_path: Path) -> None:
    output = tmp_path / "missing" / "out.onnx"
    with pytest.raises(OutputError, match=r"cannot write .*out\.onnx: create the folder .* first"):
        digits(output=output, settings=PROACT, reporter=Untouched())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_output_is_found_before_the_work(digits: Harden, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder: give the name of a file to write"):
        digits(output=tmp_path, force=True, settings=PROACT, reporter=Untouched())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_is_what_the_message_is_about(calibration: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*net\.onnx: No such file or directory"):
        harden(tmp_path / "nowhere" / "net.onnx", calibration)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic': choose among proact, ranger"),
        ({"granularity": "pixel"}, "unknown granularity 'pixel': choose among layer, channel"),
        ({"form": "soft"}, "unknown form 'soft': choose among hard, smooth, saturate, ramp"),
    ],
)
def test_unknown_names(digits: Harden, changes: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        digits(settings=dataclasses.replace(RANGER, **changes))


def test_labels_of_another_data_set(digits: Harden, calibration: Dataset) -> None:
    wrong = Dataset(calibration.images, calibration.labels + 1, "other")
    with pytest.raises(DataError, match=r"label 10 of image \d+ of other is no class of the model"):
        digits(test=wrong)


@pytest.fixture
def noise() -> Dataset:
    images = np.random.default_rng(0).random((60, 1, 4, 4)).astype(np.float32)
    return Dataset(images, None, "noise")


def small_net(body: str, opset: int = 17) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    model = parse(
        f"""<ir_version: 8, opset_import: ["": {opset}]>
        net (float[N, 1, 4, 4] x) => (float[N, 3] y)
        {{ c = Conv(x, w) {body} f = Flatten(a) y = Gemm<transB = 1>(f, v, b) }}""",
        w=generator.normal(size=(2, 1, 3, 3)).astype(np.float32),
        v=generator.normal(size=(3, 8)).astype(np.float32),
        b=np.zeros(3, np.float32),
        s=np.ones(2, np.float32),
        z=np.zeros(2, np.float32),
        m=np.zeros(2, np.float32),
        q=np.ones(2, np.float32),
    )
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def test_no_activation(noise: Dataset, tmp_path: Path) -> None:
    onnx.save(small_net("a = Tanh(c)"), tmp_path / "net.onnx")
    with pytest.raises(
        ModelError, match=r"net\.onnx has no activation that can be hardened: .*--protect linear"
    ):
        harden(tmp_path / "net.onnx", noise, settings=RANGER)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_no_parameters(noise: Dataset, tmp_path: Path) -> None:
    model = parse("""<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 1, 4, 4] x) => (float[N, 16] y) { a = Relu(x) y = Flatten(a) }""")
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"net\.onnx stores no parameters, so there is nothing"):
        harden(tmp_path / "net.onnx", noise, settings=RANGER)


def test_a_low_opset_is_raised_and_said(noise: Dataset, tmp_path: Path) -> None:
    onnx.save(small_net("a = Relu(c)", opset=8), tmp_path / "net.onnx")
    report = harden(tmp_path / "net.onnx", noise, settings=RANGER)
    hardened = onnx.load(report.output)
    assert report.raised_opset == hardened.opset_import[0].version == 9
    onnx.checker.check_model(hardened, full_check=True)


def test_batchnorm_that_stays_is_noticed(noise: Dataset, tmp_path: Path) -> None:
    body = "h = Add(c, c) n = BatchNormalization(h, s, z, m, q) a = Relu(n)"
    onnx.save(small_net(body), tmp_path / "net.onnx")
    record = Record()
    report = harden(tmp_path / "net.onnx", noise, settings=RANGER, reporter=record)
    [refusal] = report.refusals
    [notice] = record.notices
    assert notice.startswith("BatchNormalization ")
    assert "is not folded: " in notice
    assert refusal.reason in notice


def test_images_of_another_size(noise: Dataset, digits_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        harden(digits_dir / "digits.onnx", noise, tmp_path / "o.onnx", settings=RANGER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [1, 4])
def test_a_batch_that_is_written_into_the_graph(noise: Dataset, tmp_path: Path, rows: int) -> None:
    """Trains to what the graph with a free batch trains to."""
    free = small_net("a = Relu(c)")
    fixed = onnx.ModelProto()
    fixed.CopyFrom(free)
    for info in (fixed.graph.input[0], fixed.graph.output[0]):
        info.type.tensor_type.shape.dim[0].dim_value = rows
    [flatten] = [node for node in fixed.graph.node if node.op_type == "Flatten"]
    flatten.op_type = "Reshape"
    flatten.input.append("rows")
    fixed.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([rows, 8], np.int64), "rows")
    )
    settings = HardenSettings(epochs_neuron=5, train_batch=16, regularisation=1.0)
    reports = []
    for name, model in (("free", free), ("fixed", fixed)):
        onnx.save(model, tmp_path / f"{name}.onnx")
        reports.append(harden(tmp_path / f"{name}.onnx", noise, settings=settings))
    one, other = (report.thresholds.values["a"] for report in reports)
    assert one.shape == (1, 2, 2, 2)
    np.testing.assert_allclose(other, one, rtol=1e-3)


@pytest.mark.parametrize("form", ["hard", "smooth", "saturate", "ramp"])
@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron", "hybrid"])
def test_runtimes_agree_on_every_form(
    digits: Harden, test_set: Dataset, form: str, granularity: str
) -> None:
    settings = dataclasses.replace(RANGER, form=form, granularity=granularity)
    hardened = onnx.load(digits(settings=settings, test=test_set.take(range(50))).output)
    onnx.checker.check_model(hardened, full_check=True)
    images = feed(hardened, test_set.take(range(8)))
    [plain], [optimised] = run(hardened, images), run(hardened, images, optimise=True)
    [reference] = run_reference(hardened, images)
    np.testing.assert_allclose(optimised, plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(reference, plain, rtol=1e-4, atol=1e-4)


NO_ACTIVATION = "has no activation that can be hardened"
SEVERAL_INPUTS = r"the model has 3 inputs \(input, state, sr\): give an \.npz file with an array"
# What hardening says of the third-party graphs it cannot work on.
REFUSED = {
    "espcn_brevitas_quant": "operator Quant of domain onnx.brevitas is unknown to ONNX Runtime: ",
    "silero_vad_16k_op15": SEVERAL_INPUTS,
    "superres_prepost_ortext_opset16": "the model's input 'image' has no axis but one, so ",
}
# Their codes saturate on noise, which is cut off.
QUANTISED = {"grey96_cnn_int8", "shufflenet_v2_int8_qoperator"}
HEAVY = {"light_bvlc_alexnet", "light_vgg19", "light_zfnet512"}


@pytest.mark.parametrize("name", sorted(CORPUS.keys() | LIGHT_MODELS.keys() - HEAVY))
def test_third_party_graph(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    """On the image it was calibrated with, a hardened network answers as before."""
    folder = request.getfixturevalue("shared_dir") / "corpus" if name in CORPUS else LIGHT
    model = load_model(folder / f"{name}.onnx")
    image = next(iter(random_feed(model, batch=1).values())).astype(np.float32)
    image = image if image.ndim > 1 else image[None]
    # All roles, to fit, to accept and to report, get the same image.
    noise = Dataset(np.concatenate([image] * 3), None, "noise")
    output = tmp_path / "out.onnx"
    if name in REFUSED:
        with pytest.raises(ProactError, match=REFUSED[name]) as info:
            harden(folder / f"{name}.onnx", noise, output, settings=RANGER)
        assert "\n" not in str(info.value)
        assert list(tmp_path.iterdir()) == []
        return
    report = harden(folder / f"{name}.onnx", noise, output, settings=RANGER)
    expected = (CORPUS | LIGHT_MODELS)[name]
    assert len(report.activations) == len(report.thresholds.values) == expected.activations
    stored = [t for t in onnx.load(output).graph.initializer if is_threshold(t.name)]
    assert sum(int(np.prod(t.dims)) for t in stored) == report.thresholds.count
    assert report.raised_opset == expected.raised_opset
    assert len(report.refusals) == expected.unfolded
    assert report.fidelity.accuracy_after in (1.0, None)
    if name in QUANTISED:
        return
    assert report.fidelity.output_change < 1e-4
    images = {image_input(model).name: image}
    for before, after in zip(run(model, images), run(onnx.load(output), images), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())


@pytest.fixture
def upscaler(tmp_path: Path) -> Path:
    """A network whose output is an image."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, 8, 8] x) => (float[N, 1, 8, 8] y)
        <float[1, 1, 1, 1] w = {2}, float[1] b = {-1}>
        { c = Conv(x, w, b)  y = Relu(c) }
    """)
    path = tmp_path / "upscaler.onnx"
    onnx.save(model, path)
    return path


def test_a_model_that_is_no_classifier_is_judged_by_its_outputs(
    upscaler: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    calibration = rng.random((40, 1, 8, 8), np.float32)
    images = calibration[:10] * np.float32(1.2)
    report = harden(
        upscaler,
        Dataset(calibration, None, "noise"),
        tmp_path / "out.onnx",
        test=Dataset(images, None, "brighter noise"),
        settings=dataclasses.replace(RANGER, granularity="layer"),
    )
    before = np.maximum(2 * images - 1, 0).reshape(10, -1)
    after = np.where(before <= report.thresholds.values["y"], before, 0)
    change = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    assert change.mean() > 0.1
    assert report.fidelity.output_change == pytest.approx(change.mean(), rel=1e-5)
    assert report.fidelity.accuracy_before is None
    assert report.fidelity.accuracy_after is None


def test_distillation_needs_class_scores(upscaler: Path, tmp_path: Path) -> None:
    images = Dataset(np.random.default_rng(0).random((40, 1, 8, 8), np.float32), None, "noise")
    with pytest.raises(ModelError, match="not a vector of these: use --method ranger"):
        harden(upscaler, images, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == [upscaler]
