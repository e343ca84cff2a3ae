"""Campaigns on real Ray workers, against the same campaigns in one process.

One small cluster serves most tests; those that end whole programs start their own.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx import choose
from proact_onnx.campaign import Campaign, Executor, Sensitivity
from proact_onnx.campaign.subject import Subject
from proact_onnx.checkpoint import NoCheckpoint
from proact_onnx.data import Dataset, Preprocessing, load_dataset
from proact_onnx.errors import CampaignError, ModelError, SettingsError
from proact_onnx.harden import harden
from proact_onnx.methods import METHODS, FitContext, ftclipact
from proact_onnx.progress import LogReporter
from proact_onnx.settings import HardenSettings, InjectSettings, SensitivitySettings
from tests.command_line import Command
from tests.numerics import parse
from tests.test_any_model import dataset as several_inputs
from tests.test_campaign import ROOT, RUNTIME, dataset, images, network
from tests.test_methods import context
from tests.test_several_inputs import KINDS

# Ray is an extra.
ray = pytest.importorskip("ray")
distribute = pytest.importorskip("proact_onnx.distribute.executor")
RayExecutor = distribute.RayExecutor

__all__ = ["context"]
STORE = 100 * 2**20
SETTINGS: dict[str, object] = {"ber": (1e-4, 1e-3, 1e-2), "half_width": 6.0, "trials": 300}


class Listening(LogReporter):
    """Keeps what is said, and counts trials."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.trials = 0

    def advance(self, steps: int = 1) -> None:
        self.trials += steps

    def notice(self, text: str) -> None:
        self.said.append(text)

    warn = notice


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_AUTH_TOKEN", "5ec3e7" * 8)
    ray.init(
        address="local",
        num_cpus=3,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=STORE,
    )
    yield
    ray.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save_model(network(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def campaign(model: Path, **settings: object) -> Campaign:
    given = InjectSettings(**{**SETTINGS, **settings})  # type: ignore[arg-type]
    return Campaign(model, dataset(), given, runtime=RUNTIME)


def lines(record: Path) -> list[bytes]:
    """The trials; the header before them holds the time."""
    return record.read_bytes().splitlines()[1:]


def in_one_process(model: Path, folder: Path, **settings: object) -> list[bytes]:
    record = folder / "expected.jsonl"
    campaign(model, **settings).run(record)
    return lines(record)


@pytest.mark.usefixtures("cluster")
def test_any_number_of_workers_writes_the_record_of_one_process(
    model: Path, tmp_path: Path
) -> None:
    expected = in_one_process(model, tmp_path)
    assert 100 <= sum(b'"fault":"ber=0.01"' in line for line in expected) < 300
    for workers in (1, 2, 3):
        record, reporter = tmp_path / f"{workers}.jsonl", Listening()
        result = campaign(model).run(record, reporter, RayExecutor(workers))
        assert lines(record) == expected
        assert reporter.trials == len(expected)
        assert sum("engine: in place" in said for said in reporter.said) == 1
        assert sum(summary.trials for summary in result.summaries) == len(expected)


@pytest.mark.usefixtures("cluster")
def test_what_else_trials_record_and_sensitivity(model: Path, tmp_path: Path) -> None:
    more = {"distance": True, "record_faults": True, "per_class": True, "half_width": None}
    few = {**more, "trials": 8, "ber": (1e-3,), "images": 9}
    campaign(model, **few).run(tmp_path / "run.jsonl", None, RayExecutor(2))
    assert lines(tmp_path / "run.jsonl") == in_one_process(model, tmp_path, **few)
    for name, executor in (("one", None), ("two", RayExecutor(2))):
        study = Sensitivity(model, dataset(), SensitivitySettings(2, 5), runtime=RUNTIME)
        atlas = study.run(tmp_path / name, None, executor)
        assert len(atlas.cells) == 4 * 32
    assert lines(tmp_path / "two") == lines(tmp_path / "one")


SEARCH = {
    "search_ber": (1e-5, 1e-3),
    "search_trials": 4,
    "search_images": 16,
    "search_rounds": 2,
    "calibration_images": 200,
    "accept_images": 100,
}


def hardened(digits_dir: Path, output: Path, method: str, executor: Executor | None) -> bytes:
    """The file that a method which searches makes of the digits network."""
    harden(
        digits_dir / "digits.onnx",
        load_dataset(digits_dir / "calibration.npz"),
        output,
        settings=HardenSettings(method=method, **SEARCH),  # type: ignore[arg-type]
        preprocessing=Preprocessing(scale=1 / 16),
        executor=executor,
    )
    return output.read_bytes()


@pytest.mark.parametrize("method", ["ftclipact", "auto"])
@pytest.mark.usefixtures("cluster")
def test_any_number_of_workers_finds_the_protection_of_one_process(
    digits_dir: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("tent", "tent, rescaled")
    monkeypatch.setattr(choose, "CANDIDATES", {name: choose.CANDIDATES[name] for name in few})
    expected = hardened(digits_dir, tmp_path / "expected.onnx", method, None)
    for workers in (1, 2):
        output = tmp_path / f"{workers}.onnx"
        assert hardened(digits_dir, output, method, RayExecutor(workers)) == expected


@pytest.mark.usefixtures("cluster")
def test_a_search_goes_on_when_workers_are_killed(context: FitContext, tmp_path: Path) -> None:
    class Mortal(distribute.RemoteWorker):  # type: ignore[misc, name-defined]
        def run(self, block: object) -> object:
            for number in (1, 2):
                with contextlib.suppress(FileExistsError):
                    (tmp_path / str(number)).touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().run(block)

    settings = METHODS["ftclipact"].resolve(HardenSettings(method="ftclipact", **SEARCH))  # type: ignore[arg-type]
    given, reporter = replace(context, settings=settings, checkpoint=NoCheckpoint()), Listening()
    elsewhere = RayExecutor(2, worker=Mortal)
    found = ftclipact.fit(replace(given, executor=elsewhere, reporter=reporter))
    assert (tmp_path / "2").exists()
    assert sum("ended, and another takes its place" in said for said in reporter.said) == 2
    assert found == ftclipact.fit(given)


@pytest.mark.usefixtures("cluster")
def test_workers_load_libraries_of_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extensions = pytest.importorskip("onnxruntime_extensions")
    monkeypatch.setattr("proact_onnx.engine.operators._loaded", [])
    weights = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    text = """<ir_version: 8, opset_import: ["": 17, "ai.onnx.contrib": 1]>
    net (float[N, 4] x) => (float[N, 4] y) {
        h = MatMul (x, w)
        low, high = ai.onnx.contrib.NegPos (h)
        y = MatMul (high, w)
    }"""
    onnx.save_model(parse(text, w=weights), tmp_path / "model.onnx")
    some = np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32)
    # A relative path, and workers start in another folder.
    shutil.copy(extensions.get_library_path(), tmp_path / "own.so")
    monkeypatch.chdir(tmp_path)
    runtime = replace(RUNTIME, operators=(Path("own.so"),))
    run = Campaign(
        tmp_path / "model.onnx",
        Dataset(some, None, "noise"),
        InjectSettings(ber=(1e-3,), trials=20),
        runtime=runtime,
    )
    run.run(tmp_path / "one.jsonl")
    run.run(tmp_path / "two.jsonl", None, RayExecutor(1))
    assert lines(tmp_path / "two.jsonl") == lines(tmp_path / "one.jsonl")


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_several_inputs_are_sent(kind: str, tmp_path: Path) -> None:
    make, samples = KINDS[kind]
    path, inject = make(tmp_path), InjectSettings(ber=(1e-3,), trials=12, images=9)
    data = several_inputs(samples())
    for name, executor in (("one", None), ("two", RayExecutor(2))):
        Campaign(path, data, inject, runtime=RUNTIME).run(tmp_path / name, None, executor)
    assert len(lines(tmp_path / "one")) == 12
    assert lines(tmp_path / "two") == lines(tmp_path / "one")


def children(process: int) -> list[int]:
    """Processes below a process."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
            )
        except (OSError, IndexError):
            continue
    found, pending = [], [process]
    while pending:
        below = [child for child, parent in parents.items() if parent == pending[-1]]
        pending.pop()
        found += below
        pending += below
    return found


def called(process: int, name: bytes) -> bool:
    """Whether a process runs a program of this name."""
    with contextlib.suppress(OSError):
        program, *_ = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        return name in program.rpartition(b"/")[2]
    return False


def workers_below(process: int) -> list[int]:
    """Processes of Ray's workers that hold a model."""
    return [child for child in children(process) if called(child, b"ray::RemoteWorker")]


class Killing(Listening):
    """Kills a worker when some numbers of trials are finished."""

    def __init__(self, *moments: int) -> None:
        super().__init__()
        self.moments, self.killed = moments, 0

    def advance(self, steps: int = 1) -> None:
        super().advance(steps)
        if self.trials in self.moments:
            os.kill(workers_below(os.getpid())[0], signal.SIGKILL)
            self.killed += 1


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
@pytest.mark.usefixtures("cluster")
def test_killed_workers_are_replaced_and_no_trial_is_lost(model: Path, tmp_path: Path) -> None:
    class RemoteWorkerInNoHurry(distribute.RemoteWorker):  # type: ignore[misc, name-defined]
        def run(self, block: object) -> object:
            time.sleep(0.02)
            return super().run(block)

    record, reporter = tmp_path / "run.jsonl", Killing(20, 200)
    campaign(model).run(record, reporter, RayExecutor(2, worker=RemoteWorkerInNoHurry))
    assert reporter.killed == 2
    assert sum("ended, and another takes its place" in said for said in reporter.said) == 2
    assert lines(record) == in_one_process(model, tmp_path)


@pytest.mark.usefixtures("cluster")
def test_a_block_that_kills_every_worker_ends_the_campaign(model: Path, tmp_path: Path) -> None:
    class Fatal(distribute.RemoteWorker):  # type: ignore[misc, name-defined]
        def run(self, block: object) -> None:
            os._exit(1)

    message = "3 workers ended over trials 0 to 0 of 'ber=0.0001', the last on .*: see there"
    with pytest.raises(CampaignError, match=message):
        executor = RayExecutor(1, worker=Fatal)
        campaign(model).run(tmp_path / "run.jsonl", Listening(), executor)


@pytest.mark.usefixtures("cluster")
def test_workers_that_differ_cannot_take_part(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "run.jsonl"
    real = distribute.versions()
    for package in ("proact-onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            wanted = {**real, package: "99.9"}
            patch.setattr(distribute, "versions", lambda wanted=wanted: wanted)
            with pytest.raises(CampaignError) as raised:
                campaign(model).run(record, Listening(), RayExecutor(1))
        assert re.fullmatch(
            rf"the worker on \S+ cannot take part, because it has {package} {real[package]} "
            r"instead of 99\.9: install the same versions on every machine",
            str(raised.value),
        )
    with monkeypatch.context() as patch:
        patch.setattr(Subject, "content_digests", lambda self: {"model": "0" * 64})
        with pytest.raises(CampaignError, match=r"the model of model\.onnx did not arrive as sent"):
            campaign(model).run(record, Listening(), RayExecutor(1))
    assert not record.exists()


@pytest.mark.usefixtures("cluster")
def test_the_others_go_on_without_a_worker_that_differs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter(["onnx 1.0 instead of 2.0"])
    monkeypatch.setattr(distribute, "differing", lambda *_: next(found, None))
    record, reporter = tmp_path / "run.jsonl", Listening()
    campaign(model, ber=(1e-3,)).run(record, reporter, RayExecutor(2))
    assert sum("cannot take part, because it has onnx 1.0" in said for said in reporter.said) == 1
    assert lines(record) == in_one_process(model, tmp_path, ber=(1e-3,))


def test_other_scores_of_the_golden_run_are_noticed(model: Path) -> None:
    subject = Subject(model, dataset(), runtime=RUNTIME)
    known = subject.golden_run(LogReporter(), 1, 5).scores
    again = subject.golden_run(LogReporter(), 1, 5, known=known)
    assert again.scores is known
    known.outputs[-1, 0] = np.nextafter(known.outputs[-1, 0], np.float32(np.inf))
    with pytest.raises(CampaignError, match=r"scores of model\.onnx are not bit for bit those of"):
        subject.golden_run(LogReporter(), 1, 5, known=known)


@pytest.mark.usefixtures("cluster")
def test_a_model_that_cannot_run_is_told_as_in_one_process(tmp_path: Path) -> None:
    large = network(1e30)
    onnx.save_model(large, tmp_path / "model.onnx")
    for executor in (None, RayExecutor(1)):
        settings = {"format": "float16", "ber": (1e-3,)}
        with pytest.raises(ModelError, match=r"^model\.onnx gives no finite output once its"):
            campaign(tmp_path / "model.onnx", **settings).run(
                tmp_path / "run.jsonl", Listening(), executor
            )


@pytest.mark.usefixtures("cluster")
def test_what_the_cluster_does_not_have_is_said(command: Command, project: Path) -> None:
    for options, message in {
        ("--workers", "1", "--gpus-per-worker", "1"): "no machine of the cluster has the 1 CPUs "
        "and 1 GPUs that a worker takes: lower --threads or --gpus-per-worker, or add machines",
        ("--workers", "1", "--threads", "64"): "no machine of the cluster has the 64 CPUs that",
        ("--gpus-per-worker", "1"): "GPUs are given to workers, and there are none: add --workers",
        ("--ray", "ray://head:10001"): "ray://head:10001 is for Ray's client mode, and campaigns",
    }.items():
        outcome = command("inject", "digits.onnx", *options)
        assert outcome.code == 1
        assert message in outcome.err
        assert "Traceback" not in outcome.err
    assert not (project / "digits.campaign.jsonl").exists()
    with pytest.raises(SettingsError, match="client mode"):
        RayExecutor(address="ray://head:10001")


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_room_begin_when_there_is_some(model: Path, tmp_path: Path) -> None:
    reporter = Listening()
    executor: Executor = RayExecutor(5)
    campaign(model, ber=(1e-3,)).run(tmp_path / "run.jsonl", reporter, executor)
    assert any("has room for 3 of 5 workers; the others begin" in said for said in reporter.said)
    assert lines(tmp_path / "run.jsonl") == in_one_process(model, tmp_path, ber=(1e-3,))


LONG: dict[str, object] = {
    "ber": (1e-4, 1e-3),
    "trials": 2500,
    "images": 7,
    "half_width": None,
}


@pytest.fixture(scope="module")
def long_record(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The trials of `program`, run in one process."""
    folder = tmp_path_factory.mktemp("long")
    onnx.save_model(network(), folder / "model.onnx")
    return in_one_process(folder / "model.onnx", folder, **LONG)


def program(model: Path, folder: Path, *options: str) -> list[str]:
    np.savez(folder / "data.npz", images=images(), labels=dataset().labels)
    given = ("--ber", "1e-4,1e-3", "--trials", "2500", "--images", "7", "--threads", "1")
    return [
        *(sys.executable, "-m", "proact_onnx.cli", "inject", str(model)),
        *("--data", str(folder / "data.npz"), *given, *options),
    ]


def environment() -> dict[str, str]:
    """As a user's, with the test's small object store."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    limits = {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(STORE)}
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5ec3e7" * 8}
    return {**os.environ, **limits, **secret, "PYTHONPATH": path}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_program_that_ends_early_leaves_a_record_that_goes_on(
    model: Path, tmp_path: Path, long_record: list[bytes], sent: signal.Signals
) -> None:
    record = tmp_path / "model.campaign.jsonl"
    running = subprocess.Popen(
        program(model, tmp_path, "--workers", "2"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while running.poll() is None and not (record.exists() and len(lines(record)) > 300):
        time.sleep(0.01)
    below = children(running.pid)
    assert len(below) > 2
    # As a terminal sends Ctrl-C: to all processes of the program.
    (os.killpg if sent is signal.SIGINT else os.kill)(running.pid, sent)
    told, _ = running.communicate()
    if sent is signal.SIGINT:
        assert running.returncode == 130
        assert "interrupted: finished trials are kept; run the same command again" in told
    finished = lines(record)
    # Ray's own processes end by themselves, but take their time where nobody told them.
    for process in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert 300 < len(finished) < len(long_record)
    assert long_record[: len(finished) - 1] == finished[:-1]
    campaign(model, **LONG).run(record)
    assert lines(record) == long_record


# In place of Slurm: all machines are this one, and steps run as they are.
STAND_INS = {
    "srun": "while [[ $1 == --* ]]; do shift; done\n"
    'if [[ $1 == hostname ]]; then echo 127.0.0.1; else exec "$@"; fi',
    "scontrol": "echo first; echo second",
    "proact-onnx": f'exec {sys.executable} -m proact_onnx.cli "$@"',
}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_the_slurm_file_runs_a_campaign_on_two_nodes(
    model: Path, tmp_path: Path, long_record: list[bytes]
) -> None:
    """Two Ray nodes on one machine, each with an object store of its own."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in STAND_INS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    paths = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    slurm = {"SLURM_JOB_NODELIST": "two", "SLURM_CPUS_PER_TASK": "1", "RAY_PORT": str(port)}
    running = subprocess.Popen(
        ["bash", str(ROOT / "cluster" / "slurm.sh"), *program(model, tmp_path)[3:-2]],
        cwd=tmp_path,
        env={**environment(), **slurm, "PATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
    )
    used: set[int] = set()
    started: set[int] = set()
    try:
        while running.poll() is None:
            started.update(children(running.pid))
            nodes = [process for process in started if called(process, b"raylet")]
            used |= {node for node in nodes if workers_below(node)}
            time.sleep(0.02)
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert running.returncode == 0
    assert len(used) == 2
    assert lines(tmp_path / "model.campaign.jsonl") == long_record


def test_without_ray_the_user_learns_what_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "proact_onnx.distribute.executor")
    for asked in (("inject", "digits.onnx"), ("harden", "--method", "ftclipact")):
        outcome = command(*asked, "--workers", "2")
        assert outcome.code == 1
        assert "--workers and --ray need Ray, which is not installed: run" in outcome.err
        assert "pip install 'proact-onnx[distributed]'" in outcome.err


def test_methods_without_trials_need_no_workers(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "proact_onnx.distribute.executor")
    with (project / "proact.toml").open("a") as file:
        file.write("\n[cluster]\nworkers = 2\n")
    sentence = "method ranger runs no trials under fault, so workers have nothing to do"
    # A table that is there for campaigns is no reason to say anything.
    for options, said in {(): False, ("--workers", "3"): True, ("--ray", "auto"): True}.items():
        outcome = command("harden", "--method", "ranger", "--force", *options)
        assert outcome.code == 0, outcome.err
        assert (sentence in " ".join(outcome.err.split())) == said
