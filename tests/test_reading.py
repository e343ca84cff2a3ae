"""Records read back without the model: the very summaries that were printed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from proact_onnx.campaign import (
    AtlasRecord,
    Campaign,
    CampaignRecord,
    Sensitivity,
    read_record,
    write_atlas,
)
from proact_onnx.campaign.summary import to_csv
from proact_onnx.data import Dataset
from proact_onnx.errors import CampaignError
from proact_onnx.faults import FaultSpace, Kind, Parameter, list_space, read_space, spell_bits
from proact_onnx.settings import InjectSettings, RuntimeSettings, SensitivitySettings, parse_bits
from tests.numerics import parse, run

ASSETS = Path(__file__).parent / "assets"
RUNTIME = RuntimeSettings(provider="cpu", threads=1)


def network(classes: bool = True) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((6, 5)).astype(np.float32),
        "b1": rng.standard_normal(5).astype(np.float32),
        "w2": rng.standard_normal((5, 3)).astype(np.float32),
        "/r/hyrelu/threshold": np.float32([4.0]),
    }
    tail, shape = "y = Gemm (c, w2)", "N, 3"
    if not classes:
        weights["axes"] = np.int64([2])
        tail = "z = Gemm (c, w2) u = Unsqueeze (z, axes) y = Concat <axis = 2> (u, u)"
        shape = "N, 3, 2"
    return parse(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 6] x) => (float[{shape}] y) {{
            h = Gemm (x, w1, b1)
            [r] r = Relu (h)
            c = Min (r, "/r/hyrelu/threshold")
            {tail}
        }}""",
        **weights,
    )


def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save_model(network(), path)
    return path


def dataset(labelled: bool = True) -> Dataset:
    labels = run(network(), {"x": images()})[0].argmax(axis=1)
    labels[:4] = 0
    return Dataset(images(), labels if labelled else None, "synthetic")


CAMPAIGNS: dict[str, tuple[dict[str, Any], bool]] = {
    "rates": ({"ber": (1e-3, 1e-2, 0.0), "trials": 40}, True),
    "no labels": ({"ber": (1e-3,), "trials": 20}, False),
    "another level, a requirement, classes": (
        {"ber": (1e-2,), "trials": 40, "confidence": 0.9, "requirement": 60, "per_class": True},
        True,
    ),
    "a half-width": ({"ber": (1e-3, 1e-2), "half_width": 4.0, "distance": True}, True),
    "part of the single upsets": ({"single": True, "trials": 700, "images": 40}, True),
    "all upsets in bursts of some bits": (
        {"exhaustive": True, "burst": (3,), "bits": "20-31", "images": 40},
        True,
    ),
    "stuck bits, counts": (
        {"flips": (9, 2), "effect": ("stuck-at-1", "flip"), "trials": 30, "targets": ("weight",)},
        True,
    ),
}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_campaign_read_back_is_what_was_printed(name: str, model: Path, tmp_path: Path) -> None:
    settings, labelled = CAMPAIGNS[name]
    campaign = Campaign(model, dataset(labelled), InjectSettings(**settings), runtime=RUNTIME)
    printed = campaign.run(tmp_path / "run.jsonl")
    found = read_record(tmp_path / "run.jsonl")
    assert isinstance(found, CampaignRecord)
    assert to_csv(found.result) == to_csv(printed)
    assert found.result == printed
    assert found.confidence == settings.get("confidence", 0.95)
    assert found.requirement == settings.get("requirement")
    assert found.result.memory_overhead == pytest.approx(100 / 50)


def test_outputs_that_are_no_class_scores(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(network(classes=False), path)
    settings = InjectSettings(ber=(1e-3,), trials=20)
    campaign = Campaign(path, dataset(False), settings, runtime=RUNTIME)
    printed = campaign.run(tmp_path / "run.jsonl")
    found = read_record(tmp_path / "run.jsonl")
    assert isinstance(found, CampaignRecord)
    assert found.result == printed
    assert not found.result.classifier


def test_a_study_read_back_is_what_was_printed(model: Path, tmp_path: Path) -> None:
    study = Sensitivity(
        model,
        dataset(),
        SensitivitySettings(trials=4, images=10),
        InjectSettings(bits="28-31", confidence=0.9),
        runtime=RUNTIME,
    )
    printed = study.run(tmp_path / "run.jsonl")
    found = read_record(tmp_path / "run.jsonl")
    assert isinstance(found, AtlasRecord)
    assert found.atlas == printed
    assert found.confidence == 0.9
    for name, atlas in (("printed", printed), ("found", found.atlas)):
        write_atlas(atlas, tmp_path / name)
    assert (tmp_path / "printed").read_bytes() == (tmp_path / "found").read_bytes()


def test_another_level_widens_intervals_and_keeps_means(model: Path, tmp_path: Path) -> None:
    settings = InjectSettings(ber=(1e-2,), trials=40)
    Campaign(model, dataset(), settings, runtime=RUNTIME).run(tmp_path / "run.jsonl")
    usual, wide = read_record(tmp_path / "run.jsonl"), read_record(tmp_path / "run.jsonl", 0.999)
    assert isinstance(usual, CampaignRecord)
    assert isinstance(wide, CampaignRecord)
    [before], [after] = usual.result.summaries, wide.result.summaries
    assert after.accuracy.mean == before.accuracy.mean
    assert after.accuracy.low < before.accuracy.low < before.accuracy.high < after.accuracy.high


def test_what_a_record_says_for_reading_does_not_keep_it_from_going_on(
    model: Path, tmp_path: Path
) -> None:
    """A record of an earlier release, or one begun at another level, is continued."""
    path = tmp_path / "run.jsonl"
    settings = InjectSettings(ber=(1e-2,), trials=10)
    Campaign(model, dataset(), settings, runtime=RUNTIME).run(path)
    head, *trials = path.read_text().splitlines()
    header = json.loads(head)
    header["golden"] = {
        name: header["golden"][name]
        for name in ("accuracy", "float_accuracy", "images", "fault_space_bits", "saturated")
    }
    path.write_text("\n".join([json.dumps(header), *trials, ""]))
    more = dataclasses.replace(settings, trials=20, confidence=0.9, requirement=50)
    printed = Campaign(model, dataset(), more, runtime=RUNTIME).run(path)
    assert len(path.read_text().splitlines()) == 21
    found = read_record(path, 0.9)
    assert isinstance(found, CampaignRecord)
    [expected] = printed.summaries
    assert found.result.summaries == (dataclasses.replace(expected, below=None),)
    assert found.result.memory_overhead is None
    assert found.result.labelled
    assert found.result.classifier


@pytest.mark.parametrize("name", ["campaign-v1.jsonl", "campaign-v2.jsonl"])
def test_old_campaigns_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    lines = (ASSETS / name).read_text().splitlines()
    path.write_text("\n".join([line.replace('"trial":1', '"trial":0') for line in lines]) + "\n")
    if name == "campaign-v1.jsonl":
        path.write_text((ASSETS / name).read_text())
    found = read_record(path)
    assert isinstance(found, CampaignRecord)
    assert found.result.golden_accuracy == 0.9
    assert found.result.model == name.removesuffix(".jsonl")
    assert found.result.memory_overhead is None
    assert found.confidence == 0.95


def test_an_old_study_asks_to_be_measured_again(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    Sensitivity(
        model,
        dataset(),
        SensitivitySettings(trials=1, images=10),
        InjectSettings(bits="30,31"),
        runtime=RUNTIME,
    ).run(path)
    head, *trials = path.read_text().splitlines(keepends=True)
    header = json.loads(head)
    path.write_text(head + "".join(trials[:-3]))
    with pytest.raises(CampaignError, match=r"unfinished, with 3 of 8 cells to come: run the same"):
        read_record(path)
    del header["golden"]["fault_space"]
    path.write_text(json.dumps(header) + "\n" + "".join(trials))
    with pytest.raises(CampaignError, match="does not hold its fault space: run sensitivity again"):
        read_record(path)


def changed(lines: list[str], change: str) -> list[str]:
    header = json.loads(lines[0])
    if change == "no trial":
        return lines[:1]
    if change == "a gap":
        return lines[:2] + lines[3:]
    if change == "an unknown fault":
        return [lines[0], *(line.replace("ber=0.01", "ray") for line in lines[1:])]
    if change == "no accuracy":
        del header["golden"]["accuracy"]
    elif change == "an impossible level":
        header["golden"]["confidence"] = 95
    else:
        header["golden"]["fault_space"][0]["kind"] = "pixel"
    return [json.dumps(header), *lines[1:]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("no trial", "holds no finished trial: run its command again"),
        ("a gap", "misses trial 1 of 'ber=0.01': run its command again to complete it"),
        ("an unknown fault", "cannot be understood: restore it, or measure again"),
        ("no accuracy", "cannot be understood: restore it, or measure again"),
        ("an impossible level", "cannot be understood: restore it, or measure again"),
        ("an impossible kind", "cannot be understood: restore it, or measure again"),
    ],
)
def test_records_that_cannot_be_read_say_why(
    change: str, sentence: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    settings = InjectSettings(ber=(1e-2,), trials=4)
    Campaign(model, dataset(), settings, runtime=RUNTIME).run(path)
    path.write_text("\n".join([*changed(path.read_text().splitlines(), change), ""]))
    with pytest.raises(CampaignError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path} ")
    assert sentence in str(caught.value)


def test_a_fault_space_survives_being_written_down() -> None:
    space = FaultSpace(
        (
            Parameter("w", Kind.WEIGHT, (3, 2), "conv", 32, (0, 1, 2, 7, 31)),
            Parameter("q", Kind.BIAS, (), "out", 8, tuple(range(8)), "int8"),
        )
    )
    listing = json.loads(json.dumps(list_space(space)))
    assert listing[0]["bits"] == "0-2,7,31"
    assert read_space(listing) == space


@pytest.mark.parametrize("bits", [(0,), (31, 30, 0), tuple(range(32)), (1, 3, 5, 6)])
def test_bits_are_spelled_as_they_are_read(bits: tuple[int, ...]) -> None:
    assert parse_bits(spell_bits(bits)) == set(bits)
