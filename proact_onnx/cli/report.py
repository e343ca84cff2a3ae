"""The command ``report``."""

from pathlib import Path
from typing import Annotated

import typer

from proact_onnx.cli.options import FILES
from proact_onnx.cli.terminal import say, spell


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Records that inject and sensitivity wrote (.jsonl), or folders that compare "
            "wrote.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", help="The page to write.", rich_help_panel=FILES),
    ] = Path("report.html"),
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            help="Write it as Markdown, too, with its figures beside it.",
            rich_help_panel=FILES,
        ),
    ] = None,
    csv_folder: Annotated[
        Path | None,
        typer.Option(
            "--csv-folder",
            help="Write every table as CSV into this folder, too, and every run in full precision.",
            rich_help_panel=FILES,
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", help="Title; by default it names the models.")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            "--confidence",
            help="Level of the intervals, below 1; by default that of the runs.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that exist.", rich_help_panel=FILES)
    ] = False,
) -> None:
    """Write one HTML page about finished runs, without models and images."""
    from proact_onnx.report import write_report

    written = write_report(
        runs,
        output,
        markdown=markdown,
        csv_folder=csv_folder,
        title=title,
        confidence=confidence,
        force=force,
    )
    say(f"report: {spell(output)}")
    if markdown is not None:
        say(f"as Markdown: {spell(markdown)}")
    if csv_folder is not None:
        say(f"as CSV: {len(written.tables):,} files in {spell(csv_folder)}")
