"""Running models in ONNX Runtime: sessions, fault engines, profiles and what outputs mean."""

from proact_onnx.engine.calls import Calls, join
from proact_onnx.engine.cuts import Workload
from proact_onnx.engine.latency import latency_ratios
from proact_onnx.engine.metrics import Predictions, chance_warning, is_classifier, top1
from proact_onnx.engine.operators import EXTENSIONS, extensions_version, load_operators
from proact_onnx.engine.optimised import optimised_graph
from proact_onnx.engine.output_types import with_output_types
from proact_onnx.engine.percentiles import profile_percentiles
from proact_onnx.engine.prefix import PrefixCache, Stage, run_all
from proact_onnx.engine.profile import ActivationProfile, observed_shapes, profile_activations
from proact_onnx.engine.select import ChosenEngine, FaultEngine, choose_engine, is_large
from proact_onnx.engine.session import (
    BatchRunner,
    Provider,
    Session,
    create_session,
    provider_works,
    runtime_version,
    session_options,
)

__all__ = [
    "EXTENSIONS",
    "ActivationProfile",
    "BatchRunner",
    "Calls",
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
    "create_session",
    "extensions_version",
    "is_classifier",
    "is_large",
    "join",
    "latency_ratios",
    "load_operators",
    "observed_shapes",
    "optimised_graph",
    "profile_activations",
    "profile_percentiles",
    "provider_works",
    "run_all",
    "runtime_version",
    "session_options",
    "top1",
    "with_output_types",
]
