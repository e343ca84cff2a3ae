"""Trials given out in blocks of any size, and taken back in any order, against one after the other.

Here the workers live in the test's own process, and answer when a random number says so.
"""

import json
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.campaign import Campaign, Sensitivity
from proact_onnx.campaign.executor import Answer, Block, Crew, Job, Reuse, TrialWorker
from proact_onnx.campaign.judge import Verdict
from proact_onnx.campaign.series import Dispatch, Series
from proact_onnx.campaign.store import TrialResult
from proact_onnx.campaign.subject import Subject
from proact_onnx.data import Preprocessing
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.settings import InjectSettings, SensitivitySettings
from tests.test_campaign import RUNTIME, dataset, network


class Shuffling:
    """An executor whose blocks come back in random order; some answers are only good wishes."""

    def __init__(self, places: int, block_size: int, seed: int = 0) -> None:
        self.places, self.block_size = places, block_size
        self.blocks: list[Block] = []
        self._random = random.Random(seed)

    @contextmanager
    def open(self, job: Job, reporter: Reporter) -> Iterator[Crew]:
        worker = TrialWorker(job, reporter)
        self.facts, self.reuse = worker.facts, Reuse()
        self._run: Callable[[Block], Answer] = worker.run
        self._waiting: list[Block] = []
        yield self

    @property
    def free(self) -> int:
        return self.places - len(self._waiting)

    def submit(self, block: Block) -> None:
        assert self.free > 0
        assert len(block.trials) <= self.block_size
        self._waiting.append(block)
        self.blocks.append(block)

    def collect(self) -> Answer | None:
        if self._random.random() < 0.2:
            return None
        return self._run(self._waiting.pop(self._random.randrange(len(self._waiting))))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save_model(network(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def inject(model: Path, record: Path, executor: object = None, **settings: object) -> list[bytes]:
    given = InjectSettings(**settings)  # type: ignore[arg-type]
    campaign = Campaign(model, dataset(), given, runtime=RUNTIME)
    campaign.run(record, LogReporter(), executor)  # type: ignore[arg-type]
    return record.read_bytes().splitlines()[1:]


CAMPAIGNS: dict[str, dict[str, object]] = {
    "fixed images": {"ber": (1e-4, 1e-3), "trials": 40, "images": 9},
    "a pilot": {"ber": (1e-3, 1e-2), "flips": (2,), "trials": 50},
    "a stop": {"ber": (1e-5, 1e-3, 1e-2), "half_width": 6.0, "trials": 250},
    "a stop without a pilot": {"ber": (1e-3,), "half_width": 6.0, "images": 5, "trials": 300},
    "fewer trials than a pilot": {"ber": (1e-3, 1e-2), "trials": 12},
    "every place": {"exhaustive": True, "layers": ("conv",), "bits": "30", "images": 2},
}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_the_record_is_that_of_one_process(model: Path, tmp_path: Path, name: str) -> None:
    settings = CAMPAIGNS[name]
    expected = inject(model, tmp_path / "expected.jsonl", **settings)
    most = settings.get("trials")
    counts = Counter(json.loads(line)["fault"] for line in expected)
    assert any(count != most for count in counts.values()) == ("stop" in name or most is None)
    for number, (places, block_size) in enumerate([(1, 1), (2, 7), (5, 3), (60, 2), (400, 100)]):
        record = tmp_path / f"{number}.jsonl"
        assert inject(model, record, Shuffling(places, block_size), **settings) == expected


@pytest.mark.parametrize("kept", [1, 31, 107])
def test_a_record_cut_anywhere_is_continued(model: Path, tmp_path: Path, kept: int) -> None:
    settings = CAMPAIGNS["a stop"]
    expected = inject(model, tmp_path / "expected.jsonl", **settings)
    record = tmp_path / "run.jsonl"
    inject(model, record, **settings)
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[: kept + 1]))
    crew = Shuffling(6, 5)
    assert inject(model, record, crew, **settings) == expected
    run = {(block.fault, trial) for block in crew.blocks for trial in block.trials}
    assert not run & {("ber=1e-05", trial) for trial in range(kept)}


def test_sensitivity_is_that_of_one_process(model: Path, tmp_path: Path) -> None:
    def records(name: str, executor: object) -> list[bytes]:
        study = Sensitivity(
            model, dataset(), SensitivitySettings(3, 5), InjectSettings(), runtime=RUNTIME
        )
        study.run(tmp_path / name, LogReporter(), executor)  # type: ignore[arg-type]
        return (tmp_path / name).read_bytes().splitlines()[1:]

    expected = records("expected.jsonl", None)
    assert len(expected) == 4 * 32 * 3
    for number, (places, block_size) in enumerate([(3, 2), (100, 50)]):
        assert records(f"{number}.jsonl", Shuffling(places, block_size)) == expected


def result(trial: int, fault: str = "a") -> TrialResult:
    return TrialResult(fault, trial, 1, 1, Verdict(10, 5, 9, 4, 0, 0))


def test_nothing_is_given_out_before_its_images_are_known() -> None:
    series = Series("a", 100, None, choose=lambda trials: 2 * len(trials))
    given = []
    while (block := series.take(7, 2, ahead=True)) is not None:
        given.append(block)
    assert [trial for block in given for trial in block.trials] == list(range(30))
    assert {block.images for block in given} == {32}
    # Those before a decision are shared, and the last ones are few.
    assert len(given[-1].trials) == 1
    series.receive([result(trial) for trial in range(1, 30)])
    assert list(series.due()) == []
    assert series.take(7, 2, ahead=True) is None
    series.receive([result(0)])
    assert [found.trial for found in series.due()] == list(range(30))
    block = series.take(7, 2, ahead=True)
    assert block is not None
    assert (block.trials, block.images) == (tuple(range(30, 37)), 60)


def test_trials_that_may_be_superfluous_are_given_out_last() -> None:
    def series(fault: str) -> Series:
        return Series(fault, 40, 8, stops=(10, 20), enough=lambda done: len(done) >= 10)

    class Silent:
        places = 100
        free = 6
        block_size = 5

        def __init__(self) -> None:
            self.blocks: list[Block] = []

        def submit(self, block: Block) -> None:
            self.blocks.append(block)
            self.free -= 1

        def collect(self) -> Answer:
            block = self.blocks.pop(0)
            self.free += 1
            results = tuple(result(trial, block.fault) for trial in block.trials)
            return Answer(block, results, 1.0, Reuse())

    crew = Silent()
    both = [series("a"), series("b")]
    dispatch = Dispatch(both, crew, {})  # type: ignore[arg-type]
    crew.free = 24
    assert next(dispatch.results(both[0])).trial == 0
    order = [(block.fault, block.trials[0]) for block in crew.blocks]
    assert [fault for fault, _ in order] == ["a"] * 9 + ["b"] * 10 + ["a"] * 4
    assert order[9] == ("b", 0)
    assert order[19] == ("a", 10)
    assert len(list(dispatch.results(both[0]))) == 9
    assert both[0].ended
    assert len(both[0].done) == 10


def test_what_is_sent_to_workers_is_the_same_and_images_are_not_copied(model: Path) -> None:
    subject = Subject(model, dataset(), preprocessing=Preprocessing(scale=0.5), runtime=RUNTIME)
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(subject, protocol=5, buffer_callback=buffers.append)
    sealed = [bytes(buffer.raw()) for buffer in buffers]
    received: Subject = pickle.loads(message, buffers=sealed)
    assert received.content_digests() == subject.content_digests()
    assert received.identity == subject.identity
    np.testing.assert_array_equal(received.images, 0.5 * dataset().images)
    assert not received.images.flags.writeable
    assert any(np.shares_memory(received.images, np.frombuffer(raw, np.uint8)) for raw in sealed)
    assert len(message) < received.images.nbytes
