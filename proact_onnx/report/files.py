"""A report as Markdown with figures beside it, and as files of CSV."""

import re
from collections.abc import Iterator
from itertools import chain

from proact_onnx.campaign.sensitivity import atlas_csv
from proact_onnx.campaign.summary import to_csv as campaign_csv
from proact_onnx.report.document import Block, Commands, Document, Prose, Section
from proact_onnx.report.rendering import Table, escape_markdown, to_csv, to_markdown
from proact_onnx.report.runs import Runs

_LONGEST = 60


def markdown_files(document: Document, name: str) -> dict[str, str]:
    """Spell a report as Markdown.

    Args:
        document: The report.
        name: Name of the Markdown file; the figures' names begin with its stem.

    Returns:
        By file name: the Markdown, and the figures it shows, as SVG.
    """
    stem = name.rpartition(".")[0] or name
    figures = {
        id(picture): f"{stem}.{number}-{slug(picture.name)}.svg"
        for number, picture in enumerate(document.pictures(), start=1)
    }

    def spell(block: Block) -> str:
        if isinstance(block, Table):
            return to_markdown(block)
        if isinstance(block, Prose):
            return f"{escape_markdown(block.text)}\n"
        if isinstance(block, Commands):
            return "".join(f"    {line}\n" for line in block.lines)
        return f"![{escape_markdown(block.caption)}]({figures[id(block)]})\n"

    def sections(parts: tuple[Section, ...], level: int) -> Iterator[str]:
        for part in parts:
            yield f"{'#' * level} {escape_markdown(part.title)}\n"
            yield from map(spell, part.blocks)
            yield from sections(part.parts, level + 1)

    head = [f"# {escape_markdown(document.title)}\n", f"{escape_markdown(document.lead)}\n"]
    text = "\n".join([*head, *sections(document.sections, 2)])
    return {name: text} | {figures[id(p)]: p.svg for p in document.pictures()}


def csv_files(runs: Runs, document: Document) -> dict[str, str]:
    """Spell a report as CSV.

    Returns:
        By file name: every table as it is shown, numbered in order, and beside it every campaign
        and study in full precision, as ``inject`` and ``sensitivity`` write them.
    """
    files = {
        f"{number:02}-{slug(table.title)}.csv": to_csv(table)
        for number, table in enumerate(document.tables(), start=1)
    }
    compared = (entry.record for found in runs.comparisons for entry in found.entries)
    for number, record in enumerate(chain(compared, *runs.campaigns), start=1):
        files[f"campaign-{number}-{slug(record.result.model)}.csv"] = campaign_csv(record.result)
    for number, study in enumerate(runs.atlases, start=1):
        files[f"sensitivity-{number}-{slug(study.atlas.model)}.csv"] = atlas_csv(study.atlas)
    return files


def slug(text: str) -> str:
    """Spell text with letters, digits and dashes only, for names of files and anchors."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST].strip("-") or "x"
