"""A table as data, and how it is drawn: on a terminal, as Markdown, HTML and CSV."""

import csv
import html
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich import box
from rich.markup import escape
from rich.table import Table as TerminalTable

# What Markdown would read as a code span, emphasis, a cell's end, or the end of a link's name.
# Intervals in brackets are none, and stay as they are.
_MARKDOWN = re.compile(r"([\\`*|~#]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))")

# Text of more letters than this may be broken on a page, where shorter text is kept together.
_LONG = 32


@dataclass(frozen=True)
class Table:
    """Columns, and rows of cells that are spelled already.

    A line break in a cell separates parts that may stand on one line where there is room.

    Attributes:
        title: One line on what the figures are, with their unit.
        columns: Names of the columns.
        rows: One cell a column each.
        folds: Columns of text, on the left, that give way where a table is too wide; the others
            hold figures, on the right, which are never broken or cut.
        strong: Cells to stress, as row and column from 0.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folds: tuple[str, ...] = ()
    strong: frozenset[tuple[int, int]] = field(default=frozenset())

    def __rich__(self) -> TerminalTable:
        """Draw it for a terminal."""
        drawn = TerminalTable(
            title=escape(self.title),
            title_justify="left",
            title_style="bold",
            header_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for place, column in enumerate(self.columns):
            if column in self.folds:
                drawn.add_column(escape(column), overflow="fold")
            else:
                texts = [column, *(row[place] for row in self.rows)]
                longest = max(len(line) for text in texts for line in text.split("\n"))
                drawn.add_column(escape(column), justify="right", no_wrap=True, min_width=longest)
        for number, row in enumerate(self.rows):
            drawn.add_row(
                *(
                    f"[bold]{escape(cell)}[/]" if (number, place) in self.strong else escape(cell)
                    for place, cell in enumerate(row)
                )
            )
        return drawn


def to_csv(table: Table) -> str:
    """Spell a table as CSV: the columns, then the rows, without the title."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([[cell.replace("\n", " ") for cell in row] for row in table.rows])
    return stream.getvalue()


def to_markdown(table: Table) -> str:
    """Spell a table as GitHub's Markdown, its title above it in bold."""
    marks = [":--" if column in table.folds else "--:" for column in table.columns]
    lines = [_row(map(escape_markdown, table.columns)), _row(marks)]
    for number, row in enumerate(table.rows):
        cells = [escape_markdown(cell) for cell in row]
        for place, cell in enumerate(cells):
            if (number, place) in table.strong:
                cells[place] = f"**{cell}**"
        lines.append(_row(cells))
    return f"**{escape_markdown(table.title)}**\n\n" + "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Spell text so that Markdown shows it as it is, on one line."""
    text = _MARKDOWN.sub(r"\\\1", " ".join(text.split("\n")))
    return html.escape(text, quote=False)


def to_html(table: Table) -> str:
    """Spell a table as HTML, in a box of its own that scrolls where the table is too wide."""
    heads = "".join(
        f'<th scope="col"{_side(table, column)}>{escape_html(column)}</th>'
        for column in table.columns
    )
    lines = []
    for number, row in enumerate(table.rows):
        cells = []
        for place, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
            spelled = escape_html(cell).replace("\n", "<br>")
            if (number, place) in table.strong:
                spelled = f"<strong>{spelled}</strong>"
            long = len(cell) > _LONG
            cells.append(f"<td{_side(table, column, long)}>{spelled}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (
        f'<figure class="table"><figcaption>{escape_html(table.title)}</figcaption>\n'
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div></figure>\n"
    )


def escape_html(text: str) -> str:
    """Spell text so that a browser shows it as it is."""
    return html.escape(text, quote=True)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _side(table: Table, column: str, long: bool = False) -> str:
    if column not in table.folds:
        return ""
    return ' class="text long"' if long else ' class="text"'
