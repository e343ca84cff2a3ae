"""The critical-bit atlas, against faults put in one by one."""

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.campaign import Atlas, Sensitivity, read_campaign, write_atlas
from proact_onnx.data import Dataset
from proact_onnx.errors import CampaignError
from proact_onnx.faults import Kind
from proact_onnx.settings import InjectSettings, RuntimeSettings, SensitivitySettings
from tests.numerics import parse, run

COUNT = 30
RUNTIME = RuntimeSettings(provider="cpu", threads=1)


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 6] x) => (float[N, 3] y) {
            [hidden] h = Gemm (x, w1, b1)
            r = Relu (h)
            [out] y = Gemm (r, w2, b2)
        }""",
        w1=rng.standard_normal((6, 4)).astype(np.float32),
        b1=rng.standard_normal(4).astype(np.float32),
        w2=rng.standard_normal((4, 3)).astype(np.float32),
        b2=rng.standard_normal(3).astype(np.float32),
    )


def dataset() -> Dataset:
    images = np.random.default_rng(1).standard_normal((COUNT, 6)).astype(np.float32)
    return Dataset(images, run(network(), {"x": images})[0].argmax(axis=1), "synthetic")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save_model(network(), path)
    return path


def study(model: Path, trials: int, images: int = COUNT, **settings: object) -> Sensitivity:
    inject = InjectSettings(**settings)  # type: ignore[arg-type]
    return Sensitivity(
        model, dataset(), SensitivitySettings(trials, images), inject, runtime=RUNTIME
    )


def corrupted(name: str, bit: int) -> float:
    """Mean share of images whose class changes, over every element of a parameter."""
    stored = {t.name: numpy_helper.to_array(t) for t in network().graph.initializer}
    words = {
        key: [round(Fraction(float(value)) * 65536) % 2**32 for value in values.ravel()]
        for key, values in stored.items()
    }

    def classes(of: dict[str, list[int]]) -> np.ndarray:
        faulty = network()
        for tensor in faulty.graph.initializer:
            real = [(word - 2**32 * (word >> 31)) / 65536 for word in of[tensor.name]]
            array = np.array(real, np.float64).astype(np.float32)
            tensor.CopyFrom(
                numpy_helper.from_array(array.reshape(stored[tensor.name].shape), tensor.name)
            )
        return run(faulty, {"x": dataset().images})[0].argmax(axis=1)

    golden = classes(words)
    shares = []
    for element, word in enumerate(words[name]):
        hit = list(words[name])
        hit[element] = word ^ (1 << bit)
        shares.append((classes({**words, name: hit}) != golden).mean())
    return float(np.mean(shares))


def test_every_cell_equals_faults_put_in_one_by_one(model: Path, tmp_path: Path) -> None:
    atlas = study(model, trials=100, bits="14,20,30").run(tmp_path / "run.jsonl")
    found = {(cell.layer, cell.kind, cell.bit): cell for cell in atlas.cells}
    parameters = {
        ("hidden", Kind.WEIGHT): ("w1", 24),
        ("hidden", Kind.BIAS): ("b1", 4),
        ("out", Kind.WEIGHT): ("w2", 12),
        ("out", Kind.BIAS): ("b2", 3),
    }
    assert set(found) == {(*key, bit) for key in parameters for bit in (14, 20, 30)}
    for (layer, kind, bit), cell in found.items():
        name, size = parameters[layer, kind]
        assert (cell.words, cell.trials) == (size, size)
        assert cell.sdc.mean == pytest.approx(corrupted(name, bit or 0))
        # Every word was tried on every image, so nothing is left open.
        assert cell.sdc.low == cell.sdc.high == cell.sdc.mean
    for layer in atlas.layers:
        cells = [c for c in atlas.cells if (c.layer, c.kind) == (layer.layer, layer.kind)]
        assert layer.bit is None
        assert layer.trials == sum(cell.trials for cell in cells)
        assert layer.sdc.mean == pytest.approx(np.mean([cell.sdc.mean for cell in cells]))
    top, low = found["out", Kind.WEIGHT, 30], found["out", Kind.WEIGHT, 14]
    assert top.sdc.mean > 2 * low.sdc.mean


def test_fewer_upsets_leave_an_interval(model: Path, tmp_path: Path) -> None:
    atlas = study(model, trials=3, images=10, bits="28-31").run(tmp_path / "run.jsonl")
    for cell in atlas.cells:
        assert cell.trials == 3
        assert cell.sdc.low <= cell.sdc.mean <= cell.sdc.high
        assert cell.sdc.half_width > 0.05
    assert {trial.verdict.images for trial in read_campaign(tmp_path / "run.jsonl")[1]} == {10}


def test_a_study_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    study(model, trials=2, bits="30").run(record)
    first = record.read_bytes()
    more = study(model, trials=5, bits="30").run(record)
    assert record.read_bytes().startswith(first)
    assert more == study(model, trials=5, bits="30").run(tmp_path / "whole.jsonl")
    with pytest.raises(CampaignError, match="holds another campaign: its bits is"):
        study(model, trials=2, bits="29").check(record)


def test_the_atlas_as_csv(model: Path, tmp_path: Path) -> None:
    atlas: Atlas = study(model, trials=4, bits="3,30").run(tmp_path / "run.jsonl")
    write_atlas(atlas, tmp_path / "atlas.csv")
    with (tmp_path / "atlas.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(atlas.cells) == 8
    for row, cell in zip(rows, atlas.cells, strict=True):
        assert (row["model"], row["layer"], row["kind"]) == ("model.onnx", cell.layer, cell.kind)
        assert (int(row["bit"]), int(row["words"]), int(row["trials"])) == (
            cell.bit,
            cell.words,
            cell.trials,
        )
        for name in ("drop", "sdc", "nonfinite"):
            estimate = getattr(cell, name)
            assert float(row[name]) == pytest.approx(estimate.mean, abs=1e-7)
            assert float(row[f"{name}_high"]) == pytest.approx(estimate.high, abs=1e-7)
