"""Ranger: thresholds at the largest values seen in profiling.

Source: Chen, Li and Pattabiraman, "A Low-cost Fault Corrector for Deep Neural Networks through
Range Restriction", DSN 2021; here as the ProAct paper uses it (section VI-A): values above the
threshold become zero, layer-wise or neuron-wise. Ranger's own authors clamp instead, which is
``--out-of-range clamp``.

Formula: ``lambda = slack * max over the calibration images``, or a percentile (``--percentile``)
in place of the maximum. Needs no training and no labels.
"""

from proact_onnx.methods.base import FitContext, Fitted, percentile_thresholds


def fit(context: FitContext) -> Fitted:
    """Return the profiled maxima, or percentiles, as thresholds."""
    return Fitted(percentile_thresholds(context, context.settings.percentile or 100.0))
