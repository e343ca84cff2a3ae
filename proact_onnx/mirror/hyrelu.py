"""HyReLU in PyTorch: the smooth gate that is trained and the hard one that is deployed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Keeps the relative slope defined for neurons that never fired, whose threshold is 0.
_SMALLEST_THRESHOLD = 1e-12


def smooth_gate(rectified: Tensor, threshold: Tensor, slope: float, *, relative: bool) -> Tensor:
    """Bound activations smoothly: ``r * sigmoid(k * (lambda - r))``.

    This is Eq. (5) with its sign put right. As printed, ``max{0, x [1 - sigmoid(k (lambda - x))]}``
    with k > 0 passes what lies above the threshold and removes what lies below.

    Args:
        rectified: Output r of the ReLU, ``[N, ...]``, finite.
        threshold: lambda, broadcasting against r.
        slope: k > 0.
        relative: Whether k counts relative to the threshold (k / lambda), which gives every layer
            the same shape whatever its magnitude. In absolute terms a small threshold has a gate
            so flat that it dampens legitimate values.

    Returns:
        The bounded activation, of the shape and type of ``rectified``.
    """
    # float16 is too coarse for the difference between an activation and its threshold.
    values = rectified.to(torch.promote_types(rectified.dtype, threshold.dtype))
    bounded: Tensor = _SmoothGate.apply(values, threshold, slope, relative)  # type: ignore[no-untyped-call]
    return bounded.to(rectified.dtype)


class _SmoothGate(torch.autograd.Function):
    """The gate with its derivatives by hand.

    Most of a training's time goes into passes over activations; recorded operation by operation,
    the gate and its gradient take twice as many.
    """

    @staticmethod
    def forward(
        context: Any, values: Tensor, threshold: Tensor, slope: float, relative: bool
    ) -> Tensor:
        unit = threshold.clamp_min(_SMALLEST_THRESHOLD) if relative else torch.ones_like(threshold)
        steepness = slope / unit
        gate = (threshold - values).mul_(steepness).sigmoid_()
        context.save_for_backward(values, threshold, gate, steepness)
        context.relative = relative
        return values * gate

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, threshold, gate, steepness = context.saved_tensors
        wants_values, wants_threshold, *_ = context.needs_input_grad
        # What reaches z = steepness * (threshold - values), the argument of the sigmoid.
        reached = (1.0 - gate).mul_(gate).mul_(values).mul_(gradient)
        to_values = to_threshold = None
        if wants_values:
            to_values = (gradient * gate).addcmul_(reached, steepness, value=-1.0)
        if wants_threshold:
            to_threshold = reached.sum_to_size(threshold.shape) * steepness
            if context.relative:
                # The steepness falls as the threshold rises, unless its floor holds it.
                away = reached.mul_(threshold - values).sum_to_size(threshold.shape)
                free = threshold >= _SMALLEST_THRESHOLD
                to_threshold = to_threshold - torch.where(free, away * steepness / threshold, 0.0)
        return to_values, to_threshold, None, None


def hard_gate(rectified: Tensor, threshold: Tensor) -> Tensor:
    """Bound activations as deployed: r where ``r <= lambda``, else 0 (Eq. 2); NaN gives 0."""
    return torch.where(rectified <= threshold, rectified, 0.0)


def two_sided(
    values: Tensor, thresholds: Tensor, gate: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Bound values of both signs, each side by itself: ``gate(v+, lambda+) - gate(v-, lambda-)``.

    Args:
        values: v, ``[N, ...]``, with ``v+ = max(v, 0)`` and ``v- = max(-v, 0)``.
        thresholds: ``[2, ...]``: magnitudes of the lower and the upper thresholds.
        gate: How values that are not negative are bounded.
    """
    below, above = thresholds
    return gate(values.relu(), above) - gate((-values).relu(), below)
