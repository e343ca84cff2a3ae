"""Training thresholds in the mirror, of one layer or of all together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from proact_onnx.mirror.hyrelu import smooth_gate
from proact_onnx.mirror.student import Gate, Student, SuffixInputs, batches
from proact_onnx.settings import HardenSettings, ThresholdScale
from proact_onnx.thresholds import FloatArray

# By name, everything that a training needs to go on after an epoch.
State = Mapping[str, FloatArray]

# Parameter values by name, with the faults of the map of some number in them.
Faults = Callable[[int], Mapping[str, Tensor]]

# Fault maps in a training step, each for its share of the images.
_MAPS = 4
# Loss of an image under faults, in nats, beyond which only its logarithm counts: scores that faults
# blew up must not outweigh all others.
_LOST = 5.0
# Training goes on as long as the loss falls by this share within the epochs of patience.
_LEAST_PROGRESS = 1e-3


@dataclass(frozen=True)
class TrainedThresholds:
    """Outcome of training.

    Attributes:
        values: The thresholds by activation tensor, float32.
        loss: Mean loss of the epoch they come from.
        epochs_run: Epochs until training stopped.
    """

    values: Mapping[str, FloatArray]
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


def loss_under_faults(
    student: Student,
    feeds: Mapping[str, Tensor],
    teacher: Tensor | None,
    labels: Tensor,
    temperature: float,
    faults: Faults,
    first: int,
) -> Tensor:
    """Data part of Eq. (8) with faults in the parameters, their maps changing along the batch.

    Args:
        student: Its thresholds are those to judge.
        feeds: What the student needs, for these images.
        teacher: Scores ``[N, K]`` of the unbounded model without faults; None for cross-entropy
            alone.
        labels: int64 ``[N]``.
        temperature: T.
        faults: Where parameters with faults in them come from.
        first: Position of the first image in its epoch. A fault map lasts for a quarter of the
            batch and has the number of the position it begins at, so that every epoch meets the
            same maps, on other images, and the losses of epochs can be compared.

    Returns:
        Mean over the images. A loss L of more than 5 nats counts 5 (1 + ln(L / 5)), and scores
        that are not finite count as 0 for every class.
    """
    losses = []
    for part in batches(len(labels), math.ceil(len(labels) / _MAPS)):
        scores = student.logits(
            {name: values[part] for name, values in feeds.items()}, faults(first + part.start)
        )
        known = scores.isfinite().all(dim=1)
        scores = scores.masked_fill(~known[:, None], 0.0)
        loss = functional.cross_entropy(scores, labels[part], reduction="none")
        if teacher is not None:
            ours = functional.log_softmax(scores / temperature, dim=1)
            theirs = functional.log_softmax(teacher[part] / temperature, dim=1)
            divergence = functional.kl_div(theirs, ours, reduction="none", log_target=True)
            loss = loss + divergence.sum(dim=1)
        beyond = torch.log(loss.clamp_min(_LOST) / _LOST)
        losses.append(loss.clamp_max(_LOST) + _LOST * beyond)
    return torch.cat(losses).mean()


def hyrelu_gate(settings: HardenSettings) -> Gate:
    """The smooth gate of Eq. (5) with the slope of the settings."""
    relative = settings.slope_scale is ThresholdScale.RELATIVE
    return partial(smooth_gate, slope=settings.slope, relative=relative)


def train_thresholds(
    student: Student,
    inputs: SuffixInputs,
    initial: Mapping[str, FloatArray],
    teacher: Tensor | None,
    labels: Tensor,
    settings: HardenSettings,
    *,
    gate: Gate,
    epochs: int,
    seed: Sequence[int],
    faults: Faults | None = None,
    state: State | None = None,
    on_epoch: Callable[[Callable[[], State]], None] = lambda state: None,
) -> TrainedThresholds:
    """Train thresholds with Adam (Algorithm 1, lines 10-14).

    The trained layers have the gate, all others are as deployed. The regularisation of Eq. (8) is
    gamma times the mean square of the thresholds, averaged over the layers; where ``settings.step``
    is relative, of the thresholds in units of their initial value.

    Args:
        student: Bounds the other layers with their thresholds; afterwards these as well, with
            those they had before.
        inputs: What the student needs to compute scores, for the calibration images: the graph's
            input, or everything from one of the trained activations on.
        initial: By activation tensor, thresholds to start from; these are trained.
        teacher: Scores ``[N, K]`` of the unbounded model on the same images; None to learn from
            the labels alone.
        labels: int64 ``[N]``.
        settings: Learning rate, temperature, gamma, patience.
        gate: How thresholds bound while they are trained; smooth in both arguments.
        epochs: Epochs at most.
        seed: Decides the order of the images.
        faults: Where parameters with faults in them come from: then the loss is that of
            `loss_under_faults` on top. None to train without.
        state: Where an interrupted training had got to.
        on_epoch: Called after every epoch with a function that gives the state.

    Returns:
        The thresholds of the epoch with the lowest loss.
    """
    start = {n: torch.from_numpy(np.array(values, np.float32)) for n, values in initial.items()}
    ones = {name: torch.ones_like(value) for name, value in start.items()}
    relative = settings.step is ThresholdScale.RELATIVE
    units = start if relative else ones
    run = _Run(start, ones if relative else start, settings, state)
    order = np.random.default_rng(list(seed))
    for _ in range(run.epochs):
        order.permutation(len(inputs))
    before = {name: student.mirror.gates.get(name) for name in initial}
    while run.epochs < epochs and run.stale < settings.patience:
        shuffled = torch.from_numpy(order.permutation(len(inputs)))
        total = 0.0
        # The loss of an epoch belongs to the thresholds it was measured with, on average.
        seen = {name: torch.zeros_like(value) for name, value in start.items()}
        for part in batches(len(inputs), settings.train_batch):
            chosen = shuffled[part]
            feeds = inputs.take(chosen)
            thresholds = {name: run.parameters[name] * units[name] for name in initial}
            for name, threshold in thresholds.items():
                bound = student.gate(name, gate, threshold)
                if faults is not None:
                    bound = partial(_finite, bound)
                if name in feeds:
                    feeds[name] = bound(feeds[name])
                else:
                    student.mirror.gates[name] = bound
            scores = student.logits(feeds)
            if teacher is None:
                loss = functional.cross_entropy(scores, labels[chosen])
            else:
                known = teacher[chosen]
                loss = distillation_loss(scores, known, labels[chosen], settings.temperature)
            if faults is not None:
                loss = loss + loss_under_faults(
                    student,
                    feeds,
                    None if teacher is None else teacher[chosen],
                    labels[chosen],
                    settings.temperature,
                    faults,
                    part.start,
                )
            squares = [parameter.square().mean() for parameter in run.parameters.values()]
            loss = loss + settings.regularisation * torch.stack(squares).mean()
            run.descend(loss)
            for name, threshold in thresholds.items():
                seen[name] += threshold.detach() * len(chosen)
            total += loss.item() * len(chosen)
        run.finish(total / len(inputs), {n: v / len(inputs) for n, v in seen.items()})
        on_epoch(run.state)
    for name, known_gate in before.items():
        student.mirror.gates.pop(name, None)
        if known_gate is not None:
            student.mirror.gates[name] = known_gate
    return TrainedThresholds(
        {name: value.numpy().copy() for name, value in run.best.items()}, run.best_loss, run.epochs
    )


def _finite(bound: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Bound values of which faults may have made infinities and NaNs."""
    return bound(values.nan_to_num())


class _Run:
    """The state of a training between its epochs."""

    def __init__(
        self,
        start: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        settings: HardenSettings,
        state: State | None,
    ) -> None:
        self.epochs = self.stale = 0
        self.best = {name: value.clone() for name, value in start.items()}
        self.best_loss = self._milestone = float("inf")
        self.parameters = {name: nn.Parameter(value.clone()) for name, value in parameters.items()}
        self._optimiser = torch.optim.Adam(
            list(self.parameters.values()), lr=settings.learning_rate
        )
        if state is not None:
            self._restore(state)
        self._halve_every, self._rate = settings.halve_every, settings.learning_rate
        self._set_rate()

    def descend(self, loss: Tensor) -> None:
        """Take one step against the gradient; thresholds stay above zero."""
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                # What faults blew up on its way back says nothing.
                parameter.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self._optimiser.step()
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.clamp_(min=0.0)

    def finish(self, loss: float, thresholds: Mapping[str, Tensor]) -> None:
        """Account for an epoch: its mean loss and the thresholds it belongs to."""
        # As coarse as the state is kept, so that a training that was interrupted ends the same.
        loss = float(np.float32(loss))
        self.epochs += 1
        self._set_rate()
        if loss < self.best_loss:
            self.best, self.best_loss = dict(thresholds), loss
        self.stale += 1
        if loss < self._milestone * (1 - _LEAST_PROGRESS):
            self._milestone, self.stale = loss, 0

    def state(self) -> State:
        """Everything needed to go on."""
        counters = [self.epochs, self.stale, self.best_loss, self._milestone]
        arrays = {"counters": np.array(counters, np.float32)}
        for name, parameter in self.parameters.items():
            adam = self._optimiser.state[parameter]
            arrays[f"parameter {name}"] = parameter.detach().numpy()
            arrays[f"best {name}"] = self.best[name].numpy()
            arrays[f"mean {name}"] = adam["exp_avg"].numpy()
            arrays[f"square {name}"] = adam["exp_avg_sq"].numpy()
            arrays[f"steps {name}"] = np.array(float(adam["step"]), np.float32)
        return {name: np.array(values, np.float32) for name, values in arrays.items()}

    def _restore(self, state: State) -> None:
        epochs, stale, self.best_loss, self._milestone = state["counters"].tolist()
        self.epochs, self.stale = int(epochs), int(stale)
        for name, parameter in self.parameters.items():
            kept = {
                what: torch.from_numpy(np.array(state[f"{what} {name}"]))
                for what in ("parameter", "best", "mean", "square", "steps")
            }
            with torch.no_grad():
                parameter.copy_(kept["parameter"])
            self.best[name] = kept["best"]
            self._optimiser.state[parameter] = {
                "step": kept["steps"],
                "exp_avg": kept["mean"],
                "exp_avg_sq": kept["square"],
            }

    def _set_rate(self) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * 0.5 ** (self.epochs // self._halve_every)
