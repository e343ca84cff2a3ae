"""Running a campaign: the golden run, then every trial the record does not hold yet."""

from collections.abc import Iterator
from pathlib import Path

from proact_onnx.campaign.distance import ActivationMeter
from proact_onnx.campaign.estimates import leveugle_sample_size
from proact_onnx.campaign.plan import PILOT_IMAGES, PILOT_TRIALS, checks, images_per_trial
from proact_onnx.campaign.store import CampaignFile, CampaignHeader, TrialResult, check_record
from proact_onnx.campaign.subject import GoldenRun, Subject, tell_reuse
from proact_onnx.campaign.summary import CampaignResult, Reading, summarise, summarise_one
from proact_onnx.campaign.trial import TrialRunner
from proact_onnx.data import Dataset, Preprocessing
from proact_onnx.errors import SettingsError
from proact_onnx.faults import (
    Along,
    Count,
    Effect,
    FaultModel,
    Rate,
    Shape,
    Single,
)
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.settings import PAPER_TRIALS, InjectSettings, Protocol, RuntimeSettings


class Campaign:
    """A fault-injection campaign on one model.

    Args:
        model: The model file; what is faulted is what it stores.
        data: Images to evaluate, with labels where there are any. Without labels the golden run's
            classes stand in for them, and accuracy becomes agreement with the golden run.
        settings: Fault models, trials, images, format, targets and seed.
        preprocessing: How images become the model's input.
        runtime: How ONNX Runtime executes.

    Raises:
        ModelError: If the model cannot be read.
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
        self._subject = Subject(model, data, settings, preprocessing, runtime)
        self.settings = self._subject.settings
        self._images = self._fixed_images()
        images = "pilot" if self._images is None else min(self._images, len(data))
        self._identity = {**self._subject.identity, "images": images}
        self.fault_models = fault_models(self.settings)
        self._counts = {fault.name: self._count(fault) for fault in self.fault_models}

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
                campaign. More trials or fault models may be asked for than at first.
            reporter: Receives progress.

        Raises:
            CampaignError: If the record is damaged or belongs to another campaign.
            ModelError: If the model cannot be run.
            OutputError: If the record cannot be written.
        """
        reporter = reporter or LogReporter()
        self.check(record)
        subject, settings = self._subject, self.settings
        trials_to_come = sum(self._counts.values())
        rates = tuple(f.amount.ber for f in self.fault_models if isinstance(f.amount, Rate))
        golden = subject.golden_run(
            reporter,
            trials_to_come,
            PILOT_IMAGES if self._images is None else self._images,
            rates if len(rates) == len(self.fault_models) else (),
        )
        meter = None
        if settings.distance:
            meter = ActivationMeter(golden.encoded, golden.images, subject.arguments)
        trials = TrialRunner(golden, settings.seed, settings.record_faults, meter)
        header = CampaignHeader(
            identity=self._identity,
            golden=subject.describe(golden),
            made_by=subject.made_by(golden),
        )
        reading = self._reading(golden)
        done: list[TrialResult] = []
        with CampaignFile(record, header) as file:
            for fault in self.fault_models:
                reporter.begin(f"{subject.path.name} {fault.name}", self._counts[fault.name])
                done += self._trials(fault, trials, file, reading, reporter)
        tell_reuse(golden.stages, reporter)
        return CampaignResult(
            model=subject.path.name,
            golden_accuracy=golden.judge.accuracy,
            float_accuracy=golden.float_accuracy,
            images=len(golden.images),
            bits=subject.space.bits,
            saturated=golden.encoded.saturated,
            memory_overhead=subject.memory_overhead,
            labelled=golden.labelled,
            classifier=golden.labels is not None,
            golden_classes=golden.classes,
            summaries=summarise(done, reading),
            alarms=golden.alarms,
        )

    def _trials(
        self,
        fault: FaultModel,
        runner: TrialRunner,
        file: CampaignFile,
        reading: Reading,
        reporter: Reporter,
    ) -> list[TrialResult]:
        done: list[TrialResult] = []
        stops = self._stops(fault)
        images = PILOT_IMAGES if self._images is None else self._images
        for trial in range(self._counts[fault.name]):
            if trial == PILOT_TRIALS and self._images is None:
                images = images_per_trial(done, reading.golden_accuracy, reading.total)
            if trial in stops and self._narrow(fault, done, reading):
                reporter.expect(trial)
                break
            if (fault.name, trial) not in file.trials:
                file.append(runner.run(fault, self._subject.space, trial, images))
            done.append(file.trials[fault.name, trial])
            reporter.advance()
        return done

    def _stops(self, fault: FaultModel) -> frozenset[int]:
        if self.settings.half_width is None:
            return frozenset()
        return frozenset(checks(self._counts[fault.name]))

    def _narrow(self, fault: FaultModel, done: list[TrialResult], reading: Reading) -> bool:
        wanted = self.settings.half_width
        found = summarise_one(fault.name, done, reading).accuracy.half_width
        return wanted is not None and 100.0 * found <= wanted

    def _fixed_images(self) -> int | None:
        """Images of every trial; None where a pilot chooses."""
        if self.settings.protocol is Protocol.PAPER:
            return len(self._subject.data)
        return self.settings.images or None

    def _count(self, fault: FaultModel) -> int:
        """Trials of a fault model, at most."""
        settings = self.settings
        places = fault.places(self._subject.space)
        if not places:
            raise SettingsError(
                f"no word of the fault space has room for '{fault.name}': choose shorter bursts, "
                "or other bits"
            )
        if not isinstance(fault.amount, Single):
            return settings.most_trials
        if settings.exhaustive:
            return places
        if settings.protocol is Protocol.PAPER:
            return min(places, PAPER_TRIALS)
        sample = leveugle_sample_size(places, settings.margin / 100.0, settings.confidence)
        return min(places, settings.trials or sample)

    def _reading(self, golden: GoldenRun) -> Reading:
        requirement = self.settings.requirement
        return Reading(
            golden_accuracy=golden.judge.accuracy,
            confidence=self.settings.confidence,
            total=len(golden.images),
            requirement=None if requirement is None else requirement / 100.0,
            places={
                fault.name: fault.places(self._subject.space)
                for fault in self.fault_models
                if isinstance(fault.amount, Single)
            },
        )


def fault_models(settings: InjectSettings) -> tuple[FaultModel, ...]:
    """List the fault models of a campaign: all combinations of amount, effect and burst."""

    def amounts() -> Iterator[Rate | Count | Single]:
        yield from (Rate(float(ber)) for ber in settings.rates)
        yield from (Count(flips) for flips in settings.flips)
        if settings.single or settings.exhaustive:
            yield Single()

    along = Along(settings.burst_along)
    found = [
        FaultModel(amount, Effect(effect), Shape(length, along if length > 1 else Along.BITS))
        for amount in amounts()
        for effect in settings.effect
        for length in settings.burst
    ]
    return tuple(dict.fromkeys(found))
