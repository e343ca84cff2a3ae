"""Running models in ONNX Runtime: sessions, fault engines, profiles and what outputs mean."""

from proact_onnx.engine.cuts import Workload
from proact_onnx.engine.latency import latency_ratios
from proact_onnx.engine.metrics import Predictions, chance_warning, is_classifier, top1
from proact_onnx.engine.percentiles import profile_percentiles
from proact_onnx.engine.prefix import PrefixCache, Stage, run_all
from proact_onnx.engine.profile import ActivationProfile, observed_shapes, profile_activations
from proact_onnx.engine.select import ChosenEngine, FaultEngine, choose_engine, is_large
from proact_onnx.engine.session import Provider, Session, runtime_version

__all__ = [
    "ActivationProfile",
    "ChosenEngine",
    "FaultEngine",
    "Predictions",
    "PrefixCache",
    "Provider",
    "Session",
    "Stage",
    "Workload",
    "chance_warning",
    "choose_engine",
    "is_classifier",
    "is_large",
    "latency_ratios",
    "observed_shapes",
    "profile_activations",
    "profile_percentiles",
    "run_all",
    "runtime_version",
    "top1",
]
