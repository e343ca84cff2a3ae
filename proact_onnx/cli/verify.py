"""The command ``verify``."""

from pathlib import Path
from typing import Annotated

import typer

from proact_onnx.cli.gather import gather, need_model, need_source, with_source
from proact_onnx.cli.options import (
    BatchSize,
    Config,
    LayoutOption,
    Mean,
    Operators,
    ProviderOption,
    Resize,
    Scale,
    Std,
    TestData,
    TestLabels,
    TestPart,
    Threads,
)
from proact_onnx.cli.terminal import err, say, show
from proact_onnx.console import BarReporter
from proact_onnx.errors import ModelError


def verify(
    original: Annotated[
        Path | None,
        typer.Argument(help="The model before hardening \\[model].", metavar="ORIGINAL"),
    ] = None,
    hardened: Annotated[
        Path | None,
        typer.Argument(
            help="The file that hardening wrote; by default ORIGINAL.hardened.onnx "
            "\\[output.hardened].",
            metavar="HARDENED",
        ),
    ] = None,
    data: TestData = None,
    labels: TestLabels = None,
    part: TestPart = None,
    layout: LayoutOption = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    provider: ProviderOption = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    operators: Operators = None,
    config: Config = None,
) -> None:
    """Compare a hardened model with its original where there are no faults."""
    from proact_onnx.harden import hardened_path
    from proact_onnx.report import clipping_table
    from proact_onnx.verify import verify as run

    settings = gather(locals(), "preprocessing", "runtime")
    settings = with_source(settings, "test", data, labels, part)
    before = need_model(original, settings)
    after = hardened or settings.output.hardened or hardened_path(before)
    dataset = need_source(settings, "test")
    with BarReporter(err) as reporter:
        report = run(before, after, dataset, settings.preprocessing, settings.runtime, reporter)
    say(
        f"{report.untouched:,} of {report.images:,} images pass no threshold; on them the outputs "
        f"differ by at most {report.largest_difference:.1e} of the largest output"
    )
    if report.tolerance is None:
        say("the smooth form changes values below its thresholds too, so no exactness is asked for")
    if report.layers:
        show(clipping_table(report.layers))
    if report.changed is not None:
        say(f"the top-1 class differs on {len(report.changed):,} images")
    if report.accuracy_original is not None and report.accuracy_hardened is not None:
        say(
            f"clean accuracy: original {report.accuracy_original:.2%}, hardened "
            f"{report.accuracy_hardened:.2%}"
        )
    if not report.passed:
        raise ModelError(
            f"{after} differs from {before} on images that pass no threshold: harden the model "
            "again from this original"
        )
    say("verified")
