"""The record of a campaign: what survives, and what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proact_onnx.campaign import CampaignHeader, TrialResult, Verdict, read_campaign
from proact_onnx.campaign.store import CampaignFile, check_record
from proact_onnx.errors import CampaignError, OutputError

ASSET = Path(__file__).parent / "assets" / "campaign-v1.jsonl"
SECOND = ASSET.with_name("campaign-v2.jsonl")
HEADER = CampaignHeader(
    identity={"model": "m" * 64, "format": "Q15.16", "mean": [0.5, 0.25], "scale": None, "seed": 3},
    golden={"accuracy": 0.5},
    made_by={"numpy": "2"},
)


def result(trial: int, ber: float = 1e-5) -> TrialResult:
    return TrialResult(f"ber={ber!r}", trial, 4, 3, Verdict(10, 7, 9, 2, 1, 0))


def write(path: Path, trials: list[TrialResult]) -> bytes:
    with CampaignFile(path, HEADER) as file:
        for trial in trials:
            file.append(trial)
    return path.read_bytes()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    trials = [result(0), result(1), result(0, 0.1), result(0, 1 / 3)]
    elements = Verdict(10, 7, 9, 2, 1, relative_l2=1 / 3, deviating=1e30)
    trials.append(TrialResult("single", 0, 1, 1, elements, distance=float("inf")))
    words = {"weight": [(3, 1 << 31), (4, 7)], "bias": [(0, 1)]}
    classes = ((4, 3), (0, 0), (6, 4))
    trials.append(
        TrialResult("flips=3", 0, 3, 3, Verdict(10, 7, 9, 2, 1, 0, classes=classes), words=words)
    )
    write(tmp_path / "run.jsonl", trials)
    header, found = read_campaign(tmp_path / "run.jsonl")
    assert header == HEADER
    assert found == trials


def test_the_first_version_is_read() -> None:
    header, trials = read_campaign(ASSET)
    assert header.identity["format"] == "Q15.16"
    assert header.identity["mean"] == [0.5]
    assert header.golden["accuracy"] == 0.9
    assert header.made_by["python"] == "3.11.9"
    assert trials == [
        TrialResult("ber=1e-05", 0, 0, 0, Verdict(100, 90, 90, 0, 0)),
        TrialResult("ber=1e-05", 1, 2, 2, Verdict(100, 52, 90, 41, 3)),
        TrialResult("ber=0.001", 0, 5, 5, Verdict(100, 10, 90, 88, 0)),
    ]


def test_a_record_of_the_first_version_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(ASSET.read_bytes())
    header, _ = read_campaign(path)
    for attempt in (
        lambda: CampaignFile(path, header),
        lambda: check_record(path, header.identity),
    ):
        with pytest.raises(CampaignError) as caught:
            attempt()
        assert str(caught.value) == (
            f"{path} was begun by an earlier release (version 1 of the format) and can only be "
            "read: choose another --output-folder, or start over with --force"
        )
    assert path.read_bytes() == ASSET.read_bytes()


def test_the_format_is_what_the_second_version_wrote(tmp_path: Path) -> None:
    header, trials = read_campaign(SECOND)
    copy = tmp_path / "copy.jsonl"
    with CampaignFile(copy, header) as file:
        for trial in trials:
            file.append(trial)
    assert copy.read_bytes() == SECOND.read_bytes()
    assert trials[0] == TrialResult("ber=1e-06", 0, 2, 2, Verdict(16, 9, 15, 6, 1, 4))
    assert trials[1].words == {"conv.weight": [(12, 1073741824)]}
    assert trials[2].verdict.classes == ((8, 7), (8, 8))
    assert trials[3].verdict.relative_l2 == 0.25


def test_a_trial_is_on_disk_once_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with CampaignFile(path, HEADER) as file:
        assert read_campaign(path) == (HEADER, [])
        for trial in range(3):
            file.append(result(trial))
            assert read_campaign(path)[1] == [result(number) for number in range(trial + 1)]


def test_a_file_cut_anywhere_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Hundreds of records: nothing here is about what survives the end of the machine.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    path = tmp_path / "run.jsonl"
    trials = [result(number) for number in range(3)]
    whole = write(path, trials)
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        finished = max(sum(end <= size for end in ends) - 1, 0)
        if size >= ends[0]:
            assert read_campaign(path)[1] == trials[:finished]
        with CampaignFile(path, HEADER) as file:
            assert list(file.trials.values()) == trials[:finished]
        assert path.read_bytes() == whole[: ends[finished]]
        with CampaignFile(path, HEADER) as file:
            for trial in trials:
                if trial.key not in file.trials:
                    file.append(trial)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-3],
        lambda line: b"",
        lambda line: b"\x00" * len(line),
        lambda line: b"\xff\xfe" + line,
        lambda line: b"[1, 2]",
        lambda line: b"7",
        lambda line: line.replace(b'"flips":3,', b""),
        lambda line: line.replace(b'"flips":3', b'"flips":"3"'),
        lambda line: line.replace(b'"flips":3', b'"flips":-3'),
        lambda line: line.replace(b'"sdc":2', b'"sdc":true'),
        lambda line: line.replace(b'"images":10', b'"images":0'),
        lambda line: line.replace(b'"ber=1e-05"', b"null"),
    ],
)
@pytest.mark.parametrize("number", [2, 3])
def test_damage_elsewhere_is_an_error_that_names_the_line(
    tmp_path: Path, damage: Callable[[bytes], bytes], number: int
) -> None:
    path = tmp_path / "run.jsonl"
    lines = write(path, [result(number) for number in range(3)]).splitlines()
    assert damage(lines[number - 1]) != lines[number - 1]
    lines[number - 1] = damage(lines[number - 1])
    damaged = b"\n".join([*lines, b""])
    path.write_bytes(damaged)
    message = f"{path} is damaged at line {number}: restore it, or start over with --force"
    with pytest.raises(CampaignError) as caught:
        read_campaign(path)
    assert str(caught.value) == message
    with pytest.raises(CampaignError) as caught:
        CampaignFile(path, HEADER)
    assert str(caught.value) == message
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("part", ["identity", "golden", "made_by"])
def test_a_damaged_header_names_its_line(tmp_path: Path, part: str) -> None:
    path = tmp_path / "run.jsonl"
    head: dict[str, Any] = json.loads(write(path, []))
    head[part] = 3
    path.write_text(json.dumps(head) + "\n")
    with pytest.raises(CampaignError, match="is damaged at line 1: restore it, or start over"):
        read_campaign(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", 4, "its seed is 4, this one's is 3"),
        ("format", "float32", "its format is float32, this one's is Q15.16"),
        ("mean", [0.5], "its mean is [0.5], this one's is [0.5, 0.25]"),
        ("model", "n" * 64, "its model is nnnnnnnnnnnn..., this one's is mmmmmmmmmmmm..."),
        ("unheard", 1, "its unheard is 1, this one's is None"),
    ],
)
def test_another_campaign_is_refused_and_left_alone(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = tmp_path / "run.jsonl"
    other = CampaignHeader({**HEADER.identity, field: value}, HEADER.golden, HEADER.made_by)
    with CampaignFile(path, other) as file:
        file.append(result(0))
    before = path.read_bytes()
    with pytest.raises(CampaignError) as caught:
        CampaignFile(path, HEADER)
    assert str(caught.value) == (
        f"{path} holds another campaign: {message}; choose another --output-folder, or start over "
        "with --force"
    )
    assert path.read_bytes() == before


def test_what_is_not_part_of_the_identity_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, [result(0)])
    with CampaignFile(path, CampaignHeader(HEADER.identity, {"accuracy": 0.4}, {})) as file:
        assert file.header == HEADER
        assert len(file.trials) == 1


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(write(path, [result(0)]).replace(b'"version":2', b'"version":3'))
    with pytest.raises(CampaignError) as caught:
        CampaignFile(path, HEADER)
    assert str(caught.value) == (
        f"{path} has version 3 of the campaign format, and this release reads 1 and 2: use the "
        "release that wrote it"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"hello",
        b'{"format"',
        b'{"format":"proact-onnx campaign"}\n',
        b'{"format":"something else","version":2}\n',
        b"[]\n",
        b"\n",
        b"\xff\xff\n",
        b'{"format":"others"',
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    message = f"{path} is not the record of a campaign: choose another --output-folder"
    with pytest.raises(CampaignError) as caught:
        read_campaign(path)
    assert str(caught.value) == message
    if content != b'{"format"':
        with pytest.raises(CampaignError) as caught:
            CampaignFile(path, HEADER)
        assert str(caught.value) == message
        assert path.read_bytes() == content


def test_a_missing_record_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "absent.jsonl"
    with pytest.raises(CampaignError) as caught:
        read_campaign(path)
    assert str(caught.value) == f"cannot read {path}: No such file or directory"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent" / "run.jsonl", tmp_path / "file" / "run.jsonl", tmp_path):
        with pytest.raises(OutputError, match=f"^cannot write {path}: "):
            CampaignFile(path, HEADER)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"Permission denied$"):
        CampaignFile(tmp_path / "run.jsonl", HEADER)
    tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="the record is locked on POSIX systems only")
def test_two_campaigns_cannot_write_one_record_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with CampaignFile(path, HEADER) as file:
        file.append(result(0))
        with pytest.raises(CampaignError) as caught:
            CampaignFile(path, HEADER)
        assert str(caught.value) == (
            f"{path} is being written by another campaign: wait until it ends, or choose another "
            "--output"
        )
        file.append(result(1))
    with CampaignFile(path, HEADER) as file:
        assert len(file.trials) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_of_ours(tmp_path: Path) -> None:
    with CampaignFile(tmp_path / "run.jsonl", HEADER) as file:
        file.append(result(0))
        healthy = file._stream
        with Path("/dev/full").open("wb", buffering=0) as full:
            file._stream = full
            with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"):
                file.append(result(1))
        file._stream = healthy
        assert list(file.trials.values()) == [result(0)]
