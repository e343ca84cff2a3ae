"""Activation ranges over a data set, read from the model itself through ONNX Runtime."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.activations import Activation
from proact_onnx.engine.session import Provider, Session
from proact_onnx.errors import DataError, ModelError
from proact_onnx.rewrite import expose
from proact_onnx.thresholds import FloatArray


@dataclass(frozen=True)
class ActivationProfile:
    """What the activations did on the calibration images.

    Attributes:
        maxima: By activation output, the largest value each neuron took over all images, float32
            of the activation's shape without the batch axis; of all neurons together, ``()``, where
            the first axis is not the batch.
        images: How many images were seen.
        minima: The smallest values likewise, of those activations that are two-sided.
    """

    maxima: Mapping[str, FloatArray]
    images: int
    minima: Mapping[str, FloatArray] = field(default_factory=dict)


def profile_activations(
    model: onnx.ModelProto,
    activations: Sequence[Activation],
    images: npt.NDArray[Any],
    *,
    provider: Provider = Provider.AUTO,
    threads: int = 0,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda seen: None,
) -> ActivationProfile:
    """Record the range of every neuron over the images (Algorithm 1, lines 1-8).

    Images stream through in batches and only running extremes are kept.

    Args:
        model: A prepared model.
        activations: Which activations to watch.
        images: Preprocessed images, ``[N, ...]``.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.
        progress: Called after each batch with the number of images seen so far.

    Raises:
        DataError: If an activation takes a value that is not finite.
        ModelError: If the shape of an activation changes between batches.
    """
    tensors = [activation.tensor for activation in activations]
    if not tensors:
        return ActivationProfile({}, 0)
    session = Session(expose(model, tensors), provider, threads, batch_size)
    maxima: dict[str, FloatArray] = {}
    minima: dict[str, FloatArray] = {}
    seen = 0
    calls = session.calls(images)
    sizes = calls.sizes(len(images))
    for size, values in zip(sizes, session.stream(images, tensors), strict=True):
        for activation, value in zip(activations, values, strict=True):
            is_batch = not calls.whole and value.ndim > 1 and len(value) == size
            axis = 0 if is_batch and maxima.get(activation.tensor, value[0]).ndim else None
            highest = np.asarray(value.max(axis=axis), np.float32)
            lowest = (
                np.asarray(value.min(axis=axis), np.float32) if activation.two_sided else highest
            )
            if not (np.isfinite(highest).all() and np.isfinite(lowest).all()):
                raise DataError(
                    f"activation {activation.name!r} takes values that are not finite: check the "
                    "preprocessing and the model"
                )
            known = maxima.setdefault(activation.tensor, highest)
            if known.shape != highest.shape:
                raise ModelError(
                    f"activation {activation.name!r} changes its shape from {known.shape} to "
                    f"{highest.shape}: give images of one size"
                )
            np.maximum(known, highest, out=known)
            if activation.two_sided:
                known = minima.setdefault(activation.tensor, lowest)
                np.minimum(known, lowest, out=known)
        seen += size
        progress(seen)
    return ActivationProfile(maxima, seen, minima)


def observed_shapes(
    activations: Sequence[Activation], profile: ActivationProfile
) -> list[Activation]:
    """Fill in the shapes that shape inference left open with those the images produced."""
    return [
        replace(activation, shape=profile.maxima[activation.tensor].shape)
        for activation in activations
    ]
