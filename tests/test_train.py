"""Training one layer against arithmetic by hand: loss, Adam, schedule, stopping."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.special
import scipy.stats
import torch

from proact_onnx.mirror.student import Student, SuffixInputs
from proact_onnx.mirror.train import (
    TrainedThresholds,
    distillation_loss,
    hyrelu_gate,
    train_thresholds,
)
from proact_onnx.settings import HardenSettings, ThresholdScale
from tests.numerics import parse

IMAGES = 48
GENERATOR = np.random.default_rng(0)
WEIGHTS = {
    "w": GENERATOR.normal(size=(4, 1, 3, 3)).astype(np.float32),
    "v": GENERATOR.normal(size=(6, 4 * 16)).astype(np.float32) / 8,
    "u": GENERATOR.normal(size=(3, 6)).astype(np.float32),
}
PLAIN = HardenSettings(train_batch=IMAGES, slope=5.0)
FIRST, LAST = np.float32(6.0), np.full((1, 6), 3.0, np.float32)


def net() -> onnx.ModelProto:
    """Convolution, two activations, a skip past the second."""
    return parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, 4, 4] x) => (float[N, 3] y)
        {
          c = Conv<pads = [1, 1, 1, 1]>(x, w)
          a = Relu(c)
          f = Flatten(a)
          d = Gemm<transB = 1>(f, v)
          b = Relu(d)
          e = Add(b, d)
          y = Gemm<transB = 1>(e, u)
        }
        """,
        **WEIGHTS,
    )


@pytest.fixture
def images() -> torch.Tensor:
    drawn = np.random.default_rng(1).normal(size=(IMAGES, 1, 4, 4)).astype(np.float32)
    return torch.from_numpy(drawn)


@pytest.fixture
def student(images: torch.Tensor) -> Student:
    return Student(net(), images)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(0, 3, IMAGES))


@pytest.fixture
def train(
    student: Student, images: torch.Tensor, labels: torch.Tensor
) -> Callable[..., TrainedThresholds]:
    """Train activation ``b`` or ``a`` of the net with the settings given."""
    teacher = student.predict(images)

    def train_tensor(
        settings: HardenSettings = PLAIN,
        epochs: int = 1,
        seed: int = 0,
        tensor: str = "b",
        initial: np.ndarray = LAST,
    ) -> TrainedThresholds:
        layer = student.inputs_from(tensor, images)
        trained = train_thresholds(
            student, layer, {tensor: initial}, teacher, labels, settings,
            gate=hyrelu_gate(settings), epochs=epochs, seed=(seed, 1),
        )  # fmt: skip
        return replace(trained, values=trained.values[tensor])

    return train_tensor


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_loss(temperature: float) -> None:
    generator = np.random.default_rng(3)
    student, teacher = generator.normal(size=(2, 16, 5)) * 3
    labels = generator.integers(0, 5, 16)
    ours = scipy.special.softmax(student / temperature, axis=1)
    theirs = scipy.special.softmax(teacher / temperature, axis=1)
    divergence = scipy.stats.entropy(ours, theirs, axis=1)
    reverse = scipy.stats.entropy(theirs, ours, axis=1)
    assert not np.isclose(divergence.mean(), reverse.mean(), rtol=1e-3)
    crossed = -scipy.special.log_softmax(student, axis=1)[np.arange(16), labels]
    loss = distillation_loss(
        torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(labels), temperature
    )
    assert loss.item() == pytest.approx(divergence.mean() + crossed.mean(), rel=1e-12)


def test_distillation_loss_of_scores_that_are_far_apart() -> None:
    scores = torch.tensor([[1e4, 0.0, -1e4]])
    loss = distillation_loss(scores, scores.flip(1), torch.tensor([0]), 4.0)
    assert torch.isfinite(loss)


def loss_in_numpy(
    images: np.ndarray, labels: np.ndarray, settings: HardenSettings, p: np.ndarray
) -> float:
    """Eq. (8) of the whole net with activation ``b`` bounded by ``p * LAST``, in float64."""
    losses = losses_in_numpy(images, labels, settings, p)
    return float(losses.mean()) + settings.regularisation * float(np.mean(p**2))


def losses_in_numpy(
    images: np.ndarray,
    labels: np.ndarray,
    settings: HardenSettings,
    p: np.ndarray,
    teacher: np.ndarray | None = None,
) -> np.ndarray:
    """The data part of Eq. (8) for each image."""
    planes = np.pad(images[:, 0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(planes, (3, 3), axis=(1, 2))
    hidden = np.einsum("nijkl,ckl->ncij", windows, WEIGHTS["w"][:, 0].astype(np.float64))
    d = np.maximum(hidden, 0).reshape(len(images), -1) @ WEIGHTS["v"].T.astype(np.float64)
    b = np.maximum(d, 0)
    threshold = p * LAST
    bounded = b * scipy.special.expit(
        settings.slope * (threshold - b) / np.maximum(threshold, 1e-12)
    )
    ours, theirs = ((part + d) @ WEIGHTS["u"].T.astype(np.float64) for part in (bounded, b))
    known = theirs if teacher is None else teacher.astype(np.float64)
    soft = [scipy.special.softmax(z / settings.temperature, axis=1) for z in (ours, known)]
    crossed = -scipy.special.log_softmax(ours, axis=1)[np.arange(len(labels)), labels]
    return scipy.stats.entropy(*soft, axis=1) + crossed


def test_adam_by_hand(
    train: Callable[..., TrainedThresholds], images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Two steps of Adam on numerical gradients, one step an epoch."""
    settings = replace(PLAIN, learning_rate=0.05, regularisation=0.3)
    points = [np.ones((1, 6))]
    mean, square = np.zeros((1, 6)), np.zeros((1, 6))
    losses = []

    def loss(p: np.ndarray) -> float:
        return loss_in_numpy(images.numpy(), labels.numpy(), settings, p)

    for step in (1, 2, 3):
        p = points[-1]
        losses.append(loss(p))
        units = np.eye(6)[:, None]
        gradient = np.array([loss(p + 1e-5 * u) - loss(p - 1e-5 * u) for u in units]) / 2e-5
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        corrected = (mean / (1 - 0.9**step), square / (1 - 0.999**step))
        points.append(p - 0.05 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8))
    assert losses[2] < losses[1] < losses[0], "so the last epoch is the best"
    for epochs in (1, 2, 3):
        trained = train(settings, epochs)
        assert trained.epochs_run == epochs
        assert trained.loss == pytest.approx(losses[epochs - 1], rel=1e-5)
        np.testing.assert_allclose(trained.values, points[epochs - 1] * LAST, rtol=1e-4)


def regularised(**changes: object) -> HardenSettings:
    """So strong a regularisation that the loss is hardly anything else."""
    return replace(PLAIN, regularisation=1e6, **changes)


def test_the_learning_rate_is_halved(train: Callable[..., TrainedThresholds]) -> None:
    settings = regularised(halve_every=2, learning_rate=0.01)
    positions = [float(train(settings, n).values.mean()) / 3.0 for n in range(1, 7)]
    steps = -np.diff(positions)
    # The gradient keeps its sign and hardly changes, so a step of Adam is the learning rate.
    np.testing.assert_allclose(steps, [0.01, 0.01, 0.005, 0.005, 0.0025], rtol=0.05)


def test_regularisation_shrinks_thresholds(train: Callable[..., TrainedThresholds]) -> None:
    """Far above all values nothing else moves them."""
    initial = 100 * LAST
    free, bound = (
        train(replace(PLAIN, slope=50.0, regularisation=gamma), 10, initial=initial).values
        for gamma in (0.0, 1.0)
    )
    np.testing.assert_allclose(free, initial, rtol=1e-6)
    assert (bound < 0.95 * initial).all()


def test_thresholds_do_not_become_negative(train: Callable[..., TrainedThresholds]) -> None:
    assert (train(regularised(learning_rate=3.0), 3).values >= 0).all()


def test_it_stops_early(train: Callable[..., TrainedThresholds]) -> None:
    stopped = train(replace(PLAIN, learning_rate=0.0, patience=3), 50)
    assert stopped.epochs_run == 1 + 3
    np.testing.assert_allclose(stopped.values, LAST, rtol=1e-6)


def test_the_best_epoch_is_kept(
    train: Callable[..., TrainedThresholds], images: torch.Tensor, labels: torch.Tensor
) -> None:
    """A learning rate so high that the loss leaps about."""
    settings = replace(PLAIN, learning_rate=0.9, halve_every=100, patience=100)
    runs = [train(settings, epochs) for epochs in range(1, 9)]
    for run in runs:
        points = run.values.astype(np.float64) / LAST
        measured = loss_in_numpy(images.numpy(), labels.numpy(), settings, points)
        assert run.loss == pytest.approx(measured, rel=1e-5)
    losses = [run.loss for run in runs]
    assert losses == sorted(losses, reverse=True)
    assert 1 < len(set(losses)) < len(losses), "some epochs are better, and some are worse"


def test_slow_but_steady_progress_is_progress(train: Callable[..., TrainedThresholds]) -> None:
    """Every epoch gains less than 0.1 %, the epochs of patience together gain more."""
    settings = regularised(learning_rate=2e-4, patience=5, halve_every=100)
    short, long = train(settings, 1), train(settings, 30)
    gain = (short.loss - long.loss) / short.loss / 29
    assert 1e-3 / 5 < gain < 1e-3
    assert long.epochs_run == 30


def test_no_epochs_leave_the_thresholds(train: Callable[..., TrainedThresholds]) -> None:
    untouched = train(PLAIN, 0)
    np.testing.assert_array_equal(untouched.values, LAST)
    assert untouched.epochs_run == 0


def test_one_threshold_for_a_layer(train: Callable[..., TrainedThresholds]) -> None:
    settings = replace(PLAIN, regularisation=10.0)
    trained = train(settings, 5, tensor="a", initial=np.asarray(FIRST))
    assert trained.values.shape == ()
    assert trained.values.dtype == np.float32
    assert 0 < trained.values < FIRST


def test_relative_thresholds_move_in_proportion(train: Callable[..., TrainedThresholds]) -> None:
    initial = np.array([[1, 2, 4, 8, 16, 32]], np.float32)
    relative = train(regularised(), 4, initial=initial).values
    np.testing.assert_allclose(relative / initial, (relative / initial)[0, 0], rtol=1e-3)
    absolute = train(regularised(step=ThresholdScale.ABSOLUTE), 4, initial=initial).values
    np.testing.assert_allclose(initial - absolute, (initial - absolute)[0, 0], rtol=1e-3)
    assert absolute[0, 0] == pytest.approx(1 - 0.03, rel=1e-3)


def test_a_neuron_that_never_fired_stays_at_zero(train: Callable[..., TrainedThresholds]) -> None:
    initial = LAST.copy()
    initial[0, 2] = 0
    trained = train(replace(PLAIN, train_batch=16), 3, initial=initial).values
    assert trained[0, 2] == 0
    assert np.isfinite(trained).all()


def test_the_same_seed_gives_the_same_numbers(train: Callable[..., TrainedThresholds]) -> None:
    settings = replace(PLAIN, train_batch=10)
    first, again, other = (train(settings, 4, seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_every_epoch_is_reported(
    student: Student, images: torch.Tensor, labels: torch.Tensor
) -> None:
    reports = []
    layer = student.inputs_from("b", images)
    train_thresholds(
        student, layer, {"b": LAST}, student.predict(images), labels, PLAIN,
        gate=hyrelu_gate(PLAIN), epochs=3, seed=(0, 0), on_epoch=lambda _: reports.append(1),
    )  # fmt: skip
    assert len(reports) == 3


def test_the_loss_belongs_to_every_image_alike(train: Callable[..., TrainedThresholds]) -> None:
    """With no learning, batches that do not divide the images give the loss of them all."""
    still = replace(PLAIN, learning_rate=0.0)
    whole, uneven = train(still), train(replace(still, train_batch=7))
    assert uneven.loss == pytest.approx(whole.loss, rel=1e-6)


def test_layer_inputs_are_what_the_graph_computes(student: Student, images: torch.Tensor) -> None:
    layer = student.inputs_from("b", images)
    assert isinstance(layer, SuffixInputs)
    values = layer.take(slice(0, IMAGES))
    assert set(values) == {"b", "d"}
    torch.testing.assert_close(values["b"], values["d"].relu())


def train_both(
    student: Student, images: torch.Tensor, labels: torch.Tensor, **options: Any
) -> TrainedThresholds:
    """Train both activations of the net together, 4 epochs of 3 steps."""
    settings = replace(PLAIN, train_batch=16, patience=9)
    given = {"gate": hyrelu_gate(settings), "epochs": 4, "seed": (0,), **options}
    teacher = student.predict(images)
    return train_thresholds(
        student, student.inputs(images), {"a": FIRST, "b": LAST}, teacher, labels, settings, **given
    )


def test_one_layer_through_the_whole_graph(
    student: Student,
    images: torch.Tensor,
    labels: torch.Tensor,
    train: Callable[..., TrainedThresholds],
) -> None:
    """Training one activation gives the same whether what lies before it is computed once."""
    settings = replace(PLAIN, train_batch=16)
    teacher = student.predict(images)
    whole = train_thresholds(
        student, student.inputs(images), {"b": LAST}, teacher, labels, settings,
        gate=hyrelu_gate(settings), epochs=4, seed=(0, 1),
    )  # fmt: skip
    np.testing.assert_allclose(whole.values["b"], train(settings, 4).values, rtol=1e-5)
    assert whole.loss == pytest.approx(train(settings, 4).loss, rel=1e-5)


def test_all_layers_move_together(
    student: Student, images: torch.Tensor, labels: torch.Tensor
) -> None:
    trained = train_both(student, images, labels)
    assert trained.epochs_run == 4
    for name, initial in (("a", FIRST), ("b", LAST)):
        assert trained.values[name].shape == np.shape(initial)
        assert (trained.values[name] != initial).any()
    assert set(student.mirror.gates) == set()


def test_labels_alone(student: Student, images: torch.Tensor, labels: torch.Tensor) -> None:
    """With no learning and no regularisation the loss is the cross-entropy of the gated net."""
    settings = replace(PLAIN, learning_rate=0.0, regularisation=0.0)
    gate = hyrelu_gate(settings)
    found = train_thresholds(
        student, student.inputs(images), {"b": LAST}, None, labels, settings,
        gate=gate, epochs=1, seed=(0,),
    )  # fmt: skip
    student.mirror.gates["b"] = lambda values: gate(values, torch.from_numpy(LAST))
    scores = student.predict(images).numpy().astype(np.float64)
    picked = scipy.special.log_softmax(scores, axis=1)[np.arange(IMAGES), labels.numpy()]
    assert found.loss == pytest.approx(-picked.mean(), rel=1e-5)


@pytest.mark.parametrize("stopped", [1, 3])
def test_an_interrupted_training_ends_the_same(
    student: Student, images: torch.Tensor, labels: torch.Tensor, stopped: int
) -> None:
    states: list[Mapping[str, np.ndarray]] = []
    undisturbed = train_both(student, images, labels, on_epoch=lambda state: states.append(state()))
    assert len(states) == 4
    resumed = train_both(student, images, labels, state=states[stopped - 1])
    assert resumed.epochs_run == undisturbed.epochs_run
    assert resumed.loss == undisturbed.loss
    for name, values in undisturbed.values.items():
        np.testing.assert_array_equal(resumed.values[name], values)


def test_a_clamp_is_trained_by_what_it_clips(
    student: Student, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Only the gradient of clipped values reaches a threshold: far above all, none does."""
    settings = replace(PLAIN, regularisation=0.0, train_batch=16)
    teacher = student.predict(images)
    moved = []
    for factor in (0.5, 1e3):
        initial = {"b": LAST * np.float32(factor)}
        trained = train_thresholds(
            student, student.inputs(images), initial, teacher, labels, settings,
            gate=torch.minimum, epochs=3, seed=(0,),
        )  # fmt: skip
        moved.append(np.abs(trained.values["b"] / initial["b"] - 1).max())
    assert moved[0] > 1e-3
    assert moved[1] < 1e-6


def faulty_last_weights(number: int) -> dict[str, torch.Tensor]:
    """Another row of ``v`` blown up in each fault map."""
    faulty = WEIGHTS["v"].copy()
    faulty[number // 12, 5] += 0.5
    return {"v": torch.from_numpy(faulty)}


def train_under_faults(
    student: Student, images: torch.Tensor, labels: torch.Tensor, **options: Any
) -> TrainedThresholds:
    settings = options.pop("settings", PLAIN)
    given = {"faults": faulty_last_weights, "epochs": 1, "seed": (0, 1), **options}
    return train_thresholds(
        student, student.inputs_from("b", images, parameters=["v"]), {"b": LAST},
        student.predict(images), labels, settings, gate=hyrelu_gate(settings), **given,
    )  # fmt: skip


def under_faults(losses: np.ndarray) -> np.ndarray:
    """What losses count under faults: of what is beyond 5, the logarithm."""
    return np.where(losses > 5, 5 * (1 + np.log(losses / 5)), losses)


def test_the_loss_under_faults_comes_on_top(
    student: Student,
    images: torch.Tensor,
    labels: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four fault maps, each for a quarter of the images in their shuffled order."""
    settings = replace(PLAIN, learning_rate=0.0, regularisation=0.0)
    found = train_under_faults(student, images, labels, settings=settings)
    order = np.random.default_rng([0, 1]).permutation(IMAGES)
    p = np.ones((1, 6))
    clean = loss_in_numpy(images.numpy(), labels.numpy(), settings, p)
    teacher = student.predict(images).numpy()
    counted: list[float] = []
    for first in range(0, IMAGES, 12):
        chosen = order[first : first + 12]
        monkeypatch.setitem(WEIGHTS, "v", faulty_last_weights(first)["v"].numpy())
        some, right = images.numpy()[chosen], labels.numpy()[chosen]
        losses = losses_in_numpy(some, right, settings, p, teacher[chosen])
        counted += under_faults(losses).tolist()
        monkeypatch.undo()
    assert min(counted) < 5 < max(counted)
    assert found.loss == pytest.approx(clean + np.mean(counted), rel=1e-5)


def test_without_flips_the_loss_counts_twice(
    student: Student, images: torch.Tensor, labels: torch.Tensor
) -> None:
    settings = replace(PLAIN, learning_rate=0.0, regularisation=0.0)
    losses = losses_in_numpy(images.numpy(), labels.numpy(), settings, np.ones((1, 6)))
    stored = {"v": torch.from_numpy(WEIGHTS["v"])}
    found = train_under_faults(
        student, images, labels, settings=settings, faults=lambda number: stored
    )
    assert found.loss == pytest.approx(losses.mean() + under_faults(losses).mean(), rel=1e-5)


def test_no_faults_are_the_training_from_the_activation_on(
    student: Student,
    images: torch.Tensor,
    labels: torch.Tensor,
    train: Callable[..., TrainedThresholds],
) -> None:
    cut_before = train_under_faults(student, images, labels, faults=None, epochs=4)
    np.testing.assert_allclose(cut_before.values["b"], train(PLAIN, 4).values, rtol=1e-5)


def broken_scores(value: float) -> Callable[[int], dict[str, torch.Tensor]]:
    """The output layer, behind all thresholds, with two huge rows."""
    last = torch.from_numpy(WEIGHTS["u"].copy())
    last[:2] = torch.tensor([[value], [-value]])
    return lambda number: {"v": torch.from_numpy(WEIGHTS["v"]), "u": last}


def test_of_a_huge_loss_the_logarithm_counts(
    student: Student, images: torch.Tensor, labels: torch.Tensor
) -> None:
    settings = replace(PLAIN, learning_rate=0.0, regularisation=0.0, temperature=1.0)
    large, larger = (
        train_under_faults(
            student, images, torch.zeros_like(labels), settings=settings, faults=broken_scores(v)
        ).loss
        for v in (-1e6, -1e7)
    )
    # Images of a positive sum lose class 0 by a margin that grows tenfold, and KL with it.
    lost = float((larger - large) / (5 * np.log(10)))
    assert 0.2 < lost < 1.0
    assert lost * IMAGES == pytest.approx(round(lost * IMAGES), abs=0.01)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_scores_that_are_not_finite_tell_nothing(
    student: Student, images: torch.Tensor, labels: torch.Tensor, value: float
) -> None:
    settings = replace(PLAIN, learning_rate=0.0, regularisation=0.0)
    plain = train_under_faults(student, images, labels, settings=settings, faults=None)
    found = train_under_faults(
        student, images, labels, settings=settings, faults=broken_scores(value)
    )
    known = scipy.special.softmax(student.predict(images).numpy() / settings.temperature, axis=1)
    divergence = scipy.stats.entropy(np.full_like(known, 1 / 3), known, axis=1).mean()
    assert found.loss - plain.loss == pytest.approx(np.log(3) + divergence, rel=1e-4)


@pytest.mark.parametrize("value", [3e38, float("inf"), float("nan")])
def test_a_weight_blown_up_before_the_threshold_is_contained(
    student: Student, images: torch.Tensor, labels: torch.Tensor, value: float
) -> None:
    faulty = WEIGHTS["v"].copy()
    faulty[2, 5] = value
    broken = {"v": torch.from_numpy(faulty)}
    trained = train_under_faults(student, images, labels, faults=lambda number: broken, epochs=3)
    assert np.isfinite(trained.values["b"]).all()
    assert np.isfinite(trained.loss)


def test_only_thresholds_learn(
    student: Student, images: torch.Tensor, labels: torch.Tensor
) -> None:
    drawn = []

    def faults(number: int) -> dict[str, torch.Tensor]:
        drawn.append(faulty_last_weights(number))
        return drawn[-1]

    trained = train_under_faults(student, images, labels, faults=faults, epochs=2)
    assert (trained.values["b"] != LAST).any()
    assert len(drawn) == 2 * 4
    for found in drawn:
        assert found["v"].grad is None
    for name, values in WEIGHTS.items():
        assert student.mirror.parameter(name).grad is None
        np.testing.assert_array_equal(student.mirror.parameter(name).numpy(), values)


def test_faults_lower_a_threshold(
    student: Student, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """A faulty weight makes values just below a threshold that clean ones stay far from."""
    settings = replace(PLAIN, regularisation=0.0, slope=20.0, learning_rate=0.03)
    initial = {"a": np.asarray(10 * FIRST)}

    def trained(faults: Any) -> np.ndarray:
        found = train_thresholds(
            student, student.inputs_from("a", images, parameters=["w"]), initial,
            student.predict(images), labels, settings,
            gate=hyrelu_gate(settings), epochs=10, seed=(0, 1), faults=faults,
        )  # fmt: skip
        return found.values["a"]

    faulty = WEIGHTS["w"].copy()
    faulty[2, 0, 1, 1] += 40.0
    found = trained(lambda number: {"w": torch.from_numpy(faulty)})
    assert found < 0.95 * trained(None)
