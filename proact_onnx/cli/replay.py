"""The command ``replay``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from proact_onnx.cli.gather import gather, load_source, with_source
from proact_onnx.cli.options import (
    BatchSize,
    Config,
    Operators,
    ProviderOption,
    TestData,
    TestLabels,
    TestPart,
    Threads,
)
from proact_onnx.cli.terminal import err, say, show, spell
from proact_onnx.console import BarReporter
from proact_onnx.errors import CampaignError, DataError
from proact_onnx.settings import Settings

_SITES_SHOWN = 20


def replay(
    record: Annotated[
        Path, typer.Argument(metavar="RUN", help="Record of a campaign: MODEL.campaign.jsonl.")
    ],
    trial: Annotated[int, typer.Option("--trial", help="Number of the trial, from 0.")],
    fault: Annotated[
        str | None,
        typer.Option(
            "--fault",
            help="Its fault model as the record names it, such as 'ber=1e-06'; may be left out "
            "where there is one.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="The model; by default the file that the record names."),
    ] = None,
    sites: Annotated[
        Path | None,
        typer.Option("--sites", help="Write all fault sites to this file, as CSV."),
    ] = None,
    data: TestData = None,
    labels: TestLabels = None,
    part: TestPart = None,
    provider: ProviderOption = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    operators: Operators = None,
    config: Config = None,
) -> None:
    """Repeat one trial of a record: its fault sites, and what they did layer by layer."""
    from proact_onnx.campaign import Replay, write_sites
    from proact_onnx.model import check_writable
    from proact_onnx.report import effect_table, site_table

    settings = gather(locals(), "runtime")
    settings = with_source(settings, "test", data, labels, part)
    if sites is not None:
        check_writable(sites)
    run = Replay(record)
    wanted = run.find(trial, fault)
    made_by = run.header.made_by
    path = model or _recorded_model(made_by, record)
    dataset = load_source(_with_recorded_images(settings, made_by), "test")
    if dataset is None:
        raise DataError(f"no images are given: name those of {record} with --data")
    with BarReporter(err) as reporter:
        found = run.run(wanted, path, dataset, settings.runtime, reporter)
    verdict = found.recorded.verdict
    say(
        f"{path.name}, trial {trial:,} of '{wanted.fault}': {wanted.flips:,} bits "
        f"changed; {verdict.correct:,} of {verdict.images:,} images right, "
        f"{verdict.golden_correct:,} without faults; {verdict.sdc:,} silently corrupted, "
        f"{verdict.nonfinite:,} not finite"
    )
    if not found.reproduced:
        raise CampaignError(
            f"running trial {trial} again gave other numbers than {record} holds: it was measured "
            f"with ONNX Runtime {made_by.get('onnxruntime')} on Python {made_by.get('python')}"
        )
    say("reproduced: the same numbers as recorded")
    if found.sites:
        show(site_table(found.sites[:_SITES_SHOWN], len(found.sites)))
    if found.effects:
        show(effect_table(found.effects))
    if sites is not None:
        write_sites(found, sites)
        say(f"sites: {spell(sites)}")


def _recorded_model(made_by: Mapping[str, Any], record: Path) -> Path:
    path = Path(made_by.get("model", ""))
    if not path.is_file():
        raise CampaignError(
            f"the model of {record} is not at {made_by.get('model', 'a known place')}: name it "
            "with --model"
        )
    return path


def _with_recorded_images(settings: Settings, made_by: Mapping[str, Any]) -> Settings:
    """Where no images are named, take those of the record, if they are still there."""
    images = Path(made_by.get("images", ""))
    if settings.data.test is None and images.exists() and images != Path():
        return with_source(settings, "test", images, None, None)
    return settings
