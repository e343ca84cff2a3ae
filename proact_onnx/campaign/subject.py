"""The model under test: what is known before anything runs, and its golden run."""

import copy
import datetime
import functools
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.campaign.encoded import EncodedModel, encode_model
from proact_onnx.campaign.judge import ClassJudge, ElementJudge, PerClass
from proact_onnx.data import Dataset, Preprocessing, check_labels, prepare_inputs
from proact_onnx.engine import (
    EXTENSIONS,
    Calls,
    FaultEngine,
    PrefixCache,
    Provider,
    Session,
    Stage,
    Workload,
    chance_warning,
    choose_engine,
    extensions_version,
    is_classifier,
    is_large,
    load_operators,
    run_all,
    runtime_version,
    top1,
    with_output_types,
)
from proact_onnx.errors import CampaignError, ModelError
from proact_onnx.faults import (
    FaultSpace,
    fault_space,
    list_space,
    parameter_count,
    parse_format,
    spell_storage,
)
from proact_onnx.messages import put_together, take_apart
from proact_onnx.model import load_model, model_digest, model_inputs, output_names, put_first
from proact_onnx.monitor import Flags, Monitor, read_monitor, separate_counts
from proact_onnx.progress import Reporter
from proact_onnx.rewrite import prepare as prepare_model
from proact_onnx.settings import InjectSettings, RuntimeSettings, parse_bits
from proact_onnx.thresholds import memory_overhead

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

_FLOAT_IMAGES = 1024
# Batches by which an engine proves that it gives the scores of a golden run made elsewhere.
_PROOF_BATCHES = 4


@dataclass(frozen=True)
class GoldenFacts:
    """What records and summaries need to know of a golden run.

    Attributes:
        accuracy: Its accuracy on all images, from 0 to 1.
        float_accuracy: Accuracy of the model as the file stores it; see `GoldenRun`.
        images: Images in the data set.
        saturated: Parameters outside the range of the format.
        labelled: Whether labels were given.
        classifier: Whether outputs are class scores.
        classes: By class, images and how many are classified so; None unless counted.
        monitor: What the file says about its monitor; None where it has none.
        alarms: How many images raise the monitor's alarm; None without a monitor.
        notice: Which engine ran, and why.
    """

    accuracy: float
    float_accuracy: float
    images: int
    saturated: int
    labelled: bool
    classifier: bool
    classes: PerClass | None
    monitor: Monitor | None
    alarms: int | None
    notice: str


@dataclass(frozen=True)
class KnownScores:
    """What a golden run in another process gave, so that it need not be made again.

    Attributes:
        outputs: Scores of all images, ``[N, ...]``.
        counts: What a monitor's layers count, ``[N, 1]`` each; empty without one.
        float_accuracy: See `GoldenRun`.
    """

    outputs: Array
    counts: tuple[Array, ...]
    float_accuracy: float


@dataclass(frozen=True)
class GoldenRun:
    """A model ready for faults, and what it does without them.

    Attributes:
        encoded: The model's parameters as stored.
        stages: Run it, each from some tensor on; hold no faults between trials.
        images: Preprocessed images, ``[N, ...]``.
        scores: What the model gives for them.
        judge: Compares outputs with those of the golden run.
        output_shape: Shape of the output of one image.
        labels: int64 ``[N]``: the labels given, or the golden run's classes; None where outputs
            are not class scores.
        labelled: Whether labels were given.
        monitor: What the file says about its monitor; None where it has none.
        notice: Which engine runs, and why.

    The accuracy of the model as the file stores it is measured on at most 1,024 images spread
    evenly over the data set.
    """

    encoded: EncodedModel
    stages: PrefixCache
    images: Array
    scores: KnownScores
    judge: ClassJudge | ElementJudge
    output_shape: tuple[int, ...]
    labels: npt.NDArray[np.int64] | None
    labelled: bool
    monitor: Monitor | None
    notice: str

    @property
    def facts(self) -> GoldenFacts:
        """What records and summaries need to know of it."""
        classes = None
        if isinstance(self.judge, ClassJudge):
            classes = self.judge.unchanged(np.arange(len(self.images))).classes
        return GoldenFacts(
            accuracy=self.judge.accuracy,
            float_accuracy=self.scores.float_accuracy,
            images=len(self.images),
            saturated=self.encoded.saturated,
            labelled=self.labelled,
            classifier=self.labels is not None,
            classes=classes,
            monitor=self.monitor,
            alarms=None if self.judge.alarms is None else int(np.count_nonzero(self.judge.alarms)),
            notice=self.notice,
        )

    def observe(self, stage: Stage, chosen: Indices) -> tuple[Array, Flags | None]:
        """Run some images with the parameters as a stage holds them.

        Returns:
            The outputs, and which images raise the monitor's alarm; None without a monitor.
        """
        outputs, *counts = self.stages.observe(stage, chosen)
        return outputs, _raised(self.monitor, counts)


def _raised(monitor: Monitor | None, counts: Sequence[Array]) -> Flags | None:
    return None if monitor is None else monitor.raised(np.concatenate(counts, axis=1))


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that every result depends on, and of some more."""
    packages = ("proact-onnx", "numpy", "onnx", *more)
    found = {package: importlib.metadata.version(package) for package in packages}
    return {**found, "onnxruntime": runtime_version(), "python": platform.python_version()}


class Subject:
    """A model under test, its images and its fault space.

    Args:
        model: The model file; what is faulted is what it stores.
        data: Images to evaluate, with labels where there are any. Without labels the golden run's
            classes stand in for them, and accuracy becomes agreement with the golden run.
        settings: Format, targets, and what to measure.
        preprocessing: How images become the model's input.
        runtime: How ONNX Runtime executes.
        loaded: The model, where it is in memory: only the name of ``model`` is used then.
        prepared: Whether the images are as the model takes them already.

    Raises:
        ModelError: If the model cannot be read.
        DataError: If the images do not fit the model.
        SettingsError: If a setting does not fit the model.
    """

    def __init__(
        self,
        model: Path,
        data: Dataset,
        settings: InjectSettings | None = None,
        preprocessing: Preprocessing | None = None,
        runtime: RuntimeSettings | None = None,
        *,
        loaded: onnx.ModelProto | None = None,
        prepared: bool = False,
    ) -> None:
        self.path = model
        self.data = data
        self.settings = settings = settings or InjectSettings()
        runtime = runtime or RuntimeSettings()
        # Workers on this machine may have another working folder.
        operators = tuple(library.absolute() for library in runtime.operators)
        self.runtime = replace(runtime, operators=operators)
        self.format = parse_format(settings.format)
        self.arguments = (Provider(runtime.provider), runtime.threads, runtime.batch_size)
        self._preprocessing = preprocessing or Preprocessing()
        loaded = load_model(model) if loaded is None else loaded
        self._digest = model_digest(loaded)
        load_operators(operators, loaded)
        typed = with_output_types(loaded)
        self.model = prepare_model(typed, fold_batchnorm=False, expand_pools=True).model
        if settings.judged_output is not None:
            put_first(self.model, settings.judged_output)
        self.monitor = read_monitor(self.model)
        # So that parts of the network can be run, and give the counts of their own layers.
        self._counts = separate_counts(self.model, self.monitor) if self.monitor else ()
        stored = fault_space(self.model, self.format.width)
        bits = None if settings.bits is None else parse_bits(settings.bits)
        self.space: FaultSpace = stored.restrict(settings.targets, settings.layers, bits)
        added = sum(p.size for p in stored.parameters if p.kind.is_added)
        parameters = parameter_count(self.model)
        self.memory_overhead = memory_overhead(added, parameters) if parameters else 0.0
        self._inputs = model_inputs(self.model)
        self._prepared = prepared
        if not prepared:
            # All are prepared for the golden run; the first shows whether they fit.
            self.prepare(data.images[:1])

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Everything a trial's numbers depend on, its fault model apart."""
        settings = self.settings
        preprocessing = self._preprocessing
        identity: dict[str, Any] = {
            "model": self._digest,
            "data": self.data.digest,
            "layout": str(preprocessing.layout),
            "scale": preprocessing.scale,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "resize": list(preprocessing.resize) if preprocessing.resize else None,
            "format": self.format.name,
            "targets": sorted(settings.targets),
            "layers": sorted(settings.layers),
            "bits": None if settings.bits is None else sorted(parse_bits(settings.bits)),
            "tolerance": settings.tolerance,
            "per_class": settings.per_class,
            "distance": settings.distance,
            "record_faults": settings.record_faults,
            "seed": settings.seed,
        }
        # Records of campaigns that judge the first output stay as they always were.
        if settings.judged_output is not None:
            identity["judged_output"] = settings.judged_output
        return identity

    @functools.cached_property
    def images(self) -> Array:
        """All images as the model takes them, ``[N, ...]``."""
        return self.data.images if self._prepared else self.prepare(self.data.images)

    def __getstate__(self) -> dict[str, Any]:
        """Send the prepared images in place of the stored ones: trials need no others."""
        images = self.images
        return {
            **self.__dict__,
            "identity": self.identity,
            "images": images,
            "data": replace(self.data, images=images),
            "model": take_apart(self.model),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.model = put_together(*state["model"])

    def content_digests(self) -> dict[str, str]:
        """Digests of the model and the images as trials use them, worked out anew.

        Two processes that are to run the same trials agree on them.
        """
        images = replace(self.data, images=self.images)
        return {"model": model_digest(self.model), "images": images.digest}

    def with_threads(self, threads: int) -> Self:
        """Return the same subject, run by so many threads within an operator."""
        changed = copy.copy(self)
        provider, _, batch_size = self.arguments
        changed.arguments = (provider, threads, batch_size)
        return changed

    def load_operators(self, reporter: Reporter) -> None:
        """Let this process, which may be a worker's, run operators that ONNX Runtime lacks.

        Raises:
            SettingsError: If a library is missing here, or has none.
        """
        notice = load_operators(self.runtime.operators, self.model)
        if notice is not None:
            reporter.notice(f"{self.path.name}: {notice}")

    def golden_run(
        self,
        reporter: Reporter,
        trials: int,
        images_per_trial: int,
        rates: tuple[float, ...] = (),
        weights: Mapping[str, int] | None = None,
        known: KnownScores | None = None,
    ) -> GoldenRun:
        """Encode the model, open the fastest engine that is proved right, and run without faults.

        Numbers of trials and images, rates and weights decide which intermediate values are worth
        keeping, and no result.

        Args:
            reporter: Receives the choice of the engine, and warnings.
            trials: How many trials are to come, about.
            images_per_trial: Images in each; 0 for all.
            rates: Their bit error rates; without any, trials have single upsets.
            weights: By parameter, how many trials will hit it, in any unit; by default as many as
                it has bits. Names those outside of the fault space too that trials replace.
            known: What the golden run gave in another process; it is proved on some batches
                instead of being made again.

        Raises:
            ModelError: If the model cannot be run, or gives no finite output.
            DataError: If the labels do not fit the model.
            SettingsError: If a library of operators is missing.
            CampaignError: If the scores are not those of the golden run that is known.
        """
        self.load_operators(reporter)
        images = self.images
        # Only told beside the results, so it need not cost as much as the golden run.
        sample = np.arange(min(len(images), _FLOAT_IMAGES)) * len(images)
        sample //= len(sample)
        plain = None if known else Session(self.model, *self.arguments).run(images[sample])
        encoded = encode_model(self.model, self.space, self.format)
        if storage := spell_storage(self.space):
            reporter.notice(f"{self.path.name}: format {self.format.name} applies to {storage}")
        written = list(dict.fromkeys([*encoded.parameters, *(weights or {})]))
        chosen = choose_engine(encoded.model, written, images, *self.arguments)
        reporter.notice(f"{self.path.name}: {chosen.notice}")
        if known is None:
            outputs, *counts = self._outputs(chosen.engine)
        else:
            outputs, counts = known.outputs, list(known.counts)
            self._prove(chosen.engine, outputs)
        judge, labels = self._judge(outputs, _raised(self.monitor, counts), reporter)
        if known is None:
            assert plain is not None
            if isinstance(judge, ClassJudge):
                right = top1(plain).correct(judge.labels[sample])
                known = KnownScores(outputs, tuple(counts), float(right.mean()))
            else:
                within = judge.compare(plain, sample).correct
                known = KnownScores(outputs, tuple(counts), within / len(sample))
        _, threads, batch_size = self.arguments
        bits = weights or {p.name: p.size * len(p.bits) for p in self.space.parameters}
        stages = PrefixCache(
            encoded.model,
            chosen.engine,
            images,
            outputs,
            Workload(bits, trials, images_per_trial, rates),
            # Engines for parts of a large model would hold copies of its weights.
            0 if is_large(encoded.model) else self.runtime.cache_memory << 20,
            threads,
            batch_size,
            dict(zip(self._counts, counts, strict=True)),
        )
        return GoldenRun(
            encoded=encoded,
            stages=stages,
            images=images,
            scores=known,
            judge=judge,
            output_shape=outputs.shape[1:],
            labels=labels,
            labelled=labels is not None and self.data.labels is not None,
            monitor=self.monitor,
            notice=chosen.notice,
        )

    def _outputs(self, engine: FaultEngine) -> list[Array]:
        """What the model gives for all images, and what its monitor counts."""
        outputs, *counts = (
            run_all(engine, self.images) if self.monitor else [engine.run(self.images)]
        )
        if len(outputs) != len(self.images):
            raise ModelError(
                f"{self.path.name} does not keep its images apart: its output "
                f"{output_names(self.model)[0]!r} has shape "
                f"{list(outputs.shape)} for {len(self.images):,} images; export the model with a "
                "batch axis, or give each sample all axes of a call"
            )
        if not np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1).any():
            raise ModelError(
                f"{self.path.name} gives no finite output once its parameters are stored as "
                f"{self.format.name}: choose a --format with a wider range"
            )
        return [outputs, *counts]

    def _prove(self, engine: FaultEngine, outputs: Array) -> None:
        """Compare an engine with scores from elsewhere, in batches as they were made there."""
        batch = Calls.of(self._inputs, self.images, self.arguments[2]).size
        starts = np.arange(0, len(self.images), batch)
        looked_at = np.linspace(0, len(starts) - 1, min(len(starts), _PROOF_BATCHES)).astype(int)
        for start in starts[looked_at]:
            part = slice(start, start + batch)
            if engine.run(self.images[part]).tobytes() != outputs[part].tobytes():
                raise CampaignError(
                    f"the fault-free scores of {self.path.name} are not bit for bit those of the "
                    "first worker, as between processors of different kinds: use machines of one "
                    "kind"
                )

    def _judge(
        self, outputs: Array, alarms: Flags | None, reporter: Reporter
    ) -> tuple[ClassJudge | ElementJudge, npt.NDArray[np.int64] | None]:
        if is_classifier(outputs):
            classes = int(np.prod(outputs.shape[1:]))
            check_labels(self.data, classes)
            golden = top1(outputs)
            labels = golden.classes if self.data.labels is None else self.data.labels
            judge = ClassJudge(golden, labels, classes, self.settings.per_class, alarms)
            if self.data.labels is not None:
                warning = chance_warning(judge.accuracy, classes, len(outputs))
                if warning is not None:
                    reporter.warn(warning)
            return judge, labels
        reporter.notice(
            f"{self.path.name}: the output of shape {list(outputs.shape[1:])} an image is no "
            f"vector of class scores, so an image counts as right where every element is "
            f"within {self.settings.tolerance:g} of the fault-free output's largest"
        )
        return ElementJudge(outputs, self.settings.tolerance, alarms), None

    def describe(self, golden: GoldenFacts) -> dict[str, Any]:
        """What a record says of the golden run, and all that reading it needs beside the trials."""
        described: dict[str, Any] = {
            "name": self.path.name,
            "accuracy": golden.accuracy,
            "float_accuracy": golden.float_accuracy,
            "images": len(self.data),
            "fault_space_bits": self.space.bits,
            "saturated": golden.saturated,
            "memory_overhead": self.memory_overhead,
            "labelled": golden.labelled,
            "classifier": golden.classifier,
            "classes": golden.classes,
            "confidence": self.settings.confidence,
            "requirement": self.settings.requirement,
            "half_width": self.settings.half_width,
            "fault_space": list_space(self.space),
        }
        # Records of other models stay as they always were.
        if golden.monitor is not None:
            described["monitor"] = {**asdict(golden.monitor), "alarms": golden.alarms}
        return described

    def made_by(self, golden: GoldenFacts) -> dict[str, str]:
        """Versions of everything that takes part, the files, and the time."""
        libraries = self.runtime.operators
        operators = {"operators": ",".join(map(str, libraries))} if libraries else {}
        if extensions := extensions_version(libraries, self.model):
            operators[EXTENSIONS] = extensions
        return {
            **versions(),
            **operators,
            "engine": golden.notice,
            "model": str(self.path.resolve()),
            "images": self.data.source,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def prepare(self, images: Array) -> Array:
        """Turn images as stored into the model's input, ``[N, ...]``."""
        return prepare_inputs(images, self._preprocessing, self._inputs)
