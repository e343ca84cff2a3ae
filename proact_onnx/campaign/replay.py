"""One trial again, site by site and layer by layer."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from proact_onnx.campaign.distance import ActivationMeter, LayerEffect
from proact_onnx.campaign.encoded import EncodedModel
from proact_onnx.campaign.sensitivity import find_cells
from proact_onnx.campaign.store import CampaignHeader, TrialResult, read_campaign
from proact_onnx.campaign.subject import Subject
from proact_onnx.campaign.trial import TrialRunner
from proact_onnx.data import Dataset, Layout, Preprocessing
from proact_onnx.errors import CampaignError
from proact_onnx.faults import (
    FaultMap,
    FaultModel,
    FaultSpace,
    Parameter,
    Single,
    parse_fault_model,
)
from proact_onnx.files import write_text
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.settings import InjectSettings, RuntimeSettings


@dataclass(frozen=True)
class FaultSite:
    """One stored word that a trial hit.

    Attributes:
        parameter: Name of the parameter.
        layer: Name of its layer.
        element: Index of the element, one number an axis.
        bits: Positions of the faulty bits, ascending, 0 the least significant.
        before: Value without the faults.
        after: Value with them.
    """

    parameter: str
    layer: str
    element: tuple[int, ...]
    bits: tuple[int, ...]
    before: float
    after: float


@dataclass(frozen=True)
class ReplayedTrial:
    """A trial and what it did.

    Attributes:
        recorded: The trial as the record has it.
        reproduced: Whether running it again gave the very same numbers.
        sites: The words hit, in the order of the graph.
        effects: One an activation function in topological order; empty where the model has none.
    """

    recorded: TrialResult
    reproduced: bool
    sites: tuple[FaultSite, ...]
    effects: tuple[LayerEffect, ...]


class Replay:
    """Repeats trials of a record.

    Args:
        record: The record of a campaign, or of ``sensitivity``.

    Raises:
        CampaignError: If it cannot be read.
    """

    def __init__(self, record: Path) -> None:
        self._record = record
        self.header: CampaignHeader
        self.header, self._trials = read_campaign(record)

    def find(self, trial: int, fault: str | None = None) -> TrialResult:
        """Return a trial of the record.

        Args:
            trial: Its number.
            fault: The fault model, as the record names it; may be left out where there is one.

        Raises:
            CampaignError: If there is no such trial, or more than one.
        """
        names = list(dict.fromkeys(found.fault for found in self._trials))
        known = ", ".join(repr(name) for name in names[:_NAMES]) + (
            ", ..." if len(names) > _NAMES else ""
        )
        if fault is None and len(names) > 1:
            raise CampaignError(
                f"{self._record} holds several fault models: name one with --fault, of {known}"
            )
        fault = fault or next(iter(names), "")
        if names and fault not in names:
            raise CampaignError(
                f"{self._record} holds no fault model {fault!r}: choose among {known}"
            )
        for found in self._trials:
            if found.key == (fault, trial):
                return found
        held = sum(found.fault == fault for found in self._trials)
        raise CampaignError(
            f"{self._record} holds {held:,} trials of {fault!r}, and trial {trial:,} is not among "
            "them: choose another"
        )

    def run(
        self,
        wanted: TrialResult,
        model: Path,
        data: Dataset,
        runtime: RuntimeSettings | None = None,
        reporter: Reporter | None = None,
    ) -> ReplayedTrial:
        """Run a trial of the record again.

        Args:
            wanted: The trial, from `find`.
            model: The model file of the record.
            data: The images of the record.
            runtime: How ONNX Runtime executes.
            reporter: Receives notices.

        Raises:
            CampaignError: If model or images are not those of the record.
        """
        identity = self.header.identity
        subject = Subject(
            model,
            data,
            _settings(identity, self._record),
            _preprocessing(identity),
            runtime,
        )
        for part, name in (("model", str(model)), ("data", data.source)):
            if subject.identity[part] != identity[part]:
                raise CampaignError(
                    f"{name} is not what {self._record} was measured with, by its digest: give "
                    f"the {'model' if part == 'model' else 'images and labels'} of the record"
                )
        golden = subject.golden_run(reporter or LogReporter(), 1, wanted.verdict.images)
        fault_model, space = _drawn_from(wanted.fault, subject.space)
        trials = TrialRunner(golden, subject.settings.seed, subject.settings.record_faults)
        if wanted.words is not None:
            faults = _recorded(wanted.words, fault_model)
        else:
            faults = fault_model.draw(space, subject.settings.seed, wanted.trial)
        chosen = trials.choose(wanted.trial, wanted.verdict.images)
        repeated = trials.evaluate(wanted.fault, faults, wanted.trial, chosen)
        effects: list[LayerEffect] = []
        if ActivationMeter.suits(golden.encoded.model):
            meter = ActivationMeter(golden.encoded, golden.images, subject.arguments)
            _, effects = meter.effects(golden.encoded.inject(faults), golden.images[chosen])
        return ReplayedTrial(
            recorded=wanted,
            reproduced=_same(wanted, repeated),
            sites=_sites(faults, golden.encoded, subject.space),
            effects=tuple(effects),
        )


_NAMES = 6


def write_sites(trial: ReplayedTrial, path: Path) -> None:
    """Write the fault sites as CSV, one line a word.

    Raises:
        OutputError: If the file cannot be written.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["layer", "parameter", "element", "bits", "before", "after"])
    for site in trial.sites:
        element = " ".join(map(str, site.element))
        bits = " ".join(map(str, site.bits))
        row = [site.layer, site.parameter, element, bits, repr(site.before), repr(site.after)]
        writer.writerow(row)
    write_text(path, stream.getvalue())


def _settings(identity: Mapping[str, Any], record: Path) -> InjectSettings:
    try:
        bits = identity["bits"]
        return InjectSettings(
            format=identity["format"],
            targets=tuple(identity["targets"]),
            layers=tuple(identity["layers"]),
            bits=None if bits is None else ",".join(map(str, bits)),
            tolerance=identity["tolerance"],
            judged_output=identity.get("judged_output"),
            per_class=identity["per_class"],
            record_faults=identity["record_faults"],
            seed=identity["seed"],
        )
    except KeyError as error:
        raise CampaignError(
            f"{record} does not say its {error.args[0]}, because an earlier release began it: "
            "trials can be repeated with that release"
        ) from error


def _preprocessing(identity: Mapping[str, Any]) -> Preprocessing:
    resize = identity["resize"]
    return Preprocessing(
        layout=Layout(identity["layout"]),
        scale=identity["scale"],
        mean=tuple(identity["mean"]),
        std=tuple(identity["std"]),
        resize=None if resize is None else (resize[0], resize[1]),
    )


def _drawn_from(name: str, space: FaultSpace) -> tuple[FaultModel, FaultSpace]:
    for cell in find_cells(space) if " bit=" in name else ():
        if cell.name == name:
            return FaultModel(Single()), cell.space
    return parse_fault_model(name), space


def _recorded(words: Mapping[str, Any], model: FaultModel) -> FaultMap:
    return FaultMap(
        {
            name: (
                np.array([element for element, _ in pairs], np.int64),
                np.array([mask for _, mask in pairs], np.uint32),
            )
            for name, pairs in words.items()
        },
        model.effect,
    )


def _same(recorded: TrialResult, repeated: TrialResult) -> bool:
    found = (repeated.sites, repeated.flips, repeated.verdict)
    return found == (recorded.sites, recorded.flips, recorded.verdict)


def _sites(faults: FaultMap, encoded: EncodedModel, space: FaultSpace) -> tuple[FaultSite, ...]:
    sites = []
    for parameter in space.parameters:
        if parameter.name not in faults.words:
            continue
        elements, masks = faults.words[parameter.name]
        stored = encoded.parameters[parameter.name]
        before = stored.words[elements].astype(np.uint32)
        after = faults.apply(before, masks)
        for element, mask, old, new in zip(
            elements.tolist(),
            masks.tolist(),
            stored.values(before).tolist(),
            stored.values(after).tolist(),
            strict=True,
        ):
            sites.append(
                FaultSite(
                    parameter=parameter.name,
                    layer=parameter.layer,
                    element=_index(parameter, element),
                    bits=tuple(bit for bit in range(parameter.width) if mask >> bit & 1),
                    before=old,
                    after=new,
                )
            )
    return tuple(sites)


def _index(parameter: Parameter, element: int) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.unravel_index(element, parameter.shape))
