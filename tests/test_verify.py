"""Fault-free comparison of two models, against a calculation in numpy."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.data import Dataset, load_dataset
from proact_onnx.errors import DataError, ModelError
from proact_onnx.model import load_model, model_digest, save_model, set_provenance
from proact_onnx.rewrite import Form, insert, prepare
from proact_onnx.settings import RuntimeSettings
from proact_onnx.thresholds import Thresholds
from proact_onnx.verify import TOLERANCE, verify
from tests.numerics import parse

Array = npt.NDArray[np.float32]

IMAGES = 41
SLOPE = 20.0


class Network:
    """Two hidden layers, in numpy and as an ONNX file."""

    def __init__(self, features: int = 6, classes: int = 4) -> None:
        rng = np.random.default_rng(0)
        self.weights = [
            rng.standard_normal(shape).astype(np.float32)
            for shape in ((features, 8), (8, 5), (5, classes))
        ]
        self.images = rng.standard_normal((IMAGES, features)).astype(np.float32)
        self.thresholds = {
            "a": np.array(2.5, np.float32),
            "b": np.quantile(self.hidden()[1], 0.97, axis=0).astype(np.float32)[None],
        }

    def onnx(self) -> onnx.ModelProto:
        features, classes = self.weights[0].shape[0], self.weights[2].shape[1]
        return parse(
            f"""<ir_version: 8, opset_import: ["": 17]>
            g (float[N, {features}] x) => (float[N, {classes}] y)
            {{ h = MatMul(x, w0)  a = Relu(h)  i = MatMul(a, w1)  b = Relu(i)
               y = MatMul(b, w2) }}""",
            w0=self.weights[0],
            w1=self.weights[1],
            w2=self.weights[2],
        )

    def hidden(self) -> list[Array]:
        first = np.maximum(self.images @ self.weights[0], 0)
        return [first, np.maximum(first @ self.weights[1], 0)]

    def scores(self) -> Array:
        return self.hidden()[1] @ self.weights[2]

    def bounded(self, form: Form) -> tuple[list[Array], Array]:
        """Rectified values before each bound, and the scores."""
        rectified, values = [], self.images
        for weight, threshold in zip(self.weights[:2], self.thresholds.values(), strict=True):
            r = np.maximum(values @ weight, 0)
            rectified.append(r)
            if form is Form.SATURATE:
                values = np.minimum(r, threshold)
            elif form is Form.RAMP:
                values = np.maximum(np.minimum(r, 2 * threshold - r), 0)
            else:
                values = np.where(r <= threshold, r, 0)
        return rectified, values @ self.weights[2]


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


def write(
    folder: Path, network: Network, form: Form, thresholds: dict[str, Array] | None = None
) -> tuple[Path, Path]:
    model = network.onnx()
    save_model(model, folder / "original.onnx")
    inserted = insert(model, Thresholds(thresholds or network.thresholds), form, slope=SLOPE)
    save_model(inserted.model, folder / "bounded.onnx")
    return folder / "original.onnx", folder / "bounded.onnx"


def dataset(network: Network, labels: npt.NDArray[np.int64] | None = None) -> Dataset:
    return Dataset(network.images, labels, "images")


@pytest.mark.parametrize("batch", [1, 7, 128])
@pytest.mark.parametrize("form", [Form.HARD, Form.SATURATE, Form.RAMP])
def test_what_is_clipped_where(form: Form, batch: int, network: Network, tmp_path: Path) -> None:
    labels = np.arange(IMAGES) % 4
    report = verify(
        *write(tmp_path, network, form),
        dataset(network, labels),
        runtime=RuntimeSettings(batch_size=batch),
    )
    rectified, scores = network.bounded(form)
    above = [
        value > threshold
        for value, threshold in zip(rectified, network.thresholds.values(), strict=True)
    ]
    touched = np.any([layer.any(axis=1) for layer in above], axis=0)
    assert 0 < touched.sum() < IMAGES
    assert report.images == IMAGES
    assert report.untouched == IMAGES - touched.sum()
    assert [layer.tensor for layer in report.layers] == ["a", "b"]
    for layer, expected in zip(report.layers, above, strict=True):
        np.testing.assert_array_equal(layer.samples, np.flatnonzero(expected.any(axis=1)))
        assert layer.values == expected.sum()
    classes, bounded_classes = network.scores().argmax(axis=1), scores.argmax(axis=1)
    np.testing.assert_array_equal(report.changed, np.flatnonzero(classes != bounded_classes))
    assert len(report.changed)
    assert report.accuracy_original == pytest.approx((classes == labels).mean())
    assert report.accuracy_hardened == pytest.approx((bounded_classes == labels).mean())
    assert report.largest_difference <= 1e-6
    assert report.passed


@pytest.mark.parametrize("form", [Form.HARD, Form.SATURATE, Form.RAMP])
def test_nothing_changes_where_nothing_is_clipped(
    form: Form, network: Network, tmp_path: Path
) -> None:
    wide = {
        name: np.full_like(value, 1.01 * layer.max())
        for (name, value), layer in zip(network.thresholds.items(), network.hidden(), strict=True)
    }
    report = verify(*write(tmp_path, network, form, wide), dataset(network))
    assert report.untouched == IMAGES
    assert report.layers == ()
    assert report.changed.size == 0
    assert report.largest_difference <= 1e-6
    assert report.passed


def test_the_smooth_gate_changes_values_below_its_threshold(
    network: Network, tmp_path: Path
) -> None:
    """It is exact only far below the threshold, and the report says so."""
    far = {
        name: np.full_like(value, 100 * layer.max())
        for (name, value), layer in zip(network.thresholds.items(), network.hidden(), strict=True)
    }
    report = verify(*write(tmp_path, network, Form.SMOOTH, far), dataset(network))
    assert report.layers == ()
    assert report.largest_difference <= 1e-6
    assert report.passed

    near = {name: value / 100 * 1.05 for name, value in far.items()}
    report = verify(*write(tmp_path, network, Form.SMOOTH, near), dataset(network))
    first, _ = network.hidden()

    def gate(r: Array, threshold: Array) -> Array:
        z = SLOPE / threshold * (threshold - r)
        return np.where(z > -16, r / (1 + np.exp(-z)), 0)

    a = gate(first, near["a"])
    b = gate(np.maximum(a @ network.weights[1], 0), near["b"])
    difference = np.abs(b @ network.weights[2] - network.scores()).max()
    assert report.untouched == IMAGES
    assert report.largest_difference == pytest.approx(
        difference / np.abs(network.scores()).max(), rel=1e-3
    )
    assert report.largest_difference > TOLERANCE
    assert report.tolerance is None
    assert report.passed


def test_the_smooth_gate_clips_what_lies_above(network: Network, tmp_path: Path) -> None:
    report = verify(*write(tmp_path, network, Form.SMOOTH), dataset(network))
    first = network.hidden()[0] > network.thresholds["a"]
    assert report.layers[0].tensor == "a"
    np.testing.assert_array_equal(report.layers[0].samples, np.flatnonzero(first.any(axis=1)))
    assert report.layers[0].values == first.sum()


def test_without_labels_there_is_no_accuracy(network: Network, tmp_path: Path) -> None:
    report = verify(*write(tmp_path, network, Form.HARD), dataset(network))
    assert report.accuracy_original is None
    assert report.accuracy_hardened is None


def test_all_images_clipped_leaves_nothing_to_compare(network: Network, tmp_path: Path) -> None:
    zero = {name: np.zeros_like(value) for name, value in network.thresholds.items()}
    lively = network.images[network.hidden()[0].any(axis=1)]
    report = verify(*write(tmp_path, network, Form.HARD, zero), Dataset(lively, None, "images"))
    assert report.untouched == 0
    assert report.largest_difference == 0.0


def test_values_that_are_no_numbers_count_as_clipped(network: Network, tmp_path: Path) -> None:
    paths = write(tmp_path, network, Form.HARD)
    images = network.images.copy()
    images[3] = 3e38
    report = verify(*paths, Dataset(images, None, "images"))
    assert 3 in report.layers[0].samples


def test_progress_counts_every_image_once(network: Network, tmp_path: Path) -> None:
    class Counter:
        total = 0
        done = 0

        def begin(self, task: str, total: int) -> None:
            self.total += total

        def advance(self, steps: int = 1) -> None:
            self.done += steps

        def notice(self, text: str) -> None:
            raise AssertionError(text)

        def warn(self, text: str) -> None:
            raise AssertionError(text)

    counter = Counter()
    verify(
        *write(tmp_path, network, Form.HARD),
        dataset(network),
        runtime=RuntimeSettings(batch_size=8),
        reporter=counter,
    )
    assert (counter.total, counter.done) == (IMAGES, IMAGES)


def test_another_original_does_not_pass(network: Network, tmp_path: Path) -> None:
    original, bounded = write(tmp_path, network, Form.HARD)
    other = Network()
    other.weights[2] = other.weights[2] * np.float32(1.5)
    save_model(other.onnx(), original)
    report = verify(original, bounded, dataset(network))
    assert report.largest_difference > TOLERANCE
    assert not report.passed


def test_behind_a_smooth_gate_the_record_tells_another_original(
    network: Network, tmp_path: Path
) -> None:
    original, bounded = write(tmp_path, network, Form.SMOOTH)
    hardened = onnx.load(bounded)
    set_provenance(hardened, {"original_sha256": model_digest(original)})
    save_model(hardened, bounded)
    assert verify(original, bounded, dataset(network)).passed
    other = Network()
    other.weights[2] = other.weights[2] * np.float32(1.5)
    save_model(other.onnx(), original)
    with pytest.raises(ModelError, match=r"bounded\.onnx was hardened from another model than"):
        verify(original, bounded, dataset(network))


def test_half_precision_is_given_its_rounding(shared_dir: Path, tmp_path: Path) -> None:
    original = shared_dir / "models" / "c10_resnet32_fp16.onnx"
    images = load_dataset(shared_dir / "data" / "cifar10" / "test.npz").take(range(64))
    bounded = tmp_path / "bounded.onnx"
    prepared = prepare(load_model(original)).model
    wide = {a.tensor: np.array(1e4, np.float32) for a in find_activations(prepared)}
    save_model(insert(prepared, Thresholds(wide)).model, bounded)
    report = verify(original, bounded, images)
    assert report.untouched == 64
    assert TOLERANCE < report.largest_difference < 0.03
    assert report.passed


@pytest.mark.parametrize("sizes", [{"features": 7}, {"classes": 3}])
def test_a_pair_that_does_not_fit_is_refused(
    sizes: dict[str, int], network: Network, tmp_path: Path
) -> None:
    original, bounded = write(tmp_path, network, Form.HARD)
    save_model(Network(**sizes).onnx(), original)
    with pytest.raises(ModelError, match=r"bounded\.onnx does not have the input and output of"):
        verify(original, bounded, dataset(network))


def test_a_file_that_is_not_hardened_is_refused(network: Network, tmp_path: Path) -> None:
    original, _ = write(tmp_path, network, Form.HARD)
    with pytest.raises(ModelError, match=r"original\.onnx is not hardened: it stores no threshold"):
        verify(original, original, dataset(network))


def test_labels_must_be_classes(network: Network, tmp_path: Path) -> None:
    paths = write(tmp_path, network, Form.HARD)
    with pytest.raises(DataError, match="label 4 of image 2 of images is no class of the model"):
        verify(*paths, dataset(network, np.where(np.arange(IMAGES) == 2, 4, 0)))
