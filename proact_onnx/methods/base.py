"""What every hardening method is given and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.activations import Activation
from proact_onnx.engine import ActivationProfile
from proact_onnx.progress import Reporter
from proact_onnx.settings import HardenSettings
from proact_onnx.thresholds import FloatArray, Granularity, Thresholds, threshold_shape


@dataclass(frozen=True)
class LabelledBatch:
    """Images in the model's own form, with labels.

    Attributes:
        images: ``[N, ...]``.
        labels: int64 ``[N]``; the unprotected model's top-1 where none were given, and None
            where the model is no classifier.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None


class Checkpoint(Protocol):
    """Keeps the layers that are finished, so that an interrupted run can go on."""

    def finished(self) -> Mapping[str, FloatArray]:
        """Return thresholds of finished layers, by activation tensor."""

    def store(self, tensor: str, values: FloatArray) -> None:
        """Keep a finished layer."""


@dataclass(frozen=True)
class FitContext:
    """Everything a method may use.

    Attributes:
        model: The prepared model, without bounds.
        activations: Its activations, in topological order, shapes known.
        profile: Their maxima over the calibration images.
        calibration: Images to learn from.
        accept: Other images, which decide whether learnt thresholds are kept.
        settings: The user's settings.
        threads: Threads within an operator; 0 leaves the choice to the library.
        checkpoint: Where finished layers are kept.
        reporter: Receives progress.
    """

    model: onnx.ModelProto
    activations: Sequence[Activation]
    profile: ActivationProfile
    calibration: LabelledBatch
    accept: LabelledBatch
    settings: HardenSettings
    threads: int
    checkpoint: Checkpoint
    reporter: Reporter


class Method(Protocol):
    """A way to find thresholds."""

    def __call__(self, context: FitContext) -> Thresholds:
        """Find a threshold for every activation."""


def profiled_thresholds(context: FitContext) -> dict[str, FloatArray]:
    """Thresholds at the profiled maxima, times the slack (Algorithm 1, line 7).

    Returns:
        By activation tensor, at the granularity of the settings.
    """
    granularity = Granularity(context.settings.granularity)
    thresholds = {}
    for activation in context.activations:
        maxima = context.profile.maxima[activation.tensor]
        shape = threshold_shape(activation, granularity)
        shared = tuple(
            axis for axis in range(maxima.ndim) if not shape or shape[axis + 1] < maxima.shape[axis]
        )
        highest = maxima.max(axis=shared, keepdims=True).reshape(shape)
        thresholds[activation.tensor] = (highest * np.float32(context.settings.slack)).astype(
            np.float32
        )
    return thresholds
