"""What a report is made from: records and comparisons, read and sorted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from proact_onnx.campaign import (
    AtlasRecord,
    CampaignHeader,
    CampaignRecord,
    CampaignResult,
    read_record,
)
from proact_onnx.compare import COMPARISON
from proact_onnx.errors import CampaignError
from proact_onnx.report.comparison import Comparison, read_comparison

# What two campaigns may differ in and still be shown as one: the models, and what was measured
# beside accuracy.
_FREE = frozenset({"model", "images", "per_class", "distance", "record_faults", "command"})


@dataclass(frozen=True)
class Runs:
    """Finished runs.

    Attributes:
        comparisons: Comparisons of methods.
        campaigns: Campaigns by the conditions they share, each group under distinct names.
        atlases: Sensitivity studies.
        confidence: Confidence level of all intervals.
    """

    comparisons: tuple[Comparison, ...]
    campaigns: tuple[tuple[CampaignRecord, ...], ...]
    atlases: tuple[AtlasRecord, ...]
    confidence: float

    @property
    def paths(self) -> list[Path]:
        """All files that were read."""
        return [
            *(found.folder / COMPARISON for found in self.comparisons),
            *(entry.record.path for found in self.comparisons for entry in found.entries),
            *(record.path for group in self.campaigns for record in group),
            *(record.path for record in self.atlases),
        ]


def read_runs(paths: Sequence[Path], confidence: float | None = None) -> Runs:
    """Read runs and sort them.

    Args:
        paths: Records, and folders that hold a comparison; each once, however often it is named.
        confidence: Confidence level of the intervals; by default the one the runs have in common.

    Raises:
        CampaignError: If a run cannot be read, or levels differ.
    """
    comparisons: list[Comparison] = []
    campaigns: list[CampaignRecord] = []
    atlases: list[AtlasRecord] = []
    levels: dict[float, Path] = {}
    for path in {path.resolve(): path for path in paths}.values():
        run = _read(path, confidence)
        levels.setdefault(run.confidence, path)
        if isinstance(run, Comparison):
            comparisons.append(run)
        elif isinstance(run, CampaignRecord):
            campaigns.append(run)
        else:
            atlases.append(run)
    if len(levels) > 1:
        (first, one), (second, other) = list(levels.items())[:2]
        raise CampaignError(
            f"the intervals of {one} are at {100 * first:g} % and those of {other} at "
            f"{100 * second:g} %: choose one level with --confidence, or report on them apart"
        )
    return Runs(tuple(comparisons), _groups(campaigns), tuple(atlases), next(iter(levels)))


def conditions(header: CampaignHeader) -> Mapping[str, object]:
    """What campaigns must share for their figures to be comparable: data, format, seed, ..."""
    return {name: value for name, value in header.identity.items() if name not in _FREE}


def _read(path: Path, confidence: float | None) -> Comparison | CampaignRecord | AtlasRecord:
    if path.is_dir() or path.name == COMPARISON:
        folder = path if path.is_dir() else path.parent
        if not (folder / COMPARISON).exists():
            raise CampaignError(
                f"{folder} holds no {COMPARISON}: name a folder that compare wrote, or the "
                ".jsonl records of campaigns"
            )
        found = read_comparison(folder)
        if confidence is not None and confidence != found.confidence:
            raise CampaignError(
                f"the intervals of {folder} were computed at {100 * found.confidence:g} %: leave "
                "--confidence out, or compare again at the level wanted"
            )
        return found
    return read_record(path, confidence)


def _groups(records: Sequence[CampaignRecord]) -> tuple[tuple[CampaignRecord, ...], ...]:
    groups: list[list[CampaignRecord]] = []
    for record in records:
        for group in groups:
            if conditions(group[0].header) == conditions(record.header):
                group.append(record)
                break
        else:
            groups.append([record])
    return tuple(tuple(_distinct(group)) for group in groups)


def _distinct(group: Sequence[CampaignRecord]) -> list[CampaignRecord]:
    """Tell models of one name apart by their records."""
    names = Counter(record.result.model for record in group)

    def named(record: CampaignRecord) -> CampaignResult:
        name = record.result.model
        unique = name if names[name] == 1 else f"{name} ({record.path})"
        return replace(record.result, model=unique)

    return [replace(record, result=named(record)) for record in group]
