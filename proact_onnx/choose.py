"""Method ``auto``: the best protection within limits, found by trying candidates under fault."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.build import Workpiece, build
from proact_onnx.campaign.probe import Case, open_probe, unsaved
from proact_onnx.checkpoint import NoCheckpoint
from proact_onnx.engine import Provider, Session, latency_ratios, top1
from proact_onnx.errors import ModelError, SettingsError
from proact_onnx.methods import METHODS
from proact_onnx.progress import Reporter, SilentReporter
from proact_onnx.settings import HardenSettings
from proact_onnx.targets import NPU

Labels = npt.NDArray[np.int64]

AUTOMATIC = "auto"
_CHOSEN = "chosen"
# Of those that keep accuracy as well as the best, up to these points, the first one is taken.
_AS_GOOD = 0.5
# Images per run where latency is measured, as far as the model leaves the choice.
_BATCHES = (1, 64)

# Values of both signs scatter more between images than those of activations.
_LINEAR_SLACK = 1.1

# What is tried: settings that differ from their defaults, cheaper ones first.
CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "tent": {"method": "ranger", "granularity": "auto", "form": "tent"},
    "tent, rescaled": {
        "method": "ranger",
        "granularity": "auto",
        "form": "tent",
        "rescale": "auto",
    },
    "tent, rescaled, 99.99th percentile": {
        "method": "ranger",
        "granularity": "auto",
        "form": "tent",
        "rescale": "auto",
        "percentile": 99.99,
    },
    "hard": {"method": "ranger", "granularity": "auto", "form": "hard"},
    "hard, rescaled": {
        "method": "ranger",
        "granularity": "auto",
        "form": "hard",
        "rescale": "auto",
    },
    "hard, linear layers too": {
        "method": "ranger",
        "granularity": "auto",
        "form": "hard",
        "protect": "linear",
        "slack": _LINEAR_SLACK,
    },
    "hard, rescaled, linear layers too": {
        "method": "ranger",
        "granularity": "auto",
        "form": "hard",
        "rescale": "auto",
        "protect": "linear",
        "slack": _LINEAR_SLACK,
    },
}


@dataclass(frozen=True)
class Candidate:
    """Something that was tried.

    Attributes:
        name: What it is, in words.
        overhead: Memory overhead in per cent (Eq. 6).
        drop: Points of clean accuracy lost on the accept images.
        latency: Largest ratio of its latency to the original's; None if no limit was given.
        accuracies: Accuracy under fault on the accept images, by bit error rate, from 0 to 1.
        verdict: ``chosen``, or why it was not.
    """

    name: str
    overhead: float
    drop: float
    latency: float | None
    accuracies: Mapping[float, float]
    verdict: str

    @property
    def chosen(self) -> bool:
        """Whether this is the one."""
        return self.verdict == _CHOSEN

    @property
    def score(self) -> float:
        """Mean accuracy over the bit error rates."""
        return float(np.mean(list(self.accuracies.values())))


@dataclass(frozen=True)
class Choice:
    """What was tried, and what came of it.

    Attributes:
        candidates: In the order tried.
        settings: Those of the one chosen, resolved.
        evaluations: Images classified under fault.
    """

    candidates: tuple[Candidate, ...]
    settings: HardenSettings
    evaluations: int

    def to_json(self) -> str:
        """Write down the candidates, for the metadata of the hardened file."""
        return json.dumps([asdict(candidate) for candidate in self.candidates])


def check_automatic(settings: HardenSettings) -> None:
    """Refuse settings that method ``auto`` chooses by itself.

    Raises:
        SettingsError: If one is given.
    """
    if settings.target == NPU:
        raise SettingsError(
            f"method {AUTOMATIC} tries forms that target {NPU!r} does not run: choose another "
            "method, such as ranger"
        )
    for name in ("granularity", "form", "out_of_range", "percentile"):
        if getattr(settings, name) is not None:
            raise SettingsError(
                f"method {AUTOMATIC} chooses {name.replace('_', '-')} itself: leave it out, or "
                "choose another method"
            )
    if settings.protect != "activations":
        raise SettingsError(
            f"method {AUTOMATIC} chooses what is bounded itself: leave protect out, or choose "
            "another method"
        )
    if settings.rescale != "none":
        raise SettingsError(
            f"method {AUTOMATIC} chooses what is rescaled itself: leave rescale out, or choose "
            "another method"
        )


def choose(workpiece: Workpiece, settings: HardenSettings, reporter: Reporter) -> Choice:
    """Try the candidates, and choose the one that keeps most accuracy under fault.

    All are measured on the same images of the accept set under the same fault maps, at the bit
    error rates ``search_ber``. Those that break a limit are out. Of those whose mean accuracy over
    the rates lies within half a point of the best, the first in the list is taken, which is
    the cheapest.

    Raises:
        ModelError: If the model is no classifier, or no candidate keeps to the limits.
    """
    labels = workpiece.accept.labels
    if labels is None:
        raise ModelError(
            f"method {AUTOMATIC} measures accuracy, and the model's first output is not a vector "
            "of class scores: use --method ranger"
        )
    clean = _clean_accuracy(workpiece.model, workpiece, labels)
    reporter.begin("trying candidates", len(CANDIDATES))
    tried: list[Candidate] = []
    resolved: list[HardenSettings] = []
    evaluations = 0
    for name, options in CANDIDATES.items():
        own = replace(settings, **options)
        own = METHODS[own.method].resolve(own)
        built = build(workpiece, own, NoCheckpoint(), SilentReporter())
        drop = 100.0 * (clean - _clean_accuracy(built.model, workpiece, labels))
        latency = _latency(built.model, workpiece) if settings.max_latency is not None else None
        accuracies, images = _under_fault(built.model, workpiece, labels, own, reporter)
        evaluations += images
        verdict = _broken_limit(settings, built.overhead, drop, latency)
        tried.append(Candidate(name, built.overhead, drop, latency, accuracies, verdict))
        resolved.append(own)
        reporter.advance()
    allowed = [candidate for candidate in tried if not candidate.verdict]
    if not allowed:
        reasons = "; ".join(f"{candidate.name}: {candidate.verdict}" for candidate in tried)
        raise ModelError(f"no way to harden the model keeps to the limits ({reasons}): raise one")
    best = max(candidate.score for candidate in allowed)
    winner = next(c for c in allowed if c.score >= best - _AS_GOOD / 100.0)
    judged = tuple(
        candidate
        if candidate.verdict
        else replace(candidate, verdict=_verdict(candidate, winner, best))
        for candidate in tried
    )
    return Choice(judged, resolved[tried.index(winner)], evaluations)


def _verdict(candidate: Candidate, winner: Candidate, best: float) -> str:
    if candidate is winner:
        return _CHOSEN
    if candidate.score >= best - _AS_GOOD / 100.0:
        return "as good, and dearer"
    return "keeps less accuracy"


def _broken_limit(
    settings: HardenSettings, overhead: float, drop: float, latency: float | None
) -> str:
    if drop > settings.max_accuracy_drop:
        return f"costs {drop:.2f} points, above the limit of {settings.max_accuracy_drop:g}"
    if overhead > settings.max_memory_overhead:
        return f"stores {overhead:.3g} %, above the limit of {settings.max_memory_overhead:g}"
    if latency is not None and settings.max_latency is not None and latency > settings.max_latency:
        return f"takes {latency:.2f} times as long, above the limit of {settings.max_latency:g}"
    return ""


def _clean_accuracy(model: onnx.ModelProto, workpiece: Workpiece, labels: Labels) -> float:
    runtime = workpiece.runtime
    session = Session(model, Provider(runtime.provider), runtime.threads, runtime.batch_size)
    scores = session.run(workpiece.accept.images)
    return float(top1(scores).correct(labels).mean())


def _latency(model: onnx.ModelProto, workpiece: Workpiece) -> float:
    """Largest ratio to the unhardened model's latency, over the sizes of batches."""
    runtime = workpiece.runtime
    images = workpiece.accept.images
    return max(
        latency_ratios(
            [workpiece.model, model],
            np.resize(images, (size, *images.shape[1:])),
            Provider(runtime.provider),
            runtime.threads,
        )[1]
        for size in _BATCHES
    )


def _under_fault(
    model: onnx.ModelProto,
    workpiece: Workpiece,
    labels: Labels,
    settings: HardenSettings,
    reporter: Reporter,
) -> tuple[dict[float, float], int]:
    """Accuracy by bit error rate, and how many images were classified for it."""
    subject = unsaved(model, workpiece.accept.images, labels, settings.search(), workpiece.runtime)
    with open_probe(subject, workpiece.executor, reporter) as probe:
        [accuracies] = probe.accuracies([Case()])
        return accuracies, probe.evaluations
