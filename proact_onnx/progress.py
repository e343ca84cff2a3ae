"""How long work tells the outside that it moves on; the command line draws it."""

from typing import Protocol


class Reporter(Protocol):
    """Receives progress and notices of long work."""

    def begin(self, task: str, total: int) -> None:
        """Start a task of ``total`` steps; the task before it is over."""

    def advance(self, steps: int = 1) -> None:
        """Count finished steps of the current task."""

    def notice(self, text: str) -> None:
        """Pass on one sentence the user should see."""


class Silent:
    """Reports nothing."""

    def begin(self, task: str, total: int) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1) -> None:
        """Do nothing."""

    def notice(self, text: str) -> None:
        """Do nothing."""
