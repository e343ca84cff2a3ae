"""Methods side by side on one model: harden with each, one paired campaign, one summary."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from scipy import stats

from proact_onnx.activations import find_activations
from proact_onnx.campaign import Campaign, CampaignResult, Estimate, Executor, mean_interval
from proact_onnx.campaign.layerwise import layerwise_distances
from proact_onnx.campaign.subject import Subject, versions
from proact_onnx.data import Dataset
from proact_onnx.engine import (
    Provider,
    Session,
    load_operators,
    observed_shapes,
    profile_activations,
    top1,
    with_output_types,
)
from proact_onnx.errors import ModelError, SettingsError
from proact_onnx.faults import added_count, parameter_count
from proact_onnx.fidelity import label_batch
from proact_onnx.files import write_text
from proact_onnx.harden import checkpoint_path, harden
from proact_onnx.methods import LabelledBatch
from proact_onnx.methods.variants import Variant, parse_variant
from proact_onnx.model import is_threshold, load_model, model_digest, provenance
from proact_onnx.progress import Reporter
from proact_onnx.rewrite import prepare, threshold_name
from proact_onnx.settings import Settings
from proact_onnx.thresholds import memory_overhead

UNPROTECTED = "none"
COMPARISON = "comparison.json"
VERSION = 1
# Images that show the ranges of activations.
_RANGE_IMAGES = 1000


@dataclass(frozen=True)
class Contender:
    """A model in a comparison.

    Attributes:
        name: What it is called in settings and file names.
        title: What it is called in tables.
        path: The model file.
        variant: How it is hardened; None for the unprotected model and for files given.
    """

    name: str
    title: str
    path: Path
    variant: Variant | None = None


@dataclass(frozen=True)
class Hardening:
    """What hardening took.

    Attributes:
        seconds: Wall time.
        evaluations: Images classified under fault on the way.
    """

    seconds: float = 0.0
    evaluations: int = 0


class MethodComparison:
    """Hardens a model by several methods and measures all of them under the same faults.

    Every step is kept in the folder and not done again: hardened models, trials, distances.

    Args:
        model: The unprotected model.
        given: Hardened files to compare as well.
        folder: Where everything goes.
        settings: Methods, faults, hardening, preprocessing, runtime.
        calibration: Images that methods learn from; None if no method is asked for.
        test: Images to measure on.
        command: What the user typed, for the record.

    Raises:
        SettingsError: If a method is unknown, two models would share a name, or another output
            than the first is to be judged.
    """

    def __init__(
        self,
        model: Path,
        given: Sequence[Path],
        folder: Path,
        settings: Settings,
        calibration: Dataset | None,
        test: Dataset,
        command: str = "",
    ) -> None:
        self._settings, self._calibration, self._test = settings, calibration, test
        self._folder, self._model, self._command = folder, model, command
        self.contenders = [
            Contender(UNPROTECTED, "unprotected", model)
            if name == UNPROTECTED
            else self._contender(parse_variant(name))
            for name in settings.compare.methods
        ]
        self.contenders += [Contender(path.stem, path.name, path) for path in given]
        if settings.inject.judged_output is not None:
            raise SettingsError(
                "methods are compared by the first output of a model: leave inject.judged_output "
                "out"
            )
        names = [contender.name for contender in self.contenders]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise SettingsError(f"{twice[0]!r} is to be compared twice: name it once")
        if UNPROTECTED not in names:
            self.contenders.insert(0, Contender(UNPROTECTED, "unprotected", model))
        if calibration is None and any(c.variant for c in self.contenders):
            raise SettingsError(
                "methods need images to learn from, and none are given: name them with --data, or "
                "as data.calibration in a file"
            )

    def record(self, contender: Contender) -> Path:
        """The campaign record of a model."""
        return self._folder / f"{self._model.stem}.{contender.name}.campaign.jsonl"

    def forget(self) -> None:
        """Delete what an earlier comparison kept, to start over."""
        for contender in self.contenders:
            kept = [self.record(contender), self._distance_file(contender)]
            if contender.variant is not None:
                kept.append(self._note(contender))
            for path in kept:
                path.unlink(missing_ok=True)

    def run(self, reporter: Reporter, executor: Executor | None = None) -> list[CampaignResult]:
        """Do what is not done yet, and write ``comparison.json``.

        Args:
            reporter: Receives progress.
            executor: Where trials run, those of hardening too; by default in this process.

        Returns:
            A campaign for each contender, under its title.

        Raises:
            ProactError: Whatever hardening and campaigns raise.
        """
        load_operators(self._settings.runtime.operators, load_model(self._model))
        self._folder.mkdir(parents=True, exist_ok=True)
        hardened = {c.name: self._harden(c, reporter, executor) for c in self.contenders}
        results = []
        for contender in self.contenders:
            campaign = Campaign(
                contender.path,
                self._test,
                self._settings.inject,
                self._settings.preprocessing,
                self._settings.runtime,
            )
            result = campaign.run(self.record(contender), reporter, executor)
            results.append(replace(result, model=contender.title))
        distances = {c.name: self._distance(c, reporter) for c in self.contenders}
        self._write(hardened, distances)
        return results

    def _contender(self, variant: Variant) -> Contender:
        path = self._folder / f"{self._model.stem}.{variant.name}.onnx"
        return Contender(variant.name, variant.title, path, variant)

    def _note(self, contender: Contender) -> Path:
        return contender.path.with_suffix(".hardening.json")

    def _distance_file(self, contender: Contender) -> Path:
        return self.record(contender).with_suffix("").with_suffix(".distance.json")

    def _harden(
        self, contender: Contender, reporter: Reporter, executor: Executor | None
    ) -> Hardening:
        if contender.variant is None or self._calibration is None:
            return Hardening()
        settings = self._settings
        chosen = contender.variant.settings(settings.harden)
        note = self._note(contender)
        identity = {
            "model": model_digest(self._model),
            "data": self._calibration.digest,
            "settings": asdict(chosen),
            "preprocessing": asdict(settings.preprocessing),
        }
        known = _read(note, identity, contender.path)
        if known is not None:
            return Hardening(known["seconds"], known["evaluations"])

        def run(*, resume: bool) -> Hardening:
            assert self._calibration is not None
            report = harden(
                self._model,
                self._calibration,
                contender.path,
                test=self._test,
                settings=chosen,
                preprocessing=settings.preprocessing,
                runtime=settings.runtime,
                reporter=reporter,
                executor=executor,
                force=True,
                resume=resume,
            )
            return Hardening(report.seconds, report.evaluations)

        try:
            found = run(resume=checkpoint_path(contender.path).exists())
        except SettingsError:
            # What an earlier comparison left had other settings.
            found = run(resume=False)
        _keep(note, identity, contender.path, asdict(found))
        return found

    def _distance(self, contender: Contender, reporter: Reporter) -> Estimate | None:
        compare, inject = self._settings.compare, self._settings.inject
        if not compare.distance_ber:
            return None
        plain = replace(inject, ber=(), flips=(), single=False, exhaustive=False)
        subject = Subject(
            contender.path, self._test, plain, self._settings.preprocessing, self._settings.runtime
        )
        asked = (compare.distance_ber, compare.distance_trials, compare.distance_images)
        identity = {**subject.identity, "asked": list(asked)}
        note = self._distance_file(contender)
        known = _read(note, identity, contender.path)
        if known is not None:
            values = np.array([math.inf if v is None else v for v in known["values"]])
        else:
            values = layerwise_distances(subject, *asked, reporter)
            finite = [float(value) if math.isfinite(value) else None for value in values]
            _keep(note, identity, contender.path, {"values": finite})
        return _student(values, inject.confidence)

    def _write(
        self, hardened: Mapping[str, Hardening], distances: Mapping[str, Estimate | None]
    ) -> None:
        settings = self._settings
        names = [c.name for c in self.contenders]
        entries = []
        stored = {}
        unprotected = load_model(self._model)
        prepared = prepare(with_output_types(unprotected), restore_rectifiers=True).model
        parameters = parameter_count(prepared)
        before = Session(unprotected, *self._arguments)
        batch = label_batch(self._test, before, settings.preprocessing)
        right_before = self._right(before, batch)
        for contender in self.contenders:
            name = contender.name
            model = load_model(contender.path)
            stored[name] = _thresholds(model)
            right, drop = right_before, Estimate(0.0, 0.0, 0.0)
            if name != UNPROTECTED:
                right = self._right(Session(model, *self._arguments), batch)
                confidence = settings.inject.confidence
                drop = mean_interval(right_before - right, (-1.0, 1.0), confidence)
            count = added_count(prepare(model, fold_batchnorm=False).model)
            distance = distances[name]
            entries.append(
                {
                    "name": name,
                    "title": contender.title,
                    "file": contender.path.name,
                    "sha256": hashlib.sha256(contender.path.read_bytes()).hexdigest(),
                    "record": self.record(contender).name,
                    "thresholds": count,
                    "memory_overhead": memory_overhead(count, parameters) if parameters else 0.0,
                    "clean_accuracy": float(right.mean()),
                    "clean_drop": asdict(drop),
                    "seconds": hardened[name].seconds,
                    "evaluations": hardened[name].evaluations,
                    "distance": None if distance is None else asdict(distance),
                    "settings": _settings_of(contender, model, settings),
                }
            )
        content = {
            "version": VERSION,
            "model": self._model.name,
            "command": self._command,
            "made_by": versions("torch"),
            "confidence": settings.inject.confidence,
            "drop_limit": settings.compare.drop_limit,
            "images": len(self._test),
            "seed": settings.inject.seed,
            "reference": _reference(names),
            "entries": entries,
            "layers": self._layers(prepared, stored),
        }
        write_text(self._folder / COMPARISON, json.dumps(content, indent=1) + "\n")

    @property
    def _arguments(self) -> tuple[Provider, int, int]:
        runtime = self._settings.runtime
        return Provider(runtime.provider), runtime.threads, runtime.batch_size

    def _right(self, session: Session, batch: LabelledBatch) -> npt.NDArray[np.float64]:
        """Tell of every image whether a model classifies it as labelled, 0 or 1."""
        if batch.labels is None:
            raise ModelError(
                f"{self._model.name} gives no class scores, which methods are compared by: use "
                "'proact-onnx inject' with the hardened files"
            )
        return top1(session.run(batch.images)).correct(batch.labels).astype(np.float64)

    def _layers(
        self, model: onnx.ModelProto, stored: Mapping[str, Mapping[str, npt.NDArray[Any]]]
    ) -> list[dict[str, Any]]:
        """Largest value of every activation, and the thresholds it was given."""
        activations = find_activations(model)
        source = self._test if self._calibration is None else self._calibration
        data = source.take(range(min(len(source), _RANGE_IMAGES)))
        session = Session(model, *self._arguments)
        images = label_batch(data, session, self._settings.preprocessing).images
        provider, threads, _ = self._arguments
        profile = profile_activations(
            model, activations, images, provider=provider, threads=threads
        )
        rows = []
        for activation in observed_shapes(activations, profile):
            name = threshold_name(activation.tensor)
            spans = {
                contender: [float(f(values[name])) for f in (np.min, np.median, np.max)]
                for contender, values in stored.items()
                if name in values
            }
            maximum = float(profile.maxima[activation.tensor].max())
            rows.append({"activation": activation.name, "maximum": maximum, "thresholds": spans})
        return rows


def _reference(names: Sequence[str]) -> str | None:
    """The method whose differences from the others are shown: ProAct, or else the last one."""
    others = [name for name in names if name != UNPROTECTED]
    if "proact" in others:
        return "proact"
    return others[-1] if others else None


def _thresholds(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Stored thresholds by name of their initializer."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if is_threshold(tensor.name)
    }


def _settings_of(
    contender: Contender, model: onnx.ModelProto, settings: Settings
) -> dict[str, Any]:
    """How a model was hardened; of a file given, what it says itself."""
    if contender.variant is not None:
        return asdict(contender.variant.settings(settings.harden))
    told = provenance(model).get("settings")
    return dict(json.loads(told)) if told else {}


def _student(values: npt.NDArray[np.float64], confidence: float) -> Estimate | None:
    """Student's interval of a mean of trials; None if one is infinite or there are too few."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    mean = float(values.mean())
    limits = stats.t.interval(confidence, len(values) - 1, mean, stats.sem(values))
    low, high = (float(limit) if np.isfinite(limit) else mean for limit in limits)
    return Estimate(mean, low, high)


def _read(note: Path, identity: Mapping[str, Any], made: Path) -> dict[str, Any] | None:
    """What a note keeps, if it belongs to these settings and to the model as it is on disk."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        fits = found["identity"] == _plain(identity) and found["model"] == model_digest(made)
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        return None
    return dict(found["result"]) if fits else None


def _keep(note: Path, identity: Mapping[str, Any], made: Path, result: Mapping[str, Any]) -> None:
    content = {"identity": _plain(identity), "model": model_digest(made), "result": result}
    write_text(note, json.dumps(content, indent=1) + "\n")


def _plain(content: Mapping[str, Any]) -> Any:
    """The same as it comes back from a JSON file."""
    return json.loads(json.dumps(content))
