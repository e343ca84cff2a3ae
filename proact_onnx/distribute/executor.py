"""Trials on Ray: one engine a worker, blocks of trials as messages. The only user of Ray.

Every worker is an actor that runs one job. Model and images are put into Ray's object store once;
the workers of a machine share one read-only copy of the images. A worker introduces itself, and is
left out if its packages have other versions. Then it opens its engine. The first one makes the
golden run, and its scores go to the others; these prove on some batches that theirs are the same
bit for bit, and are left out otherwise.

A worker that ends is replaced, and what it has not answered is given to others. Nobody waits for
its answers any more, so no trial counts twice.
"""

import logging
import os
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

# Ray reads it when it is loaded.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from proact_onnx.campaign.executor import Answer, Block, Crew, Job, Reuse
from proact_onnx.campaign.subject import GoldenFacts, versions
from proact_onnx.distribute.remote import Introduction, Readiness, RemoteWorker, differing
from proact_onnx.errors import CampaignError, ProactError, SettingsError
from proact_onnx.progress import Reporter

# Blocks that a worker has at once: one that it runs, one that waits, so that it never waits itself.
_BLOCKS_PER_WORKER = 2
# Seconds that a block should take: long beside the cost of a message, short beside the loss of one.
_BLOCK_SECONDS = 0.5
# More would keep the campaign's process too busy; with many workers blocks take longer instead.
_MOST_BLOCKS_PER_SECOND = 100
# How much the latest block says about the duration of a trial.
_WEIGHT = 0.3
# Workers that may end, one after the other, over the same block, or before they are ready.
_MOST_DEATHS = 3
# Seconds without any news after which the user is told what is waited for.
_PATIENCE = 30.0


class RayExecutor:
    """Runs trials on a Ray cluster, or on one that it starts on this machine.

    A program that is connected to a cluster already stays so, and that cluster is used.

    Args:
        workers: How many; 0 for as many as an existing cluster has room for.
        address: Of an existing cluster, or ``auto``; None to start one here.
        gpus_per_worker: Shares of a GPU that each worker takes, or a whole number of them.
        worker: What runs in each process.

    Raises:
        SettingsError: If the address is one that workers cannot be reached by.
    """

    def __init__(
        self,
        workers: int = 0,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        worker: type[RemoteWorker] = RemoteWorker,
    ) -> None:
        if address is not None and address.startswith("ray://"):
            raise SettingsError(
                f"{address} is for Ray's client mode, and campaigns run on a machine of the "
                "cluster: log in there, and say --ray auto"
            )
        self._workers, self._address, self._gpus = workers, address, gpus_per_worker
        self._worker = worker
        self._connected_here = False
        self._room_told: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connected_here:
            ray.shutdown()

    @contextmanager
    def open(self, job: Job, reporter: Reporter) -> Iterator[Crew]:
        """Get ready for a job; see `Executor.open`.

        Where the runtime's threads are left open, a worker runs with one.

        Raises:
            CampaignError: If no cluster answers, it has no room for a worker, or no worker can
                take part.
            ProactError: If the model cannot be run.
        """
        _, threads, _ = job.subject.arguments
        threads = max(1, threads)
        self._connect(threads)
        room = self._room(threads)
        workers = self._workers or room
        # Once for all jobs of a command.
        if workers > room and room != self._room_told:
            self._room_told = room
            reporter.notice(
                f"the cluster has room for {room} of {workers} workers; the others begin when "
                "there is more"
            )
        job = replace(
            job, subject=job.subject.with_threads(threads), trials=max(1, job.trials // workers)
        )
        actor = ray.remote(self._worker).options(
            num_cpus=threads,
            num_gpus=self._gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        crew = _RayCrew(job, workers, actor, reporter)
        try:
            crew.wait_for_the_first()
            yield crew
        finally:
            crew.dismiss()

    def _connect(self, threads: int) -> None:
        if ray.is_initialized():
            return
        try:
            if self._address is None:
                # Its own secret, in place of one that Ray would leave in the user's home.
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
                ray.init(
                    address="local",
                    num_cpus=self._workers * threads,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            else:
                ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            raise CampaignError(
                f"no Ray cluster answers at {self._address or 'this machine'} "
                f"({_first_line(error)}): start one with 'ray start --head', or correct --ray"
            ) from error
        self._connected_here = True

    def _room(self, threads: int) -> int:
        """Count the workers that fit into the cluster as it is."""
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = 0
        for resources in machines:
            fit = int(resources.get("CPU", 0.0) // threads)
            if self._gpus:
                fit = min(fit, int(resources.get("GPU", 0.0) / self._gpus))
            room += fit
        if not room:
            gpus = f" and {self._gpus:g} GPUs" if self._gpus else ""
            raise CampaignError(
                f"no machine of the cluster has the {threads} CPUs{gpus} that a worker takes: "
                f"lower --threads{' or --gpus-per-worker' if gpus else ''}, or add machines"
            )
        return room


@dataclass(eq=False)
class _Member:
    """A worker as the campaign sees it.

    Attributes:
        actor: Ray's handle.
        host: Its machine; unknown until it introduces itself.
        ready: Whether it takes blocks.
        blocks: Those it has, the one that it runs first.
    """

    actor: Any
    host: str = "a machine of the cluster"
    ready: bool = False
    blocks: deque[Block] = field(default_factory=deque)


class _RayCrew:
    """Workers of one job; see `Crew`."""

    def __init__(self, job: Job, workers: int, actor: Any, reporter: Reporter) -> None:
        self._actor = actor
        self._reporter = reporter
        self._versions = versions()
        self._digests = job.subject.content_digests()
        self._job = ray.put(job)
        self._facts: GoldenFacts | None = None
        self._scores: Any = None
        self._leader: _Member | None = None
        self._members: list[_Member] = []
        # Introduced members that wait for the leader's scores.
        self._waiting: list[_Member] = []
        # A ready member for every block more that it can take.
        self._openings: deque[_Member] = deque()
        self._backlog: deque[Block] = deque()
        # What is waited for: by reference, who owes it and what is to be done with it.
        self._owed: dict[Any, tuple[_Member, Callable[[_Member, Any], Answer | None]]] = {}
        self._arrived: deque[Any] = deque()
        self._deaths: Counter[Block] = Counter()
        self._early_deaths = 0
        self._seconds: float | None = None
        self.reuse = Reuse()
        for _ in range(workers):
            self._hire()

    @property
    def facts(self) -> GoldenFacts:
        assert self._facts is not None, "the first worker comes first"
        return self._facts

    @property
    def places(self) -> int:
        return _BLOCKS_PER_WORKER * sum(member.ready for member in self._members)

    @property
    def free(self) -> int:
        return len(self._openings) - len(self._backlog)

    @property
    def block_size(self) -> int:
        if not self._seconds:
            return 1
        seconds = max(_BLOCK_SECONDS, len(self._members) / _MOST_BLOCKS_PER_SECOND)
        return max(1, int(seconds / self._seconds))

    def submit(self, block: Block) -> None:
        self._backlog.append(block)
        self._assign()

    def collect(self) -> Answer | None:
        if not self._arrived:
            self._listen()
        if not self._arrived:
            return None
        reference = self._arrived.popleft()
        member, receive = self._owed.pop(reference, (None, None))
        if member is None or receive is None:
            return None
        try:
            found = ray.get(reference)
        except RayTaskError as error:
            self._failed(member, error)
        except RayError as error:
            self._ended(member, error)
        else:
            return receive(member, found)
        return None

    def wait_for_the_first(self) -> None:
        """Return when there is a golden run, and a worker ready."""
        while self._facts is None:
            self.collect()

    def dismiss(self) -> None:
        """End all workers."""
        while self._members:
            self._forget(self._members[-1])

    def _listen(self) -> None:
        owed = list(self._owed)
        arrived, late = ray.wait(owed, num_returns=1, timeout=_PATIENCE)
        if arrived and late:
            more, _ = ray.wait(late, num_returns=len(late), timeout=0)
            arrived += more
        elif not arrived and not any(member.ready for member in self._members):
            self._reporter.notice("waiting for the cluster to make a worker ready")
        self._arrived.extend(arrived)

    def _hire(self) -> None:
        member = _Member(self._actor.remote())
        self._members.append(member)
        self._owed[member.actor.introduce.remote()] = (member, self._introduced)

    def _introduced(self, member: _Member, found: Introduction) -> None:
        member.host = found.host
        other = differing(found.versions, self._versions)
        if other is not None:
            self._refuse(member, f"it has {other}: install the same versions on every machine")
            return
        self._waiting.append(member)
        self._prepare_waiting()

    def _prepare_waiting(self) -> None:
        if self._scores is None and self._leader is None and self._waiting:
            self._leader = self._waiting.pop(0)
            self._prepare(self._leader)
        while self._scores is not None and self._waiting:
            self._prepare(self._waiting.pop(0), self._scores)

    def _prepare(self, member: _Member, *known: Any) -> None:
        reference = member.actor.prepare.remote(self._job, self._digests, *known)
        self._owed[reference] = (member, self._prepared)

    def _prepared(self, member: _Member, found: Readiness) -> None:
        if self._facts is None:
            # Kept by this process, which everything ends with anyway.
            self._scores = ray.put(ray.get(member.actor.scores.remote()))
            self._facts = found.facts
            for notice in found.notices:
                self._reporter.notice(notice)
            for warning in found.warnings:
                self._reporter.warn(warning)
            self._prepare_waiting()
        member.ready = True
        self._early_deaths = 0
        # Everyone gets a first block before anyone gets a second.
        self._openings.appendleft(member)
        self._openings.extend([member] * (_BLOCKS_PER_WORKER - 1))
        self._assign()

    def _assign(self) -> None:
        while self._backlog and self._openings:
            member, block = self._openings.popleft(), self._backlog.popleft()
            member.blocks.append(block)
            self._owed[member.actor.run.remote(block)] = (member, self._answered)

    def _answered(self, member: _Member, found: Answer) -> Answer:
        self._deaths.pop(member.blocks.popleft(), None)
        self._openings.append(member)
        self._assign()
        seconds = found.seconds / len(found.results)
        known = seconds if self._seconds is None else self._seconds
        self._seconds = known + _WEIGHT * (seconds - known)
        self.reuse = Reuse(
            max(self.reuse.made, found.reuse.made), max(self.reuse.discarded, found.reuse.discarded)
        )
        return found

    def _failed(self, member: _Member, error: RayTaskError) -> None:
        """A worker lives, but could not do what it was asked for."""
        cause = error.cause
        if member.ready or member is self._leader:
            raise cause if isinstance(cause, ProactError) else error
        if isinstance(cause, ProactError):
            self._refuse(member, str(cause))
        else:
            self._refuse(
                member,
                f"it cannot load proact-onnx {self._versions['proact-onnx']} "
                f"({_first_line(cause)}): install it there",
            )

    def _refuse(self, member: _Member, why: str) -> None:
        self._forget(member)
        text = f"the worker on {member.host} cannot take part, because {why}"
        if not self._members:
            raise CampaignError(text)
        self._reporter.warn(text)

    def _ended(self, member: _Member, error: RayError) -> None:
        """A worker is gone: killed, out of memory, or its machine is."""
        self._forget(member)
        self._backlog.extendleft(reversed(member.blocks))
        if member.blocks:
            block = member.blocks[0]
            self._deaths[block] += 1
            if self._deaths[block] == _MOST_DEATHS:
                raise CampaignError(
                    f"{_MOST_DEATHS} workers ended over trials {block.trials[0]} to "
                    f"{block.trials[-1]} of {block.fault!r}, the last on {member.host}: see there "
                    "whether memory suffices, then run the same command again"
                )
        if not member.ready:
            self._early_deaths += 1
            if self._early_deaths >= _MOST_DEATHS:
                if self._members:
                    return
                raise CampaignError(
                    f"{self._early_deaths} workers ended before they were ready, the last on "
                    f"{member.host} ({_first_line(error)}): see whether memory suffices there"
                )
        self._reporter.notice(f"a worker on {member.host} ended, and another takes its place")
        self._hire()
        self._prepare_waiting()
        self._assign()

    def _forget(self, member: _Member) -> None:
        self._members.remove(member)
        self._owed = {ref: owed for ref, owed in self._owed.items() if owed[0] is not member}
        self._openings = deque(other for other in self._openings if other is not member)
        self._waiting = [other for other in self._waiting if other is not member]
        if member is self._leader:
            self._leader = None
        ray.kill(member.actor)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
