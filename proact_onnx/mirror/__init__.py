"""An ONNX graph run by PyTorch, so that thresholds in it can be trained."""

from proact_onnx.mirror.graph import Mirror

__all__ = ["Mirror"]
