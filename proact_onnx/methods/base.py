"""What every hardening method is given and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.activations import Activation
from proact_onnx.engine import ActivationProfile, Provider, profile_percentiles
from proact_onnx.progress import Reporter
from proact_onnx.rewrite import Form
from proact_onnx.settings import HardenSettings, OutOfRange, RuntimeSettings
from proact_onnx.thresholds import (
    FloatArray,
    Granularity,
    Thresholds,
    shared_axes,
    threshold_shape,
)


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

    def store_all(self, values: Mapping[str, FloatArray]) -> None:
        """Keep the state of a training of all layers."""


@dataclass(frozen=True)
class FitContext:
    """Everything a method may use.

    Attributes:
        model: The prepared model, without bounds.
        activations: Its activations, in topological order, shapes known.
        profile: Their maxima over the calibration images.
        calibration: Images to learn from.
        accept: Other images, which decide whether learnt thresholds are kept.
        settings: The user's settings, granularity and form of the bounds resolved.
        runtime: How ONNX Runtime and PyTorch execute.
        checkpoint: Where finished layers are kept.
        reporter: Receives progress.
    """

    model: onnx.ModelProto
    activations: Sequence[Activation]
    profile: ActivationProfile
    calibration: LabelledBatch
    accept: LabelledBatch
    settings: HardenSettings
    runtime: RuntimeSettings
    checkpoint: Checkpoint
    reporter: Reporter

    @property
    def engine(self) -> tuple[Provider, int, int]:
        """Provider, threads and batch size, as sessions and engines take them."""
        runtime = self.runtime
        return Provider(runtime.provider), runtime.threads, runtime.batch_size


@dataclass(frozen=True)
class Fitted:
    """What a method found.

    Attributes:
        thresholds: A threshold for every activation.
        evaluations: Images classified under fault on the way.
    """

    thresholds: Thresholds
    evaluations: int = 0


class Fit(Protocol):
    """A way to find thresholds."""

    def __call__(self, context: FitContext) -> Fitted:
        """Find a threshold for every activation."""


@dataclass(frozen=True)
class Method:
    """A hardening method.

    Attributes:
        fit: Finds the thresholds.
        granularity: What shares a threshold, where the user does not say.
        form: How bounds are written, where the user does not say.
    """

    fit: Fit
    granularity: Granularity
    form: Form = Form.HARD

    def resolve(self, settings: HardenSettings) -> HardenSettings:
        """Fill in what the user left to the method."""
        forms = {None: self.form, OutOfRange.ZERO: Form.HARD, OutOfRange.CLAMP: Form.SATURATE}
        return replace(
            settings,
            granularity=settings.granularity or self.granularity,
            form=settings.form or forms[settings.out_of_range],
        )


def bounded_thresholds(
    context: FitContext, highest: Callable[[Activation, tuple[int, ...]], FloatArray]
) -> dict[str, FloatArray]:
    """Thresholds at some highest values, times the slack.

    Args:
        context: What the method was given.
        highest: Gives the values for an activation and the shape of its thresholds.

    Returns:
        By activation tensor, at the granularity of the settings.
    """
    granularity = Granularity(context.settings.granularity or Granularity.LAYER)
    slack = np.float32(context.settings.slack)
    thresholds = {}
    for activation in context.activations:
        values = highest(activation, threshold_shape(activation, granularity))
        thresholds[activation.tensor] = (values * slack).astype(np.float32)
    return thresholds


def profiled_thresholds(context: FitContext) -> dict[str, FloatArray]:
    """Thresholds at the profiled maxima, times the slack (Algorithm 1, line 7).

    Returns:
        By activation tensor, at the granularity of the settings.
    """

    def highest(activation: Activation, shape: tuple[int, ...]) -> FloatArray:
        maxima = context.profile.maxima[activation.tensor]
        shared = shared_axes(shape, maxima.shape)
        return np.asarray(maxima.max(axis=shared, keepdims=True).reshape(shape))

    return bounded_thresholds(context, highest)


def percentile_thresholds(context: FitContext, percentile: float) -> dict[str, FloatArray]:
    """Thresholds at a percentile of all values that share one, times the slack.

    Args:
        context: What the method was given.
        percentile: From 90 to 100.

    Returns:
        By activation tensor, at the granularity of the settings.
    """
    if percentile == 100.0:
        return profiled_thresholds(context)
    granularity = Granularity(context.settings.granularity or Granularity.LAYER)
    images = context.calibration.images
    context.reporter.begin("percentiles", len(images))
    found = profile_percentiles(
        context.model,
        {a.tensor: threshold_shape(a, granularity) for a in context.activations},
        images,
        percentile,
        context.engine,
        context.reporter.advance,
    )
    return bounded_thresholds(context, lambda activation, shape: found[activation.tensor])
