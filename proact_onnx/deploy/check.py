"""What becomes of a hardened file in the runtimes that are installed here."""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import onnx

from proact_onnx.data import Dataset, Preprocessing
from proact_onnx.deploy.base import Candidate, tolerance_for
from proact_onnx.deploy.examine import Finding, Job, Outcome, examine, try_original
from proact_onnx.deploy.inputs import draw_images, expect
from proact_onnx.deploy.kept import kept_parameters, parameter_kinds
from proact_onnx.deploy.onnx_runtime import OnnxRuntime
from proact_onnx.deploy.plant import find_bounds
from proact_onnx.deploy.runtimes import choose
from proact_onnx.deploy.silence import silence
from proact_onnx.engine import Provider, load_operators, optimised_graph
from proact_onnx.errors import ModelError
from proact_onnx.faults import Kind
from proact_onnx.model import (
    is_threshold,
    load_model,
    model_digest,
    model_inputs,
    provenance,
)
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.settings import DeploySettings

Result = TypeVar("Result")

_CRASHED = "the runtime crashes and takes its process with it"


@dataclass(frozen=True)
class Folding:
    """What ONNX Runtime does to stored numbers when it loads a file.

    Attributes:
        weights: By weight, whether the optimised graph holds its numbers as the file stores them.
        others: Likewise by bias, threshold and scale.
        rescaled: Whether the file has rescaled weights, whose protection in the runtime's memory
            rests on that.
    """

    weights: Mapping[str, bool]
    others: Mapping[str, bool]
    rescaled: bool

    @property
    def merged(self) -> tuple[str, ...]:
        """The weights that constants were merged into."""
        return tuple(name for name, kept in self.weights.items() if not kept)


@dataclass(frozen=True)
class DeployReport:
    """What was found.

    Attributes:
        hardened: The hardened file.
        original: The file it was made from, if it was given.
        images: Images that outputs were compared on.
        reference: What they were compared with.
        planted: Protected layers that values were planted in.
        findings: One a runtime or optimiser that is installed.
        absent: Names of those asked for that are not.
        folding: What ONNX Runtime's optimiser does to the file's numbers.
    """

    hardened: Path
    original: Path | None
    images: int
    reference: str
    planted: int
    findings: tuple[Finding, ...]
    absent: tuple[str, ...]
    folding: Folding

    @property
    def failures(self) -> Mapping[str, str]:
        """By runtime, why the file must not be deployed there."""
        return {f.runtime: f.failure for f in self.findings if f.failure is not None}


def check_deployment(
    hardened: Path,
    original: Path | None = None,
    data: Dataset | None = None,
    settings: DeploySettings | None = None,
    preprocessing: Preprocessing | None = None,
    reporter: Reporter | None = None,
    operators: Sequence[Path] = (),
) -> DeployReport:
    """Run a hardened file in every runtime that is installed.

    Each runtime works in a process of its own, so that one that crashes is a finding. As always
    with processes, a script that calls this keeps its own work under
    ``if __name__ == "__main__"``.

    Args:
        hardened: The file that hardening wrote.
        original: The model before hardening, to compare acceptance and latency with.
        data: Images to run; random numbers when absent.
        settings: Which runtimes, and how much.
        preprocessing: How images become the model's input.
        reporter: Receives progress.
        operators: Shared libraries with operators that ONNX Runtime lacks.

    Raises:
        ModelError: If a file cannot be read, is not hardened, or not made from the original.
        DataError: If images do not fit the model.
        SettingsError: If a runtime is unknown, or a library of operators is missing.
    """
    settings = settings or DeploySettings()
    reporter = reporter or LogReporter()
    chosen = choose(settings.runtimes)
    model = load_model(hardened)
    bounds = find_bounds(model)
    if not any(is_threshold(tensor.name) for tensor in model.graph.initializer):
        raise ModelError(f"{hardened} is not hardened: it stores no thresholds")
    notice = load_operators(operators, model)
    if notice is not None:
        reporter.notice(notice)
    before = _original(original, hardened, model)
    plain = OnnxRuntime("ONNX Runtime, not optimised", Provider.CPU, 0.0, optimise=False)
    images, calls = draw_images(
        model, bounds, settings.images, data, preprocessing or Preprocessing(), plain
    )
    expected = expect(model, images, calls, plain)
    job = Job(
        hardened=model,
        original=before,
        images=images,
        calls=calls,
        expected=expected.outputs,
        expected_original=expect(before, images, calls, plain).outputs if before else (),
        rounds=settings.rounds,
        operators=tuple(operators),
    )
    present = [one for one in chosen if one.available()]
    reporter.begin("runtimes", len(present))
    findings = []
    for one in present:
        findings.append(_examine(one, job))
        reporter.advance()
    return DeployReport(
        hardened=hardened,
        original=original,
        images=len(images),
        reference=expected.reference,
        planted=len(bounds.weights),
        findings=tuple(findings),
        absent=tuple(one.name for one in chosen if one not in present),
        folding=_folding(model),
    )


def _original(
    original: Path | None, hardened: Path, model: onnx.ModelProto
) -> onnx.ModelProto | None:
    if original is None:
        return None
    before = load_model(original)
    if provenance(model).get("original_sha256", "") not in ("", model_digest(before)):
        raise ModelError(
            f"{hardened} was hardened from another model than {original}: give that one"
        )
    if model_inputs(before) != model_inputs(model):
        raise ModelError(f"{hardened} does not have the inputs of {original}: give its original")
    return before


def _examine(candidate: Candidate, job: Job) -> Finding:
    finding = _apart(examine, candidate, job)
    if finding is not None:
        return finding
    crashed = Outcome(_CRASHED, None)
    before = None if job.original is None else _apart(try_original, candidate, job) or crashed
    tolerance = tolerance_for(candidate.runtime, job.hardened)
    return Finding(candidate.name, "", tolerance, crashed, before, None, None)


def _apart(
    work: Callable[[Candidate, Job], Result], candidate: Candidate, job: Job
) -> Result | None:
    """Work in a fresh interpreter, which has no other runtime's libraries; None if it crashes."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, initializer=silence) as pool:
        try:
            return pool.submit(work, candidate, job).result()
        except BrokenProcessPool:
            return None


def _folding(model: onnx.ModelProto) -> Folding:
    kinds = parameter_kinds(model)
    kept = kept_parameters(model, optimised_graph(model), kinds)
    found = {name: place is not None for name, place in kept.items()}
    return Folding(
        weights={name: value for name, value in found.items() if kinds[name] is Kind.WEIGHT},
        others={name: value for name, value in found.items() if kinds[name] is not Kind.WEIGHT},
        rescaled=Kind.SCALE in kinds.values(),
    )
