"""Where trials run: in this process, or wherever another executor takes them.

A campaign gives out blocks of trials and takes back their results. What a trial measures depends on
its fault model, its number and its images alone, so it does not matter who runs it, nor when.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from proact_onnx.campaign.distance import ActivationMeter
from proact_onnx.campaign.store import TrialResult
from proact_onnx.campaign.subject import GoldenFacts, KnownScores, Subject
from proact_onnx.campaign.trial import TrialRunner
from proact_onnx.faults import FaultModel, FaultSpace
from proact_onnx.progress import Reporter, SilentReporter

Stored = tuple[tuple[str, tuple[float, ...]], ...]
"""By parameter, values in its order that trials store in place of the model's own."""


@dataclass(frozen=True)
class Block:
    """Trials that are run together.

    Attributes:
        fault: The fault model, as the record names it.
        trials: Their numbers, ascending.
        images: Images of each; 0 for all.
        stored: What they store beside the faults; see `TrialRunner.run`.
    """

    fault: str
    trials: tuple[int, ...]
    images: int
    stored: Stored = ()


@dataclass(frozen=True)
class Reuse:
    """How far trials were spared what lies before their faults.

    Attributes:
        made: Inner tensors that trials started from.
        discarded: Inner tensors that did not prove exact, and were not used.
    """

    made: int = 0
    discarded: int = 0

    def tell(self, reporter: Reporter) -> None:
        """Say it, where there is something to say."""
        if self.made + self.discarded:
            refused = f", and {self.discarded} did not prove exact" if self.discarded else ""
            reporter.notice(f"prefix reuse: trials started from {self.made} inner tensors{refused}")


@dataclass(frozen=True)
class Answer:
    """What became of a block.

    Attributes:
        block: The block.
        results: One a trial, in the block's order.
        seconds: What running it took.
        reuse: So far, in the process that ran it.
    """

    block: Block
    results: tuple[TrialResult, ...]
    seconds: float
    reuse: Reuse


@dataclass(frozen=True)
class Job:
    """All that trials need but their blocks: the same for every process that runs some.

    Attributes:
        subject: The model, its images and its settings.
        sources: By the name of a fault model in the record, what to draw and from where.
        trials: How many trials are to come, about.
        images: Images in each; 0 for all.
        rates: Bit error rates, if all fault models have one; see `Subject.golden_run`.
        weights: See there.
        distance: Whether trials measure the distance of activations.
        quiet: Whether nothing is said of the engine and the golden run.
    """

    subject: Subject
    sources: Mapping[str, tuple[FaultModel, FaultSpace]]
    trials: int
    images: int
    rates: tuple[float, ...] = ()
    weights: Mapping[str, int] | None = None
    distance: bool = False
    quiet: bool = False


class TrialWorker:
    """Runs blocks of trials, with one engine that stays open.

    Args:
        job: What the trials need.
        reporter: Receives the choice of the engine, and warnings.
        known: What the golden run gave in another process.

    Raises:
        ProactError: See `Subject.golden_run`.
    """

    def __init__(self, job: Job, reporter: Reporter, known: KnownScores | None = None) -> None:
        subject, settings = job.subject, job.subject.settings
        self._job = job
        self._golden = golden = subject.golden_run(
            SilentReporter() if job.quiet else reporter,
            job.trials,
            job.images,
            job.rates,
            job.weights,
            known,
        )
        meter = None
        if job.distance:
            meter = ActivationMeter(golden.encoded, golden.images, subject.arguments)
        self._runner = TrialRunner(golden, settings.seed, settings.record_faults, meter)

    @property
    def facts(self) -> GoldenFacts:
        """The golden run."""
        return self._golden.facts

    @property
    def scores(self) -> KnownScores:
        """The golden run's scores, for other workers."""
        return self._golden.scores

    def run(self, block: Block) -> Answer:
        """Run the trials of a block."""
        started = time.perf_counter()
        model, space = self._job.sources[block.fault]
        results = tuple(
            self._runner.run(model, space, trial, block.images, block.fault, block.stored)
            for trial in block.trials
        )
        stages = self._golden.stages
        return Answer(
            block=block,
            results=results,
            seconds=time.perf_counter() - started,
            reuse=Reuse(stages.made, stages.discarded),
        )


class Crew(Protocol):
    """Those who run the trials of one job."""

    @property
    def facts(self) -> GoldenFacts:
        """The golden run, on which all of them agree."""

    @property
    def reuse(self) -> Reuse:
        """What trials were spared so far."""

    @property
    def places(self) -> int:
        """Blocks that can be under way at once."""

    @property
    def free(self) -> int:
        """Blocks that can be submitted now."""

    @property
    def block_size(self) -> int:
        """Trials of a block that takes neither too long nor too little."""

    def submit(self, block: Block) -> None:
        """Hand over a block."""

    def collect(self) -> Answer | None:
        """Wait for some submitted block; None if `places` or `free` changed meanwhile instead."""


class Executor(Protocol):
    """Where trials run."""

    def open(self, job: Job, reporter: Reporter) -> AbstractContextManager[Crew]:
        """Get ready for a job.

        Args:
            job: What the trials need.
            reporter: Receives the choice of the engine, and warnings.

        Raises:
            ProactError: If the model cannot be run, or nobody is there to run it.
        """


class LocalExecutor:
    """Runs trials in this process, one after the other."""

    @contextmanager
    def open(self, job: Job, reporter: Reporter) -> Iterator[Crew]:
        """Get ready for a job; see `Executor.open`."""
        yield _LocalCrew(TrialWorker(job, reporter))


class _LocalCrew:
    places = 1
    block_size = 1

    def __init__(self, worker: TrialWorker) -> None:
        self._worker = worker
        self._waiting: list[Block] = []
        self.facts = worker.facts
        self.reuse = Reuse()

    @property
    def free(self) -> int:
        return self.places - len(self._waiting)

    def submit(self, block: Block) -> None:
        self._waiting.append(block)

    def collect(self) -> Answer:
        answer = self._worker.run(self._waiting.pop(0))
        self.reuse = answer.reuse
        return answer
