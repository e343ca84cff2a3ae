"""The model under test: what is known before anything runs, and its golden run."""

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.campaign.encoded import EncodedModel, encode_model
from proact_onnx.campaign.judge import ClassJudge, ElementJudge, PerClass
from proact_onnx.data import Dataset, Preprocessing, check_labels, prepare
from proact_onnx.engine import (
    PrefixCache,
    Provider,
    Session,
    Workload,
    chance_warning,
    choose_engine,
    is_classifier,
    is_large,
    runtime_version,
    top1,
)
from proact_onnx.errors import ModelError
from proact_onnx.faults import (
    FaultSpace,
    fault_space,
    list_space,
    parameter_count,
    parse_format,
    spell_storage,
)
from proact_onnx.model import image_input, load_model, model_digest
from proact_onnx.progress import Reporter
from proact_onnx.rewrite import prepare as prepare_model
from proact_onnx.settings import InjectSettings, RuntimeSettings, parse_bits
from proact_onnx.thresholds import memory_overhead

Array = npt.NDArray[Any]

_FLOAT_IMAGES = 1024


@dataclass(frozen=True)
class GoldenRun:
    """A model ready for faults, and what it does without them.

    Attributes:
        encoded: The model's parameters as stored.
        stages: Run it, each from some tensor on; hold no faults between trials.
        images: Preprocessed images, ``[N, ...]``.
        judge: Compares outputs with those of the golden run.
        output_shape: Shape of the output of one image.
        labels: int64 ``[N]``: the labels given, or the golden run's classes; None where outputs
            are not class scores.
        labelled: Whether labels were given.
        float_accuracy: Accuracy of the model as the file stores it, from 0 to 1, on at most 1,024
            images spread evenly over the data set.
        notice: Which engine runs, and why.
    """

    encoded: EncodedModel
    stages: PrefixCache
    images: Array
    judge: ClassJudge | ElementJudge
    output_shape: tuple[int, ...]
    labels: npt.NDArray[np.int64] | None
    labelled: bool
    float_accuracy: float
    notice: str

    @property
    def classes(self) -> PerClass | None:
        """By class, images and how many are classified so without faults; None unless counted."""
        if not isinstance(self.judge, ClassJudge):
            return None
        return self.judge.unchanged(np.arange(len(self.images))).classes


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that every result depends on, and of some more."""
    packages = ("proact-onnx", "numpy", "onnx", *more)
    found = {package: importlib.metadata.version(package) for package in packages}
    return {**found, "onnxruntime": runtime_version(), "python": platform.python_version()}


def tell_reuse(stages: PrefixCache, reporter: Reporter) -> None:
    """Say how far trials were spared what lies before their faults."""
    if stages.made + stages.discarded:
        refused = f", and {stages.discarded} did not prove exact" if stages.discarded else ""
        reporter.notice(f"prefix reuse: trials started from {stages.made} inner tensors{refused}")


class Subject:
    """A model under test, its images and its fault space.

    Args:
        model: The model file; what is faulted is what it stores.
        data: Images to evaluate, with labels where there are any. Without labels the golden run's
            classes stand in for them, and accuracy becomes agreement with the golden run.
        settings: Format, targets, and what to measure.
        preprocessing: How images become the model's input.
        runtime: How ONNX Runtime executes.

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
    ) -> None:
        self.path = model
        self.data = data
        self.settings = settings = settings or InjectSettings()
        self.runtime = runtime = runtime or RuntimeSettings()
        self.format = parse_format(settings.format)
        self.arguments = (Provider(runtime.provider), runtime.threads, runtime.batch_size)
        self._preprocessing = preprocessing or Preprocessing()
        loaded = load_model(model)
        self._digest = model_digest(loaded)
        self.model = prepare_model(loaded, fold_batchnorm=False, expand_pools=True).model
        stored = fault_space(self.model, self.format.width)
        bits = None if settings.bits is None else parse_bits(settings.bits)
        self.space: FaultSpace = stored.restrict(settings.targets, settings.layers, bits)
        added = sum(p.size for p in stored.parameters if p.kind.is_added)
        parameters = parameter_count(self.model)
        self.memory_overhead = memory_overhead(added, parameters) if parameters else 0.0
        self._input = image_input(self.model)
        # All images are prepared for the golden run; the first shows whether they fit.
        self.prepare(data.images[:1])

    @property
    def identity(self) -> dict[str, Any]:
        """Everything a trial's numbers depend on, its fault model apart."""
        settings = self.settings
        preprocessing = self._preprocessing
        return {
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

    def golden_run(
        self,
        reporter: Reporter,
        trials: int,
        images_per_trial: int,
        rates: tuple[float, ...] = (),
        weights: Mapping[str, int] | None = None,
    ) -> GoldenRun:
        """Encode the model, open the fastest engine that is proved right, and run without faults.

        The other arguments decide which intermediate values are worth keeping, and no result.

        Args:
            reporter: Receives the choice of the engine, and warnings.
            trials: How many trials are to come, about.
            images_per_trial: Images in each; 0 for all.
            rates: Their bit error rates; without any, trials have single upsets.
            weights: By parameter, how many trials will hit it, in any unit; by default as many as
                it has bits.

        Raises:
            ModelError: If the model cannot be run, or gives no finite output.
            DataError: If the labels do not fit the model.
        """
        images = self.prepare(self.data.images)
        # Only told beside the results, so it need not cost as much as the golden run.
        sample = np.arange(min(len(images), _FLOAT_IMAGES)) * len(images)
        sample //= len(sample)
        plain = Session(self.model, *self.arguments).run(images[sample])
        encoded = encode_model(self.model, self.space, self.format)
        if storage := spell_storage(self.space):
            reporter.notice(f"{self.path.name}: format {self.format.name} applies to {storage}")
        chosen = choose_engine(encoded.model, list(encoded.parameters), images, *self.arguments)
        reporter.notice(f"{self.path.name}: {chosen.notice}")
        outputs = chosen.engine.run(images)
        if len(outputs) != len(images):
            raise ModelError(
                f"{self.path.name} does not keep its images apart: its first output has shape "
                f"{list(outputs.shape)} for {len(images):,} images; export the model with a batch "
                "axis"
            )
        if not np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1).any():
            raise ModelError(
                f"{self.path.name} gives no finite output once its parameters are stored as "
                f"{self.format.name}: choose a --format with a wider range"
            )
        judge: ClassJudge | ElementJudge
        labels = None
        if is_classifier(outputs):
            classes = int(np.prod(outputs.shape[1:]))
            check_labels(self.data, classes)
            golden = top1(outputs)
            labels = golden.classes if self.data.labels is None else self.data.labels
            judge = ClassJudge(golden, labels, classes, self.settings.per_class)
            float_accuracy = float(top1(plain).correct(labels[sample]).mean())
            if self.data.labels is not None:
                warning = chance_warning(judge.accuracy, classes, len(images))
                if warning is not None:
                    reporter.warn(warning)
        else:
            judge = ElementJudge(outputs, self.settings.tolerance)
            float_accuracy = judge.compare(plain, sample).correct / len(sample)
            reporter.notice(
                f"{self.path.name}: the output of shape {list(outputs.shape[1:])} an image is no "
                f"vector of class scores, so an image counts as right where every element is "
                f"within {self.settings.tolerance:g} of the fault-free output's largest"
            )
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
        )
        return GoldenRun(
            encoded=encoded,
            stages=stages,
            images=images,
            judge=judge,
            output_shape=outputs.shape[1:],
            labels=labels,
            labelled=labels is not None and self.data.labels is not None,
            float_accuracy=float_accuracy,
            notice=chosen.notice,
        )

    def describe(self, golden: GoldenRun) -> dict[str, Any]:
        """What a record says of the golden run, and all that reading it needs beside the trials."""
        return {
            "name": self.path.name,
            "accuracy": golden.judge.accuracy,
            "float_accuracy": golden.float_accuracy,
            "images": len(self.data),
            "fault_space_bits": self.space.bits,
            "saturated": golden.encoded.saturated,
            "memory_overhead": self.memory_overhead,
            "labelled": golden.labelled,
            "classifier": golden.labels is not None,
            "classes": golden.classes,
            "confidence": self.settings.confidence,
            "requirement": self.settings.requirement,
            "half_width": self.settings.half_width,
            "fault_space": list_space(self.space),
        }

    def made_by(self, golden: GoldenRun) -> dict[str, str]:
        """Versions of everything that takes part, the files, and the time."""
        return {
            **versions(),
            "engine": golden.notice,
            "model": str(self.path.resolve()),
            "images": self.data.source,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def prepare(self, images: Array) -> Array:
        """Turn images as stored into the model's input, ``[N, ...]``."""
        return prepare(images, self._preprocessing, self._input.shape, self._input.dtype)
