"""Accuracy under fault while protection is looked for: trials that no record keeps."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.campaign.executor import Block, Crew, Executor, Job, Stored
from proact_onnx.campaign.store import TrialResult
from proact_onnx.campaign.subject import Subject
from proact_onnx.data import Dataset
from proact_onnx.faults import FaultModel, FaultSpace, Rate
from proact_onnx.progress import Reporter
from proact_onnx.settings import InjectSettings, RuntimeSettings

# What messages call a model that is no file yet.
_NAME = Path("the hardened model")


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        space: Name of the parameters that faults hit.
        stored: What trials store beside the faults; see `TrialRunner.run`.
    """

    space: str = ""
    stored: Stored = ()


class Probe:
    """Measures accuracy under fault; every case meets the same fault maps on the same images.

    Args:
        crew: Who runs the trials.
        settings: Bit error rates, trials at each, and images of a trial.

    Attributes:
        evaluations: Images classified under fault so far.
    """

    def __init__(self, crew: Crew, settings: InjectSettings) -> None:
        self._crew, self._settings = crew, settings
        self.evaluations = 0

    def accuracies(self, cases: Sequence[Case]) -> list[dict[float, float]]:
        """Measure cases, all at once where there are several workers.

        Returns:
            Mean accuracy of each case, from 0 to 1, by bit error rate in ascending order.
        """
        found: dict[tuple[str, Stored], list[TrialResult]] = {}
        distinct = list(dict.fromkeys(cases))
        rates = sorted(self._settings.ber)
        waiting = self._blocks(distinct, rates)
        missing = len(distinct) * len(rates) * self._settings.most_trials
        while missing:
            while self._crew.free > 0 and (block := next(waiting, None)) is not None:
                self._crew.submit(block)
            answer = self._crew.collect()
            if answer is not None:
                block, results = answer.block, answer.results
                found.setdefault((block.fault, block.stored), []).extend(results)
                missing -= len(results)
        self.evaluations += sum(r.verdict.images for results in found.values() for r in results)
        return [
            {rate: _mean(found[_source(case.space, rate), case.stored]) for rate in rates}
            for case in cases
        ]

    def _blocks(self, cases: Sequence[Case], rates: Sequence[float]) -> Iterator[Block]:
        count = self._settings.most_trials
        left = len(cases) * len(rates) * count
        for case in cases:
            for rate in rates:
                start = 0
                while start < count:
                    # The last blocks become smaller, so that all workers end at about the same
                    # time.
                    share = -(-left // max(1, self._crew.places))
                    end = min(count, start + min(self._crew.block_size, share))
                    fault, trials = _source(case.space, rate), tuple(range(start, end))
                    yield Block(fault, trials, self._settings.images, case.stored)
                    start, left = end, left - len(trials)


@contextmanager
def open_probe(
    subject: Subject,
    executor: Executor,
    reporter: Reporter,
    spaces: Mapping[str, FaultSpace] | None = None,
    replaced: Iterable[str] = (),
    cases: int = 1,
) -> Iterator[Probe]:
    """Get ready to measure a model.

    Args:
        subject: The model, its images, and what is measured.
        executor: Where trials run.
        reporter: Receives what becomes of workers.
        spaces: By the names that cases use, parameters that faults hit; by default those of the
            subject's fault space, as ``""``.
        replaced: Parameters outside of the fault space whose values cases replace.
        cases: How many are to come, about.

    Raises:
        ModelError: If the model cannot be run.
        DataError: If the labels do not fit the model.
        CampaignError: If nobody is there to run it.
    """
    settings = subject.settings
    sizes = {parameter.name: parameter.size for parameter in subject.space.parameters}
    job = Job(
        subject=subject,
        sources={
            _source(name, rate): (FaultModel(Rate(rate)), space)
            for name, space in (spaces or {"": subject.space}).items()
            for rate in settings.ber
        },
        trials=cases * len(settings.ber) * settings.most_trials,
        images=settings.images,
        rates=settings.ber if spaces is None else (),
        weights=None if spaces is None else sizes | dict.fromkeys(replaced, 0),
        quiet=True,
    )
    with executor.open(job, reporter) as crew:
        yield Probe(crew, settings)


def unsaved(
    model: onnx.ModelProto,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    settings: InjectSettings,
    runtime: RuntimeSettings,
) -> Subject:
    """Describe a model that is no file yet.

    Args:
        model: The model; not changed.
        images: As the model takes them, ``[N, ...]``.
        labels: int64 ``[N]``.
        settings: What is measured, and in which parameters.
        runtime: How ONNX Runtime executes.

    Raises:
        SettingsError: If the model stores none of these parameters.
    """
    data = Dataset(images, labels, "the images that are learnt from")
    return Subject(_NAME, data, settings, runtime=runtime, loaded=model, prepared=True)


def _source(space: str, rate: float) -> str:
    name = FaultModel(Rate(rate)).name
    return f"{name} before {space}" if space else name


def _mean(results: Sequence[TrialResult]) -> float:
    # In the order of the trials, for the same sum whoever ran them.
    verdicts = [result.verdict for result in sorted(results, key=lambda result: result.trial)]
    return float(np.mean([verdict.correct / verdict.images for verdict in verdicts]))
