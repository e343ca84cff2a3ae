"""Progress bars in the terminal."""

from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _RateColumn(ProgressColumn):
    """Steps a second, lately."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.3g}/s")


class BarReporter:
    """Draws one bar a task and prints notices above them.

    Args:
        console: Where to draw; without a terminal only notices appear.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("in"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            _RateColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._console = console
        self._task: object = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def begin(self, task: str, total: int) -> None:
        """Start a new bar."""
        self._task = self._progress.add_task(escape(task), total=total, status="")

    def advance(self, steps: int = 1) -> None:
        """Move the current bar on."""
        self._progress.advance(self._task, steps)  # type: ignore[arg-type]

    def expect(self, total: int) -> None:
        """Make the current bar shorter or longer."""
        self._progress.update(self._task, total=total)  # type: ignore[arg-type]

    def status(self, text: str) -> None:
        """Show a few words behind the current bar."""
        self._progress.update(self._task, status=escape(text))  # type: ignore[arg-type]

    def notice(self, text: str) -> None:
        """Print a sentence above the bars."""
        self._console.print(escape(text), soft_wrap=not self._console.is_terminal)

    def warn(self, text: str) -> None:
        """Print a sentence above the bars that stands out."""
        self._console.print(
            f"[bold yellow]warning:[/] {escape(text)}", soft_wrap=not self._console.is_terminal
        )
