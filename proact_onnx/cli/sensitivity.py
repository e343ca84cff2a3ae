"""The command ``sensitivity``."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from proact_onnx.cli.gather import gather, need_model, need_source, with_source
from proact_onnx.cli.options import (
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
    Workers,
    setting,
)
from proact_onnx.cli.outputs import set_aside
from proact_onnx.cli.terminal import err, interrupted, say, show, spell
from proact_onnx.console import BarReporter


def sensitivity(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="The ONNX model \\[model].")
    ] = None,
    format: Format = None,
    targets: Targets = None,
    layers: LayerPatterns = None,
    bits: Bits = None,
    trials: Annotated[
        int | None,
        setting("sensitivity.trials", "Single upsets for each layer, kind and bit.", STATISTICS),
    ] = None,
    images: Annotated[
        int | None,
        setting("sensitivity.images", "Images, drawn afresh for each upset.", STATISTICS),
    ] = None,
    confidence: Confidence = None,
    tolerance: Tolerance = None,
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
    cache_memory: CacheMemory = None,
    workers: Workers = None,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = None,
    output_folder: OutputFolder = None,
    heatmap: Annotated[
        Path | None,
        setting(
            "output.heatmap",
            "Figure of silent data corruption by layer and bit: .png, .svg or .pdf.",
            FILES,
        ),
    ] = None,
    record_faults: RecordFaults = None,
    config: Config = None,
    force: Force = False,
) -> None:
    """Measure which layers, kinds of parameters and bits are critical, one upset at a time."""
    from proact_onnx.campaign import Sensitivity, write_atlas
    from proact_onnx.distribute import open_cluster
    from proact_onnx.model import check_writable
    from proact_onnx.report import check_figure, plot_atlas, sensitivity_table

    settings = gather(locals(), "sensitivity", "inject", "preprocessing", "runtime", "cluster")
    settings = with_source(settings, "test", data, labels, part)
    settings = settings.override("output", {"folder": output_folder, "heatmap": heatmap})
    path = need_model(model, settings)
    record = (settings.output.folder or path.parent) / f"{path.stem}.sensitivity.jsonl"
    summary = record.with_suffix(".csv")
    check_writable(record)
    check_writable(summary)
    figure = settings.output.heatmap
    if figure is not None:
        check_figure(figure)
        check_writable(figure)
    study = Sensitivity(
        path,
        need_source(settings, "test"),
        settings.sensitivity,
        settings.inject,
        settings.preprocessing,
        settings.runtime,
    )
    if not force:
        study.check(record)
    try:
        with (
            open_cluster(settings.cluster) as executor,
            BarReporter(err) as reporter,
            set_aside(record, summary) if force else nullcontext(),
        ):
            atlas = study.run(record, reporter, executor)
    except KeyboardInterrupt:
        interrupted("finished trials are kept; run the same command again to go on")
    write_atlas(atlas, summary)
    show(sensitivity_table(atlas, settings.inject.confidence))
    say(f"trials: {spell(record)}  by layer, kind and bit: {spell(summary)}")
    if figure is not None:
        plot_atlas(atlas, figure)
        say(f"figure: {spell(figure)}")
