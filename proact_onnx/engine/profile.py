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
from proact_onnx.rewrite import Extremes, expose, expose_extremes
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
    if not activations:
        return ActivationProfile({}, 0)
    outer = [activation.tensor for activation in activations if not activation.is_inner]
    inner = [activation.tensor for activation in activations if activation.is_inner]
    exposed, extremes = expose(model, outer), dict[str, Extremes]()
    if inner:
        exposed, extremes = expose_extremes(exposed, inner)
    wanted = [*outer, *(name for each in extremes.values() for name in (each.highest, each.lowest))]
    session = Session(exposed, provider, threads, batch_size)
    maxima: dict[str, FloatArray] = {}
    minima: dict[str, FloatArray] = {}
    seen = 0
    calls = session.calls(images)
    sizes = calls.sizes(len(images))
    for size, values in zip(sizes, session.stream(images, wanted), strict=True):
        given = dict(zip(wanted, values, strict=True))
        for activation in activations:
            if activation.is_inner:
                ends = _ends(extremes[activation.tensor], given)
                if ends is None:
                    continue
                highest, lowest = ends
            else:
                value = given[activation.tensor]
                is_batch = not calls.whole and value.ndim > 1 and len(value) == size
                axis = 0 if is_batch and maxima.get(activation.tensor, value[0]).ndim else None
                highest = np.asarray(value.max(axis=axis), np.float32)
                lowest = (
                    np.asarray(value.min(axis=axis), np.float32)
                    if activation.two_sided
                    else highest
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


def _ends(extremes: Extremes, given: Mapping[str, Any]) -> tuple[FloatArray, FloatArray] | None:
    """Largest and smallest value inside a subgraph; None where it was not run."""
    highest, lowest = (given[name].max() for name in (extremes.highest, extremes.lowest))
    if np.isneginf(highest) and np.isneginf(lowest):
        return None
    return np.asarray(highest, np.float32), np.asarray(-lowest, np.float32)


def observed_shapes(
    activations: Sequence[Activation], profile: ActivationProfile
) -> list[Activation]:
    """Fill in the shapes that shape inference left open with those the images produced.

    Activations that no image reached, in subgraphs that are not run, are left out.
    """
    return [
        replace(activation, shape=profile.maxima[activation.tensor].shape)
        for activation in activations
        if activation.tensor in profile.maxima
    ]
