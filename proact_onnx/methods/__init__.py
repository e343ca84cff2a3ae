"""Hardening methods, one file each; this is the list of them."""

from collections.abc import Mapping

from proact_onnx.methods import clip_percentile, ftclipact, ranger
from proact_onnx.methods.base import (
    Checkpoint,
    Fit,
    FitContext,
    Fitted,
    LabelledBatch,
    Method,
)
from proact_onnx.rewrite import Form
from proact_onnx.thresholds import Granularity


# Methods that train need torch; those that do not must start without.
def _proact(context: FitContext) -> Fitted:
    from proact_onnx.methods import proact

    return proact.fit(context)


def _fitact(context: FitContext) -> Fitted:
    from proact_onnx.methods import fitact

    return fitact.fit(context)


def _brelu(context: FitContext) -> Fitted:
    from proact_onnx.methods import brelu

    return brelu.fit(context)


METHODS: Mapping[str, Method] = {
    "proact": Method(_proact, Granularity.HYBRID, trains=True),
    "ranger": Method(ranger.fit, Granularity.LAYER),
    "ftclipact": Method(ftclipact.fit, Granularity.LAYER, runs_trials=True),
    "fitact": Method(_fitact, Granularity.NEURON, trains=True),
    "brelu": Method(_brelu, Granularity.LAYER, Form.SATURATE, trains=True),
    "clip-percentile": Method(clip_percentile.fit, Granularity.LAYER),
}

__all__ = ["METHODS", "Checkpoint", "Fit", "FitContext", "Fitted", "LabelledBatch", "Method"]
