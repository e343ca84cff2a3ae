"""How long work tells the outside that it moves on; the command line draws it."""

import logging
from typing import Protocol

_LOG = logging.getLogger("proact_onnx")


class Reporter(Protocol):
    """Receives progress and notices of long work."""

    def begin(self, task: str, total: int) -> None:
        """Start a task of ``total`` steps; the task before it is over."""

    def advance(self, steps: int = 1) -> None:
        """Count finished steps of the current task."""

    def expect(self, total: int) -> None:
        """Correct the number of steps of the current task."""

    def status(self, text: str) -> None:
        """Show in a few words how the current task stands, in place of what was shown before."""

    def notice(self, text: str) -> None:
        """Pass on one sentence the user may want to know."""

    def warn(self, text: str) -> None:
        """Pass on one sentence the user must not miss."""


class SilentReporter:
    """Tells nobody anything."""

    def begin(self, task: str, total: int) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1) -> None:
        """Do nothing."""

    def expect(self, total: int) -> None:
        """Do nothing."""

    def status(self, text: str) -> None:
        """Do nothing."""

    def notice(self, text: str) -> None:
        """Do nothing."""

    def warn(self, text: str) -> None:
        """Do nothing."""


class LogReporter(SilentReporter):
    """Draws nothing; notices and warnings go to the log ``proact_onnx``.

    Python shows warnings on standard error unless a program sets up logging otherwise.
    """

    def notice(self, text: str) -> None:
        """Log at level INFO."""
        _LOG.info(text)

    def warn(self, text: str) -> None:
        """Log at level WARNING."""
        _LOG.warning(text)
