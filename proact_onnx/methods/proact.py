"""ProAct: thresholds trained layer by layer, from the last to the first.

Source: Mousavi et al., "ProAct: Progressive Training for Hybrid Clipped Activation Function to
Enhance Resilience of DNNs", Algorithm 1, Eq. 5, 7 and 8.

1. Every threshold starts at the profiled maximum: one per neuron in the last hidden layer, one
   per layer elsewhere.
2. From the last layer to the first, one layer's thresholds are trained with Adam on
   ``KL(student || teacher) at temperature T + cross-entropy + gamma * mean square of lambda``;
   everything else stays fixed.

Differences from the paper, all where it is silent:

- Only the layer in training has the smooth gate, the others are as deployed, so everything before
  that layer is constant and computed once.
- Thresholds move relative to their profiled value. They end no higher, unless the smooth gate
  itself is deployed: a hard bound above that value protects less and passes nothing more that is
  legitimate.
- A layer whose trained thresholds cost too much accuracy on images kept apart for that purpose
  goes half way, three quarters or all the way back to the profiled ones. Where these alone cost
  more than is allowed, training must not cost anything on top.
"""

import numpy as np
import torch
from torch import Tensor

from proact_onnx.activations import Activation
from proact_onnx.errors import ModelError
from proact_onnx.methods.base import FitContext, LabelledBatch, profiled_thresholds
from proact_onnx.mirror.student import Student, SuffixInputs
from proact_onnx.mirror.train import train_layer
from proact_onnx.rewrite import Form
from proact_onnx.thresholds import FloatArray, Thresholds

# How far from the profiled to the trained thresholds, in the order they are tried.
_STEPS_BACK = (1.0, 0.5, 0.25)


def fit(context: FitContext) -> Thresholds:
    """Train the thresholds of every activation, last to first."""
    settings = context.settings
    if context.threads:
        torch.set_num_threads(context.threads)
    thresholds = profiled_thresholds(context)
    images, labels = _tensors(context.calibration)
    accept_images, accept_labels = _tensors(context.accept)
    student = Student(context.model, images, settings.train_batch)
    teacher = student.predict(images)
    baseline = _accuracy(student.predict(accept_images), accept_labels)
    for activation in context.activations:
        student.bound(activation.tensor, thresholds[activation.tensor])
    profiled = _accuracy(student.predict(accept_images), accept_labels)
    floor = min(baseline - settings.max_accuracy_drop / 100, profiled)
    if profiled < baseline - settings.max_accuracy_drop / 100:
        context.reporter.warn(
            f"the profiled thresholds alone cost {100 * (baseline - profiled):.2g} points of "
            f"accuracy, and {settings.max_accuracy_drop:g} are allowed: profile more calibration "
            "images, or raise the slack"
        )
    finished = context.checkpoint.finished()
    for tensor, values in finished.items():
        thresholds[tensor] = values
        student.bound(tensor, values)
    epochs = {a.tensor: _epochs(context, thresholds[a.tensor]) for a in context.activations}
    context.reporter.begin("training thresholds", sum(epochs.values()))
    for index, activation in reversed(list(enumerate(context.activations))):
        tensor = activation.tensor
        if tensor in finished:
            context.reporter.advance(epochs[tensor])
            continue
        trained = train_layer(
            student,
            student.inputs_from(tensor, images),
            thresholds[tensor],
            teacher,
            labels,
            settings,
            epochs=epochs[tensor],
            seed=(settings.seed, index),
            on_epoch=context.reporter.advance,
        )
        context.reporter.advance(epochs[tensor] - trained.epochs_run)
        wanted = trained.values
        # Training lifts thresholds whose smooth gate dampens the largest values.
        if Form(settings.form) is not Form.SMOOTH:
            wanted = np.minimum(wanted, thresholds[tensor])
        thresholds[tensor] = _accept(
            context,
            student,
            activation,
            student.inputs_from(tensor, accept_images),
            accept_labels,
            thresholds[tensor],
            wanted,
            floor,
        )
        student.bound(tensor, thresholds[tensor])
        context.checkpoint.store(tensor, thresholds[tensor])
    return Thresholds({a.tensor: thresholds[a.tensor] for a in context.activations})


def _tensors(batch: LabelledBatch) -> tuple[Tensor, Tensor]:
    if batch.labels is None:
        raise ModelError(
            "method proact distils class scores, and the model's first output is not a vector of "
            "these: use --method ranger"
        )
    return torch.from_numpy(batch.images), torch.from_numpy(batch.labels)


def _epochs(context: FitContext, threshold: FloatArray) -> int:
    return context.settings.epochs_neuron if threshold.size > 1 else context.settings.epochs


def _accept(
    context: FitContext,
    student: Student,
    activation: Activation,
    layer: SuffixInputs,
    labels: Tensor,
    profiled: FloatArray,
    trained: FloatArray,
    floor: float,
) -> FloatArray:
    """Go back towards the profiled thresholds until accuracy stays above the floor."""
    for share in _STEPS_BACK:
        candidate = (profiled + share * (trained - profiled)).astype(np.float32)
        scores = student.predict_from(layer, candidate)
        if _accuracy(scores, labels) >= floor:
            return candidate
    context.reporter.notice(
        f"{activation.name}: trained thresholds bring accuracy below {floor:.2%}, so the profiled "
        "ones stay"
    )
    return profiled


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(dim=1) == labels).float().mean())
