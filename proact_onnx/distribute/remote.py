"""What runs in a worker's process. It knows nothing of how messages reach it."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from proact_onnx.campaign.executor import Answer, Block, Job, TrialWorker
from proact_onnx.campaign.subject import GoldenFacts, KnownScores, versions
from proact_onnx.errors import CampaignError
from proact_onnx.progress import LogReporter


@dataclass(frozen=True)
class Introduction:
    """Who a worker is.

    Attributes:
        host: Name of its machine.
        process: Number of its process there.
        versions: Of the packages that results depend on.
    """

    host: str
    process: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Readiness:
    """What a worker says when it is ready for trials.

    Attributes:
        facts: Its golden run.
        notices: What it wants the user to know.
        warnings: What the user must not miss.
    """

    facts: GoldenFacts
    notices: tuple[str, ...]
    warnings: tuple[str, ...]


class RemoteWorker:
    """Runs blocks of trials far from the campaign that asks for them."""

    def __init__(self) -> None:
        self._worker: TrialWorker | None = None

    def introduce(self) -> Introduction:
        """Say who this is; before anything else, because other versions might fail anywhere."""
        return Introduction(socket.gethostname(), os.getpid(), versions())

    def prepare(
        self, job: Job, digests: Mapping[str, str], known: KnownScores | None = None
    ) -> Readiness:
        """Get ready for a job.

        Args:
            job: What its trials need.
            digests: Of the model and the images, as the campaign knows them.
            known: The scores of the first worker's golden run.

        Raises:
            ProactError: If this worker must not, or cannot, run these trials.
        """
        found = job.subject.content_digests()
        for part in digests:
            if found[part] != digests[part]:
                raise CampaignError(
                    f"the {part} of {job.subject.path.name} did not arrive as sent, by its digest: "
                    "run the same command again"
                )
        collected = _Collected()
        self._worker = TrialWorker(job, collected, known)
        return Readiness(self._worker.facts, tuple(collected.notices), tuple(collected.warnings))

    def scores(self) -> KnownScores:
        """The golden run's scores, for other workers."""
        assert self._worker is not None, "prepare comes first"
        return self._worker.scores

    def run(self, block: Block) -> Answer:
        """Run the trials of a block."""
        assert self._worker is not None, "prepare comes first"
        return self._worker.run(block)


def differing(found: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """Spell the first package whose version is another one; None if there is none.

    Args:
        found: A worker's versions.
        wanted: The campaign's. Python's own is left to Ray, which checks it.
    """
    for package in sorted(set(wanted) - {"python"}):
        if found.get(package) != wanted[package]:
            return f"{package} {found.get(package)} instead of {wanted[package]}"
    return None


class _Collected(LogReporter):
    """Keeps notices and warnings for the campaign."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.warnings: list[str] = []

    def notice(self, text: str) -> None:
        """Keep it."""
        self.notices.append(text)

    def warn(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)
