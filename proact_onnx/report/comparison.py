"""A finished comparison of methods on one model: ``comparison.json`` and the records beside it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from proact_onnx.campaign import CampaignRecord, CampaignResult, Estimate, read_record
from proact_onnx.compare import COMPARISON, UNPROTECTED, VERSION
from proact_onnx.errors import CampaignError


@dataclass(frozen=True)
class Entry:
    """One method, and what became of the model; shares from 0 to 1.

    Attributes:
        name: What it is called in settings; ``none`` is the unprotected model.
        title: What it is called in tables.
        file: The model file.
        sha256: Digest of that file.
        record: Its campaign.
        thresholds: Number of stored thresholds.
        memory_overhead: Them in per cent of the other parameters (Eq. 6).
        clean_accuracy: Accuracy without faults.
        clean_drop: What is lost of the unprotected model's.
        seconds: Time that hardening took.
        evaluations: How often it ran the model on its images.
        distance: Mean L2 distance of activations under fault (Eq. 9); None where not measured.
        settings: With which it was hardened.
    """

    name: str
    title: str
    file: str
    sha256: str
    record: CampaignRecord
    thresholds: int
    memory_overhead: float
    clean_accuracy: float
    clean_drop: Estimate
    seconds: float
    evaluations: int
    distance: Estimate | None
    settings: Mapping[str, Any]

    @property
    def result(self) -> CampaignResult:
        """Its campaign, under its title."""
        return replace(self.record.result, model=self.title)


@dataclass(frozen=True)
class LayerRange:
    """The range of one activation beside the thresholds of every method.

    Attributes:
        activation: Name of the activation.
        maximum: Largest value on the calibration images.
        thresholds: By the name of the method: lowest, median and highest threshold.
    """

    activation: str
    maximum: float
    thresholds: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Comparison:
    """Several methods on one model, under the same faults.

    Attributes:
        folder: Where it was read from.
        model: Name of the unprotected model.
        command: What was typed.
        made_by: Versions.
        confidence: Confidence level of all intervals.
        drop_limit: Points of accuracy; rates where no method stays below are left out of Table IV.
        images: Images that accuracy is measured on.
        seed: Of the campaigns.
        reference: Name of the method that differences are taken against, if there is one.
        entries: In the order to show; one is the unprotected model.
        layers: In the order of the network.
    """

    folder: Path
    model: str
    command: str
    made_by: Mapping[str, Any]
    confidence: float
    drop_limit: float
    images: int
    seed: int
    reference: str | None
    entries: tuple[Entry, ...]
    layers: tuple[LayerRange, ...]

    @property
    def unprotected(self) -> Entry:
        """The model without protection."""
        return next(entry for entry in self.entries if entry.name == UNPROTECTED)

    @property
    def methods(self) -> tuple[Entry, ...]:
        """All others."""
        return tuple(entry for entry in self.entries if entry.name != UNPROTECTED)

    @property
    def baseline(self) -> Entry:
        """What differences are taken against: the reference, or the unprotected model."""
        wanted = self.reference or UNPROTECTED
        return next(entry for entry in self.entries if entry.name == wanted)


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison and the records it names.

    Args:
        folder: The folder that holds ``comparison.json``.

    Raises:
        CampaignError: If the file or a record is missing, damaged or of another version, or lacks
            something; the message names it.
    """
    path = folder / COMPARISON
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CampaignError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CampaignError(f"{path} is damaged: restore it, or run its command again") from error
    top = _Part(content, path)
    version = top.number("version")
    if version != VERSION:
        raise CampaignError(
            f"{path} has version {version:g} of the comparison format, and this release reads "
            f"{VERSION}: use the release that wrote it"
        )
    confidence = top.number("confidence")
    if not 0.0 < confidence < 1.0:
        raise top.wrong("confidence", "a number between 0 and 1")
    entries = tuple(_entry(part, folder, confidence) for part in top.parts("entries"))
    names = [entry.name for entry in entries]
    reference = top.content.get("reference")
    alike = min(len({*names}), len({entry.title for entry in entries})) < len(entries)
    if UNPROTECTED not in names or alike:
        raise top.wrong(
            "entries", f"a list of different names and titles, one of them {UNPROTECTED!r}"
        )
    if reference is not None and reference not in names:
        raise top.wrong("reference", "the name of an entry")
    return Comparison(
        folder=folder,
        model=top.text("model"),
        command=top.text("command"),
        made_by=top.part("made_by").content,
        confidence=confidence,
        drop_limit=top.number("drop_limit"),
        images=int(top.number("images")),
        seed=int(top.number("seed")),
        reference=reference,
        entries=entries,
        layers=tuple(_layer(part, names) for part in top.parts("layers")),
    )


def _entry(part: "_Part", folder: Path, confidence: float) -> Entry:
    path = folder / part.text("record")
    record = read_record(path, confidence)
    if not isinstance(record, CampaignRecord):
        raise CampaignError(
            f"{path} is a sensitivity study, and a comparison consists of campaigns: run its "
            "command again"
        )
    measured = part.content.get("distance")
    overhead = record.result.memory_overhead
    written = part.number("memory_overhead")
    return Entry(
        name=part.text("name"),
        title=part.text("title"),
        file=part.text("file"),
        sha256=part.text("sha256"),
        record=record,
        thresholds=int(part.number("thresholds")),
        memory_overhead=written if overhead is None else overhead,
        clean_accuracy=part.number("clean_accuracy"),
        clean_drop=_estimate(part.part("clean_drop")),
        seconds=part.number("seconds"),
        evaluations=int(part.number("evaluations")),
        distance=None if measured is None else _estimate(part.part("distance")),
        settings=part.part("settings").content,
    )


def _estimate(part: "_Part") -> Estimate:
    return Estimate(part.number("mean"), part.number("low"), part.number("high"))


def _layer(part: "_Part", names: Sequence[str]) -> LayerRange:
    thresholds = part.part("thresholds")
    return LayerRange(
        activation=part.text("activation"),
        maximum=part.number("maximum"),
        thresholds={name: thresholds.range(name) for name in names if name in thresholds.content},
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


class _Part:
    """An object of the file, whose members are asked for by name and kind.

    Raises:
        CampaignError: If it is none.
    """

    def __init__(self, content: object, path: Path, place: str = "") -> None:
        self.path, self.place = path, place
        if not isinstance(content, dict):
            raise self.wrong("", "an object")
        self.content: dict[str, Any] = content

    def wrong(self, name: str, wanted: str) -> CampaignError:
        """Say what a member should be."""
        where = ".".join(filter(None, (self.place, name))) or "it"
        return CampaignError(
            f"{self.path} is damaged, because {where} is not {wanted}: restore it, or run its "
            "command again"
        )

    def text(self, name: str) -> str:
        """Return a text."""
        value = self.content.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def number(self, name: str) -> float:
        """Return a finite number."""
        value = self.content.get(name)
        if not _is_number(value):
            raise self.wrong(name, "a number")
        return float(value)

    def range(self, name: str) -> tuple[float, float, float]:
        """Return three numbers in ascending order."""
        value = self.content.get(name)
        if (
            not isinstance(value, list)
            or len(value) != 3
            or not all(map(_is_number, value))
            or sorted(value) != value
        ):
            raise self.wrong(name, "lowest, median and highest threshold")
        return float(value[0]), float(value[1]), float(value[2])

    def part(self, name: str) -> "_Part":
        """Return an object."""
        place = f"{self.place}.{name}" if self.place else name
        return _Part(self.content.get(name), self.path, place)

    def parts(self, name: str) -> list["_Part"]:
        """Return a list of objects."""
        value = self.content.get(name)
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return [_Part(item, self.path, f"{name}[{place}]") for place, item in enumerate(value)]
