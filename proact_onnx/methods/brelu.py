"""BReLU: activations clamped to a trained threshold; a cheap control.

Source: Zhan et al., "Improving Fault Tolerance for Reliable DNN Using Boundary-Aware Activation",
IEEE TCAD 2021, with one boundary for each layer.

Formula: ``min(r, lambda)``. Thresholds start at the profiled maxima and are trained all together
with Adam on ``cross-entropy + gamma * mean square of lambda``. The clamp passes the gradient of
every clipped value on to its threshold, so it needs no smooth gate.

Differences from the original: weights stay fixed, thresholds move relative to their profiled value
and end no higher, and they go back towards it where they cost too much accuracy on the accept
images.
"""

import torch

from proact_onnx.methods.base import FitContext, Fitted
from proact_onnx.methods.training import Training


def fit(context: FitContext) -> Fitted:
    """Train all thresholds together, as clamps."""
    training = Training(context)
    training.together(torch.minimum, distil=False)
    return Fitted(training.fitted)
