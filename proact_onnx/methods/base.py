"""What every hardening method is given and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.activations import Activation
from proact_onnx.campaign import Executor, LocalExecutor
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
        activations: Its activations outside subgraphs, in topological order, shapes known.
        profile: Their ranges over the calibration images.
        calibration: Images to learn from.
        accept: Other images, which decide whether learnt thresholds are kept.
        settings: The user's settings, granularity and form of the bounds resolved.
        runtime: How ONNX Runtime and PyTorch execute.
        checkpoint: Where finished layers are kept.
        reporter: Receives progress.
        executor: Where trials under fault run.
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
    executor: Executor = field(default_factory=LocalExecutor)

    @property
    def engine(self) -> tuple[Provider, int, int]:
        """Provider, threads and batch size, as sessions and engines take them."""
        runtime = self.runtime
        return Provider(runtime.provider), runtime.threads, runtime.batch_size

    @property
    def granularity(self) -> Granularity:
        """What shares a threshold."""
        return Granularity(self.settings.granularity or Granularity.LAYER)

    @property
    def two_sided(self) -> frozenset[str]:
        """Outputs of the activations that are bounded from below, too."""
        return frozenset(a.tensor for a in self.activations if a.two_sided)


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
        trains: Whether it trains thresholds in the PyTorch mirror, which takes batches of one
            input.
        runs_trials: Whether it runs trials under fault, which workers can do.
    """

    fit: Fit
    granularity: Granularity
    form: Form = Form.HARD
    trains: bool = False
    runs_trials: bool = False

    def resolve(self, settings: HardenSettings) -> HardenSettings:
        """Fill in what the user left to the method."""
        forms = {None: self.form, OutOfRange.ZERO: Form.HARD, OutOfRange.CLAMP: Form.SATURATE}
        return replace(
            settings,
            granularity=settings.granularity or self.granularity,
            form=settings.form or forms[settings.out_of_range],
        )


def bounded_thresholds(context: FitContext, extremes: Thresholds) -> Thresholds:
    """Thresholds at the extremes of activations, times the slack.

    They lie on both sides of zero, or at it, also where all values lie on one side.

    Args:
        context: What the method was given.
        extremes: Highest values of all activations, and lowest ones of the two-sided.
    """
    slack = np.float32(context.settings.slack)
    return Thresholds(
        {
            tensor: (np.maximum(values, 0) * slack).astype(np.float32)
            for tensor, values in extremes.values.items()
        },
        {
            tensor: (np.minimum(values, 0) * slack).astype(np.float32)
            for tensor, values in extremes.lower.items()
        },
    )


def profiled_thresholds(context: FitContext) -> Thresholds:
    """Thresholds at the profiled extremes, times the slack (Algorithm 1, line 7).

    Returns:
        At the granularity of the settings.
    """
    upper, lower = {}, {}
    for activation in context.activations:
        tensor = activation.tensor
        shape = threshold_shape(activation, context.granularity)
        maxima = context.profile.maxima[tensor]
        shared = shared_axes(shape, maxima.shape)
        upper[tensor] = np.asarray(maxima.max(axis=shared, keepdims=True).reshape(shape))
        if activation.two_sided:
            minima = context.profile.minima[tensor]
            lower[tensor] = np.asarray(minima.min(axis=shared, keepdims=True).reshape(shape))
    return bounded_thresholds(context, Thresholds(upper, lower))


def percentile_thresholds(context: FitContext, percentile: float) -> Thresholds:
    """Thresholds at a percentile of all values that share one, times the slack.

    Args:
        context: What the method was given.
        percentile: From 90 to 100; of two-sided activations as many values lie below the lower
            thresholds as above the upper ones.

    Returns:
        At the granularity of the settings.
    """
    if percentile == 100.0 or not context.activations:
        return profiled_thresholds(context)
    images = context.calibration.images
    context.reporter.begin("percentiles", len(images))
    found = profile_percentiles(
        context.model,
        {a.tensor: threshold_shape(a, context.granularity) for a in context.activations},
        images,
        percentile,
        context.engine,
        context.reporter.advance,
        context.two_sided,
    )
    return bounded_thresholds(context, found)
