"""Campaigns on many processes and machines, by Ray."""

from proact_onnx.distribute.cluster import open_cluster

__all__ = ["open_cluster"]
