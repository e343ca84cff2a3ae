"""Hardening methods, one file each; this is the list of them."""

from collections.abc import Mapping

from proact_onnx.methods import ranger
from proact_onnx.methods.base import Checkpoint, FitContext, LabelledBatch, Method
from proact_onnx.thresholds import Thresholds


def _proact(context: FitContext) -> Thresholds:
    # Training-free methods must work without loading torch.
    from proact_onnx.methods import proact

    return proact.fit(context)


METHODS: Mapping[str, Method] = {"proact": _proact, "ranger": ranger.fit}

__all__ = ["METHODS", "Checkpoint", "FitContext", "LabelledBatch", "Method"]
