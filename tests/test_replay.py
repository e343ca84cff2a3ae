"""Trials once more: the same sites, the same numbers, and what happened on the way."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.campaign import Campaign, Replay, Sensitivity, TrialResult, write_sites
from proact_onnx.data import Dataset
from proact_onnx.errors import CampaignError
from proact_onnx.settings import InjectSettings, RuntimeSettings, SensitivitySettings
from tests.numerics import parse, run

COUNT = 24
RUNTIME = RuntimeSettings(provider="cpu", threads=1)


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, 4, 4] x) => (float[N, 3] y) {
            [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            [bound] r = Relu (a)
            f = Flatten (r)
            [out] g = Gemm (f, w2, b2)
            [last] s = Relu (g)
            [head] y = Gemm (s, w3, b3)
        }""",
        w1=(rng.standard_normal((4, 1, 3, 3)) / 3).astype(np.float32),
        b1=rng.standard_normal(4).astype(np.float32),
        w2=(rng.standard_normal((64, 6)) / 8).astype(np.float32),
        b2=rng.standard_normal(6).astype(np.float32),
        w3=rng.standard_normal((6, 3)).astype(np.float32),
        b3=rng.standard_normal(3).astype(np.float32),
    )


def dataset() -> Dataset:
    images = np.random.default_rng(1).standard_normal((COUNT, 1, 4, 4)).astype(np.float32)
    return Dataset(images, run(network(), {"x": images})[0].argmax(axis=1), "synthetic")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save_model(network(), path)
    return path


def record_of(model: Path, folder: Path, **settings: object) -> Path:
    inject = InjectSettings(**{"ber": (2e-3,), "trials": 8, "images": 9, **settings})  # type: ignore[arg-type]
    path = folder / "run.jsonl"
    Campaign(model, dataset(), inject, runtime=RUNTIME).run(path)
    return path


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("recorded", [False, True])
def test_sites_and_effects_are_those_of_the_faulty_model(
    model: Path, tmp_path: Path, recorded: bool
) -> None:
    """Faulty values written into the file give the values that the replay reports."""
    record = record_of(model, tmp_path, record_faults=recorded)
    replay = Replay(record)
    for number in range(8):
        trial = replay.run(replay.find(number), model, dataset(), RUNTIME)
        assert trial.reproduced
        assert sum(len(site.bits) for site in trial.sites) == trial.recorded.sites
        faulty = network()
        values = stored(faulty)
        encoded = {name: np.round(array * 65536.0) / 65536.0 for name, array in values.items()}
        hit = {name: array.astype(np.float32).copy() for name, array in encoded.items()}
        for site in trial.sites:
            assert site.before == pytest.approx(encoded[site.parameter][site.element])
            word = int(np.round(values[site.parameter][site.element] * 65536.0)) % 2**32
            for bit in site.bits:
                word ^= 1 << bit
            assert site.after == np.float32((word - 2**32 * (word >> 31)) / 65536)
            hit[site.parameter][site.element] = site.after
        runs = []
        for parameters in (encoded, hit):
            exposed = network()
            for tensor in exposed.graph.initializer:
                array = parameters[tensor.name].astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            for name in ("r", "s"):
                exposed.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
            runs.append(run(exposed, {"x": dataset().images}))
        assert [effect.tensor for effect in trial.effects] == ["r", "s"]
        # All images here, nine in the trial: the scale must agree, and zeros exactly.
        for place, effect in enumerate(trial.effects, start=1):
            apart = np.abs(runs[1][place].astype(np.float64) - runs[0][place])
            assert (effect.squared == 0) == (apart.max() == 0)
            assert effect.greatest <= np.abs(runs[1][place]).max() * (1 + 1e-5)
            assert effect.squared <= np.square(apart).max() * (1 + 1e-5)


def test_a_trial_of_a_sensitivity_study_is_repeated(model: Path, tmp_path: Path) -> None:
    record = tmp_path / "study.jsonl"
    inject = InjectSettings(bits="29-31")
    Sensitivity(model, dataset(), SensitivitySettings(3, 7), inject, runtime=RUNTIME).run(record)
    replay = Replay(record)
    trial = replay.run(replay.find(2, "single bit=30 weight out"), model, dataset(), RUNTIME)
    assert trial.reproduced
    [site] = trial.sites
    assert (site.parameter, site.layer, site.bits) == ("w2", "out", (30,))


def test_a_record_that_was_changed_is_not_reproduced(model: Path, tmp_path: Path) -> None:
    record = record_of(model, tmp_path)
    replay = Replay(record)
    wanted = next(replay.find(n) for n in range(8) if replay.find(n).flips)
    verdict = dataclasses.replace(wanted.verdict, correct=(wanted.verdict.correct + 1) % 9)
    changed: TrialResult = dataclasses.replace(wanted, verdict=verdict)
    assert not replay.run(changed, model, dataset(), RUNTIME).reproduced


def test_trials_and_fault_models_are_found_by_name(model: Path, tmp_path: Path) -> None:
    record = record_of(model, tmp_path, ber=(1e-3, 1e-2))
    replay = Replay(record)
    assert replay.find(3, "ber=0.01").key == ("ber=0.01", 3)
    for arguments, message in (
        ((3,), "holds several fault models: name one with --fault, of 'ber=0.001', 'ber=0.01'"),
        ((3, "single"), "no fault model 'single': choose among 'ber=0.001', 'ber=0.01'"),
        ((8, "ber=0.01"), "holds 8 trials of 'ber=0.01', and trial 8 is not among them"),
    ):
        with pytest.raises(CampaignError) as caught:
            replay.find(*arguments)
        assert message in str(caught.value)


def test_another_model_or_other_images_are_refused(model: Path, tmp_path: Path) -> None:
    replay = Replay(record_of(model, tmp_path))
    other = network()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 1, 3, 3), "f4"), "w1"))
    onnx.save_model(other, tmp_path / "other.onnx")
    with pytest.raises(CampaignError, match=r"other\.onnx is not what .* was measured with"):
        replay.run(replay.find(0), tmp_path / "other.onnx", dataset(), RUNTIME)
    fewer = Dataset(dataset().images[1:], None, "fewer")
    with pytest.raises(CampaignError, match="give the images and labels of the record"):
        replay.run(replay.find(0), model, fewer, RUNTIME)


def test_a_record_of_the_first_version_cannot_be_repeated(model: Path, tmp_path: Path) -> None:
    old = Path(__file__).parent / "assets" / "campaign-v1.jsonl"
    replay = Replay(old)
    with pytest.raises(CampaignError, match="does not say its bits, because an earlier release"):
        replay.run(replay.find(0, "ber=1e-05"), model, dataset(), RUNTIME)


def test_sites_as_csv(model: Path, tmp_path: Path) -> None:
    record = record_of(model, tmp_path, ber=(2e-2,))
    replay = Replay(record)
    trial = replay.run(replay.find(0), model, dataset(), RUNTIME)
    write_sites(trial, tmp_path / "sites.csv")
    with (tmp_path / "sites.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(trial.sites) > 5
    for row, site in zip(rows, trial.sites, strict=True):
        assert (row["layer"], row["parameter"]) == (site.layer, site.parameter)
        assert tuple(map(int, row["element"].split())) == site.element
        assert tuple(map(int, row["bits"].split())) == site.bits
        assert (float(row["before"]), float(row["after"])) == (site.before, site.after)


def test_the_record_says_where_model_and_images_were(model: Path, tmp_path: Path) -> None:
    record = record_of(model, tmp_path)
    head = json.loads(record.read_text().splitlines()[0])
    assert head["made_by"]["model"] == str(model)
    assert head["made_by"]["images"] == "synthetic"
