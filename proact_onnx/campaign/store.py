"""The record of a campaign: an append-only file of JSON lines.

The first line is the header, an object with ``format`` "proact-onnx campaign", ``version`` 2,
``identity`` (what every trial depends on), ``golden`` (the golden run) and ``made_by`` (versions
and time, for information). Every further line is one trial, without the fields that it does not
measure; those of a model with a monitor have ``alarms``.

Version 1 knew bit error rates only: its trials have ``ber`` instead of ``fault``, and no ``sites``,
which were the flips. It is still read, but not continued.

A writer that is killed leaves at most one unfinished last line; it is dropped when the file is
opened again. Any other damage is an error.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any, Self

from proact_onnx.campaign.judge import Alarms, Verdict
from proact_onnx.errors import CampaignError, OutputError
from proact_onnx.faults import Rate

if sys.platform != "win32":
    import fcntl

FORMAT = "proact-onnx campaign"
VERSION = 2

# How the file begins, up to the version: what a writer killed in its first line leaves at least
# a part of.
_BEGINNING = json.dumps({"format": FORMAT}, separators=(",", ":")).encode()[:-1]


@dataclass(frozen=True)
class TrialResult:
    """What one trial measured.

    Attributes:
        fault: Name of the fault model.
        trial: Number of the trial under this model, from 0.
        sites: Faulty bits.
        flips: Bits that changed; fewer than the sites where a stuck bit held its right value.
        verdict: What the outputs were worth.
        distance: Eq. 9 of the paper, averaged over the images; None unless asked for.
        words: By parameter, the words hit as pairs of element and mask; None unless asked for.
    """

    fault: str
    trial: int
    sites: int
    flips: int
    verdict: Verdict
    distance: float | None = None
    words: Mapping[str, Sequence[tuple[int, int]]] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from the other trials of a campaign."""
        return self.fault, self.trial


@dataclass(frozen=True)
class CampaignHeader:
    """What a campaign is.

    Attributes:
        identity: Everything the numbers depend on: digests of model and data, format, seed, ...
        golden: The golden run, and what else summaries need: accuracy, images, the fault space,
            the level of the intervals, ...; not compared. `Subject.describe` writes it, and
            records of earlier releases say less.
        made_by: Versions and time; not compared.
    """

    identity: Mapping[str, Any]
    golden: Mapping[str, Any]
    made_by: Mapping[str, Any]


class CampaignFile:
    """A campaign's record, open for appending.

    Args:
        path: The file; created with the header when it does not exist.
        header: What the campaign about to run is.

    Raises:
        CampaignError: If the file is damaged, or belongs to another campaign; the message names
            the first field that differs.
        OutputError: If the file cannot be written.
    """

    def __init__(self, path: Path, header: CampaignHeader) -> None:
        self.path = path
        self.trials: dict[tuple[str, int], TrialResult] = {}
        try:
            self._stream = path.open("r+b" if path.exists() else "x+b", buffering=0)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            self._take_up(header)
        except BaseException:
            self._stream.close()
            raise

    def _take_up(self, header: CampaignHeader) -> None:
        path = self.path
        _lock(self._stream, path)
        content = self._stream.read()
        complete = content[: content.rfind(b"\n") + 1]
        if complete:
            self.header, trials = _parse(complete, path)
            _refuse_old(complete, path)
            _refuse_other(self.header, header.identity, path)
            self.trials = {trial.key: trial for trial in trials}
        elif not (content.startswith(_BEGINNING) or _BEGINNING.startswith(content)):
            raise CampaignError(_not_a_campaign(path))
        self._stream.truncate(len(complete))
        self._stream.seek(len(complete))
        if not complete:
            self.header = header
            self._write({"format": FORMAT, "version": VERSION, **asdict(header)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        finally:
            self._stream.close()

    def append(self, trial: TrialResult) -> None:
        """Add one trial; once this returns, the trial survives the end of the process."""
        self._write(_record(trial))
        self.trials[trial.key] = trial

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            written = self._stream.write(line)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        if written != len(line):
            raise OutputError(f"cannot write {self.path}: the disk is full")


def read_campaign(path: Path) -> tuple[CampaignHeader, list[TrialResult]]:
    """Read a campaign's record; an unfinished last line is left out.

    Raises:
        CampaignError: If the file cannot be read or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CampaignError(f"cannot read {path}: {error.strerror or error}") from error
    return _parse(content[: content.rfind(b"\n") + 1], path)


def _parse(content: bytes, path: Path) -> tuple[CampaignHeader, list[TrialResult]]:
    lines = content.splitlines()
    try:
        head = json.loads(lines[0])
        known = head["format"] == FORMAT
        version = head["version"]
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise CampaignError(_not_a_campaign(path)) from error
    if not known:
        raise CampaignError(_not_a_campaign(path))
    if version not in _READERS:
        raise CampaignError(
            f"{path} has version {version} of the campaign format, and this release reads "
            f"{' and '.join(map(str, _READERS))}: use the release that wrote it"
        )
    try:
        header = CampaignHeader(dict(head["identity"]), dict(head["golden"]), dict(head["made_by"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CampaignError(_damaged(path, 1)) from error
    trials = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            trials.append(_READERS[version](json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise CampaignError(_damaged(path, number)) from error
    return header, trials


def _record(trial: TrialResult) -> dict[str, Any]:
    record = asdict(trial)
    record |= record.pop("verdict")
    return {name: value for name, value in record.items() if value is not None}


def _trial(record: Mapping[str, Any]) -> TrialResult:
    counts = ("trial", "sites", "flips", "images", "correct", "golden_correct", "sdc", "nonfinite")
    measures = ("relative_l2", "deviating", "distance")
    if not isinstance(record["fault"], str):
        raise TypeError("the fault model has no name")
    for name in (*counts, *(name for name in ("sdc5",) if name in record)):
        if type(record[name]) is not int or record[name] < 0:
            raise ValueError("a count is missing or impossible")
    if record["images"] < 1:
        raise ValueError("a trial evaluates at least one image")
    if not all(type(record.get(name, 0.0)) in (int, float) for name in measures):
        raise TypeError("a measure is no number")
    classes, words, alarms = (record.get(name) for name in ("classes", "words", "alarms"))
    verdict = Verdict(
        **{name: record[name] for name in counts[3:]},
        sdc5=record.get("sdc5"),
        relative_l2=record.get("relative_l2"),
        deviating=record.get("deviating"),
        classes=None if classes is None else tuple((int(n), int(right)) for n, right in classes),
        alarms=None if alarms is None else _alarms(alarms),
    )
    return TrialResult(
        **{name: record[name] for name in ("fault", *counts[:3])},
        verdict=verdict,
        distance=record.get("distance"),
        words=None
        if words is None
        else {name: [(int(e), int(m)) for e, m in pairs] for name, pairs in words.items()},
    )


def _alarms(record: Mapping[str, Any]) -> Alarms:
    counts = {field.name: record[field.name] for field in fields(Alarms)}
    if not all(type(count) is int and count >= 0 for count in counts.values()):
        raise ValueError("a count of alarms is impossible")
    return Alarms(**counts)


def _trial_of_version_1(record: Mapping[str, Any]) -> TrialResult:
    return _trial({**record, "fault": Rate(float(record["ber"])).name, "sites": record["flips"]})


_READERS: Mapping[int, Callable[[Mapping[str, Any]], TrialResult]] = {
    1: _trial_of_version_1,
    VERSION: _trial,
}


def check_record(path: Path, identity: Mapping[str, Any]) -> None:
    """Find out whether a record can be continued.

    Args:
        path: The record; one that does not exist, or holds no finished line, can be started.
        identity: What the campaign about to run is.

    Raises:
        CampaignError: If it is damaged, or belongs to another campaign.
    """
    if path.exists() and b"\n" in path.read_bytes():
        header, _ = read_campaign(path)
        _refuse_old(path.read_bytes(), path)
        _refuse_other(header, identity, path)


def _refuse_old(content: bytes, path: Path) -> None:
    version = json.loads(content.splitlines()[0])["version"]
    if version != VERSION:
        raise CampaignError(
            f"{path} was begun by an earlier release (version {version} of the format) and can "
            "only be read: choose another --output-folder, or start over with --force"
        )


def _refuse_other(found: CampaignHeader, wanted: Mapping[str, Any], path: Path) -> None:
    for field in sorted({*found.identity, *wanted}):
        old, new = found.identity.get(field), wanted.get(field)
        if old != new:
            raise CampaignError(
                f"{path} holds another campaign: its {field} is {_short(old)}, this one's is "
                f"{_short(new)}; choose another --output-folder, or start over with --force"
            )


def _lock(stream: FileIO, path: Path) -> None:
    """Keep a second campaign off the file; the lock ends with the process, however it ends."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CampaignError(
            f"{path} is being written by another campaign: wait until it ends, or choose another "
            "--output"
        ) from error
    except OSError:
        # A file system without locks; the campaign itself needs none.
        return


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _damaged(path: Path, line: int) -> str:
    return f"{path} is damaged at line {line}: restore it, or start over with --force"


def _not_a_campaign(path: Path) -> str:
    return f"{path} is not the record of a campaign: choose another --output-folder"
