"""Ranger: thresholds at the largest values seen in profiling.

Source: Chen, Li and Pattabiraman, "A Low-cost Fault Corrector for Deep Neural Networks through
Range Restriction", DSN 2021; here as the ProAct paper uses it (section VI-A): values above the
threshold become zero, layer-wise or neuron-wise. Ranger's own authors clamp instead, which is
``--form saturate``.

Formula: ``lambda = slack * max over the calibration images``. Needs no training and no labels.
"""

from proact_onnx.methods.base import FitContext, profiled_thresholds
from proact_onnx.thresholds import Thresholds


def fit(context: FitContext) -> Thresholds:
    """Return the profiled maxima as thresholds."""
    return Thresholds(profiled_thresholds(context))
