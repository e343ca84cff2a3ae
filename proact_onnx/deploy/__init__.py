"""Hardened files in the runtimes that execute them: accepted, right, contained, how fast."""

from proact_onnx.deploy.check import DeployReport, Folding, check_deployment
from proact_onnx.deploy.examine import Containment, Finding, Latency, Outcome
from proact_onnx.deploy.plant import PLANTED
from proact_onnx.deploy.runtimes import CANDIDATES

__all__ = [
    "CANDIDATES",
    "PLANTED",
    "Containment",
    "DeployReport",
    "Finding",
    "Folding",
    "Latency",
    "Outcome",
    "check_deployment",
]
