"""Models beyond one message, with the limits lowered; and half precision, and its storage."""

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.activations import find_activations
from proact_onnx.campaign import Campaign, read_campaign
from proact_onnx.data import Dataset
from proact_onnx.engine import Provider, Session, choose_engine, select, session
from proact_onnx.errors import ModelError, SettingsError
from proact_onnx.faults import fault_space, parse_format
from proact_onnx.harden import harden
from proact_onnx.inspection import inspect_model
from proact_onnx.model import load_model, save_model
from proact_onnx.rewrite import insert, prepare
from proact_onnx.settings import HardenSettings, InjectSettings, RuntimeSettings
from proact_onnx.thresholds import Thresholds
from tests.large_models import write_dense_network
from tests.numerics import run, run_reference

CPU = RuntimeSettings(provider="cpu", threads=1)
IMAGES = Dataset(
    np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), np.uint8),
    np.arange(24) % 10,
    "noise",
)


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One message holds 16 KiB, and models of 16 Ki weights are large."""
    monkeypatch.setattr(session, "INLINE_LIMIT_BYTES", 1 << 14)
    monkeypatch.setattr(select, "LARGE_WEIGHTS", 1 << 14)
    yield


def dense(folder: Path, dtype: str, width: int = 160) -> Path:
    path = folder / f"{dtype}.onnx"
    write_dense_network(path, width, 2, dtype, inputs=192)
    return path


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_model_beyond_one_message_is_hardened_and_hurt(tmp_path: Path, dtype: str) -> None:
    path = dense(tmp_path, dtype)
    assert inspect_model(path).parameters == 192 * 160 + 160 * 160 + 160 * 10
    report = harden(
        path,
        IMAGES,
        tmp_path / "hard.onnx",
        settings=HardenSettings(method="ranger", granularity="layer"),
        runtime=CPU,
    )
    assert report.thresholds.count == 2
    model = load_model(report.output)
    save_model(model, tmp_path / "external.onnx", inline_limit=1 << 14)
    assert (tmp_path / "external.onnx").stat().st_size < 1 << 14
    restored = load_model(tmp_path / "external.onnx")
    assert restored == model
    settings = InjectSettings(flips=(40,), trials=6, images=24, format="stored", record_faults=True)
    campaign = Campaign(tmp_path / "external.onnx", IMAGES, settings, runtime=CPU)
    campaign.run(tmp_path / "run.jsonl")
    header, trials = read_campaign(tmp_path / "run.jsonl")
    assert "because the model is large" in header.made_by["engine"]
    for trial in trials:
        faulty = onnx.ModelProto()
        faulty.CopyFrom(model)
        for tensor in faulty.graph.initializer:
            values = numpy_helper.to_array(tensor).copy()
            flat = values.reshape(-1).view(f"u{values.dtype.itemsize}")
            for element, mask in (trial.words or {}).get(tensor.name, []):
                flat[element] ^= flat.dtype.type(mask)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        scores = run(faulty, {"input": IMAGES.images.astype(np.float32) / 255})[0]
        finite = np.isfinite(scores).all(axis=1)
        right = (scores.argmax(axis=1) == IMAGES.labels) & finite
        assert abs(trial.verdict.correct - int(right.sum())) <= 1
        assert abs(trial.verdict.nonfinite - int((~finite).sum())) <= 1


def test_weights_are_written_one_by_one(tmp_path: Path) -> None:
    """The other reader is onnx's own, which also checks offsets and lengths."""
    model = load_model(dense(tmp_path, "float16"))
    save_model(model, tmp_path / "external.onnx", inline_limit=0)
    read = onnx.load(tmp_path / "external.onnx")
    for mine, other in zip(model.graph.initializer, read.graph.initializer, strict=True):
        assert mine.name == other.name
        np.testing.assert_array_equal(numpy_helper.to_array(mine), numpy_helper.to_array(other))
    raw = onnx.load(tmp_path / "external.onnx", load_external_data=False)
    offsets = [
        int(entry.value)
        for tensor in raw.graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert len(offsets) == 3 and all(offset % 4096 == 0 for offset in offsets)
    onnx.checker.check_model(str(tmp_path / "external.onnx"))


@pytest.mark.usefixtures("low_limits")
def test_sessions_of_large_models_give_the_same(tmp_path: Path) -> None:
    model = load_model(dense(tmp_path, "float32"))
    images = IMAGES.images.astype(np.float32) / 255
    [expected] = run(model, {"input": images})
    np.testing.assert_allclose(Session(model, Provider.CPU, 1).run(images), expected, rtol=1e-4)
    chosen = choose_engine(model, ["dense2.weight"], images, Provider.CPU, 1)
    assert chosen.notice == "engine: weights as inputs on the CPU, because the model is large"
    np.testing.assert_allclose(chosen.engine.run(images), expected, rtol=1e-4)


def test_a_half_is_stored_in_its_own_bits(tmp_path: Path) -> None:
    model = prepare(load_model(dense(tmp_path, "float16"))).model
    stored = parse_format("stored")
    space = fault_space(model, stored.width)
    assert {parameter.width for parameter in space.parameters} == {16}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        own = stored.fit(values)
        words = own.encode(values)
        np.testing.assert_array_equal(words, values.view(np.uint16))
        np.testing.assert_array_equal(own.decode(words), values.astype(np.float64))
    with pytest.raises(SettingsError, match=r"floats of at most 32 bits.*float64"):
        stored.fit(np.zeros(2))


def test_brain_floats_are_bounded_and_refused_in_one_sentence(tmp_path: Path) -> None:
    path = dense(tmp_path, "bfloat16", width=16)
    model = prepare(load_model(path)).model
    assert {p.width for p in fault_space(model, None).parameters} == {16}
    images = IMAGES.images.astype(np.float32)[:3] / 255
    limits = {activation.tensor: np.float32(0.3) for activation in find_activations(model)}
    assert len(limits) == 2
    values = {tensor: np.asarray(limit) for tensor, limit in limits.items()}
    bounded = insert(model, Thresholds(values)).model
    stored = {t.name: t for t in bounded.graph.initializer}
    for tensor in limits:
        threshold = numpy_helper.to_array(stored[f"{tensor}/hyrelu/threshold"])
        assert threshold.dtype == ml_dtypes.bfloat16
        assert threshold == ml_dtypes.bfloat16(0.3)
    # ONNX Runtime cannot say whether it is right, so ONNX's own implementation does.
    exposed = onnx.ModelProto()
    exposed.CopyFrom(bounded)
    for tensor in limits:
        exposed.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    _, *outputs = run_reference(exposed, {"input": images})
    assert all(0 < float(output.max()) <= 0.302 for output in outputs)
    with pytest.raises(ModelError) as caught:
        Session(model, Provider.CPU, 1)
    assert str(caught.value).startswith("ONNX Runtime has no kernel for ")
    assert "such as bfloat16 on the CPU: convert the model" in str(caught.value)
