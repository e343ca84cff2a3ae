"""The command ``inject``."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proact_onnx.cli.gather import gather, need_model, need_source, with_source
from proact_onnx.cli.options import (
    FILES,
    BatchSize,
    Config,
    LayoutOption,
    Mean,
    ProviderOption,
    Resize,
    Scale,
    Std,
    TestData,
    TestLabels,
    TestPart,
    Threads,
    setting,
)
from proact_onnx.cli.outputs import set_aside
from proact_onnx.cli.terminal import err, interrupted, say, show, spell
from proact_onnx.console import BarReporter
from proact_onnx.errors import SettingsError
from proact_onnx.settings import Settings

if TYPE_CHECKING:
    from proact_onnx.campaign import CampaignResult

_FAULTS = "Faults"
_STATISTICS = "Trials"


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
            "Bit error rate: the probability that a stored bit is flipped; several with commas, "
            "or by repeating the option.",
            _FAULTS,
            "RATE,...",
        ),
    ] = None,
    format: Annotated[
        str | None,
        setting(
            "inject.format", "How parameters are stored.", _FAULTS, "Qm.n|float32|float16|bfloat16"
        ),
    ] = None,
    targets: Annotated[
        str | None,
        setting(
            "inject.targets",
            "Kinds of parameters to fault; by default all of weight, bias, threshold.",
            _FAULTS,
            "KIND,...",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        setting(
            "inject.layers",
            "Names of layers or parameters to fault, * for any letters; by default all.",
            _FAULTS,
            "PATTERN,...",
        ),
    ] = None,
    trials: Annotated[
        int | None, setting("inject.trials", "Fault maps for each bit error rate.", _STATISTICS)
    ] = None,
    images: Annotated[
        int | None,
        setting("inject.images", "Images, drawn afresh for each trial; 0: all.", _STATISTICS),
    ] = None,
    confidence: Annotated[
        float | None,
        setting("inject.confidence", "Level of the intervals, below 1.", _STATISTICS),
    ] = None,
    seed: Annotated[
        int | None,
        setting("inject.seed", "Decides every fault and every choice of images.", _STATISTICS),
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
    output_folder: Annotated[
        Path | None,
        setting(
            "output.folder",
            "Folder of the record MODEL.campaign.jsonl and the summary MODEL.campaign.csv; by "
            "default the model's own.",
            FILES,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        setting(
            "output.plot", "Figure of accuracy over bit error rate: .png, .svg or .pdf.", FILES
        ),
    ] = None,
    config: Config = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Start a record over instead of going on.", rich_help_panel=FILES
        ),
    ] = False,
) -> None:
    """Flip bits of stored parameters at random and measure what is left of the accuracy."""
    from proact_onnx.campaign import Campaign
    from proact_onnx.campaign.summary import write_csv
    from proact_onnx.model import check_writable
    from proact_onnx.report import (
        campaign_table,
        check_figure,
        comparison_table,
        plot_accuracy,
    )

    settings = gather(locals(), "inject", "preprocessing", "runtime")
    settings = with_source(settings, "test", data, labels, part)
    settings = settings.override("output", {"folder": output_folder, "plot": plot})
    paths = models or _configured_models(settings)
    records = _records(paths, settings)
    figure = settings.output.plot
    if figure is not None:
        check_figure(figure)
        check_writable(figure)
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
        with BarReporter(err) as reporter:
            for campaign, record in zip(campaigns, records, strict=True):
                with set_aside(record, _summary(record)) if force else nullcontext():
                    results.append(campaign.run(record, reporter))
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
    for record in records:
        say(f"trials: {spell(record)}  summary: {spell(_summary(record))}")
    if figure is not None:
        plot_accuracy(results, figure, level)
        say(f"figure: {spell(figure)}")


def _configured_models(settings: Settings) -> list[Path]:
    from proact_onnx.harden import hardened_path

    model = need_model(None, settings)
    hardened = settings.output.hardened or hardened_path(model)
    return [model, hardened] if hardened.exists() else [model]


def _records(models: list[Path], settings: Settings) -> list[Path]:
    from proact_onnx.model import check_writable

    records: dict[Path, Path] = {}
    for model in models:
        folder = settings.output.folder or model.parent
        record = folder / f"{model.stem}.campaign.jsonl"
        if record.resolve() in records:
            raise SettingsError(
                f"{records[record.resolve()]} and {model} would share the record {record}: give "
                "them different file names, or measure them in different folders"
            )
        check_writable(record)
        check_writable(_summary(record))
        records[record.resolve()] = model
    return list(records)


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
    if not result.labelled:
        say("note: no labels are given, so accuracy means agreement with the fault-free run")
