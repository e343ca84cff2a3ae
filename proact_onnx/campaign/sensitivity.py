"""The critical-bit atlas: what one upset does, by layer, kind of parameter and bit position."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from proact_onnx.campaign.estimates import Estimate, finite_population, mean_interval
from proact_onnx.campaign.executor import Executor, Job, LocalExecutor
from proact_onnx.campaign.series import Dispatch, Series
from proact_onnx.campaign.store import CampaignFile, CampaignHeader, TrialResult, check_record
from proact_onnx.campaign.subject import Subject
from proact_onnx.campaign.summary import Reading
from proact_onnx.data import Dataset, Preprocessing
from proact_onnx.faults import FaultModel, FaultSpace, Kind, Single
from proact_onnx.files import write_text
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.settings import InjectSettings, RuntimeSettings, SensitivitySettings

_SINGLE = FaultModel(Single())


@dataclass(frozen=True)
class Cell:
    """The words of one layer and kind, and one bit of each.

    Attributes:
        layer: Name of the layer.
        kind: Kind of its parameters.
        bit: Position of the bit, 0 the least significant.
        space: Exactly these bits.
    """

    layer: str
    kind: Kind
    bit: int
    space: FaultSpace

    @property
    def name(self) -> str:
        """What a record calls single upsets in this cell."""
        return f"{_SINGLE.name} bit={self.bit} {self.kind} {self.layer}"


@dataclass(frozen=True)
class CellSummary:
    """What upsets in one cell, or in a layer and kind at any bit, did; shares from 0 to 1.

    Attributes:
        layer: Name of the layer.
        kind: Kind of its parameters.
        bit: Position of the bit; None for all bits.
        words: Stored words.
        trials: Upsets tried.
        drop: Accuracy lost.
        sdc: Share of images with silent data corruption.
        nonfinite: Share of images with a non-finite output.
    """

    layer: str
    kind: Kind
    bit: int | None
    words: int
    trials: int
    drop: Estimate
    sdc: Estimate
    nonfinite: Estimate


@dataclass(frozen=True)
class Atlas:
    """Vulnerability of a model.

    Attributes:
        model: Name of the model file.
        golden_accuracy: Accuracy of the golden run.
        images: Images in the data set.
        cells: One a layer, kind and bit, in the order of the graph, bits ascending.
        layers: One a layer and kind, over all bits.
    """

    model: str
    golden_accuracy: float
    images: int
    cells: tuple[CellSummary, ...]
    layers: tuple[CellSummary, ...]


def find_cells(space: FaultSpace) -> tuple[Cell, ...]:
    """Divide a fault space by layer, kind and bit position."""
    groups: dict[tuple[str, Kind], FaultSpace] = {}
    for parameter in space.parameters:
        key = (parameter.layer, parameter.kind)
        known = groups.get(key, FaultSpace(()))
        groups[key] = FaultSpace((*known.parameters, parameter))
    cells = []
    for (layer, kind), group in groups.items():
        for bit in sorted({bit for parameter in group.parameters for bit in parameter.bits}):
            exposed = tuple(
                replace(parameter, bits=(bit,))
                for parameter in group.parameters
                if bit in parameter.bits
            )
            cells.append(Cell(layer, kind, bit, FaultSpace(exposed)))
    return tuple(cells)


class Sensitivity:
    """Measures what single upsets do, cell by cell.

    Args:
        model: The model file.
        data: Images to evaluate; without labels, accuracy is agreement with the golden run.
        settings: Trials and images.
        inject: Format, targets, layers, bits, confidence and seed.
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
        settings: SensitivitySettings | None = None,
        inject: InjectSettings | None = None,
        preprocessing: Preprocessing | None = None,
        runtime: RuntimeSettings | None = None,
    ) -> None:
        self._settings = settings or SensitivitySettings()
        self._subject = Subject(model, data, inject, preprocessing, runtime)
        self._identity = {
            **self._subject.identity,
            "command": "sensitivity",
            "images": self._settings.images,
        }
        self.cells = find_cells(self._subject.space)

    def check(self, record: Path) -> None:
        """Find out whether a record can be continued, before any work.

        Raises:
            CampaignError: If the record exists and is damaged or belongs to another campaign.
        """
        check_record(record, self._identity)

    def run(
        self, record: Path, reporter: Reporter | None = None, executor: Executor | None = None
    ) -> Atlas:
        """Run the trials that the record does not hold yet.

        Args:
            record: File of JSON lines, as a campaign writes it.
            reporter: Receives progress.
            executor: Where trials run; by default in this process. Changes no number.

        Raises:
            CampaignError: If the record is damaged or belongs to another campaign, or no worker
                is left to go on.
            OutputError: If the record cannot be written.
        """
        reporter = reporter or LogReporter()
        self.check(record)
        subject = self._subject
        counts = {
            cell: min(self._settings.trials, _SINGLE.places(cell.space)) for cell in self.cells
        }
        with (executor or LocalExecutor()).open(self._job(counts), reporter) as crew:
            golden = crew.facts
            header = CampaignHeader(
                identity=self._identity,
                golden=subject.describe(golden),
                made_by=subject.made_by(golden),
            )
            images = self._settings.images
            series = [Series(cell.name, count, images) for cell, count in counts.items()]
            with CampaignFile(record, header) as file:
                reporter.begin(subject.path.name, sum(counts.values()))
                dispatch = Dispatch(series, crew, file.trials)
                for result in (result for one in series for result in dispatch.results(one)):
                    if result.key not in file.trials:
                        file.append(result)
                    reporter.advance()
            crew.reuse.tell(reporter)
        return summarise_cells(
            subject.path.name,
            self.cells,
            [result for one in series for result in one.done],
            Reading(golden.accuracy, subject.settings.confidence, golden.images),
        )

    def _job(self, counts: Mapping[Cell, int]) -> Job:
        hits: Counter[str] = Counter()
        for cell, count in counts.items():
            hits.update({parameter.name: count for parameter in cell.space.parameters})
        return Job(
            subject=self._subject,
            sources={cell.name: (_SINGLE, cell.space) for cell in self.cells},
            trials=sum(counts.values()),
            images=self._settings.images,
            weights=hits,
        )


def summarise_cells(
    model: str, cells: Sequence[Cell], trials: Iterable[TrialResult], reading: Reading
) -> Atlas:
    """Summarise trials by cell, and by layer and kind.

    Args:
        model: Name of the model file.
        cells: The cells; each has a trial.
        trials: Named by their cells, in any order.
        reading: How to read them.
    """
    by_cell: dict[str, list[TrialResult]] = {}
    for trial in sorted(trials, key=lambda trial: trial.trial):
        by_cell.setdefault(trial.fault, []).append(trial)
    groups: dict[tuple[str, Kind], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.layer, cell.kind), []).append(cell)
    layers = [
        _summarise(
            tuple(group), None, [trial for cell in group for trial in by_cell[cell.name]], reading
        )
        for group in groups.values()
    ]
    return Atlas(
        model=model,
        golden_accuracy=reading.golden_accuracy,
        images=reading.total,
        cells=tuple(_summarise((cell,), cell.bit, by_cell[cell.name], reading) for cell in cells),
        layers=tuple(layers),
    )


def _summarise(
    cells: tuple[Cell, ...],
    bit: int | None,
    trials: list[TrialResult],
    reading: Reading,
) -> CellSummary:
    places = sum(cell.space.bits for cell in cells)
    images = np.array([trial.verdict.images for trial in trials], np.float64)
    # Upsets are drawn without replacement, so those of every place leave nothing open, if each
    # was tried on every image.
    population = places if (images == reading.total).all() else None

    def share(counts: list[int], bounds: tuple[float, float]) -> Estimate:
        estimate = mean_interval(np.array(counts, np.float64) / images, bounds, reading.confidence)
        if population is None:
            return estimate
        return finite_population(estimate, len(trials), population)

    verdicts = [trial.verdict for trial in trials]
    accuracy = reading.golden_accuracy
    return CellSummary(
        layer=cells[0].layer,
        kind=cells[0].kind,
        bit=bit,
        words=cells[0].space.elements,
        trials=len(trials),
        drop=share([v.golden_correct - v.correct for v in verdicts], (accuracy - 1.0, accuracy)),
        sdc=share([v.sdc for v in verdicts], (0.0, 1.0)),
        nonfinite=share([v.nonfinite for v in verdicts], (0.0, 1.0)),
    )


def write_atlas(atlas: Atlas, path: Path) -> None:
    """Write one line of CSV a layer, kind and bit, shares from 0 to 1.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_text(path, atlas_csv(atlas))


def atlas_csv(atlas: Atlas) -> str:
    """Spell an atlas as CSV, one line a layer, kind and bit, shares from 0 to 1."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    estimates = ("drop", "sdc", "nonfinite")
    ends = [f"{name}{end}" for name in estimates for end in ("", "_low", "_high")]
    writer.writerow(["model", "layer", "kind", "bit", "words", "trials", *ends])
    for cell in atlas.cells:
        found: list[Estimate] = [getattr(cell, name) for name in estimates]
        writer.writerow(
            [
                atlas.model,
                cell.layer,
                cell.kind,
                cell.bit,
                cell.words,
                cell.trials,
                *(f"{value:.8g}" for e in found for value in (e.mean, e.low, e.high)),
            ]
        )
    return stream.getvalue()
