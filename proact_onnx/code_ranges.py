"""What quantisers can say: the values that codes in front of an activation stand for.

An activation that reads dequantised codes never exceeds what the top code stands for, so a bound at
or above that value would never act. In return the codes in front of it saturate: whatever is out of
range arrives as the top code. A bound half a step below sets exactly these to zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.activations import Activation
from proact_onnx.functions import Sides
from proact_onnx.thresholds import FloatArray, Thresholds


@dataclass(frozen=True)
class CodeRange:
    """The values that the codes in front of an activation stand for.

    Attributes:
        highest: What the top code stands for.
        step: The distance of codes.
    """

    highest: float
    step: float

    @property
    def below_top(self) -> np.float32:
        """A threshold that nothing but the top code exceeds."""
        return np.float32(self.highest - self.step / 2)


def code_ranges(
    model: onnx.ModelProto, activations: Sequence[Activation]
) -> Mapping[str, CodeRange]:
    """Find the activations that read dequantised codes.

    Args:
        model: A prepared model.
        activations: Its activations.

    Returns:
        By activation tensor; those that read anything else are absent, as are codes with a scale
        a channel, and activations inside subgraphs.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for activation in activations:
        # Others give values that their input does not have.
        if activation.sides is not Sides.RECTIFIED or activation.is_inner:
            continue
        source = producers.get(producers[activation.tensor].input[0])
        if source is None or source.op_type != "DequantizeLinear":
            continue
        codes, scale, *rest = source.input
        if codes in stored or scale not in stored or np.prod(stored[scale].dims) != 1:
            continue
        step = float(numpy_helper.to_array(stored[scale]).reshape(-1)[0])
        zero_point = stored.get(rest[0]) if rest and rest[0] else None
        point = np.zeros(1, np.uint8) if zero_point is None else numpy_helper.to_array(zero_point)
        top = np.iinfo(point.dtype).max - int(point.reshape(-1)[0])
        found[activation.tensor] = CodeRange(top * step, step)
    return found


@dataclass(frozen=True)
class Coded:
    """Thresholds that act on codes.

    Attributes:
        thresholds: The thresholds; an activation without one that could act is absent.
        lowered: How many were lowered to below the top code.
        bounded: Activations that the quantiser alone bounds.
    """

    thresholds: Thresholds
    lowered: int
    bounded: tuple[str, ...]


def act_on_codes(
    thresholds: Thresholds, ranges: Mapping[str, CodeRange], *, zero_top_code: bool
) -> Coded:
    """Bring thresholds that no code exceeds to where they act, or leave them out.

    Args:
        thresholds: By activation tensor.
        ranges: As `code_ranges` finds them.
        zero_top_code: Whether a threshold that no code exceeds becomes one that the top code
            does. Otherwise activations all of whose thresholds are such are left to the quantiser.
    """
    kept: dict[str, FloatArray] = {}
    lowered = 0
    bounded = []
    for tensor, values in thresholds.values.items():
        known = ranges.get(tensor)
        if known is None:
            kept[tensor] = values
            continue
        idle = values >= np.float32(known.highest)
        if zero_top_code:
            lowered += int(idle.sum())
            kept[tensor] = np.where(idle, known.below_top, values).astype(np.float32)
        elif idle.all():
            bounded.append(tensor)
        else:
            kept[tensor] = values
    lower = {tensor: values for tensor, values in thresholds.lower.items() if tensor in kept}
    return Coded(Thresholds(kept, lower), lowered, tuple(bounded))
