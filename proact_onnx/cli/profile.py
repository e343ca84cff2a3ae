"""The command ``profile``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proact_onnx.cli.gather import gather, need_model, need_source, with_hardened, with_source
from proact_onnx.cli.options import (
    FAULTS,
    FILES,
    STATISTICS,
    BatchSize,
    Bits,
    Config,
    Format,
    JudgedOutput,
    LayerPatterns,
    LayoutOption,
    Mean,
    Operators,
    OutputFolder,
    ProviderOption,
    Resize,
    Scale,
    Seed,
    Std,
    Targets,
    TestData,
    TestLabels,
    TestPart,
    Threads,
    setting,
)
from proact_onnx.cli.outputs import result_files
from proact_onnx.cli.terminal import err, interrupted, say, show, spell
from proact_onnx.console import BarReporter

if TYPE_CHECKING:
    from proact_onnx.campaign import Distributions


def profile(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="MODEL",
            help="Models to measure under the same faults; by default that of proact.toml and, "
            "where there is one, its hardened file \\[model, output.hardened].",
        ),
    ] = None,
    ber: Annotated[
        float | None,
        setting(
            "profile.ber", "Bit error rate: the probability that a stored bit is faulty.", FAULTS
        ),
    ] = None,
    format: Format = None,
    targets: Targets = None,
    layers: LayerPatterns = None,
    bits: Bits = None,
    trials: Annotated[
        int | None, setting("profile.trials", "Fault maps, as a campaign draws them.", STATISTICS)
    ] = None,
    images: Annotated[
        int | None,
        setting("profile.images", "Images, the same for all fault maps; 0: all.", STATISTICS),
    ] = None,
    activations: Annotated[
        str | None,
        setting(
            "profile.activations",
            "Names of the activations to watch, * for any letters; by default all.",
            STATISTICS,
            "PATTERN,...",
        ),
    ] = None,
    judged_output: JudgedOutput = None,
    seed: Seed = None,
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
    output_folder: OutputFolder = None,
    plot: Annotated[
        Path | None,
        setting(
            "output.distributions",
            "Figure of the distributions, models side by side: .png, .svg or .pdf.",
            FILES,
        ),
    ] = None,
    config: Config = None,
) -> None:
    """Show how the values of activations are distributed, without faults and with them."""
    from proact_onnx.campaign import DistributionStudy
    from proact_onnx.campaign.distribution_files import write_histograms, write_summary
    from proact_onnx.model import check_writable
    from proact_onnx.report import check_figure, distribution_table, plot_distributions

    settings = gather(locals(), "profile", "inject", "preprocessing", "runtime")
    settings = with_source(settings, "test", data, labels, part)
    settings = settings.override("output", {"folder": output_folder, "distributions": plot})
    paths = models or with_hardened(need_model(None, settings), settings)
    summaries = result_files(paths, settings.output.folder, ".profile.csv")
    for summary in summaries:
        check_writable(summary, tuple(paths))
        check_writable(_histograms(summary), tuple(paths))
    figure = settings.output.distributions
    if figure is not None:
        check_figure(figure)
        check_writable(figure, tuple(paths))
    dataset = need_source(settings, "test")
    studies = [
        DistributionStudy(
            path,
            dataset,
            settings.profile,
            settings.inject,
            settings.preprocessing,
            settings.runtime,
        )
        for path in paths
    ]
    try:
        with BarReporter(err) as reporter:
            results = [study.run(reporter) for study in studies]
    except KeyboardInterrupt:
        interrupted(
            "nothing was written; run the same command again from the start, with fewer --trials "
            "or --images if it takes too long"
        )
    for result, summary in zip(results, summaries, strict=True):
        write_summary(result, summary)
        write_histograms(result, _histograms(summary))
        _notes(result, dataset.labels is not None)
        show(distribution_table(result))
    for summary in summaries:
        say(f"summary: {spell(summary)}  histograms: {spell(_histograms(summary))}")
    if figure is not None:
        plot_distributions(results, figure)
        say(f"figure: {spell(figure)}")


def _histograms(summary: Path) -> Path:
    return summary.with_suffix(".histograms.csv")


def _notes(result: "Distributions", labelled: bool) -> None:
    if result.golden_accuracy is not None and result.faulty_accuracy is not None:
        meaning = "accuracy" if labelled else "agreement with the fault-free run"
        say(
            f"{result.model}: {meaning} {result.golden_accuracy:.2%} without faults, "
            f"{result.faulty_accuracy:.2%} with them"
        )
    if result.saturated:
        say(
            f"note: {result.saturated:,} parameters lie outside the range of the format and were "
            "saturated"
        )
