"""The command ``inspect``."""

from pathlib import Path
from typing import Annotated

import typer

from proact_onnx.cli.gather import need_model
from proact_onnx.cli.options import Config
from proact_onnx.cli.terminal import say, show
from proact_onnx.settings import read_settings


def inspect(
    model: Annotated[
        Path | None, typer.Argument(help="The ONNX model \\[model].", metavar="MODEL")
    ] = None,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="List the layers and parameters that faults can hit, too."),
    ] = False,
    config: Config = None,
) -> None:
    """Show a model's activations, its fault space, and what protection would cost."""
    from proact_onnx.inspection import inspect_model
    from proact_onnx.report import (
        activation_table,
        cost_table,
        coverage_line,
        parameter_table,
        storage_table,
        unprotected_lines,
    )

    path = need_model(model, read_settings(config))
    found = inspect_model(path)
    producer = f", written by {found.producer}" if found.producer else ""
    say(f"{path.name}: opset {found.opset}{producer}")
    say(
        f"{found.parameters:,} parameters; fault space of {found.fault_space_bits:,} bits as stored"
    )
    parameters = found.stored
    if any(parameter.stored_as for parameter in parameters):
        show(storage_table(parameters))
    if found.protected:
        say(f"hardened already: {len(found.protected)} activations are bounded")
    if found.rescaled:
        say(f"the weights of {found.rescaled} layers are stored enlarged by powers of two")
    if found.activations:
        show(activation_table(found.activations, "activations, and the thresholds they need"))
        show(cost_table([(str(c.granularity), c.thresholds, c.overhead) for c in found.costs]))
    else:
        say("no activation that can be hardened")
    for reason in dict.fromkeys(cost.reason for cost in found.costs if cost.reason):
        say(f"note: {reason}")
    if layers:
        show(parameter_table(parameters))
    for line in unprotected_lines(found.unprotected):
        say(line)
    if found.activations:
        say(f"with the activations bounded, {coverage_line(found.coverage)}")
    if found.linear:
        say(
            f"with --protect linear, which bounds {len(found.linear)} outputs of linear layers "
            f"more, {coverage_line(found.coverage_with_linear)}"
        )
    for unfolded in found.unfolded:
        say(f"BatchNormalization kept: {unfolded.node}, {unfolded.reason}")
