"""HyReLU in PyTorch: the smooth gate that is trained and the hard one that is deployed."""

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
    distance = threshold - values
    if relative:
        distance = distance / threshold.clamp_min(_SMALLEST_THRESHOLD)
    return (values * torch.sigmoid(slope * distance)).to(rectified.dtype)


def hard_gate(rectified: Tensor, threshold: Tensor) -> Tensor:
    """Bound activations as deployed: r where ``r <= lambda``, else 0 (Eq. 2); NaN gives 0."""
    return torch.where(rectified <= threshold, rectified, 0.0)
