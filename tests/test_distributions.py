"""Distributions of activations, against every value of ONNX Runtime at hand."""

import csv
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.activations import find_activations
from proact_onnx.campaign import Distributions, DistributionStudy, Histogram
from proact_onnx.campaign.distribution_files import write_histograms, write_summary
from proact_onnx.campaign.histogram import EDGES
from proact_onnx.campaign.images import choose_images
from proact_onnx.data import Dataset, Preprocessing, load_dataset
from proact_onnx.errors import DataError, ModelError, SettingsError
from proact_onnx.faults import FaultModel, Rate, fault_space
from proact_onnx.harden import harden
from proact_onnx.model import load_model
from proact_onnx.settings import HardenSettings, InjectSettings, ProfileSettings, RuntimeSettings
from tests.numerics import parse, run

Values = npt.NDArray[np.float32]
COUNT = 30
RUNTIME = RuntimeSettings(provider="cpu", threads=1, batch_size=8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 6] x) => (float[N, 3] y) {
            h1 = Gemm (x, w1, b1)
            first = Relu (h1)
            h2 = Gemm (first, w2, b2)
            second = Relu (h2)
            y = Gemm (second, w3, b3)
        }""",
        w1=rng.standard_normal((6, 8)).astype(np.float32),
        b1=rng.standard_normal(8).astype(np.float32),
        w2=rng.standard_normal((8, 8)).astype(np.float32),
        b2=rng.standard_normal(8).astype(np.float32),
        w3=rng.standard_normal((8, 3)).astype(np.float32),
        b3=rng.standard_normal(3).astype(np.float32),
    )


def dataset(labelled: bool = True) -> Dataset:
    images = np.random.default_rng(1).standard_normal((COUNT, 6)).astype(np.float32)
    labels = run(network(), {"x": images})[0].argmax(axis=1) if labelled else None
    return Dataset(images, labels, "synthetic")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save_model(network(), path)
    return path


def measure(
    model: Path,
    settings: ProfileSettings,
    data: Dataset | None = None,
    preprocessing: Preprocessing | None = None,
    **inject: object,
) -> Distributions:
    return DistributionStudy(
        model,
        data or dataset(),
        settings,
        InjectSettings(**inject),  # type: ignore[arg-type]
        preprocessing,
        RUNTIME,
    ).run()


def stored(value: float) -> int:
    """The word of Q15.16 for a value: rounded to even, saturated, two's complement."""
    word = max(-(2**31), min(2**31 - 1, round(Fraction(float(value)) * 65536)))
    return word % 2**32


def in_memory(
    model: onnx.ModelProto, masks: Mapping[str, Mapping[int, int]] | None = None
) -> onnx.ModelProto:
    """The model with weights and biases in Q15.16, words of them disturbed, bit by bit."""
    faulty = onnx.ModelProto()
    faulty.CopyFrom(model)
    faults = masks or {}
    for tensor in faulty.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or (not values.ndim and "threshold" not in tensor.name):
            continue
        words = [stored(value) for value in values.ravel().tolist()]
        for element, mask in faults.get(tensor.name, {}).items():
            words[element] ^= mask
        real = np.array([(word - 2**32 * (word >> 31)) / 65536 for word in words])
        tensor.CopyFrom(
            numpy_helper.from_array(real.astype(np.float32).reshape(values.shape), tensor.name)
        )
    return faulty


def values_of(model: onnx.ModelProto, tensors: list[str], images: Values) -> list[Values]:
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors
    )
    return run(exposed, {model.graph.input[0].name: images}, optimise=True)  # type: ignore[return-value]


def faults_of(model: Path, ber: float, seed: int, trial: int) -> dict[str, dict[int, int]]:
    space = fault_space(load_model(model), 32).restrict(("weight", "bias"))
    drawn = FaultModel(Rate(ber)).draw(space, seed, trial)
    return {
        name: dict(zip(elements.tolist(), masks.tolist(), strict=True))
        for name, (elements, masks) in drawn.words.items()
    }


def assert_counts(found: Histogram, values: Values, slack: int = 0) -> None:
    """Compare a histogram with numpy's own; ``slack`` values may lie in a neighbouring bin.

    Batches and optimisations make ONNX Runtime add in another order, which moves a value that lies
    on an edge to its other side.
    """
    values = values.ravel()
    finite = values[np.isfinite(values)]
    # numpy's bins hold their lower edge.
    expected, _ = np.histogram(-finite[finite > 0].astype(np.float64), -EDGES[::-1])
    assert np.abs(found.counts - expected[::-1]).sum() <= 2 * slack
    assert abs(found.zeros - (finite == 0).sum()) <= slack
    assert found.undefined == np.isnan(values).sum()
    assert found.infinite == np.isinf(values).sum()
    assert found.values == values.size
    assert found.greatest == pytest.approx(finite.max(), rel=1e-4)
    assert found.mean == pytest.approx(finite.mean(dtype=np.float64), rel=1e-3)


def test_histograms_equal_numpys_of_every_value(model: Path) -> None:
    found = measure(model, ProfileSettings(ber=3e-3, trials=6, images=0), seed=5)
    assert [layer.tensor for layer in found.layers] == ["first", "second"]
    assert (found.fault, found.trials, found.images) == ("ber=0.003", 6, COUNT)
    images = dataset().images
    golden = values_of(in_memory(network()), ["first", "second"], images)
    trials = [
        values_of(in_memory(network(), faults), ["first", "second"], images)
        for faults in (faults_of(model, 3e-3, 5, trial) for trial in range(6))
    ]
    for place, layer in enumerate(found.layers):
        faulty = np.stack([values[place] for values in trials])
        assert_counts(layer.golden, golden[place])
        assert_counts(layer.faulty, faulty)
        assert layer.beyond == (faulty > golden[place].max()).sum() > 0


def test_accuracy_is_that_of_the_same_images(model: Path) -> None:
    found = measure(model, ProfileSettings(ber=3e-3, trials=6, images=12), seed=5)
    data = dataset()
    assert data.labels is not None
    chosen = choose_images(COUNT, 12, 5, 0, data.labels)
    images, labels = data.images[chosen], data.labels[chosen]

    def accuracy(faults: Mapping[str, Mapping[int, int]]) -> float:
        scores = run(in_memory(network(), faults), {"x": images})[0]
        return float((scores.argmax(axis=1) == labels).mean())

    assert found.golden_accuracy == accuracy({})
    under_faults = [accuracy(faults_of(model, 3e-3, 5, trial)) for trial in range(6)]
    assert found.faulty_accuracy == pytest.approx(np.mean(under_faults))
    assert np.mean(under_faults) < 0.95


def test_without_labels_accuracy_is_agreement(model: Path) -> None:
    found = measure(model, ProfileSettings(ber=3e-3, trials=4, images=0), dataset(labelled=False))
    assert found.golden_accuracy == 1.0
    assert found.faulty_accuracy is not None
    assert found.faulty_accuracy < 1.0


def test_fault_maps_that_change_nothing_repeat_the_golden_run(model: Path) -> None:
    found = measure(model, ProfileSettings(ber=0.0, trials=3, images=10))
    for layer in found.layers:
        assert layer.faulty.counts.tolist() == (3 * layer.golden.counts).tolist()
        assert layer.faulty.zeros == 3 * layer.golden.zeros
        assert (layer.faulty.greatest, layer.beyond) == (layer.golden.greatest, 0)
    assert found.faulty_accuracy == found.golden_accuracy


def test_faults_stay_where_they_are_wanted(model: Path) -> None:
    found = measure(model, ProfileSettings(ber=1e-2, trials=3), layers=("w2",), bits="24-30")
    first, second = found.layers
    assert first.faulty.counts.tolist() == (3 * first.golden.counts).tolist()
    assert second.beyond > 0


def test_the_same_seed_gives_the_same_files_byte_for_byte(model: Path, tmp_path: Path) -> None:
    def written(seed: int, name: str) -> tuple[bytes, bytes]:
        found = measure(model, ProfileSettings(ber=1e-3, trials=3, images=7), seed=seed)
        summary, histograms = tmp_path / f"{name}.csv", tmp_path / f"{name}.histograms.csv"
        write_summary(found, summary)
        write_histograms(found, histograms)
        return summary.read_bytes(), histograms.read_bytes()

    assert written(1, "a") == written(1, "b")
    assert written(1, "a") != written(2, "c")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_files_hold_every_value(model: Path, tmp_path: Path) -> None:
    found = measure(model, ProfileSettings(ber=1e-2, trials=3, images=9), format="float32")
    write_summary(found, tmp_path / "summary.csv")
    write_histograms(found, tmp_path / "histograms.csv")
    summary = read(tmp_path / "summary.csv")
    names = [(row["activation"], row["state"]) for row in summary]
    assert names == [(t, s) for t in ("first", "second") for s in ("fault-free", "ber=0.01")]
    bins = read(tmp_path / "histograms.csv")
    assert {float(row["low"]) for row in bins if row["low"] not in ("inf", "nan", "-inf")} <= {
        float(f"{edge:.9g}") for edge in EDGES
    }
    for row in summary:
        own = [
            r for r in bins if (r["activation"], r["state"]) == (row["activation"], row["state"])
        ]
        counts = {(float(r["low"]), float(r["high"])): int(r["count"]) for r in own}
        assert row["model"] == "model.onnx"
        trials = 1 if row["state"] == "fault-free" else 3
        assert sum(counts.values()) == int(row["values"]) == 9 * 8 * trials
        assert counts[0.0, 0.0] == int(row["zero"])
        assert sum(c for (low, _), c in counts.items() if 1 <= low < math.inf) == int(
            row["above_1"]
        )
        assert sum(int(r["count"]) for r in own if r["low"] == "inf") == int(row["infinite"])
        assert sum(int(r["count"]) for r in own if r["low"] == "nan") == int(row["nan"])
        assert 0 <= float(row["quantile_0.5"]) <= float(row["quantile_0.999"]) <= float(row["max"])
    by_name = {layer.tensor: layer for layer in found.layers}
    for row in summary:
        layer = by_name[row["activation"]]
        state = layer.golden if row["state"] == "fault-free" else layer.faulty
        assert float(row["mean"]) == pytest.approx(state.mean, rel=1e-8)
        assert int(row["above_golden_max"]) == (layer.beyond if state is layer.faulty else 0)


def test_activations_can_be_chosen(model: Path) -> None:
    settings = ProfileSettings(ber=1e-3, trials=2, images=5)
    everything = measure(model, settings)
    chosen = measure(model, ProfileSettings(1e-3, 2, 5, activations=("sec*", "second")))
    [layer] = chosen.layers
    assert layer.tensor == "second"
    assert layer.faulty.counts.tolist() == everything.layers[1].faulty.counts.tolist()
    with pytest.raises(
        SettingsError, match=r"no activation of model\.onnx matches the pattern 'third': .* second$"
    ):
        measure(model, ProfileSettings(activations=("first", "third")))


def test_a_model_without_activations_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((6, 3)).astype(np.float32)
    text = """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 6] x) => (float[N, 3] y) { y = MatMul (x, w) }"""
    onnx.save_model(parse(text, w=weights), path)
    with pytest.raises(ModelError, match=r"^linear\.onnx has no activation whose values"):
        measure(path, ProfileSettings())


def test_labels_must_be_classes_of_the_model(model: Path) -> None:
    data = Dataset(dataset().images, np.full(COUNT, 3), "synthetic")
    with pytest.raises(DataError, match="3"):
        measure(model, ProfileSettings(trials=1), data)


def test_values_that_are_never_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    broken = network()
    bias = next(tensor for tensor in broken.graph.initializer if tensor.name == "b1")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, np.inf, np.float32), "b1"))
    onnx.save_model(broken, path)
    with pytest.raises(ModelError, match=r"'first' of model\.onnx has no finite value without"):
        measure(path, ProfileSettings(trials=1), dataset(labelled=False), format="float32")


def test_wrong_preprocessing_is_noticed(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = dataset()
    assert data.labels is not None
    measure(model, ProfileSettings(trials=1), Dataset(data.images, (data.labels + 1) % 3, "wrong"))
    assert "hardly better than guessing among 3 classes" in caplog.text


@pytest.mark.parametrize("form", ["hard", "saturate", "ramp"])
def test_a_hardened_file_shows_bounded_values(form: str, model: Path) -> None:
    """Same names, same faults on what both files store; no value passes its threshold."""
    settings = HardenSettings(
        method="ranger", granularity="layer", form=form, calibration_images=20
    )
    report = harden(model, dataset(), settings=settings, runtime=RUNTIME)
    wanted = ProfileSettings(ber=3e-3, trials=5, images=0)
    before = measure(model, wanted, targets=("weight", "bias"))
    after = measure(report.output, wanted, targets=("weight", "bias"))
    hardened = load_model(report.output)
    limits = {
        tensor.name.removesuffix("/hyrelu/threshold"): float(numpy_helper.to_array(tensor))
        for tensor in hardened.graph.initializer
        if tensor.name.endswith("/threshold")
    }
    trials = [
        values_of(in_memory(hardened, faults), ["first", "second"], dataset().images)
        for faults in (faults_of(model, 3e-3, 0, trial) for trial in range(5))
    ]
    for place, (plain, bounded) in enumerate(zip(before.layers, after.layers, strict=True)):
        assert plain.tensor == bounded.tensor
        assert bounded.faulty.greatest <= limits[bounded.tensor] < plain.faulty.greatest
        assert_counts(bounded.faulty, np.stack([values[place] for values in trials]))


@pytest.mark.parametrize("name", ["c10_resnet20_torchscript_op17", "c10_lenet_dynamo_op18"])
def test_a_trained_network(name: str, shared_dir: Path) -> None:
    path = shared_dir / "models" / f"{name}.onnx"
    data = load_dataset(shared_dir / "data" / "cifar10" / "test.npz").take(range(200))
    tensors = [activation.tensor for activation in find_activations(load_model(path))]
    preprocessing = Preprocessing(mean=MEAN, std=STD)
    found = measure(path, ProfileSettings(3e-6, 2, 16), data, preprocessing, seed=3)
    assert [layer.tensor for layer in found.layers] == tensors
    chosen = choose_images(200, 16, 3, 0, data.labels)
    pixels = data.images[chosen].astype(np.float64) / 255
    axes = (1, 3, 1, 1) if pixels.shape[1] == 3 else (1, 1, 1, 3)
    scaled = (pixels - np.reshape(MEAN, axes)) / np.reshape(STD, axes)
    images = (scaled if pixels.shape[1] == 3 else scaled.transpose(0, 3, 1, 2)).astype(np.float32)
    plain = load_model(path)
    golden = values_of(in_memory(plain), tensors, images)
    trials = [
        values_of(in_memory(plain, faults_of(path, 3e-6, 3, trial)), tensors, images)
        for trial in range(2)
    ]
    for place, layer in enumerate(found.layers):
        faulty = np.stack([values[place] for values in trials])
        assert_counts(layer.golden, golden[place], slack=golden[place].size // 2000)
        assert_counts(layer.faulty, faulty, slack=faulty.size // 500)
