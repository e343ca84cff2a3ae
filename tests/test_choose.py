"""Method auto: what it tries, what it takes, and what it says of it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.campaign import Campaign, Executor, read_campaign
from proact_onnx.choose import AUTOMATIC, CANDIDATES
from proact_onnx.data import Dataset, Preprocessing, load_dataset
from proact_onnx.errors import ModelError, SettingsError
from proact_onnx.harden import HardenReport, harden, split_roles
from proact_onnx.model import load_model, provenance
from proact_onnx.settings import HardenSettings, InjectSettings
from tests.command_line import Command
from tests.numerics import parse
from tests.test_series import Shuffling

QUICK = {
    "method": AUTOMATIC,
    "calibration_images": 200,
    "accept_images": 150,
    "search_trials": 6,
    "search_images": 50,
    "search_ber": (1e-5, 1e-3),
}


def automatic(
    digits_dir: Path, folder: Path, executor: Executor | None = None, **options: object
) -> HardenReport:
    return harden(
        digits_dir / "digits.onnx",
        load_dataset(digits_dir / "calibration.npz"),
        folder / "hardened.onnx",
        settings=HardenSettings(**(QUICK | options)),
        preprocessing=Preprocessing(scale=1 / 16),
        executor=executor,
    )


@pytest.fixture(scope="module")
def report(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> HardenReport:
    return automatic(digits_dir, tmp_path_factory.mktemp("auto"))


def test_the_candidate_that_keeps_most_accuracy_is_chosen(report: HardenReport) -> None:
    choice = report.choice
    assert choice is not None
    assert [candidate.name for candidate in choice.candidates] == list(CANDIDATES)
    scores = {c.name: np.mean(list(c.accuracies.values())) for c in choice.candidates}
    [chosen] = [c for c in choice.candidates if c.chosen]
    assert scores[chosen.name] >= max(scores.values()) - 0.005
    before = list(CANDIDATES)[: list(CANDIDATES).index(chosen.name)]
    assert all(scores[name] < max(scores.values()) - 0.005 for name in before)
    # In fixed point, weights that fill the range keep what bounds alone lose.
    assert "rescaled" in chosen.name
    assert chosen.accuracies[1e-3] > choice.candidates[0].accuracies[1e-3] + 0.2
    assert choice.evaluations == len(CANDIDATES) * 2 * 6 * 50


def test_the_file_says_what_was_tried(report: HardenReport) -> None:
    written = provenance(load_model(report.output))
    assert written["chosen_by"] == AUTOMATIC
    candidates = json.loads(written["choice"])
    assert [c["name"] for c in candidates] == list(CANDIDATES)
    settings = json.loads(written["settings"])
    [chosen] = [c["name"] for c in candidates if c["verdict"] == "chosen"]
    assert CANDIDATES[chosen].items() <= settings.items()
    assert written["method"] == settings["method"]


def test_the_same_seed_gives_the_same_file(
    report: HardenReport, digits_dir: Path, tmp_path: Path
) -> None:
    again = automatic(digits_dir, tmp_path)
    assert again.choice == report.choice
    assert again.output.read_bytes() == report.output.read_bytes()


def test_candidates_are_measured_as_campaigns_measure_the_file(
    report: HardenReport, digits_dir: Path, tmp_path: Path
) -> None:
    assert report.choice is not None
    [chosen] = [c for c in report.choice.candidates if c.chosen]
    settings = HardenSettings(**QUICK)  # type: ignore[arg-type]
    _, accept, _ = split_roles(load_dataset(digits_dir / "calibration.npz"), None, settings)
    inject = InjectSettings(ber=settings.search_ber, trials=6, images=50)
    Campaign(report.output, accept, inject, Preprocessing(scale=1 / 16)).run(tmp_path / "run")
    trials = read_campaign(tmp_path / "run")[1]
    for rate, accuracy in chosen.accuracies.items():
        verdicts = [t.verdict for t in trials if t.fault == f"ber={rate:g}"]
        assert len(verdicts) == 6
        assert accuracy == np.mean([verdict.correct / verdict.images for verdict in verdicts])


def test_who_runs_the_trials_changes_nothing(
    report: HardenReport, digits_dir: Path, tmp_path: Path
) -> None:
    executor = Shuffling(5, 4)
    again = automatic(digits_dir, tmp_path, executor)
    assert again.choice == report.choice
    assert again.output.read_bytes() == report.output.read_bytes()
    assert sum(len(block.trials) for block in executor.blocks) == len(CANDIDATES) * 2 * 6


def test_limits_rule_candidates_out(digits_dir: Path, tmp_path: Path) -> None:
    report = automatic(digits_dir, tmp_path, max_memory_overhead=0.05)
    assert report.choice is not None
    for candidate in report.choice.candidates:
        if "rescaled" in candidate.name:
            assert candidate.verdict.startswith("stores 0.0")
            assert candidate.verdict.endswith("%, above the limit of 0.05")
    assert report.memory_overhead <= 0.05


def test_latency_is_measured_where_it_is_limited(digits_dir: Path, tmp_path: Path) -> None:
    report = automatic(digits_dir, tmp_path, max_latency=1000.0, search_trials=1, search_images=5)
    assert report.choice is not None
    assert all(c.latency is not None and 0 < c.latency < 1000 for c in report.choice.candidates)


def test_nothing_within_the_limits(digits_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no way to harden the model keeps to the limits"):
        automatic(digits_dir, tmp_path, max_memory_overhead=0.0, search_trials=1, search_images=5)
    assert not (tmp_path / "hardened.onnx").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("form", "hard"), ("granularity", "layer"), ("rescale", "channel")]
)
def test_what_it_chooses_cannot_be_given(option: str, value: str, command: Command) -> None:
    outcome = command("harden", "--method", "auto", f"--{option}", value)
    assert outcome.code == 1
    assert "leave" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_model_without_class_scores_is_refused(tmp_path: Path) -> None:
    model = parse("""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, 8, 8] x) => (float[N, 1, 8, 8] y) <float[1, 1, 1, 1] w = {1.0}>
        { a = Conv(x, w)  y = Relu(a) }""")
    onnx.save(model, tmp_path / "net.onnx")
    images = Dataset(np.ones((40, 1, 8, 8), np.float32), None, "noise")
    with pytest.raises(ModelError, match="measures accuracy"):
        harden(tmp_path / "net.onnx", images, settings=HardenSettings(method=AUTOMATIC))


def test_the_command_shows_the_candidates(command: Command) -> None:
    quick = ["--search-trials", "1", "--search-images", "5", "--calibration-images", "50"]
    outcome = command("harden", "--method", "auto", *quick)
    assert outcome.code == 0, outcome.err
    assert "candidates" in outcome.out
    assert "chosen" in outcome.out


def test_settings_error_names_the_option() -> None:
    with pytest.raises(SettingsError, match="max-latency must be at least 1"):
        HardenSettings(max_latency=0.5)
