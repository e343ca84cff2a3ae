"""What a record says, without the model and the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proact_onnx.campaign.sensitivity import Atlas, find_cells, summarise_cells
from proact_onnx.campaign.store import CampaignHeader, TrialResult, read_campaign
from proact_onnx.campaign.summary import CampaignResult, Reading, summarise
from proact_onnx.errors import CampaignError, SettingsError
from proact_onnx.faults import FaultSpace, Single, parse_fault_model, read_space

_USUAL_CONFIDENCE = 0.95


@dataclass(frozen=True)
class CampaignRecord:
    """The record of a campaign, read back.

    Attributes:
        path: The file.
        header: What the campaign is.
        confidence: Confidence level of the intervals.
        requirement: Accuracy in per cent below which a trial counts as a failure, if there is one.
        result: What `Campaign.run` returned, over all trials that the record holds.
    """

    path: Path
    header: CampaignHeader
    confidence: float
    requirement: float | None
    result: CampaignResult


@dataclass(frozen=True)
class AtlasRecord:
    """The record of a sensitivity study, read back.

    Attributes:
        path: The file.
        header: What the study is.
        confidence: Confidence level of the intervals.
        atlas: What `Sensitivity.run` returned, over all trials that the record holds.
    """

    path: Path
    header: CampaignHeader
    confidence: float
    atlas: Atlas


def read_record(path: Path, confidence: float | None = None) -> CampaignRecord | AtlasRecord:
    """Read the record of a campaign or of a sensitivity study, and summarise it.

    The first release did not write down everything: the memory overhead of its campaigns is
    unknown, intervals of single upsets in bursts are those of an endless fault space, and studies
    cannot be read.

    Args:
        path: The record.
        confidence: Confidence level of the intervals; by default the one that the record was
            begun with.

    Raises:
        CampaignError: If it cannot be read, is damaged or holds too little.
    """
    header, trials = read_campaign(path)
    _check_numbers(trials, path)
    golden = header.golden
    try:
        space = read_space(golden["fault_space"]) if "fault_space" in golden else None
        level = _level(golden) if confidence is None else confidence
        if header.identity.get("command") == "sensitivity":
            return AtlasRecord(path, header, level, _atlas(path, golden, space, trials, level))
        requirement = golden.get("requirement")
        return CampaignRecord(
            path=path,
            header=header,
            confidence=level,
            requirement=None if requirement is None else float(requirement),
            result=_result(path, golden, space, trials, level),
        )
    except (KeyError, ValueError, TypeError, SettingsError) as error:
        raise CampaignError(
            f"{path} is damaged, because its header or the name of a fault model cannot be "
            "understood: restore it, or measure again"
        ) from error


def _level(golden: Mapping[str, Any]) -> float:
    level = float(golden.get("confidence", _USUAL_CONFIDENCE))
    if not 0.0 < level < 1.0:
        raise ValueError("a level of confidence lies between 0 and 1")
    return level


def _result(
    path: Path,
    golden: Mapping[str, Any],
    space: FaultSpace | None,
    trials: Sequence[TrialResult],
    confidence: float,
) -> CampaignResult:
    accuracy = float(golden["accuracy"])
    bits = int(golden["fault_space_bits"])
    overhead, requirement = golden.get("memory_overhead"), golden.get("requirement")
    classes = golden.get("classes")
    places = {
        name: found
        for name in dict.fromkeys(trial.fault for trial in trials)
        if (found := _places(name, space, bits)) is not None
    }
    reading = Reading(
        golden_accuracy=accuracy,
        confidence=confidence,
        total=int(golden["images"]),
        requirement=None if requirement is None else float(requirement) / 100.0,
        places=places,
    )
    return CampaignResult(
        model=str(golden.get("name", path.name.removesuffix(".jsonl").removesuffix(".campaign"))),
        golden_accuracy=accuracy,
        float_accuracy=float(golden["float_accuracy"]),
        images=reading.total,
        bits=bits,
        saturated=int(golden["saturated"]),
        memory_overhead=None if overhead is None else float(overhead),
        # Where every image is right, labels and the golden run's classes are the same.
        labelled=bool(golden.get("labelled", accuracy < 1.0)),
        classifier=bool(
            golden.get("classifier", all(trial.verdict.deviating is None for trial in trials))
        ),
        golden_classes=None
        if classes is None
        else tuple((int(images), int(correct)) for images, correct in classes),
        summaries=summarise(trials, reading),
        alarms=int(golden["monitor"]["alarms"]) if "monitor" in golden else None,
    )


def _places(name: str, space: FaultSpace | None, bits: int) -> int | None:
    """Count the places of a fault model that draws each of them once."""
    model = parse_fault_model(name)
    if not isinstance(model.amount, Single):
        return None
    if space is not None:
        return model.places(space)
    return bits if model.shape.length == 1 else None


def _atlas(
    path: Path,
    golden: Mapping[str, Any],
    space: FaultSpace | None,
    trials: Sequence[TrialResult],
    confidence: float,
) -> Atlas:
    if space is None:
        raise CampaignError(
            f"{path} was begun by an earlier release and does not hold its fault space: run "
            "sensitivity again, with --force"
        )
    cells = find_cells(space)
    measured = {trial.fault for trial in trials}
    missing = sum(cell.name not in measured for cell in cells)
    if missing:
        raise CampaignError(
            f"{path} is unfinished, with {missing:,} of {len(cells):,} cells to come: run the "
            "same sensitivity command again"
        )
    reading = Reading(float(golden["accuracy"]), confidence, int(golden["images"]))
    return summarise_cells(str(golden["name"]), cells, trials, reading)


def _check_numbers(trials: Sequence[TrialResult], path: Path) -> None:
    """Trials are matched between models by number, so none may be missing before the last."""
    if not trials:
        raise CampaignError(f"{path} holds no finished trial: run its command again")
    held: dict[str, set[int]] = {}
    for trial in trials:
        held.setdefault(trial.fault, set()).add(trial.trial)
    for fault, numbers in held.items():
        gap = next((n for n in range(len(numbers)) if n not in numbers), None)
        if gap is not None:
            raise CampaignError(
                f"{path} misses trial {gap:,} of {fault!r}: run its command again to complete it"
            )
