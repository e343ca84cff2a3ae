"""A cheap control: thresholds at a high percentile of the activations.

What a search or a training finds should beat what one number for all layers gives. Clipping at
percentiles is the common way to choose ranges when networks are quantised (Wu et al., "Integer
Quantization for Deep Learning Inference: Principles and Empirical Evaluation", 2020).

Formula: ``lambda = slack * percentile over the calibration images``, the 99.9th by default, of all
values that share the threshold, zeros included; values above become zero. Needs no training and no
labels, and does not look at what it costs in clean accuracy.
"""

from proact_onnx.methods.base import FitContext, Fitted, percentile_thresholds

_PERCENTILE = 99.9


def fit(context: FitContext) -> Fitted:
    """Return percentiles as thresholds."""
    percentile = context.settings.percentile or _PERCENTILE
    return Fitted(percentile_thresholds(context, percentile))
