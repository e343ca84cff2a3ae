"""Clipping thresholds: how many an activation needs, and what they cost in memory."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from proact_onnx.activations import Activation
from proact_onnx.errors import ModelError

FloatArray = npt.NDArray[np.float32]


class Granularity(StrEnum):
    """How many thresholds an activation gets."""

    LAYER = "layer"
    CHANNEL = "channel"
    NEURON = "neuron"
    HYBRID = "hybrid"
    AUTO = "auto"

    def of(self, activation: Activation) -> "Granularity":
        """Return the granularity for one activation.

        Hybrid means neuron-wise in the last hidden layer and layer-wise elsewhere (Eq. 5); auto
        means what was decided for the activation, see `proact_onnx.allocation`. Inside subgraphs
        it is always layer-wise.
        """
        if activation.is_inner:
            return Granularity.LAYER
        if self is Granularity.AUTO:
            return Granularity(activation.granularity or Granularity.LAYER)
        if self is not Granularity.HYBRID:
            return self
        return Granularity.NEURON if activation.is_last else Granularity.LAYER


# Those that cost the same whatever a model's weights and activations are.
FIXED_GRANULARITIES = tuple(g for g in Granularity if g is not Granularity.AUTO)


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a model, by activation output.

    Attributes:
        values: float32 arrays that broadcast against the activation, batch axis included:
            ``()`` layer-wise, ``[1, C, 1, 1]`` channel-wise, ``[1, C, H, W]`` neuron-wise.
        lower: The same for those activations that are bounded from below as well; none is above
            zero.
    """

    values: Mapping[str, FloatArray]
    lower: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of stored thresholds, lower ones included."""
        return sum(value.size for value in (*self.values.values(), *self.lower.values()))

    def joined(self, other: "Thresholds") -> "Thresholds":
        """Add thresholds of other activations."""
        return Thresholds({**self.values, **other.values}, {**self.lower, **other.lower})


def pack(thresholds: Thresholds) -> dict[str, FloatArray]:
    """Make one array of an activation's thresholds, all of them magnitudes.

    Returns:
        By activation output, the upper thresholds, or ``[2, ...]``, lower and upper ones, where
        there are both.
    """
    return {
        tensor: np.stack([-thresholds.lower[tensor], upper])
        if tensor in thresholds.lower
        else upper
        for tensor, upper in thresholds.values.items()
    }


def unpack(packed: Mapping[str, FloatArray], two_sided: Collection[str]) -> Thresholds:
    """Undo `pack`.

    Args:
        packed: By activation output.
        two_sided: Those that are bounded from both sides.
    """
    return Thresholds(
        {name: values[1] if name in two_sided else values for name, values in packed.items()},
        {name: -values[0] for name, values in packed.items() if name in two_sided},
    )


def threshold_shape(activation: Activation, granularity: Granularity) -> tuple[int, ...]:
    """Shape of an activation's threshold initializer.

    Args:
        activation: The activation.
        granularity: As the user asked; hybrid is resolved for this activation.

    Returns:
        ``()`` for one threshold; otherwise a shape of the activation's rank with batch axis 1.

    Raises:
        ModelError: If an extent that the granularity needs is not known.
    """
    match granularity.of(activation):
        case Granularity.LAYER:
            return ()
        case Granularity.CHANNEL:
            extents = activation.shape[:1] + (1,) * (len(activation.shape) - 1)
        case _:
            extents = activation.shape
    known = tuple(extent for extent in extents if extent is not None)
    if not extents or len(known) != len(extents):
        raise ModelError(
            f"activation {activation.name!r} has no fixed shape ({_spell(activation.shape)}), so "
            f"it cannot have {granularity.of(activation)}-wise thresholds: fix the model's input "
            "size, or use granularity 'layer'"
        )
    return (1, *known)


def shared_axes(shape: tuple[int, ...], extents: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of an activation along which values share a threshold.

    Args:
        shape: Of the thresholds: ``()``, or with a batch axis of 1 in front.
        extents: Of the activation, without its batch axis.
    """
    axes = range(len(extents))
    return tuple(axis for axis in axes if not shape or shape[axis + 1] < extents[axis])


def threshold_count(activations: Iterable[Activation], granularity: Granularity) -> int:
    """Number of thresholds that ``granularity`` stores for these activations, lower ones too."""
    return sum(
        math.prod(threshold_shape(activation, granularity)) * (2 if activation.two_sided else 1)
        for activation in activations
    )


def memory_overhead(added: int, parameters: int) -> float:
    """Memory overhead of added numbers in per cent of the unprotected parameters (Eq. 6)."""
    return 100.0 * added / parameters


def _spell(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if extent is None else str(extent) for extent in shape) or "unknown"
