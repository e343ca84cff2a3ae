"""The command ``inject``."""

from contextlib import nullcontext
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
    CacheMemory,
    Confidence,
    Config,
    Force,
    Format,
    GpusPerWorker,
    HalfWidth,
    JudgedOutput,
    LayerPatterns,
    LayoutOption,
    Mean,
    Operators,
    OutputFolder,
    ProviderOption,
    RayAddress,
    RecordFaults,
    Resize,
    Scale,
    Seed,
    Std,
    Targets,
    TestData,
    TestLabels,
    TestPart,
    Threads,
    Tolerance,
    TrialImages,
    Trials,
    Workers,
    setting,
)
from proact_onnx.cli.outputs import result_files, set_aside
from proact_onnx.cli.terminal import err, interrupted, say, show, spell
from proact_onnx.console import BarReporter
from proact_onnx.errors import SettingsError
from proact_onnx.settings import BURST_AXES, EFFECTS, Protocol

if TYPE_CHECKING:
    from proact_onnx.campaign import CampaignResult


def inject(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="MODEL",
            help="Models to measure under the same faults; by default that of proact.toml and, "
            "where there is one, its hardened file \\[model, output.hardened].",
        ),
    ] = None,
    ber: Annotated[
        list[str] | None,
        setting(
            "inject.ber",
            "Bit error rate: the probability that a stored bit is faulty; several with commas, or "
            "by repeating the option; 1e-6 where no faults are asked for.",
            FAULTS,
            "RATE,...",
        ),
    ] = None,
    flips: Annotated[
        str | None,
        setting("inject.flips", "A fixed number of upsets in a trial.", FAULTS, "COUNT,..."),
    ] = None,
    single: Annotated[
        bool | None,
        setting(
            "inject.single",
            "One upset a trial, no place twice; as many trials as --margin asks for.",
            FAULTS,
        ),
    ] = None,
    exhaustive: Annotated[
        bool | None,
        setting(
            "inject.exhaustive", "One upset a trial, at every place of the fault space.", FAULTS
        ),
    ] = None,
    effect: Annotated[
        str | None,
        setting("inject.effect", "What an upset does to its bits.", FAULTS, "|".join(EFFECTS)),
    ] = None,
    burst: Annotated[
        str | None,
        setting("inject.burst", "Number of bits that one upset hits.", FAULTS, "LENGTH,..."),
    ] = None,
    burst_along: Annotated[
        str | None,
        setting(
            "inject.burst_along",
            "Adjacent bits of a word, or the same bit of adjacent words.",
            FAULTS,
            "|".join(BURST_AXES),
        ),
    ] = None,
    format: Format = None,
    targets: Targets = None,
    layers: LayerPatterns = None,
    bits: Bits = None,
    trials: Trials = None,
    images: TrialImages = None,
    half_width: HalfWidth = None,
    protocol: Annotated[
        Protocol | None,
        setting(
            "inject.protocol",
            "How evaluations are spent; paper: 500 fault maps, each on all images.",
            STATISTICS,
        ),
    ] = None,
    margin: Annotated[
        float | None,
        setting(
            "inject.margin",
            "Points within which --single estimates the share of failures (Leveugle et al.).",
            STATISTICS,
        ),
    ] = None,
    confidence: Confidence = None,
    requirement: Annotated[
        float | None,
        setting(
            "inject.requirement",
            "Count trials with an accuracy below this, in per cent.",
            STATISTICS,
        ),
    ] = None,
    tolerance: Tolerance = None,
    judged_output: JudgedOutput = None,
    per_class: Annotated[
        bool | None,
        setting("inject.per_class", "Show accuracy by class, too.", STATISTICS),
    ] = None,
    distance: Annotated[
        bool | None,
        setting(
            "inject.distance",
            "Measure the L2 distance of activations (Eq. 9), too; takes twice the time.",
            STATISTICS,
        ),
    ] = None,
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
    cache_memory: CacheMemory = None,
    workers: Workers = None,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = None,
    output_folder: OutputFolder = None,
    plot: Annotated[
        Path | None,
        setting(
            "output.plot", "Figure of accuracy over bit error rate: .png, .svg or .pdf.", FILES
        ),
    ] = None,
    record_faults: RecordFaults = None,
    config: Config = None,
    force: Force = False,
) -> None:
    """Flip bits of stored parameters at random and measure what is left of the accuracy."""
    from proact_onnx.campaign import Campaign
    from proact_onnx.campaign.summary import write_csv
    from proact_onnx.distribute import open_cluster
    from proact_onnx.model import check_writable
    from proact_onnx.report import (
        campaign_table,
        check_figure,
        class_table,
        comparison_table,
        detection_table,
        gain_table,
        measures_table,
        plot_accuracy,
    )

    settings = gather(locals(), "inject", "preprocessing", "runtime", "cluster")
    settings = with_source(settings, "test", data, labels, part)
    settings = settings.override("output", {"folder": output_folder, "plot": plot})
    paths = models or with_hardened(need_model(None, settings), settings)
    records = result_files(paths, settings.output.folder, ".campaign.jsonl")
    for record in records:
        check_writable(record)
        check_writable(_summary(record))
    figure = settings.output.plot
    if figure is not None:
        check_figure(figure)
        check_writable(figure)
        if not any(settings.inject.rates):
            raise SettingsError(
                "a figure shows accuracy over the bit error rate, and none is asked for: add "
                "--ber, or leave --plot out"
            )
    dataset = need_source(settings, "test")
    campaigns = [
        Campaign(path, dataset, settings.inject, settings.preprocessing, settings.runtime)
        for path in paths
    ]
    if not force:
        for campaign, record in zip(campaigns, records, strict=True):
            campaign.check(record)
    results = []
    try:
        with open_cluster(settings.cluster) as executor, BarReporter(err) as reporter:
            for campaign, record in zip(campaigns, records, strict=True):
                with set_aside(record, _summary(record)) if force else nullcontext():
                    results.append(campaign.run(record, reporter, executor))
    except KeyboardInterrupt:
        interrupted("finished trials are kept; run the same command again to go on")
    level = settings.inject.confidence
    for result, record in zip(results, records, strict=True):
        write_csv(result, _summary(record))
        _notes(result)
    if len(results) == 1:
        show(campaign_table(results[0], level))
    else:
        show(comparison_table(results, level))
        show(gain_table(results, level))
    for result in results:
        show(measures_table(result, settings.inject.requirement))
        noticed = detection_table(result, settings.inject.requirement, level)
        if noticed is not None:
            show(noticed)
        if settings.inject.per_class and result.classifier:
            show(class_table(result))
    for record in records:
        say(f"trials: {spell(record)}  summary: {spell(_summary(record))}")
    if figure is not None:
        plot_accuracy(results, figure, level, magnified=len(results) > 1)
        say(f"figure: {spell(figure)}")


def _summary(record: Path) -> Path:
    return record.with_suffix(".csv")


def _notes(result: "CampaignResult") -> None:
    say(
        f"{result.model}: accuracy {result.golden_accuracy:.2%} without faults "
        f"({result.images:,} images), fault space of {result.bits:,} bits"
    )
    if result.saturated:
        say(
            f"note: {result.saturated:,} parameters lie outside the range of the format and were "
            "saturated"
        )
    if not result.classifier:
        say("note: accuracy means the share of images within the tolerance of the fault-free run")
    elif not result.labelled:
        say("note: no labels are given, so accuracy means agreement with the fault-free run")
