"""What reaches the terminal: results on standard output, progress and errors beside it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from proact_onnx.report import Table

_INTERRUPTED = 130
# Columns of a table in a pipe or a file, whose reader's width nobody knows.
_WIDTH = 100
# Columns that a table needs: for text that may be broken, and between two of its columns.
_FOLDED = 12
_GAP = 3

_out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print one line, however long, so that a path in it can be copied."""
    _out.print(escape(text), soft_wrap=True)


def show(table: "Table") -> None:
    """Print a table as wide as the terminal, or wider where figures would be lost."""
    known = _out.is_terminal or "COLUMNS" in os.environ
    drawn = table.__rich__()
    needed = sum((column.min_width or _FOLDED) + _GAP for column in drawn.columns)
    width = max(_out.width if known else _WIDTH, needed)
    Console(width=width, highlight=False).print(drawn)


def fail(error: Exception) -> None:
    """Print the sentence of an error."""
    err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)


def interrupted(how_to_go_on: str) -> NoReturn:
    """End the program after Ctrl-C, with the sentence how to go on."""
    err.print(f"interrupted: {escape(how_to_go_on)}", soft_wrap=True)
    raise typer.Exit(_INTERRUPTED) from None


def spell(path: Path) -> str:
    """Spell a path from the working folder where it lies inside."""
    absolute, here = path.resolve(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)
