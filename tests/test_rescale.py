"""Rescaled weights through the commands: hardening, verifying, inspecting, injecting."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import passes
from proact_onnx.activations import find_activations
from proact_onnx.data import Dataset, Preprocessing, load_dataset
from proact_onnx.errors import ModelError, SettingsError
from proact_onnx.faults import (
    FaultSpace,
    Kind,
    added_count,
    fault_space,
    parameter_count,
    parse_fault_model,
    parse_format,
)
from proact_onnx.harden import HardenReport, harden
from proact_onnx.inspection import inspect_model
from proact_onnx.model import COPY_SUFFIX, SCALE_SUFFIX, is_copy, is_scale, load_model
from proact_onnx.progress import LogReporter
from proact_onnx.rewrite import Form, Sharing, insert, prepare, rescale
from proact_onnx.settings import HardenSettings
from proact_onnx.thresholds import Thresholds
from proact_onnx.verify import verify
from tests.command_line import Command
from tests.numerics import operators, parse, random_feed, run, run_reference

PIXELS = Preprocessing(scale=1 / 16)


class Heard(LogReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def notice(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def pair(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, HardenReport]:
    """The digits network hardened with every way of rescaling."""
    folder = tmp_path_factory.mktemp("rescaled")
    calibration = load_dataset(digits_dir / "calibration.npz")
    return {
        how: harden(
            digits_dir / "digits.onnx",
            calibration,
            folder / f"{how}.onnx",
            settings=HardenSettings(
                method="ranger", rescale=how, calibration_images=300, accept_images=50
            ),
            preprocessing=PIXELS,
        )
        for how in ("none", "tensor", "channel")
    }


def space(report: HardenReport) -> FaultSpace:
    return fault_space(prepare(load_model(report.output), fold_batchnorm=False).model, 32)


def by_kind(found: FaultSpace, kind: Kind) -> dict[str, int]:
    return {p.name: p.size for p in found.parameters if p.kind is kind}


@pytest.mark.parametrize("how", ["tensor", "channel"])
def test_outputs_stay(how: str, pair: dict[str, HardenReport]) -> None:
    plain, enlarged = (onnx.load(pair[name].output) for name in ("none", how))
    onnx.checker.check_model(enlarged, full_check=True)
    feed = random_feed(plain)
    np.testing.assert_array_equal(run_reference(enlarged, feed)[0], run_reference(plain, feed)[0])
    [before], [after] = run(plain, feed, optimise=True), run(enlarged, feed, optimise=True)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("how", ["tensor", "channel"])
def test_the_fault_space_gains_scales_alone(how: str, pair: dict[str, HardenReport]) -> None:
    plain, enlarged = space(pair["none"]), space(pair[how])
    for kind in (Kind.WEIGHT, Kind.BIAS, Kind.THRESHOLD):
        assert by_kind(plain, kind) == by_kind(enlarged, kind)
    copies = {name.removesuffix(COPY_SUFFIX): n for name, n in by_kind(enlarged, Kind.COPY).items()}
    assert copies == ({} if how == "tensor" else by_kind(plain, Kind.BIAS))
    assert by_kind(plain, Kind.SCALE) == {}
    scales = by_kind(enlarged, Kind.SCALE)
    biases = by_kind(plain, Kind.BIAS)
    # What a tensor shares is stored three times: the scale of each bias, and maybe of each weight.
    shared = 3 * len(biases)
    own = shared if how == "tensor" else sum(biases.values())
    assert sum(scales.values()) == shared + own
    kept = [p.name for p in enlarged.parameters if p.kind not in (Kind.SCALE, Kind.COPY)]
    assert sorted(kept) == sorted(p.name for p in plain.parameters)
    layers = {p.name: p.layer for p in plain.parameters}
    for parameter in enlarged.parameters:
        if parameter.kind in (Kind.WEIGHT, Kind.BIAS):
            assert parameter.layer == layers[parameter.name]
        elif parameter.kind is Kind.SCALE:
            assert parameter.layer in layers.values()


@pytest.mark.parametrize("how", ["tensor", "channel"])
def test_memory_overhead_counts_scales(how: str, pair: dict[str, HardenReport]) -> None:
    report, plain = pair[how], pair["none"]
    assert plain.scales == 0
    model = onnx.load(report.output)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    added = [value for name, value in stored.items() if is_scale(name) or is_copy(name)]
    assert report.scales == sum(value.size for value in added)
    parameters = parameter_count(onnx.load(plain.output))
    assert parameter_count(model) == parameters
    assert added_count(model) == plain.thresholds.count + report.scales
    assert report.memory_overhead == pytest.approx(100 * added_count(model) / parameters)


@pytest.mark.parametrize("faults", ["ber=0.0001", "flips=40"])
def test_faults_hit_the_same_places(faults: str, pair: dict[str, HardenReport]) -> None:
    """Weights and biases see the same faults whether they are rescaled or not."""
    drawn = []
    for how in ("none", "channel"):
        found = space(pair[how]).restrict(["weight", "bias"])
        words = parse_fault_model(faults).draw(found, seed=3, trial=5).words
        drawn.append({name: [part.tolist() for part in parts] for name, parts in words.items()})
    assert drawn[0] == drawn[1]
    assert drawn[0]


@pytest.mark.parametrize("sharing", list(Sharing))
def test_a_tent_keeps_the_order_of_rescaled_parameters(sharing: Sharing, digits_dir: Path) -> None:
    """Its thresholds go into biases that are computed before the layers that add them."""
    plain = prepare(load_model(digits_dir / "digits.onnx")).model
    limits = {a.tensor: np.array(1.0, np.float32) for a in find_activations(plain)}
    bounded = insert(rescale(plain, sharing).model, Thresholds(limits), Form.TENT).model
    before, after = (
        [
            (p.name, p.kind, p.layer)
            for p in fault_space(model, 32).parameters
            if not p.kind.is_added
        ]
        for model in (plain, bounded)
    )
    assert len(before) == 16
    assert after == before


def test_stored_numbers_fit_the_papers_format(pair: dict[str, HardenReport]) -> None:
    paper = parse_format("Q15.16")
    for tensor in onnx.load(pair["channel"].output).graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            assert paper.fit(values).saturated(values) == 0
        if is_scale(tensor.name):
            np.testing.assert_array_equal(paper.fit(values).decode(paper.encode(values)), values)


@pytest.mark.parametrize("how", ["tensor", "channel"])
def test_verify(how: str, pair: dict[str, HardenReport], digits_dir: Path) -> None:
    images = load_dataset(digits_dir / "test.npz")
    first = Dataset(images.images[:200], images.labels[:200], "some")
    report = verify(digits_dir / "digits.onnx", pair[how].output, first, PIXELS)
    assert report.passed
    assert report.untouched > 100


def test_inspect_tells(pair: dict[str, HardenReport]) -> None:
    plain, enlarged = (inspect_model(pair[how].output) for how in ("none", "channel"))
    assert (plain.rescaled, enlarged.rescaled) == (0, operators_of(pair["none"], "Conv", "Gemm"))
    assert enlarged.parameters == plain.parameters
    assert enlarged.protected == plain.protected
    assert enlarged.activations == plain.activations == ()


def operators_of(report: HardenReport, *wanted: str) -> int:
    return sum(op in wanted for op in operators(onnx.load(report.output)))


def test_a_rescaled_file_is_not_hardened_again(
    pair: dict[str, HardenReport], digits_dir: Path, tmp_path: Path
) -> None:
    calibration = load_dataset(digits_dir / "calibration.npz")
    with pytest.raises(ModelError, match="is hardened already"):
        harden(pair["channel"].output, calibration, tmp_path / "again.onnx")
    rescaled = rescale(load_model(digits_dir / "digits.onnx"), Sharing.TENSOR).model
    onnx.save(rescaled, tmp_path / "rescaled.onnx")
    with pytest.raises(ModelError, match="is hardened already"):
        harden(tmp_path / "rescaled.onnx", calibration, tmp_path / "again.onnx")
    with pytest.raises(ModelError, match="rescaled already"):
        rescale(rescaled)


def test_layers_that_stay_are_told(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4, 8, 8] x) => (float[N, 4] y) {
            [first] a = Conv(x, w)  b = Relu(a)  [second] c = Conv(b, w)  [third] d = Conv(c, v)
            e = GlobalAveragePool(d)  y = Flatten(e)
        }""",
        w=generator.standard_normal((4, 4, 1, 1)).astype(np.float32),
        v=generator.standard_normal((4, 4, 1, 1)).astype(np.float32),
    )
    onnx.save(model, tmp_path / "net.onnx")
    images = Dataset(generator.standard_normal((40, 4, 8, 8)).astype(np.float32), None, "noise")
    heard = Heard()
    settings = HardenSettings(method="ranger", granularity="layer", rescale="channel")
    report = harden(tmp_path / "net.onnx", images, settings=settings, reporter=heard)
    assert report.scales == 4
    assert len(report.refusals) == 2
    shared = "is not rescaled: its weight 'w' is shared with another node"
    assert f"Conv 'first' {shared}" in heard.said
    assert f"Conv 'second' {shared}" in heard.said


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float16", "no layer is rescaled; of Conv 'only', its weight 'w' has type float16"),
        ("none", "no layer is rescaled: the model stores no floating-point weights"),
    ],
)
def test_a_model_that_stays_is_told_once(dtype: str, message: str, tmp_path: Path) -> None:
    weight = np.ones((4, 1, 1) if dtype == "none" else (4, 4, 1, 1), np.float16)
    kind = "float" if dtype == "none" else "float16"
    operator = "Mul(x, w)" if dtype == "none" else "Conv(x, w)"
    model = parse(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net ({kind}[N, 4, 8, 8] x) => ({kind}[N, 4, 8, 8] y) {{ [only] a = {operator} y = Relu(a) }}
        """,
        w=weight.astype(np.float32) if dtype == "none" else weight,
    )
    onnx.save(model, tmp_path / "net.onnx")
    generator = np.random.default_rng(0)
    images = Dataset(generator.standard_normal((40, 4, 8, 8)).astype(np.float32), None, "noise")
    heard = Heard()
    settings = HardenSettings(method="ranger", granularity="layer", rescale="channel")
    report = harden(tmp_path / "net.onnx", images, settings=settings, reporter=heard)
    assert report.scales == 0
    assert [said for said in heard.said if "rescaled" in said] == [message]


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(SettingsError, match="choose among none, tensor, channel"):
        HardenSettings(rescale="layer")


def test_both_packages_agree_on_names() -> None:
    assert passes.SCALE_SUFFIX == SCALE_SUFFIX


def test_commands(command: Command) -> None:
    quick = ["--method", "ranger", "--calibration-images", "100", "--accept-images", "50"]
    outcome = command("harden", *quick, "--rescale", "channel")
    assert outcome.code == 0, outcome.err
    assert "scales and copies of biases)" in " ".join(outcome.out.split())
    assert command("verify").code == 0
    assert "stored enlarged" in command("inspect", "digits.hardened.onnx", "--layers").out
    faults = ["--trials", "4", "--images", "16", "--ber", "1e-3", "--targets", "scale"]
    outcome = command("inject", "digits.hardened.onnx", *faults)
    assert outcome.code == 0, outcome.err
    outcome = command("harden", *quick, "--rescale", "row", "--force")
    assert outcome.code == 1
    assert "unknown rescale 'row'" in outcome.err


def test_resnet20(shared_dir: Path) -> None:
    model = prepare(load_model(shared_dir / "models" / "c10_resnet20_torchscript_op17.onnx")).model
    result = rescale(model)
    assert (result.layers, result.refusals) == (20, ())
    feed = random_feed(model)
    before, after = (run_reference(network, feed)[0] for network in (model, result.model))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("how", ["none", "channel"])
def test_flips_of_a_high_bit(how: str, pair: dict[str, HardenReport], digits_dir: Path) -> None:
    """Bit 29 of some weights: 8192 where they are stored as they are, little where enlarged."""
    model = onnx.load(pair[how].output)
    found = space(pair[how]).restrict(["weight"], bits=[29])
    faults = parse_fault_model("flips=200").draw(found, seed=0, trial=0).words
    paper = parse_format("Q15.16")
    for tensor in model.graph.initializer:
        if tensor.name in faults:
            elements, masks = faults[tensor.name]
            values = onnx.numpy_helper.to_array(tensor).copy()
            words = paper.fit(values).encode(values.reshape(-1)[elements])
            values.reshape(-1)[elements] = paper.fit(values).decode(words ^ masks)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    images = load_dataset(digits_dir / "test.npz")
    [scores] = run(model, {model.graph.input[0].name: (images.images / 16).astype(np.float32)})
    accuracy = (scores.argmax(axis=1) == images.labels).mean()
    assert accuracy < 0.5 if how == "none" else accuracy > 0.9
