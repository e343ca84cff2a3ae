"""Tables drawn as Markdown, HTML and CSV say the same, whatever their cells hold."""

import csv
import html.parser
import io
import re

import pytest
from rich.console import Console

from proact_onnx.report.rendering import Table, escape_markdown, to_csv, to_html, to_markdown

HOSTILE = '<script>alert("1")</script> | a_b [x](y) & __c__ *d* `e` \\'
TABLE = Table(
    "shares in %, [bold]not markup[/]",
    ("name", "mean", "other"),
    ((HOSTILE, "1.50\n[1.00, 2.00]", ""), ("second", "-0.25", "7")),
    ("name",),
    frozenset({(0, 1)}),
)


class Reader(html.parser.HTMLParser):
    """Collects the cells of a table, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.stressed: list[int] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "br":
            self.cells[-1] += "\n"
            return
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "strong":
            self.stressed.append(len(self.cells) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "strong"):
            self.cells[-1] += data


def test_html_holds_every_cell_as_it_is() -> None:
    reader = Reader()
    reader.feed(to_html(TABLE))
    assert not reader.open
    assert reader.cells == [*TABLE.columns, *TABLE.rows[0], *TABLE.rows[1]]
    assert reader.stressed == [4]
    assert "<script" not in to_html(TABLE)


def test_csv_holds_every_cell_on_one_line() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows == [
        ["name", "mean", "other"],
        [HOSTILE, "1.50 [1.00, 2.00]", ""],
        ["second", "-0.25", "7"],
    ]


def test_markdown_has_one_line_a_row_and_nothing_to_execute() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == "**shares in %, [bold]not markup[/]**"
    assert lines[2:4] == ["| name | mean | other |", "| :-- | --: | --: |"]
    assert len(lines) == 6
    for line in lines[2:]:
        assert len(re.findall(r"(?<!\\)\|", line)) == 4
    assert "| **1.50 [1.00, 2.00]** |" in lines[4]
    assert "<" not in lines[4]


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("resnet20_with_a_name.onnx [1.0, 2.0]", "resnet20_with_a_name.onnx [1.0, 2.0]"),
        ("__init__", "\\__init_\\_"),
        ("[x](http://y)", "[x\\](http://y)"),
        ("a|b", "a\\|b"),
        ("1 < 2 & 3", "1 &lt; 2 &amp; 3"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_is_escaped_where_it_must_be(text: str, spelled: str) -> None:
    assert escape_markdown(text) == spelled


def test_a_terminal_shows_cells_as_they_are() -> None:
    stream = io.StringIO()
    Console(file=stream, width=100).print(TABLE)
    text = stream.getvalue()
    assert "[bold]not markup[/]" in text
    assert '<script>alert("1")</script>' in text
    assert "[1.00, 2.00]" in text
