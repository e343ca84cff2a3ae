"""What it takes to repeat a measurement: commands, digests, versions and settings."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from proact_onnx.campaign import AtlasRecord, CampaignRecord, FaultSummary
from proact_onnx.faults import (
    Along,
    Count,
    Effect,
    FaultModel,
    Rate,
    Single,
    parse_fault_model,
    read_space,
    spell_bits,
)
from proact_onnx.report.rendering import Table


def commands(record: CampaignRecord | AtlasRecord) -> list[str]:
    """Spell the commands that measure the same again, trial for trial.

    They name model and images as the record does. Labels in a file of their own are not among
    what a record names, but its digest of the data covers them.

    Args:
        record: The record.

    Returns:
        One command, or two where single upsets come beside other faults.
    """
    if isinstance(record, AtlasRecord):
        trials = max(cell.trials for cell in record.atlas.cells)
        return [_spell("sensitivity", record, ["--trials", str(trials)])]
    singles: list[tuple[FaultModel, FaultSummary]] = []
    others: list[tuple[FaultModel, FaultSummary]] = []
    for summary in record.result.summaries:
        model = parse_fault_model(summary.fault)
        (singles if isinstance(model.amount, Single) else others).append((model, summary))
    found = []
    if others:
        models = [model for model, _ in others]
        rates = [repr(m.amount.ber) for m in models if isinstance(m.amount, Rate)]
        counts = [str(m.amount.upsets) for m in models if isinstance(m.amount, Count)]
        options = [
            *_list("--ber", dict.fromkeys(rates)),
            *_list("--flips", dict.fromkeys(counts)),
            *_shapes(models),
            *_amount(record, [summary for _, summary in others]),
        ]
        found.append(_spell("inject", record, options))
    if singles:
        shapes = _shapes([model for model, _ in singles])
        found.append(_spell("inject", record, [*_upsets(record, singles), *shapes]))
    return found


def facts(record: CampaignRecord | AtlasRecord) -> Table:
    """List all that a record says of how it was made."""
    identity = dict(record.header.identity)
    rows = [("record", str(record.path))]
    rows += [(name, _value(value)) for name, value in record.header.made_by.items()]
    rows += [
        (f"{name} (digest)", _value(identity.pop(name)))
        for name in ("model", "data")
        if name in identity
    ]
    rows += [(name, _value(value)) for name, value in identity.items()]
    rows.append(("confidence", f"{record.confidence:g}"))
    return listing(f"{record.path.name}: digests, versions and settings", rows)


def listing(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """A table of names and what they stand for."""
    return Table(title, ("what", "value"), tuple(rows), ("what", "value"))


def spell_settings(settings: Mapping[str, Any]) -> str:
    """Spell settings on one line."""
    return ", ".join(f"{name} = {_value(value)}" for name, value in settings.items())


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _spell(command: str, record: CampaignRecord | AtlasRecord, options: list[str]) -> str:
    """Put together what all commands have in common; defaults are spelled out only where short."""
    identity, made_by = record.header.identity, record.header.made_by
    model = made_by.get("model", "MODEL")
    source = re.fullmatch(r"(?P<path>.*?)(?: \((?P<part>train|test)\))?", made_by.get("images", ""))
    images = (source["path"] if source else "") or "IMAGES"
    part = source["part"] if source else None
    words = ["proact-onnx", command, model, "--data", images, *_list("--part", [part or ""])]
    words += options
    if identity.get("images") not in (None, 0, "pilot"):
        words += ["--images", str(identity["images"])]
    words += ["--format", str(identity["format"])]
    words += _list("--targets", identity.get("targets", ()))
    words += _list("--layers", identity.get("layers", ()))
    if identity.get("bits") is not None:
        words += ["--bits", spell_bits(identity["bits"])]
    words += _list("--layout", [identity.get("layout", "auto")])
    if identity.get("scale") is not None:
        words += ["--scale", repr(identity["scale"])]
    words += _list("--mean", map(repr, identity.get("mean", ())))
    words += _list("--std", map(repr, identity.get("std", ())))
    if identity.get("resize"):
        words += ["--resize", "x".join(map(str, identity["resize"]))]
    words += _list("--operators", [made_by.get("operators", "")])
    if "tolerance" in identity and not _judges_classes(record):
        words += ["--tolerance", repr(identity["tolerance"])]
    if identity.get("judged_output") is not None:
        words += ["--judged-output", identity["judged_output"]]
    for name in ("per_class", "distance", "record_faults"):
        if identity.get(name):
            words.append(f"--{name.replace('_', '-')}")
    words += ["--seed", str(identity["seed"]), "--confidence", f"{record.confidence:g}"]
    return shlex.join(words)


def _judges_classes(record: CampaignRecord | AtlasRecord) -> bool:
    if isinstance(record, CampaignRecord):
        return record.result.classifier
    return bool(record.header.golden["classifier"])


def _list(option: str, values: Iterable[str]) -> list[str]:
    """An option and its values; nothing where there are none."""
    joined = ",".join(filter(None, values))
    return [option, joined] if joined else []


def _shapes(models: Iterable[FaultModel]) -> list[str]:
    models = list(models)
    effects = list(dict.fromkeys(str(model.effect) for model in models))
    lengths = list(dict.fromkeys(str(model.shape.length) for model in models))
    options = [] if effects == [str(Effect.FLIP)] else _list("--effect", effects)
    options += [] if lengths == ["1"] else _list("--burst", lengths)
    if any(model.shape.along is Along.WORDS for model in models):
        options += ["--burst-along", str(Along.WORDS)]
    return options


def _amount(record: CampaignRecord, summaries: list[FaultSummary]) -> list[str]:
    words = []
    if record.header.golden.get("half_width") is not None:
        words += ["--half-width", f"{record.header.golden['half_width']:g}"]
    words += ["--trials", str(max(summary.trials for summary in summaries))]
    if record.requirement is not None:
        words += ["--requirement", f"{record.requirement:g}"]
    return words


def _upsets(record: CampaignRecord, singles: list[tuple[FaultModel, FaultSummary]]) -> list[str]:
    listed = record.header.golden.get("fault_space")
    if listed is not None:
        space = read_space(listed)
        if all(model.places(space) == summary.trials for model, summary in singles):
            return ["--exhaustive"]
    return ["--single", *_amount(record, [summary for _, summary in singles])]
