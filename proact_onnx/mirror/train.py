"""Training the thresholds of one layer by knowledge distillation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from proact_onnx.mirror.hyrelu import smooth_gate
from proact_onnx.mirror.student import Student, SuffixInputs, batches
from proact_onnx.settings import HardenSettings, ThresholdScale
from proact_onnx.thresholds import FloatArray

# Training goes on as long as the loss falls by this share within the epochs of patience.
_LEAST_PROGRESS = 1e-3


@dataclass(frozen=True)
class TrainedThresholds:
    """Outcome of training one layer.

    Attributes:
        values: The thresholds, float32.
        loss: Mean loss of the epoch they come from.
        epochs_run: Epochs until training stopped.
    """

    values: FloatArray
    loss: float
    epochs_run: int


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Data part of Eq. (8): KL divergence at temperature T (Eq. 7) plus cross-entropy.

    Args:
        student: Scores ``[N, K]`` of the bounded model.
        teacher: Scores ``[N, K]`` of the unbounded model.
        labels: int64 ``[N]``.
        temperature: T, for both sides.

    Returns:
        Mean over the images of ``KL(P(student, T) || P(teacher, T)) + CE(student, labels)``.
    """
    ours = functional.log_softmax(student / temperature, dim=1)
    theirs = functional.log_softmax(teacher / temperature, dim=1)
    divergence = functional.kl_div(theirs, ours, reduction="batchmean", log_target=True)
    return divergence + functional.cross_entropy(student, labels)


def train_layer(
    student: Student,
    layer: SuffixInputs,
    initial: FloatArray,
    teacher: Tensor,
    labels: Tensor,
    settings: HardenSettings,
    *,
    epochs: int,
    seed: Sequence[int],
    on_epoch: Callable[[], None] = lambda: None,
) -> TrainedThresholds:
    """Train the thresholds of one activation with Adam (Algorithm 1, lines 10-14).

    The trained layer has the smooth gate, all others are as deployed. The regularisation of Eq.
    (8) is gamma times the mean square of the thresholds; where ``settings.step`` is relative,
    of the thresholds in units of their initial value.

    Args:
        student: Bounds the other layers with their thresholds.
        layer: What the student needs to go on from the trained layer, for the calibration images.
        initial: Thresholds to start from.
        teacher: Scores ``[N, K]`` of the unbounded model on the same images.
        labels: int64 ``[N]``.
        settings: Learning rate, temperature, gamma, slope, patience.
        epochs: Epochs at most.
        seed: Decides the order of the images.
        on_epoch: Called after every epoch.

    Returns:
        The thresholds of the epoch with the lowest loss.
    """
    start = torch.from_numpy(np.array(initial, np.float32))
    relative = settings.step is ThresholdScale.RELATIVE
    unit = start if relative else torch.ones_like(start)
    parameter = nn.Parameter(torch.ones_like(start) if relative else start.clone())
    optimiser = torch.optim.Adam([parameter], lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, settings.halve_every, gamma=0.5)
    order = np.random.default_rng(list(seed))
    best, best_loss = np.array(initial, np.float32), float("inf")
    milestone = float("inf")
    stale = epochs_run = 0
    while epochs_run < epochs and stale < settings.patience:
        total = 0.0
        shuffled = torch.from_numpy(order.permutation(len(layer)))
        # The loss of an epoch belongs to the thresholds it was measured with, on average.
        seen = torch.zeros_like(start)
        for part in batches(len(layer), settings.train_batch):
            chosen = shuffled[part]
            feeds = layer.take(chosen)
            threshold = parameter * unit
            feeds[layer.tensor] = smooth_gate(
                feeds[layer.tensor],
                threshold,
                settings.slope,
                relative=settings.slope_scale is ThresholdScale.RELATIVE,
            )
            scores = student.logits(feeds)
            loss = (
                distillation_loss(scores, teacher[chosen], labels[chosen], settings.temperature)
                + settings.regularisation * parameter.square().mean()
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                parameter.clamp_(min=0.0)
            seen += threshold.detach() * len(chosen)
            total += loss.item() * len(chosen)
        schedule.step()
        on_epoch()
        epochs_run += 1
        mean = total / len(layer)
        if mean < best_loss:
            best, best_loss = (seen / len(layer)).numpy(), mean
        stale += 1
        if mean < milestone * (1 - _LEAST_PROGRESS):
            milestone, stale = mean, 0
    return TrainedThresholds(best, best_loss, epochs_run)
