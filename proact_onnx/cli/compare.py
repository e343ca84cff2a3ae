"""The command ``compare``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from proact_onnx.cli.gather import gather, load_source, need_model, need_source, with_source
from proact_onnx.cli.options import (
    FAULTS,
    STATISTICS,
    BatchSize,
    CacheMemory,
    Confidence,
    Config,
    Force,
    Format,
    GpusPerWorker,
    HalfWidth,
    LayoutOption,
    LearningData,
    LearningLabels,
    LearningPart,
    Mean,
    Operators,
    OutputFolder,
    ProviderOption,
    RayAddress,
    Resize,
    Scale,
    Seed,
    Std,
    TestData,
    TestLabels,
    TestPart,
    Threads,
    TrialImages,
    Trials,
    Workers,
    setting,
)
from proact_onnx.cli.terminal import err, interrupted, say, show, spell
from proact_onnx.console import BarReporter
from proact_onnx.settings import PAPER_RATES

_METHODS = "Methods"


def compare(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="MODEL [HARDENED...]",
            help="The unprotected model \\[model], and hardened files to compare as well.",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        setting(
            "compare.methods",
            "Methods, with options after hyphens (ranger-neuron, proact-layer, "
            "proact-no-distillation, proact-together, ranger-clamp); none: the model as it is.",
            _METHODS,
            "METHOD,...",
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        setting(
            "harden.max_accuracy_drop",
            "Percentage points of accuracy that training may cost.",
            _METHODS,
        ),
    ] = None,
    ber: Annotated[
        list[str] | None,
        setting(
            "inject.ber",
            "Bit error rates, with commas; by default those of the paper, 1e-7 to 3e-5.",
            FAULTS,
            "RATE,...",
        ),
    ] = None,
    format: Format = None,
    trials: Trials = None,
    images: TrialImages = None,
    half_width: HalfWidth = None,
    drop_limit: Annotated[
        float | None,
        setting(
            "compare.drop_limit",
            "List drops at the rates where a method loses less than these points (Table IV).",
            STATISTICS,
        ),
    ] = None,
    distance_ber: Annotated[
        float | None,
        setting(
            "compare.distance_ber",
            "Rate in one layer at a time, for the distance of activations (Table V); 0: none.",
            STATISTICS,
        ),
    ] = None,
    distance_trials: Annotated[
        int | None, setting("compare.distance_trials", "Fault maps for each layer.", STATISTICS)
    ] = None,
    distance_images: Annotated[
        int | None,
        setting("compare.distance_images", "Images for each of these.", STATISTICS),
    ] = None,
    confidence: Confidence = None,
    seed: Seed = None,
    data: LearningData = None,
    labels: LearningLabels = None,
    part: LearningPart = None,
    test_data: TestData = None,
    test_labels: TestLabels = None,
    test_part: TestPart = None,
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
    config: Config = None,
    force: Force = False,
) -> None:
    """Harden a model by several methods and measure all of them under the same faults."""
    from proact_onnx.compare import MethodComparison
    from proact_onnx.distribute import open_cluster
    from proact_onnx.report import comparison_table, method_tables, read_comparison

    settings = gather(locals(), "compare", "inject", "preprocessing", "runtime", "cluster")
    settings = settings.override("harden", {"max_accuracy_drop": max_accuracy_drop})
    settings = with_source(settings, "calibration", data, labels, part)
    settings = with_source(settings, "test", test_data, test_labels, test_part)
    settings = settings.override("output", {"folder": output_folder})
    if not any(settings.inject.ber):
        settings = settings.override("inject", {"ber": PAPER_RATES})
    model, *given = models or [need_model(None, settings)]
    folder = (settings.output.folder or model.parent) / f"{model.stem}.comparison"
    comparison = MethodComparison(
        model,
        given,
        folder,
        settings,
        load_source(settings, "calibration"),
        need_source(settings, "test"),
        shlex.join(["proact-onnx", *sys.argv[1:]]),
    )
    if force:
        comparison.forget()
    try:
        with open_cluster(settings.cluster) as executor, BarReporter(err) as reporter:
            results = comparison.run(reporter, executor)
    except KeyboardInterrupt:
        interrupted("what is finished is kept; run the same command again to go on")
    level = settings.inject.confidence
    show(comparison_table(results, level))
    for table in method_tables(read_comparison(folder)):
        show(table)
    say(f"models, trials and summary: {spell(folder)}")
    say(f"as a page: proact-onnx report {spell(folder)} --output report.html")
