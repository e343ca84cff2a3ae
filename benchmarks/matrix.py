"""Every form of the bound in every runtime installed here, as one Markdown table.

    python benchmarks/matrix.py model.onnx train.npz --mean 0.485,0.456,0.406 --std ...

The model is hardened in each form (method ranger, a threshold a channel), and in form hard with
rescaled weights; each file is then tried as `proact-onnx deploy-check` does. Exits with 1 where a
file must not be deployed.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from proact_onnx.data import Preprocessing, load_dataset
from proact_onnx.deploy import DeployReport, Finding, check_deployment
from proact_onnx.harden import harden
from proact_onnx.report import Table, folding_note, to_markdown
from proact_onnx.rewrite import Form
from proact_onnx.settings import DeploySettings, HardenSettings

_IMAGES = 512
_RESCALED = "hard, rescaled"


def main() -> None:
    """Harden one model in every form, try every file, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="images to harden with and to run")
    parser.add_argument("--mean", default="0", help="as of proact-onnx")
    parser.add_argument("--std", default="1", help="as of proact-onnx")
    parser.add_argument("--scale", type=float, help="as of proact-onnx")
    parser.add_argument("--rounds", type=int, default=31, help="turns for the latency")
    parser.add_argument("--runtimes", default="", help="names with commas; all by default")
    arguments = parser.parse_args()
    preprocessing = Preprocessing(
        scale=arguments.scale,
        mean=tuple(map(float, arguments.mean.split(","))),
        std=tuple(map(float, arguments.std.split(","))),
    )
    names = tuple(name for name in arguments.runtimes.split(",") if name)
    settings = DeploySettings(runtimes=names, rounds=arguments.rounds)
    data = load_dataset(arguments.data)
    reports: dict[str, DeployReport] = {}
    with TemporaryDirectory() as folder:
        for label, form, rescale in (
            *((str(form), form, "none") for form in Form),
            (_RESCALED, Form.HARD, "channel"),
        ):
            file = Path(folder) / f"{arguments.model.stem}.onnx"
            harden(
                arguments.model,
                data,
                file,
                settings=HardenSettings(
                    method="ranger",
                    granularity="channel",
                    form=form,
                    rescale=rescale,
                    calibration_images=_IMAGES,
                    accept_images=_IMAGES,
                ),
                preprocessing=preprocessing,
                force=True,
            )
            reports[label] = check_deployment(file, arguments.model, data, settings, preprocessing)
    print(to_markdown(_table(arguments.model, reports)))
    print(f"{folding_note(reports[_RESCALED].folding)}.")
    failures = {label: dict(report.failures) for label, report in reports.items()}
    if any(failures.values()):
        sys.exit(f"not to be deployed: {failures}")


def _table(model: Path, reports: dict[str, DeployReport]) -> Table:
    found = {
        label: {finding.runtime: finding for finding in report.findings}
        for label, report in reports.items()
    }
    rows = []
    for finding in next(iter(reports.values())).findings:
        across = [by_name[finding.runtime] for by_name in found.values()]
        errors = [one.hardened.error for one in across if one.hardened.error is not None]
        rows.append(
            (
                f"{finding.runtime} {finding.version}",
                f"{max(errors):.0e}" if errors else "-",
                *map(_cell, across),
            )
        )
    return Table(
        f"{model.name}: values contained, of four; time against the original",
        ("runtime", "largest error", *reports),
        tuple(rows),
        ("runtime",),
    )


def _cell(finding: Finding) -> str:
    if finding.hardened.refusal is not None:
        return "refused"
    contained = finding.containment.contained if finding.containment else "-"
    return f"{contained}; {finding.latency.ratio:.2f}" if finding.latency else f"{contained}"


if __name__ == "__main__":
    main()
