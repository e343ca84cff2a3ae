"""Running a campaign: the golden run, then every trial the record does not hold yet."""

import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.campaign.encoded import EncodedModel, encode_model
from proact_onnx.campaign.store import CampaignFile, CampaignHeader, check_record
from proact_onnx.campaign.summary import CampaignResult, summarise
from proact_onnx.campaign.trial import TrialRunner
from proact_onnx.data import Dataset, Preprocessing, check_labels, prepare
from proact_onnx.engine import (
    Provider,
    Session,
    chance_warning,
    choose_engine,
    runtime_version,
    top1,
)
from proact_onnx.errors import ModelError
from proact_onnx.faults import Kind, fault_space, parameter_count, parse_format
from proact_onnx.model import image_input, load_model, model_digest
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.rewrite import prepare as prepare_model
from proact_onnx.settings import InjectSettings, RuntimeSettings
from proact_onnx.thresholds import memory_overhead

Array = npt.NDArray[Any]


class Campaign:
    """A fault-injection campaign on one model.

    Args:
        model: The model file; what is flipped is what it stores.
        data: Images to evaluate, with labels where there are any. Without labels the golden run's
            classes stand in for them, and accuracy becomes agreement with the golden run.
        settings: Rates, trials, images, format, targets and seed.
        preprocessing: How images become the model's input.
        runtime: How ONNX Runtime executes.

    Raises:
        ModelError: If the model cannot be read or run, or is no classifier.
        DataError: If images or labels do not fit the model.
        SettingsError: If a setting does not fit the model.

    Example:
        ``Campaign(Path("model.onnx"), load_dataset(Path("test.npz"))).run(Path("run.jsonl"))``
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
        self.settings = settings or InjectSettings()
        self._preprocessing = preprocessing or Preprocessing()
        runtime = runtime or RuntimeSettings()
        self._arguments = (Provider(runtime.provider), runtime.threads, runtime.batch_size)
        self.format = parse_format(self.settings.format)
        loaded = load_model(model)
        self._identity = self._describe(model_digest(loaded), data)
        self._model = prepare_model(loaded, fold_batchnorm=False).model
        stored = fault_space(self._model, self.format.width)
        self.space = stored.restrict(self.settings.targets, self.settings.layers)
        thresholds = sum(p.size for p in stored.parameters if p.kind is Kind.THRESHOLD)
        parameters = parameter_count(self._model)
        self._overhead = memory_overhead(thresholds, parameters) if parameters else 0.0
        self._input = image_input(self._model)
        self._data = data
        # All images are prepared when the campaign runs; the first shows whether they fit.
        self._prepare(data.images[:1])

    def check(self, record: Path) -> None:
        """Find out whether a record can be continued by this campaign, before any work.

        Raises:
            CampaignError: If the record exists and is damaged or belongs to another campaign.
        """
        check_record(record, self._identity)

    def run(self, record: Path, reporter: Reporter | None = None) -> CampaignResult:
        """Run the trials that the record does not hold yet.

        Args:
            record: File of JSON lines; continued where it was left when it belongs to this
                campaign. More trials or rates may be asked for than at first.
            reporter: Receives progress.

        Raises:
            CampaignError: If the record is damaged or belongs to another campaign.
            OutputError: If the record cannot be written.
        """
        reporter = reporter or LogReporter()
        self.check(record)
        images = self._prepare(self._data.images)
        plain = top1(Session(self._model, *self._arguments).run(images))
        encoded = encode_model(self._model, self.space, self.format)
        chosen = choose_engine(encoded.model, list(encoded.words), images, *self._arguments)
        reporter.notice(f"{self.path.name}: {chosen.notice}")
        scores = chosen.engine.run(images)
        classes = int(np.prod(scores.shape[1:]))
        golden = top1(scores)
        if not golden.finite.any():
            raise ModelError(
                f"{self.path.name} gives no finite output once its parameters are stored as "
                f"{self.format.name}: choose a --format with a wider range"
            )
        check_labels(self._data, classes)
        labelled = self._data.labels is not None
        labels = golden.classes if self._data.labels is None else self._data.labels
        accuracy = float(golden.correct(labels).mean())
        float_accuracy = float(plain.correct(labels).mean())
        warning = chance_warning(accuracy, classes, len(images)) if labelled else None
        if warning is not None:
            reporter.warn(warning)
        header = self._header(encoded, accuracy, float_accuracy, chosen.notice)
        trials = TrialRunner(
            engine=chosen.engine,
            encoded=encoded,
            space=self.space,
            images=images,
            golden=golden,
            labels=labels,
            images_per_trial=self.settings.images,
            seed=self.settings.seed,
        )
        numbers = range(self.settings.trials)
        wanted = [(ber, number) for ber in dict.fromkeys(self.settings.ber) for number in numbers]
        with CampaignFile(record, header) as file:
            reporter.begin(self.path.name, len(wanted))
            reporter.advance(sum(key in file.trials for key in wanted))
            for key in wanted:
                if key not in file.trials:
                    file.append(trials.run(*key))
                    reporter.advance()
            done = [file.trials[key] for key in wanted]
        return CampaignResult(
            model=self.path.name,
            golden_accuracy=accuracy,
            float_accuracy=float_accuracy,
            images=len(images),
            bits=self.space.bits,
            saturated=encoded.saturated,
            memory_overhead=self._overhead,
            labelled=labelled,
            summaries=summarise(done, accuracy, self.settings.confidence),
        )

    def _prepare(self, images: Array) -> Array:
        return prepare(images, self._preprocessing, self._input.shape, self._input.dtype)

    def _header(
        self, encoded: EncodedModel, accuracy: float, float_accuracy: float, notice: str
    ) -> CampaignHeader:
        return CampaignHeader(
            identity=self._identity,
            golden={
                "accuracy": accuracy,
                "float_accuracy": float_accuracy,
                "images": len(self._data),
                "fault_space_bits": self.space.bits,
                "saturated": encoded.saturated,
            },
            made_by=made_by(notice),
        )

    def _describe(self, digest: str, data: Dataset) -> dict[str, Any]:
        settings = self.settings
        preprocessing = self._preprocessing
        return {
            "model": digest,
            "data": data.digest,
            "layout": str(preprocessing.layout),
            "scale": preprocessing.scale,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "resize": list(preprocessing.resize) if preprocessing.resize else None,
            "format": self.format.name,
            "targets": sorted(settings.targets),
            "layers": sorted(settings.layers),
            "images": settings.images,
            "seed": settings.seed,
        }


def made_by(notice: str) -> dict[str, str]:
    """Versions of everything that takes part, and the time."""
    versions = {
        package: importlib.metadata.version(package) for package in ("proact-onnx", "numpy", "onnx")
    }
    return {
        **versions,
        "onnxruntime": runtime_version(),
        "python": platform.python_version(),
        "engine": notice,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
