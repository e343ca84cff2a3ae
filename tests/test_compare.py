"""Methods compared on the digits network, with every figure computed a second way."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.campaign import Campaign
from proact_onnx.compare import COMPARISON, MethodComparison
from proact_onnx.data import load_dataset
from proact_onnx.errors import CampaignError, SettingsError
from proact_onnx.harden import harden
from proact_onnx.methods.variants import parse_variant
from proact_onnx.progress import LogReporter
from proact_onnx.settings import CompareSettings, HardenSettings, InjectSettings, Settings
from tests.command_line import Command
from tests.numerics import run
from tests.test_series import Shuffling

METHODS = ("none", "ranger-neuron", "proact-together")
SETTINGS = Settings(
    preprocessing=Settings().preprocessing.__class__(scale=1 / 16),
    harden=HardenSettings(calibration_images=100, accept_images=100, epochs_together=2),
    inject=InjectSettings(ber=(1e-5,), trials=40, images=32),
    compare=CompareSettings(methods=METHODS, distance_trials=2, distance_images=8),
)
Make = Callable[..., MethodComparison]


@pytest.fixture(scope="module")
def make(digits_dir: Path) -> Make:
    """A comparison in a folder, with some settings replaced."""

    def build(folder: Path, given: tuple[Path, ...] = (), **changes: object) -> MethodComparison:
        return MethodComparison(
            digits_dir / "digits.onnx",
            given,
            folder,
            replace(SETTINGS, **changes),
            load_dataset(digits_dir / "calibration.npz"),
            load_dataset(digits_dir / "test.npz"),
            "proact-onnx compare digits.onnx",
        )

    return build


@pytest.fixture(scope="module")
def finished(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    make(folder).run(LogReporter())
    return folder


def content(folder: Path) -> dict:
    return json.loads((folder / COMPARISON).read_text())


def test_models_are_what_harden_makes(finished: Path, digits_dir: Path, tmp_path: Path) -> None:
    test = load_dataset(digits_dir / "test.npz")
    settings = parse_variant("ranger-neuron").settings(SETTINGS.harden)
    assert (settings.method, settings.granularity, settings.form) == ("ranger", "neuron", "hard")
    report = harden(
        digits_dir / "digits.onnx", load_dataset(digits_dir / "calibration.npz"),
        tmp_path / "again.onnx", test=test, settings=settings,
        preprocessing=SETTINGS.preprocessing,
    )  # fmt: skip
    made = finished / "digits.ranger-neuron.onnx"
    assert made.read_bytes() == report.output.read_bytes()
    entry = content(finished)["entries"][1]
    assert entry["thresholds"] == report.thresholds.count
    assert entry["memory_overhead"] == pytest.approx(report.memory_overhead)
    assert entry["clean_accuracy"] == pytest.approx(report.fidelity.accuracy_after)


def test_clean_drops_are_paired(finished: Path, digits_dir: Path) -> None:
    test = load_dataset(digits_dir / "test.npz")
    images = (test.images / 16).astype(np.float32)
    paths = [digits_dir / "digits.onnx", finished / "digits.proact-together.onnx"]
    before, after = (
        run(onnx.load(path), {"input": images})[0].argmax(axis=1) == test.labels for path in paths
    )
    none, _, entry = content(finished)["entries"]
    assert none["clean_drop"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    drop = entry["clean_drop"]
    assert drop["mean"] == pytest.approx(np.mean(before) - np.mean(after))
    assert drop["low"] < drop["mean"] < drop["high"]


def test_ranges_and_thresholds_of_layers(finished: Path) -> None:
    found = content(finished)
    model = onnx.load(finished / "digits.ranger-neuron.onnx")
    stored = [numpy_helper.to_array(t) for t in model.graph.initializer if "threshold" in t.name]
    assert len(found["layers"]) == len(stored) == 7
    for layer, values in zip(found["layers"], stored, strict=True):
        expected = [values.min(), np.median(values), values.max()]
        np.testing.assert_allclose(layer["thresholds"]["ranger-neuron"], expected, rtol=1e-6)
        assert set(layer["thresholds"]) == {"ranger-neuron", "proact-together"}
        assert layer["maximum"] > 0
    assert found["reference"] == "proact-together"
    assert found["command"] == "proact-onnx compare digits.onnx"


def test_records_are_those_of_a_campaign(finished: Path, digits_dir: Path, tmp_path: Path) -> None:
    record = tmp_path / "again.jsonl"
    Campaign(
        digits_dir / "digits.onnx", load_dataset(digits_dir / "test.npz"), SETTINGS.inject,
        SETTINGS.preprocessing,
    ).run(record)  # fmt: skip
    made = finished / content(finished)["entries"][0]["record"]
    assert made.read_text().splitlines()[1:] == record.read_text().splitlines()[1:]


def test_bounds_bring_activations_closer(finished: Path) -> None:
    none, neuron, _ = (entry["distance"] for entry in content(finished)["entries"])
    assert none["low"] <= none["mean"] <= none["high"]
    assert neuron["mean"] < none["mean"] / 100


def test_nothing_is_done_twice(make: Make, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    models = {path: path.stat().st_mtime_ns for path in folder.glob("*.onnx")}
    make(folder).run(LogReporter())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.onnx")} == models


def test_methods_that_search_run_their_trials_where_campaigns_do(
    make: Make, tmp_path: Path
) -> None:
    quick = {"search_ber": (1e-5, 1e-3), "search_trials": 2, "search_images": 8, "search_rounds": 1}
    changes = {
        "harden": replace(SETTINGS.harden, **quick),
        "compare": CompareSettings(methods=("ftclipact",), distance_ber=0),
        "inject": replace(SETTINGS.inject, trials=2),
    }
    here, elsewhere, executor = tmp_path / "here", tmp_path / "elsewhere", Shuffling(5, 2)
    make(here, **changes).run(LogReporter())
    make(elsewhere, **changes).run(LogReporter(), executor)
    name = "digits.ftclipact.onnx"
    assert (here / name).read_bytes() == (elsewhere / name).read_bytes()
    searched = sum(len(block.trials) for block in executor.blocks if block.stored)
    assert 8 * searched == content(elsewhere)["entries"][1]["evaluations"] > 0


def test_other_settings_harden_anew(make: Make, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    untouched = (folder / "digits.none.campaign.jsonl").read_bytes()
    changed = replace(SETTINGS.harden, slack=1.5)
    with pytest.raises(CampaignError, match="ranger-neuron"):
        make(folder, harden=changed).run(LogReporter())
    again = make(folder, harden=changed)
    again.forget()
    again.run(LogReporter())
    assert (folder / "digits.none.campaign.jsonl").read_bytes().split(b"\n")[1:] == (
        untouched.split(b"\n")[1:]
    )
    before, after = (content(path)["layers"][0]["thresholds"] for path in (finished, folder))
    assert after["ranger-neuron"][2] == pytest.approx(before["ranger-neuron"][2] * 1.5 / 1.01)


def test_files_given(make: Make, finished: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.onnx"
    shutil.copy(finished / "digits.ranger-neuron.onnx", ready)
    compare = replace(SETTINGS.compare, methods=("none",), distance_ber=0.0)
    make(tmp_path / "out", (ready,), compare=compare).run(LogReporter())
    none, entry = content(tmp_path / "out")["entries"]
    expected = content(finished)["entries"][1]
    assert (entry["name"], entry["title"], entry["distance"]) == ("ready", "ready.onnx", None)
    for key in ("thresholds", "clean_accuracy", "clean_drop", "settings", "sha256"):
        assert entry[key] == expected[key]
    assert none["name"] == "none"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("none", "majority"), "unknown method 'majority': choose among proact, ranger,"),
        (("ranger-pixel",), "'ranger-pixel' asks method ranger for 'pixel', which is no option"),
        (("proact", "ranger", "proact"), "'proact' is to be compared twice: name it once"),
    ],
)
def test_methods_that_cannot_be_compared(
    make: Make, tmp_path: Path, methods: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        make(tmp_path, compare=replace(SETTINGS.compare, methods=methods))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "title", "options"),
    [
        ("proact", "ProAct", {"method": "proact", "granularity": "hybrid", "progressive": True}),
        ("ranger-layer-clamp", "Ranger (layer-wise, clamping)", {"form": "saturate"}),
        ("clip-percentile-channel", "percentile (channel-wise)", {"granularity": "channel"}),
        ("proact-no-distillation", "ProAct (labels alone)", {"distillation": False}),
        ("proact-faulty", "ProAct (trained under faults)",
         {"train_ber": 1e-4, "regularisation": 0.0}),
        ("proact-neuron-together", "ProAct (neuron-wise, all layers together)",
         {"progressive": False, "granularity": "neuron"}),
    ],
)  # fmt: skip
def test_names_of_variants(name: str, title: str, options: dict[str, object]) -> None:
    variant = parse_variant(name)
    assert (variant.name, variant.title) == (name, title)
    settings = variant.settings(HardenSettings(granularity="neuron", epochs=3))
    assert settings.epochs == 3
    for key, value in options.items():
        assert getattr(settings, key) == value


def test_the_command(command: Command, digits_dir: Path, tmp_path: Path) -> None:
    done = command(
        "compare", str(digits_dir / "digits.onnx"), "--methods", "none,ranger-channel",
        "--data", str(digits_dir / "calibration.npz"), "--test-data", str(digits_dir / "test.npz"),
        "--scale", "0.0625", "--ber", "1e-5", "--trials", "5", "--distance-ber", "0",
        "--output-folder", str(tmp_path),
    )  # fmt: skip
    assert "Ranger" in done.out
    assert "accuracy lost without faults" in done.out
    assert (tmp_path / "digits.comparison" / COMPARISON).exists()
    assert "proact-onnx report" in done.out
