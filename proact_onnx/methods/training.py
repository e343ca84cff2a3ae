"""What the methods that train thresholds share: the student, its teacher, and who accepts."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from proact_onnx.errors import ModelError, SettingsError
from proact_onnx.methods.base import FitContext, LabelledBatch, profiled_thresholds
from proact_onnx.methods.layer_faults import ParameterFaults
from proact_onnx.mirror.student import Gate, Student
from proact_onnx.mirror.train import Faults, State, train_thresholds
from proact_onnx.rewrite import Form
from proact_onnx.thresholds import FloatArray, Thresholds, pack, threshold_shape, unpack

# How far from the profiled to the trained thresholds, in the order they are tried. All layers
# together cost more than one, so they may have to go back further.
_STEPS_OF_A_LAYER = (1.0, 0.5, 0.25)
_STEPS_TOGETHER = (*_STEPS_OF_A_LAYER, 0.125, 0.0625, 0.03125)


class Training:
    """A student whose thresholds start at the profiled maxima (Algorithm 1, lines 1-8).

    Trained thresholds end no higher than the profiled ones, unless the smooth gate itself is
    deployed: a hard bound above the profiled value protects less and passes nothing more that is
    legitimate. Where they cost too much accuracy on the accept images, they go half way, three
    quarters (all layers together: up to 31 of 32 parts) or all the way back.

    Args:
        context: What the method was given.

    Attributes:
        thresholds: By activation tensor, as they are now, packed (`proact_onnx.thresholds.pack`).

    Raises:
        ModelError: If the model is no classifier, or an operator is not known to the mirror.
        SettingsError: If thresholds of a model whose weights are rescaled are to be trained under
            faults.
    """

    def __init__(self, context: FitContext) -> None:
        if context.runtime.threads:
            torch.set_num_threads(context.runtime.threads)
        self._context = context
        self.thresholds = pack(profiled_thresholds(context))
        self._images, self._labels = _tensors(context.calibration, context.settings.method)
        accept, self._accept_labels = _tensors(context.accept, context.settings.method)
        self._accept_images = accept
        self._student = Student(
            context.model, self._images, context.settings.train_batch, context.two_sided
        )
        self._teacher = self._student.predict(self._images)
        self._faults = _parameter_faults(context)
        baseline = self._accuracy(self._student.predict(accept))
        for tensor, values in self.thresholds.items():
            self._student.bound(tensor, values)
        profiled = self._accuracy(self._student.predict(accept))
        allowed = context.settings.max_accuracy_drop
        # Where the profiled thresholds cost more than that, training must not cost anything on top.
        self._floor = min(baseline - allowed / 100, profiled)
        if profiled < baseline - allowed / 100:
            context.reporter.warn(
                f"the profiled thresholds alone cost {100 * (baseline - profiled):.2g} points of "
                f"accuracy, and {allowed:g} are allowed: profile more calibration images, or "
                "raise the slack"
            )

    @property
    def fitted(self) -> Thresholds:
        """The thresholds as they are now."""
        return unpack(self.thresholds, self._context.two_sided)

    def layer_by_layer(self, gate: Gate, *, distil: bool) -> None:
        """Train one layer after the other, from the last to the first (lines 9-15).

        Everything before the layer in training is constant, and computed once.

        Args:
            gate: How the layer in training is bounded.
            distil: Whether to learn from the unbounded model as well as from the labels.
        """
        context, settings = self._context, self._context.settings
        finished = context.checkpoint.finished()
        for tensor, values in finished.items():
            self._put({tensor: values})
        epochs = {
            a.tensor: settings.epochs_neuron
            if math.prod(threshold_shape(a, context.granularity)) > 1
            else settings.epochs
            for a in context.activations
        }
        context.reporter.begin("training thresholds", sum(epochs.values()))
        for index, activation in reversed(list(enumerate(context.activations))):
            tensor = activation.tensor
            if tensor in finished:
                context.reporter.advance(epochs[tensor])
                continue
            profiled = {tensor: self.thresholds[tensor]}
            faulted, faults = self._faults_in([tensor])
            trained = train_thresholds(
                self._student,
                self._student.inputs_from(tensor, self._images, parameters=faulted),
                profiled,
                self._teacher if distil else None,
                self._labels,
                settings,
                gate=gate,
                epochs=epochs[tensor],
                seed=(settings.seed, index),
                faults=faults,
                on_epoch=lambda state: context.reporter.advance(),
            )
            context.reporter.advance(epochs[tensor] - trained.epochs_run)
            layer = self._student.inputs_from(tensor, self._accept_images)
            for candidate in self._candidates(profiled, trained.values, _STEPS_OF_A_LAYER):
                scores = self._student.predict_from(layer, candidate[tensor])
                if self._accuracy(scores) >= self._floor:
                    self._put(candidate)
                    break
            else:
                self._refuse(activation.name)
            context.checkpoint.store(tensor, self.thresholds[tensor])

    def together(self, gate: Gate, *, distil: bool) -> None:
        """Train all layers at once, through the whole network.

        Args:
            gate: How every layer is bounded.
            distil: Whether to learn from the unbounded model as well as from the labels.
        """
        context, settings = self._context, self._context.settings
        state = context.checkpoint.finished() or None
        context.reporter.begin("training thresholds", settings.epochs_together)
        if state is not None:
            context.reporter.advance(int(state["counters"][0]))

        def keep(current: Callable[[], State]) -> None:
            context.checkpoint.store_all(current())
            context.reporter.advance()

        profiled = dict(self.thresholds)
        _, faults = self._faults_in(list(profiled))
        trained = train_thresholds(
            self._student,
            self._student.inputs(self._images),
            profiled,
            self._teacher if distil else None,
            self._labels,
            settings,
            gate=gate,
            epochs=settings.epochs_together,
            seed=(settings.seed,),
            faults=faults,
            state=state,
            on_epoch=keep,
        )
        context.reporter.advance(settings.epochs_together - trained.epochs_run)
        for candidate in self._candidates(profiled, trained.values, _STEPS_TOGETHER):
            self._put(candidate)
            if self._accuracy(self._student.predict(self._accept_images)) >= self._floor:
                return
        self._put(profiled)
        self._refuse("the model")

    def _faults_in(self, tensors: Sequence[str]) -> tuple[Sequence[str], Faults | None]:
        """Parameters of activations that meet faults in training, and where these come from."""
        names = () if self._faults is None else self._faults.names(tensors)
        if self._faults is None or not names:
            return (), None
        return names, partial(self._faults.draw, tensors)

    def _put(self, thresholds: Mapping[str, FloatArray]) -> None:
        for tensor, values in thresholds.items():
            self.thresholds[tensor] = values
            self._student.bound(tensor, values)

    def _candidates(
        self,
        profiled: Mapping[str, FloatArray],
        trained: Mapping[str, FloatArray],
        shares: Sequence[float],
    ) -> Iterator[dict[str, FloatArray]]:
        """From the trained thresholds back towards the profiled ones."""
        wanted = dict(trained)
        # Training lifts thresholds whose smooth gate dampens the largest values.
        if Form(self._context.settings.form or Form.HARD) is not Form.SMOOTH:
            wanted = {name: np.minimum(value, profiled[name]) for name, value in trained.items()}
        for share in shares:
            yield {
                name: np.asarray(start + share * (wanted[name] - start), np.float32)
                for name, start in profiled.items()
            }

    def _refuse(self, what: str) -> None:
        self._context.reporter.notice(
            f"{what}: trained thresholds bring accuracy below {self._floor:.2%}, so the profiled "
            "ones stay"
        )

    def _accuracy(self, scores: Tensor) -> float:
        return float((scores.argmax(dim=1) == self._accept_labels).float().mean())


def _parameter_faults(context: FitContext) -> ParameterFaults | None:
    settings = context.settings
    if not settings.train_ber:
        return None
    if settings.rescale != "none":
        raise SettingsError(
            f"train-ber puts faults into weights as they are, and rescale {settings.rescale!r} "
            "stores them enlarged, so that faults are far smaller: leave one of the two out"
        )
    return ParameterFaults(
        context.model, context.activations, settings.format, settings.train_ber, settings.seed
    )


def _tensors(batch: LabelledBatch, method: str) -> tuple[Tensor, Tensor]:
    if batch.labels is None:
        raise ModelError(
            f"method {method} learns from class scores, and the model's first output is not a "
            "vector of these: use --method ranger"
        )
    return torch.from_numpy(batch.images), torch.from_numpy(batch.labels)
