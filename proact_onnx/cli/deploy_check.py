"""The command ``deploy-check``."""

from pathlib import Path
from typing import Annotated

import typer

from proact_onnx.cli.gather import gather, load_source, need_model, with_source
from proact_onnx.cli.options import (
    FILES,
    Config,
    LayoutOption,
    Mean,
    Operators,
    Resize,
    Scale,
    Std,
    TestPart,
    setting,
)
from proact_onnx.cli.terminal import err, say, show, spell
from proact_onnx.console import BarReporter
from proact_onnx.errors import ModelError

_DEPLOYMENT = "Runtimes"


def deploy_check(
    hardened: Annotated[
        Path | None,
        typer.Argument(
            help="The file that hardening wrote; by default that of the configured model "
            "\\[output.hardened].",
            metavar="HARDENED",
        ),
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            help="The model before hardening, to compare acceptance and latency with; by default "
            "the configured one, where its hardened file is tried.",
        ),
    ] = None,
    runtimes: Annotated[
        str | None,
        setting(
            "deploy.runtimes",
            "Runtimes and optimisers to try; by default all that are installed.",
            _DEPLOYMENT,
            "NAME,...",
        ),
    ] = None,
    images: Annotated[
        int | None, setting("deploy.images", "Images that outputs are compared on.", _DEPLOYMENT)
    ] = None,
    rounds: Annotated[
        int | None,
        setting("deploy.rounds", "Turns of original and hardened model, timed.", _DEPLOYMENT),
    ] = None,
    data: Annotated[
        Path | None,
        setting("data.test", "Images to draw from; by default random numbers.", _DEPLOYMENT),
    ] = None,
    part: TestPart = None,
    layout: LayoutOption = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    operators: Operators = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Write the findings, too: as Markdown (.md) or JSON (.json).",
            rich_help_panel=FILES,
        ),
    ] = None,
    config: Config = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an output that exists.", rich_help_panel=FILES)
    ] = False,
) -> None:
    """Try a hardened file in every runtime that is installed."""
    from proact_onnx.deploy import check_deployment
    from proact_onnx.harden import hardened_path
    from proact_onnx.model import check_writable, refuse_overwrite
    from proact_onnx.report import (
        check_written,
        deployment_notes,
        deployment_table,
        write_deployment,
    )

    settings = gather(locals(), "deploy", "preprocessing", "runtime")
    settings = with_source(settings, "test", data, None, part)
    file = hardened or settings.output.hardened or hardened_path(need_model(None, settings))
    if hardened is None and original is None:
        original = settings.model
    if output is not None:
        check_written(output)
        check_writable(output, (file,))
        refuse_overwrite(output, force)
    with BarReporter(err) as reporter:
        report = check_deployment(
            file,
            original,
            load_source(settings, "test"),
            settings.deploy,
            settings.preprocessing,
            reporter,
            settings.runtime.operators,
        )
    show(deployment_table(report))
    for note in deployment_notes(report):
        say(note)
    if output is not None:
        write_deployment(report, output)
        say(f"findings: {spell(output)}")
    if report.failures:
        reasons = "; ".join(f"{name} {reason}" for name, reason in report.failures.items())
        raise ModelError(
            f"{file} must not be deployed everywhere: {reasons}; try another --form, or leave "
            "these runtimes out with --runtimes"
        )
