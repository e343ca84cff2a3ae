"""Finished runs in, a report on disk out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proact_onnx.errors import OutputError
from proact_onnx.files import write_text
from proact_onnx.model import check_writable, refuse_overwrite
from proact_onnx.report.content import build_report
from proact_onnx.report.files import csv_files, markdown_files
from proact_onnx.report.page import to_page
from proact_onnx.report.runs import read_runs
from proact_onnx.settings import InjectSettings


@dataclass(frozen=True)
class WrittenReport:
    """Files that were written.

    Attributes:
        page: The HTML page.
        markdown: The Markdown and its figures; empty where it was not asked for.
        tables: Files of CSV; likewise.
    """

    page: Path
    markdown: tuple[Path, ...]
    tables: tuple[Path, ...]


def write_report(
    runs: Sequence[Path],
    output: Path,
    markdown: Path | None = None,
    csv_folder: Path | None = None,
    title: str | None = None,
    confidence: float | None = None,
    force: bool = False,
) -> WrittenReport:
    """Write a report about finished runs.

    Args:
        runs: Records of campaigns and of sensitivity studies, and folders of comparisons.
        output: The HTML page.
        markdown: Where to write the same as Markdown; its figures are written beside it.
        csv_folder: Where to write the tables as CSV; made if it does not exist.
        title: Title; by default it names the models.
        confidence: Confidence level of the intervals; by default that of the runs.
        force: Whether files that exist are replaced.

    Raises:
        CampaignError: If a run cannot be read, or runs do not fit together.
        OutputError: If a file exists or cannot be written.
        SettingsError: If the level is out of range.
    """
    if confidence is not None:
        confidence = InjectSettings(confidence=confidence).confidence
    found = read_runs(runs, confidence)
    document = build_report(found, title)
    pages = {output: to_page(document)}
    texts: dict[Path, str] = {}
    if markdown is not None:
        named = markdown_files(document, markdown.name)
        texts = {markdown.with_name(name): text for name, text in named.items()}
    tables: dict[Path, str] = {}
    if csv_folder is not None:
        make_folder(csv_folder)
        tables = {csv_folder / name: text for name, text in csv_files(found, document).items()}
    everything = pages | texts | tables
    read = {path.resolve() for path in found.paths}
    for path in everything:
        if path.resolve() in read:
            raise OutputError(
                f"{path} is what the report is about: choose another name to write to"
            )
        refuse_overwrite(path, force)
        check_writable(path)
    for path, text in everything.items():
        write_text(path, text)
    return WrittenReport(output, tuple(texts), tuple(tables))


def make_folder(path: Path) -> None:
    """Make a folder, unless it exists.

    Raises:
        OutputError: If it cannot be made.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror or error}") from error
