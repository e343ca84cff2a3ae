"""A hardened file in the runtimes installed here, as a table, sentences, Markdown and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from proact_onnx.deploy import CANDIDATES, PLANTED, DeployReport, Finding, Folding
from proact_onnx.errors import OutputError
from proact_onnx.files import write_text
from proact_onnx.report.rendering import Table, escape_markdown, to_markdown

_NAMES_SHOWN = 3
_NONE = "-"


def deployment_table(report: DeployReport) -> Table:
    """What every runtime does: one row a runtime or optimiser."""
    timed = any(finding.latency for finding in report.findings)
    columns = ["runtime", "version", "accepted", "error", "tolerance", "contained"]
    columns += ["original", "hardened", "ratio"] if timed else []
    rows = [tuple(_row(finding, timed)) for finding in report.findings]
    images = f"{report.images:,} image{'s' * (report.images != 1)}"
    title = f"{report.hardened.name} in the runtimes installed here, on {images}"
    return Table(title, tuple(columns), tuple(rows), ("runtime", "version"))


def deployment_notes(report: DeployReport) -> list[str]:
    """What the table does not say, one sentence a line."""
    notes = [
        f"error: the largest, relative to the largest output of {report.reference}",
    ]
    if report.planted:
        *first, last = PLANTED
        layers = f"{report.planted:,} protected layer{'s' * (report.planted != 1)}"
        notes.append(
            f"contained: how many of {', '.join(first)} and {last}, planted in one weight of each "
            f"of {layers}, leave hidden activations within their thresholds and outputs finite"
        )
    else:
        notes.append(
            "contained: not tried, for no protected layer stores floating-point weights of its own"
        )
    tried = {finding.runtime for finding in report.findings}
    after = [one.name for one in CANDIDATES if one.optimiser and one.name in tried]
    if after:
        notes.append(f"{', '.join(after)}: what they write, run in ONNX Runtime")
    for finding in report.findings:
        notes += _finding_notes(finding)
    notes += _leak_notes(report.findings)
    notes.append(folding_note(report.folding))
    if report.absent:
        notes.append(f"not installed, or no device: {', '.join(report.absent)}")
    return notes


def folding_note(folding: Folding) -> str:
    """Whether ONNX Runtime merges constants into the weights of a file when it loads it."""
    count = len(folding.weights)
    if folding.merged:
        lost = "; what rescaling protects in the file is lost in its memory"
        return (
            f"ONNX Runtime merges constants into {len(folding.merged):,} of {count:,} weight "
            f"tensors when it loads the file ({_shorten(folding.merged)})"
            + (lost if folding.rescaled else "")
        )
    kept = f"ONNX Runtime holds all {count:,} weight tensors as the file stores them"
    return f"{kept}, enlarged, so rescaling protects its memory too" if folding.rescaled else kept


def check_written(path: Path) -> None:
    """Find out before long work whether `write_deployment` knows the form of a file.

    Raises:
        OutputError: If the name ends in neither ``.md`` nor ``.json``.
    """
    if path.suffix not in (".md", ".json"):
        raise OutputError(f"{path} is neither Markdown nor JSON: let its name end in .md or .json")


def write_deployment(report: DeployReport, path: Path) -> None:
    """Write a report as Markdown or JSON, as the suffix says.

    Raises:
        OutputError: If the suffix is neither, or the file cannot be written.
    """
    check_written(path)
    if path.suffix == ".md":
        notes = "".join(f"- {escape_markdown(note)}\n" for note in deployment_notes(report))
        text = f"{to_markdown(deployment_table(report))}\n{notes}"
    else:
        content = {**asdict(report), "failures": dict(report.failures)}
        text = json.dumps(content, indent=2, default=str) + "\n"
    write_text(path, text)


def _row(finding: Finding, timed: bool) -> list[str]:
    outcome, containment, latency = finding.hardened, finding.containment, finding.latency
    cells = [
        finding.runtime,
        finding.version,
        "yes" if outcome.refusal is None else "no",
        _NONE if outcome.error is None else f"{outcome.error:.1e}",
        f"{finding.tolerance:.0e}".replace("e-0", "e-"),
        f"{containment.contained} of {len(containment.leaks)}" if containment else _NONE,
    ]
    if timed and latency:
        cells += [_spell_time(latency.original), _spell_time(latency.hardened)]
        cells.append(f"{latency.ratio:.2f}")
    elif timed:
        cells += [_NONE] * 3
    return cells


def _spell_time(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _finding_notes(finding: Finding) -> list[str]:
    notes = []
    if finding.hardened.refusal is not None:
        both = finding.original is not None and finding.original.refusal is not None
        what = "the original and the hardened model" if both else "the hardened model"
        notes.append(f"{finding.runtime} refuses {what}: {finding.hardened.refusal}")
    elif finding.original is not None and finding.original.refusal is not None:
        notes.append(f"{finding.runtime} refuses the original: {finding.original.refusal}")
    containment = finding.containment
    if containment is not None and not containment.hidden:
        notes.append(f"{finding.runtime} does not give out hidden activations: outputs alone seen")
    if containment is not None and containment.missing:
        notes.append(
            f"{finding.runtime} changes the numbers of {len(containment.missing):,} protected "
            f"weights ({_shorten(containment.missing)}), which nothing was planted in"
        )
    return notes


def _leak_notes(findings: Sequence[Finding]) -> list[str]:
    """One sentence a planted value that comes through somewhere."""
    notes = []
    for value in PLANTED:
        leaks = {
            finding.runtime: finding.containment.leaks[value]
            for finding in findings
            if finding.containment and finding.containment.leaks[value] is not None
        }
        if leaks:
            first = next(iter(leaks.values()))
            notes.append(f"{value} is not contained in {', '.join(leaks)}: first seen in {first}")
    return notes


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown}, ..." if len(names) > _NAMES_SHOWN else shown
