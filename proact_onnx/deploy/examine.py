"""One runtime and one model: is it accepted, right, contained, and how long does it take?

This runs in a process of its own, see `check.py`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from proact_onnx.deploy.base import Array, Candidate, Feeds, Program, Shapes, tolerance_for
from proact_onnx.deploy.kept import kept_parameters
from proact_onnx.deploy.plant import PLANTED, Bounds, find_bounds, first_leak, plant
from proact_onnx.engine import Calls, join, load_operators
from proact_onnx.model import output_names
from proact_onnx.rewrite import expose

# A sample takes at least this long, so that the clock counts little.
_SAMPLE_SECONDS = 0.01
# Letters of a runtime's reason that fit into a line of a report.
_REASON = 200


@dataclass(frozen=True)
class Job:
    """What is asked of every runtime.

    Attributes:
        hardened: The hardened model.
        original: The model it was made from; None if it is not known.
        images: ``[N, ...]``, ready for the models' input, or records ``[N]`` for several inputs.
        calls: How these become runs.
        expected: Outputs of the hardened model for the images, by the reference.
        expected_original: Likewise of the original; empty without one.
        rounds: Turns of each model for its latency.
        operators: Libraries with operators that ONNX Runtime lacks.
    """

    hardened: onnx.ModelProto
    original: onnx.ModelProto | None
    images: Array
    calls: Calls
    expected: tuple[Array, ...]
    expected_original: tuple[Array, ...]
    rounds: int
    operators: tuple[Path, ...] = ()

    @property
    def feeds(self) -> Feeds:
        """What the first run is given."""
        return first_feeds(self.images, self.calls)

    @property
    def shapes(self) -> Shapes:
        """Extents of the inputs of a run."""
        return shapes_of(self.feeds)


@dataclass(frozen=True)
class Outcome:
    """What became of one model in a runtime.

    Attributes:
        refusal: The runtime's reason, in one line; None if it ran the model.
        error: Largest error, relative to the largest output; None if it was refused.
    """

    refusal: str | None
    error: float | None


@dataclass(frozen=True)
class Latency:
    """Medians over interleaved runs of one batch.

    Attributes:
        original: Seconds of the original.
        hardened: Seconds of the hardened model.
        ratio: Median of the ratios within a round.
    """

    original: float
    hardened: float
    ratio: float


@dataclass(frozen=True)
class Containment:
    """What became of values planted in weights of protected layers.

    Attributes:
        leaks: By value, the first tensor that is not contained; None where all are.
        hidden: Whether hidden activations were looked at, or the outputs alone.
        missing: Weights that could not be planted in, because the optimiser changed them.
    """

    leaks: Mapping[str, str | None]
    hidden: bool
    missing: tuple[str, ...]

    @property
    def contained(self) -> int:
        """How many of the values do no harm."""
        return sum(leak is None for leak in self.leaks.values())


@dataclass(frozen=True)
class Finding:
    """What a runtime does with a hardened model.

    Attributes:
        runtime: Its name.
        version: Its version.
        tolerance: Largest error allowed.
        hardened: How it ran the hardened model.
        original: How it ran the original; None where that was not asked for.
        containment: None where the model was refused, or has no weights to plant in.
        latency: None where it was not measured.
    """

    runtime: str
    version: str
    tolerance: float
    hardened: Outcome
    original: Outcome | None
    containment: Containment | None
    latency: Latency | None

    @property
    def failure(self) -> str | None:
        """Why the hardened model must not be deployed there; None if it may.

        What a runtime does to the original as well is not the bounds' doing.
        """
        if self.hardened.refusal is not None:
            accepted = self.original is not None and self.original.refusal is None
            return "accepts the original and refuses the hardened model" if accepted else None
        was_wrong = self.original is not None and _is_wrong(self.original, self.tolerance)
        if _is_wrong(self.hardened, self.tolerance) and not was_wrong:
            return f"gives wrong outputs (error {self.hardened.error:.1e})"
        return None


def examine(candidate: Candidate, job: Job) -> Finding:
    """Find out what a runtime does with a model.

    Args:
        candidate: The runtime, with the optimiser in front of it.
        job: Models and images.
    """
    load_operators(job.operators, job.hardened)
    runtime = candidate.runtime
    outcome, program = _try(candidate, job.hardened, job, job.expected)
    original, before = None, None
    if job.original is not None:
        original, before = _try(candidate, job.original, job, job.expected_original)
    containment = latency = None
    if program is not None:
        containment = _plant_all(candidate, job)
    if program is not None and before is not None and runtime.timed and not candidate.optimiser:
        latency = _compare_latency(before, program, job)
    return Finding(
        runtime=candidate.name,
        version=candidate.version(),
        tolerance=tolerance_for(runtime, job.hardened),
        hardened=outcome,
        original=original,
        containment=containment,
        latency=latency,
    )


def try_original(candidate: Candidate, job: Job) -> Outcome | None:
    """Find out what a runtime does with the original alone; None where there is none."""
    if job.original is None:
        return None
    load_operators(job.operators, job.original)
    return _try(candidate, job.original, job, job.expected_original)[0]


def spell_reason(error: Exception) -> str:
    """Put what a runtime says when it refuses a model into one line."""
    text = " ".join(str(error).split("Stack backtrace")[0].split()) or type(error).__name__
    return text if len(text) <= _REASON else f"{text[:_REASON].rstrip()}..."


def largest_error(actual: Sequence[Array], expected: Sequence[Array]) -> float:
    """Largest error of any output, relative to that output's largest expected value."""
    worst = 0.0
    for ours, theirs in zip(actual, expected, strict=True):
        if not theirs.size:
            continue
        wanted = theirs.astype(np.float64)
        scale = float(np.abs(wanted).max()) or 1.0
        error = float(np.abs(ours.astype(np.float64).reshape(wanted.shape) - wanted).max()) / scale
        # The largest of a number and NaN depends on their order.
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def first_feeds(images: Array, calls: Calls) -> Feeds:
    """What the first run of some images is given."""
    batch, _ = next(calls.cut(images))
    return calls.feeds(batch)


def shapes_of(feeds: Feeds) -> Shapes:
    """Extents of what a run is given."""
    return {name: values.shape for name, values in feeds.items()}


def run_batches(program: Program, images: Array, calls: Calls) -> list[Array]:
    """Run images batch by batch; the outputs, joined."""
    parts = [calls.apart(program(calls.feeds(batch)), count) for batch, count in calls.cut(images)]
    return [join(part) for part in zip(*parts, strict=True)]


def _is_wrong(outcome: Outcome, tolerance: float) -> bool:
    return outcome.error is not None and not outcome.error <= tolerance


def _try(
    candidate: Candidate, model: onnx.ModelProto, job: Job, expected: Sequence[Array]
) -> tuple[Outcome, Program | None]:
    try:
        program = candidate.runtime.load(candidate.rewrite(model), job.shapes)
        actual = run_batches(program, job.images, job.calls)
        return Outcome(None, largest_error(actual, expected)), program
    except Exception as error:  # each runtime has its own classes
        return Outcome(spell_reason(error), None), None


def _plant_all(candidate: Candidate, job: Job) -> Containment | None:
    """Plant every value in all protected layers at once.

    One element a layer: each layer then adds its own fault to input that the bound before it has
    made finite again, so all bounds are tested in one run, and the first that fails is seen.
    """
    bounds = find_bounds(job.hardened)
    if not bounds.weights:
        return None
    # Tensors that are outputs keep a runtime from fusing the operators around them, so what comes
    # out is taken from the model as it is deployed.
    bare, weights = _rewrite(candidate, job.hardened, bounds)
    exposed, exposed_weights = _rewrite(candidate, expose(job.hardened, bounds.thresholds), bounds)
    feeds, shapes = job.feeds, job.shapes
    leaks: dict[str, str | None] = {}
    looked_inside = True
    for spelled, value in PLANTED.items():
        try:
            outputs = candidate.runtime.load(plant(bare, weights.values(), value), shapes)(feeds)
        except Exception as error:  # each runtime has its own classes
            leaks[spelled] = f"an error ({spell_reason(error)})"
            continue
        inside: Mapping[str, Array] = {}
        try:
            values = candidate.runtime.load(
                plant(exposed, exposed_weights.values(), value), shapes
            )(feeds)
            inside = dict(zip(output_names(exposed), values, strict=True))
        except Exception:  # a runtime that does not give out inner tensors
            looked_inside = False
        hidden = {name: inside[name] for name in bounds.thresholds if name in inside}
        leaks[spelled] = first_leak(outputs, hidden, bounds)
    return Containment(leaks, looked_inside, tuple(set(bounds.weights) - weights.keys()))


def _rewrite(
    candidate: Candidate, model: onnx.ModelProto, bounds: Bounds
) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """Optimise a model, and say where its protected weights are then."""
    rewritten = candidate.rewrite(model)
    kept = kept_parameters(model, rewritten, bounds.weights)
    return rewritten, {name: place for name, place in kept.items() if place is not None}


def _compare_latency(original: Program, hardened: Program, job: Job) -> Latency:
    """Time both models in turn, so that both see the same machine."""
    feeds = job.feeds
    programs = (original, hardened)
    repetitions = max(1, round(_SAMPLE_SECONDS / _seconds(original, feeds, 1)))
    samples = np.array(
        [[_seconds(program, feeds, repetitions) for program in programs] for _ in range(job.rounds)]
    )
    before, after = (float(np.median(samples[:, place])) for place in (0, 1))
    return Latency(before, after, float(np.median(samples[:, 1] / samples[:, 0])))


def _seconds(program: Program, feeds: Feeds, repetitions: int) -> float:
    started = time.perf_counter()
    for _ in range(repetitions):
        program(feeds)
    return (time.perf_counter() - started) / repetitions
