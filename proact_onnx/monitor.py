"""The monitor of a hardened model: what its file says about it, and when it raises an alarm."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.errors import ModelError
from proact_onnx.model import output_names, provenance

# Key of the metadata, behind the prefix that all of them have.
MONITOR_KEY = "monitor"

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Monitor:
    """What a file says about its monitor.

    Attributes:
        output: Name of the output that counts values out of bounds, ``[N, layers]``.
        layers: The bounded activations, one a column, in the order of the network.
        alarm_levels: For each, the highest count that raises no alarm.
        calibration_images: Fault-free images that the levels were found on.
    """

    output: str
    layers: tuple[str, ...]
    alarm_levels: tuple[int, ...]
    calibration_images: int

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.alarm_levels):
            raise ValueError("every layer has one alarm level")

    def raised(self, counts: npt.NDArray[Any]) -> Flags:
        """Tell which images raise the alarm: those with a count above its layer's level.

        Args:
            counts: ``[N, layers]``.

        Returns:
            ``[N]``.
        """
        return np.asarray((counts > np.array(self.alarm_levels)).any(axis=1))

    def spell(self) -> str:
        """Spell it as the JSON that files hold."""
        return json.dumps(asdict(self), sort_keys=True)


def read_monitor(model: onnx.ModelProto) -> Monitor | None:
    """Read what a model says about its monitor; None for one that has none.

    A file whose last output somebody has cut off has none any more.

    Raises:
        ModelError: If what it says cannot be understood.
    """
    text = provenance(model).get(MONITOR_KEY)
    if text is None:
        return None
    try:
        found = json.loads(text)
        monitor = Monitor(
            output=str(found["output"]),
            layers=tuple(map(str, found["layers"])),
            alarm_levels=tuple(map(int, found["alarm_levels"])),
            calibration_images=int(found["calibration_images"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the model's metadata 'proact_onnx.{MONITOR_KEY}' cannot be understood: harden the "
            "original model again"
        ) from error
    return monitor if monitor.output in output_names(model)[1:] else None


def separate_counts(model: onnx.ModelProto, monitor: Monitor) -> tuple[str, ...]:
    """Make the counts of single layers outputs, in place.

    They stand behind the first output, and all other outputs go. A part of the network then has
    those counts as outputs that it computes.

    Args:
        model: A model with this monitor; changed in place.
        monitor: What it says about it.

    Returns:
        Names of the counts, ``[N, 1]``, one a layer.

    Raises:
        ModelError: If the output is not put together from one count a layer.
    """
    graph = model.graph
    joined = [node for node in graph.node if monitor.output in node.output]
    counts: Sequence[str] = joined[0].input if joined and joined[0].op_type == "Concat" else ()
    if len(counts) != len(monitor.layers):
        raise ModelError(
            f"output {monitor.output!r} is no longer the monitor that hardening wrote: measure the "
            "file as it was written"
        )
    first, total = graph.output[0], next(o for o in graph.output if o.name == monitor.output)
    infos = [first]
    for name in counts:
        info = onnx.ValueInfoProto()
        info.CopyFrom(total)
        info.name = name
        dims = info.type.tensor_type.shape.dim
        dims[1].Clear()
        dims[1].dim_value = 1
        infos.append(info)
    kept = [info for info in graph.value_info if info.name not in set(counts)]
    names = tuple(counts)
    del graph.output[:], graph.value_info[:]
    graph.output.extend(infos)
    graph.value_info.extend(kept)
    graph.node.remove(joined[0])
    return names
