"""Running a campaign: the golden run, then every trial the record does not hold yet."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from proact_onnx.campaign.estimates import leveugle_sample_size
from proact_onnx.campaign.executor import Executor, Job, LocalExecutor
from proact_onnx.campaign.plan import PILOT_IMAGES, checks, images_per_trial
from proact_onnx.campaign.series import Dispatch, Series
from proact_onnx.campaign.store import CampaignFile, CampaignHeader, TrialResult, check_record
from proact_onnx.campaign.subject import GoldenFacts, Subject
from proact_onnx.campaign.summary import CampaignResult, Reading, summarise, summarise_one
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

# Seconds between two looks at the interval so far, for the terminal alone, and how many times as
# long as a look itself they are at least.
_GLANCE = 2.0
_GLANCE_TIMES = 50.0


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

    def run(
        self, record: Path, reporter: Reporter | None = None, executor: Executor | None = None
    ) -> CampaignResult:
        """Run the trials that the record does not hold yet.

        Args:
            record: File of JSON lines; continued where it was left when it belongs to this
                campaign. More trials or fault models may be asked for than at first.
            reporter: Receives progress.
            executor: Where trials run; by default in this process. Changes no number.

        Raises:
            CampaignError: If the record is damaged or belongs to another campaign, or no worker
                is left to go on.
            ModelError: If the model cannot be run.
            OutputError: If the record cannot be written.
        """
        reporter = reporter or LogReporter()
        self.check(record)
        subject = self._subject
        with (executor or LocalExecutor()).open(self._job(), reporter) as crew:
            golden = crew.facts
            header = CampaignHeader(
                identity=self._identity,
                golden=subject.describe(golden),
                made_by=subject.made_by(golden),
            )
            reading = self._reading(golden)
            series = [self._series(fault, reading) for fault in self.fault_models]
            with CampaignFile(record, header) as file:
                dispatch = Dispatch(series, crew, file.trials)
                for one in series:
                    self._carry_out(one, dispatch, file, reading, reporter)
            crew.reuse.tell(reporter)
        return CampaignResult(
            model=subject.path.name,
            golden_accuracy=golden.accuracy,
            float_accuracy=golden.float_accuracy,
            images=golden.images,
            bits=subject.space.bits,
            saturated=golden.saturated,
            memory_overhead=subject.memory_overhead,
            labelled=golden.labelled,
            classifier=golden.classifier,
            golden_classes=golden.classes,
            summaries=summarise([trial for one in series for trial in one.done], reading),
            alarms=golden.alarms,
        )

    def _job(self) -> Job:
        rates = tuple(f.amount.ber for f in self.fault_models if isinstance(f.amount, Rate))
        return Job(
            subject=self._subject,
            sources={fault.name: (fault, self._subject.space) for fault in self.fault_models},
            trials=sum(self._counts.values()),
            images=PILOT_IMAGES if self._images is None else self._images,
            rates=rates if len(rates) == len(self.fault_models) else (),
            distance=self.settings.distance,
        )

    def _series(self, fault: FaultModel, reading: Reading) -> Series:
        wanted, most = self.settings.half_width, self._counts[fault.name]

        def choose(trials: Sequence[TrialResult]) -> int:
            return images_per_trial(trials, reading.golden_accuracy, reading.total)

        def enough(trials: Sequence[TrialResult]) -> bool:
            found = summarise_one(fault.name, trials, reading).accuracy.half_width
            return wanted is not None and 100.0 * found <= wanted

        stops = () if wanted is None else checks(most)
        return Series(fault.name, most, self._images, choose, stops, enough)

    def _carry_out(
        self,
        series: Series,
        dispatch: Dispatch,
        file: CampaignFile,
        reading: Reading,
        reporter: Reporter,
    ) -> None:
        reporter.begin(f"{self._subject.path.name} {series.fault}", series.most)
        next_glance = time.monotonic() + _GLANCE
        for result in dispatch.results(series):
            if result.key not in file.trials:
                file.append(result)
            reporter.advance()
            now = time.monotonic()
            if now > next_glance:
                found = summarise_one(series.fault, series.done, reading).accuracy
                spelled = (100.0 * value for value in (found.mean, found.low, found.high))
                reporter.status("{:.2f} % [{:.2f}, {:.2f}]".format(*spelled))
                ended = time.monotonic()
                next_glance = ended + max(_GLANCE, _GLANCE_TIMES * (ended - now))
        if len(series.done) < series.most:
            reporter.expect(len(series.done))

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

    def _reading(self, golden: GoldenFacts) -> Reading:
        requirement = self.settings.requirement
        return Reading(
            golden_accuracy=golden.accuracy,
            confidence=self.settings.confidence,
            total=golden.images,
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
