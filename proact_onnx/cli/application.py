"""The commands put together, and how the program ends."""

import importlib.metadata
import sys
from typing import Annotated

import typer

from proact_onnx.cli import (
    compare,
    deploy_check,
    harden,
    inject,
    inspect,
    profile,
    replay,
    report,
    sensitivity,
    verify,
)
from proact_onnx.cli.terminal import fail, say
from proact_onnx.errors import ProactError

app = typer.Typer(
    name="proact-onnx",
    help="Harden ONNX models against bit flips in stored parameters, and measure the effect.",
    epilog=(
        "Every option is also a key of proact.toml in the working folder; the help of a command "
        "names it in brackets, with its default. The command line goes before the file."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(inspect.inspect)
app.command()(harden.harden)
app.command()(inject.inject)
app.command()(compare.compare)
app.command()(sensitivity.sensitivity)
app.command()(profile.profile)
app.command()(replay.replay)
app.command()(verify.verify)
app.command()(deploy_check.deploy_check)
app.command()(report.report)


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1."""
    try:
        app(prog_name="proact-onnx")
    except ProactError as error:
        fail(error)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"proact-onnx {importlib.metadata.version('proact-onnx')}")
        raise typer.Exit


@app.callback()
def _application(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
