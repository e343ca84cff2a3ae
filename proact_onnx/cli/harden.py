"""The command ``harden``."""

from pathlib import Path
from typing import Annotated

import typer

from proact_onnx.cli.gather import gather, load_source, need_model, need_source, with_source
from proact_onnx.cli.options import (
    DATA,
    FILES,
    BatchSize,
    Config,
    GpusPerWorker,
    LayoutOption,
    LearningData,
    LearningLabels,
    LearningPart,
    Mean,
    Operators,
    ProviderOption,
    RayAddress,
    Resize,
    Scale,
    Std,
    TestLabels,
    TestPart,
    Threads,
    Workers,
    setting,
)
from proact_onnx.cli.terminal import err, interrupted, say, show, spell
from proact_onnx.console import BarReporter
from proact_onnx.settings import (
    PROTECTIONS,
    TARGETS,
    ClusterSettings,
    OutOfRange,
    ThresholdScale,
)

_BOUNDS = "Bounds"
_WEIGHTS = "Weights"
_LIMITS = "Limits"
_TRAINING = "Training (methods proact, fitact, brelu)"
_SEARCH = "Search (methods ftclipact, auto)"


def harden(
    model: Annotated[
        Path | None,
        typer.Argument(help="The ONNX model, which is only read \\[model].", metavar="MODEL"),
    ] = None,
    method: Annotated[
        str | None,
        setting(
            "harden.method",
            "How thresholds are found; auto: the best protection within the limits on accuracy, "
            "memory and latency, found by trying under fault.",
            _BOUNDS,
            "proact|ranger|ftclipact|fitact|brelu|clip-percentile|auto",
        ),
    ] = None,
    protect: Annotated[
        str | None,
        setting(
            "harden.protect",
            "What is bounded; linear: also what Conv, Gemm and MatMul give where no activation "
            "bounds it (residual sums, attention, logits).",
            _BOUNDS,
            "|".join(PROTECTIONS),
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        setting(
            "harden.granularity",
            "What shares a threshold, by default as the method has it; hybrid: a threshold for "
            "each neuron of the last hidden layer, one for each layer before; auto: channel where "
            "it helps most within --max-memory-overhead.",
            _BOUNDS,
            "layer|channel|neuron|hybrid|auto",
        ),
    ] = None,
    form: Annotated[
        str | None,
        setting(
            "harden.form", "How bounds are written.", _BOUNDS, "hard|smooth|saturate|ramp|tent"
        ),
    ] = None,
    out_of_range: Annotated[
        OutOfRange | None,
        setting("harden.out_of_range", "What becomes of a value above its threshold.", _BOUNDS),
    ] = None,
    target: Annotated[
        str | None,
        setting(
            "harden.target",
            "Where the file will run, for a form that runs there; npu: a device that knows only "
            "Clip, Min and Max.",
            _BOUNDS,
            "|".join(TARGETS),
        ),
    ] = None,
    percentile: Annotated[
        float | None,
        setting(
            "harden.percentile",
            "Percentile of the activations to take as threshold, 90 to 100 (the maximum); methods "
            "ranger and clip-percentile.",
            _BOUNDS,
        ),
    ] = None,
    rescale: Annotated[
        str | None,
        setting(
            "harden.rescale",
            "What shares a power of two by which weights are stored enlarged, to fill the range of "
            "fixed-point storage; auto: channel where it helps most within --max-memory-overhead.",
            _WEIGHTS,
            "none|tensor|channel|auto",
        ),
    ] = None,
    format: Annotated[
        str | None,
        setting(
            "harden.format",
            "How parameters are stored on the device: what rescaled weights are to fill, and what "
            "methods that search, and a training under faults, inject faults into.",
            _WEIGHTS,
        ),
    ] = None,
    max_memory_overhead: Annotated[
        float | None,
        setting(
            "harden.max_memory_overhead",
            "Thresholds, scales and copies that auto may store, in % of the parameters.",
            _LIMITS,
        ),
    ] = None,
    max_latency: Annotated[
        float | None,
        setting(
            "harden.max_latency",
            "Times as long as the original that a run may take with method auto, measured here at "
            "batches of 1 and 64.",
            _LIMITS,
        ),
    ] = None,
    monitor: Annotated[
        bool | None,
        setting(
            "harden.monitor",
            "Append an output that counts, for each image and layer, the values out of bounds, "
            "and find the counts above which it should raise an alarm.",
            _BOUNDS,
        ),
    ] = None,
    slack: Annotated[
        float | None, setting("harden.slack", "Factor on profiled maxima, at least 1.", _BOUNDS)
    ] = None,
    slope: Annotated[
        float | None, setting("harden.slope", "k, the steepness of the smooth gate.", _BOUNDS)
    ] = None,
    slope_scale: Annotated[
        ThresholdScale | None,
        setting("harden.slope_scale", "Whether k is divided by the threshold.", _BOUNDS),
    ] = None,
    data: LearningData = None,
    labels: LearningLabels = None,
    part: LearningPart = None,
    test_data: Annotated[
        Path | None,
        setting("data.test", "Images to report accuracy on; else a part of --data.", DATA),
    ] = None,
    test_labels: TestLabels = None,
    test_part: TestPart = None,
    calibration_images: Annotated[
        int | None,
        setting("harden.calibration_images", "Images to profile and train on, at most.", DATA),
    ] = None,
    accept_images: Annotated[
        int | None,
        setting(
            "harden.accept_images",
            "Other images that decide whether trained thresholds are kept, at most.",
            DATA,
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        setting(
            "harden.max_accuracy_drop",
            "Percentage points of accuracy that training, or method auto, may cost.",
            _LIMITS,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        setting("harden.epochs", "Epochs for thresholds of layers and channels.", _TRAINING),
    ] = None,
    epochs_neuron: Annotated[
        int | None,
        setting("harden.epochs_neuron", "Epochs for thresholds of neurons.", _TRAINING),
    ] = None,
    train_batch: Annotated[
        int | None, setting("harden.train_batch", "Images per training step.", _TRAINING)
    ] = None,
    learning_rate: Annotated[
        float | None, setting("harden.learning_rate", "Adam's, at the start.", _TRAINING)
    ] = None,
    halve_every: Annotated[
        int | None,
        setting("harden.halve_every", "Epochs until the learning rate is halved.", _TRAINING),
    ] = None,
    step: Annotated[
        ThresholdScale | None,
        setting(
            "harden.step", "Whether thresholds move relative to their profiled value.", _TRAINING
        ),
    ] = None,
    train_ber: Annotated[
        float | None,
        setting(
            "harden.train_ber",
            "Bit error rate in a layer's own parameters, stored as --format has it, while its "
            "thresholds are trained.",
            _TRAINING,
        ),
    ] = None,
    temperature: Annotated[
        float | None, setting("harden.temperature", "T of the distillation.", _TRAINING)
    ] = None,
    regularisation: Annotated[
        float | None,
        setting("harden.regularisation", "gamma, the weight of small thresholds.", _TRAINING),
    ] = None,
    patience: Annotated[
        int | None,
        setting("harden.patience", "Epochs without a lower loss that end a layer.", _TRAINING),
    ] = None,
    distillation: Annotated[
        bool | None,
        setting(
            "harden.distillation",
            "Whether proact learns from the unbounded model too, or from labels alone.",
            _TRAINING,
        ),
    ] = None,
    progressive: Annotated[
        bool | None,
        setting(
            "harden.progressive",
            "Whether proact trains from the last layer to the first, or all together.",
            _TRAINING,
        ),
    ] = None,
    epochs_together: Annotated[
        int | None,
        setting("harden.epochs_together", "Epochs where all layers train together.", _TRAINING),
    ] = None,
    search_ber: Annotated[
        str | None,
        setting(
            "harden.search_ber",
            "Bit error rates, two at least, under which thresholds, or candidates, are tried.",
            _SEARCH,
            "RATE,...",
        ),
    ] = None,
    search_trials: Annotated[
        int | None, setting("harden.search_trials", "Fault maps for each of them.", _SEARCH)
    ] = None,
    search_images: Annotated[
        int | None, setting("harden.search_images", "Images for each fault map.", _SEARCH)
    ] = None,
    search_rounds: Annotated[
        int | None,
        setting("harden.search_rounds", "Times ftclipact narrows an interval, at most.", _SEARCH),
    ] = None,
    seed: Annotated[
        int | None,
        setting(
            "harden.seed", "Decides which images go where, their order, and faults.", _TRAINING
        ),
    ] = None,
    layout: LayoutOption = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    provider: ProviderOption = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = None,
    operators: Operators = None,
    output: Annotated[
        Path | None,
        setting(
            "output.hardened", "Where to write; by default MODEL.hardened.onnx beside it.", FILES
        ),
    ] = None,
    opset: Annotated[
        int | None,
        setting("harden.opset", "Operator set of the file; by default the model's own.", FILES),
    ] = None,
    config: Config = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an output that exists.", rich_help_panel=FILES)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where a run was interrupted.", rich_help_panel=FILES),
    ] = False,
) -> None:
    """Write a hardened copy of a model, and compare clean accuracy before and after."""
    from proact_onnx.distribute import open_cluster
    from proact_onnx.harden import checkpoint_path, hardened_path, runs_trials
    from proact_onnx.harden import harden as run
    from proact_onnx.report import (
        choice_table,
        coverage_line,
        monitor_table,
        spell_monitor,
        threshold_table,
        unprotected_lines,
    )

    settings = gather(locals(), "harden", "preprocessing", "runtime", "cluster")
    settings = with_source(settings, "calibration", data, labels, part)
    settings = with_source(settings, "test", test_data, test_labels, test_part)
    settings = settings.override("output", {"hardened": output})
    path = need_model(model, settings)
    written = settings.output.hardened or hardened_path(path)
    cluster, method = settings.cluster, settings.harden.method
    idle = not runs_trials(method)
    try:
        with (
            open_cluster(ClusterSettings() if idle else cluster) as executor,
            BarReporter(err) as reporter,
        ):
            if idle and (workers or ray or gpus_per_worker):
                reporter.notice(
                    f"method {method} runs no trials under fault, so workers have nothing to do"
                )
            report = run(
                path,
                need_source(settings, "calibration"),
                written,
                test=load_source(settings, "test"),
                settings=settings.harden,
                preprocessing=settings.preprocessing,
                runtime=settings.runtime,
                reporter=reporter,
                executor=executor,
                force=force,
                resume=resume,
            )
    except KeyboardInterrupt:
        if checkpoint_path(written).exists():
            interrupted("finished layers are kept; run the same command with --resume to go on")
        interrupted("no layer was finished yet, so nothing is kept; run the same command again")
    if report.choice is not None:
        show(choice_table(report.choice))
    show(threshold_table(report.activations, report.thresholds))
    if report.monitor is not None:
        show(monitor_table(report.monitor))
    if report.raised_opset is not None:
        say(f"opset raised to {report.raised_opset}, which the bounds need")
    elif report.opsets[0] != report.opsets[1]:
        say("opset converted from {} to {}".format(*report.opsets))
    fidelity = report.fidelity
    if fidelity.accuracy_before is not None and fidelity.accuracy_after is not None:
        against = "" if report.labelled else ", against the original model, as no labels are given"
        say(
            f"clean accuracy: {fidelity.accuracy_before:.2%} before, "
            f"{fidelity.accuracy_after:.2%} after ({report.test_images:,} test images{against})"
        )
    else:
        say(
            f"clean outputs change by {fidelity.output_change:.2g} of their length on average "
            f"({report.test_images:,} test images; the model is no classifier)"
        )
    say(
        f"memory overhead: {report.memory_overhead:.3g} % of the parameters "
        f"({report.thresholds.count:,} thresholds"
        + (f", {report.scales:,} scales and copies of biases)" if report.scales else ")")
    )
    for line in (*unprotected_lines(report.unprotected), coverage_line(report.coverage)):
        say(line)
    if report.monitor is not None:
        for line in spell_monitor(report.monitor):
            say(line)
    say(f"hardened in {report.seconds:.1f} s: {spell(report.output)}")
