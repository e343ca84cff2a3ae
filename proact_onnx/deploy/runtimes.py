"""The runtimes and optimisers that a hardened file is tried in."""

from collections.abc import Sequence

from proact_onnx.deploy.base import TOLERANCE, TOLERANCE_TF32, Candidate, Optimiser, Runtime
from proact_onnx.deploy.iree import Iree
from proact_onnx.deploy.onnx_runtime import OnnxRuntime
from proact_onnx.deploy.opencv import OpenCv
from proact_onnx.deploy.openvino import OpenVino
from proact_onnx.deploy.optimisers import OnnxSim, OnnxSlim, OrtOptimiser
from proact_onnx.deploy.reference import Reference
from proact_onnx.deploy.tract import Tract
from proact_onnx.deploy.tvm import Tvm
from proact_onnx.engine import Provider
from proact_onnx.errors import SettingsError

_CPU = OnnxRuntime("onnxruntime", Provider.CPU, TOLERANCE)
_RUNTIMES: tuple[Runtime, ...] = (
    Reference(),
    _CPU,
    OnnxRuntime("onnxruntime-cuda", Provider.CUDA, TOLERANCE_TF32),
    OnnxRuntime("onnxruntime-tensorrt", Provider.TENSORRT, TOLERANCE_TF32),
    OpenVino(),
    OpenCv(),
    Tract(),
    Tvm(),
    Iree(),
)
_OPTIMISERS: tuple[Optimiser, ...] = (OrtOptimiser(), OnnxSim(), OnnxSlim())

# In the order of the table. What optimisers write is run in ONNX Runtime.
CANDIDATES = (
    *(Candidate(runtime) for runtime in _RUNTIMES),
    *(Candidate(_CPU, optimiser) for optimiser in _OPTIMISERS),
)


def choose(names: Sequence[str]) -> tuple[Candidate, ...]:
    """Return the candidates of these names, or all.

    Raises:
        SettingsError: If a name is unknown.
    """
    known = {candidate.name: candidate for candidate in CANDIDATES}
    for name in names:
        if name not in known:
            raise SettingsError(f"unknown runtime {name!r}: choose among {', '.join(known)}")
    return tuple(one for name, one in known.items() if not names or name in names)
