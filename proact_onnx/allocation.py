"""Where stored thresholds, scales and copies help most, within a limit on memory.

A threshold or a scale that many channels share leaves room for faulty values in all of them but the
one with the largest values. How much room is counted in bits: a channel whose own range is 2^-b of
the shared one has b more bits of each word that can do harm. So what a number of its own for every
channel gains is estimated as

    stored words per channel * mean over the channels of log2(shared range / own range)

and the numbers it takes are what it costs. A second copy of a bias guards one word per channel, and
in it one more bit, that of its own magnitude. What gains most for each number is bought first.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.activations import Activation
from proact_onnx.messages import node_reads
from proact_onnx.rewrite import StoredLayer, stored_layers
from proact_onnx.thresholds import FloatArray

# What a tensor shares is stored so many times, see `passes.RescaleWeights`.
_COPIES = 3


@dataclass(frozen=True)
class Allocation:
    """What gets numbers of its own.

    Attributes:
        activations: The activations, each with its granularity.
        by_tensor: Names of weights that share one scale, and of biases that are stored once; empty
            if scales are not bought.
        numbers: How many thresholds, scales and copies are stored.
    """

    activations: tuple[Activation, ...]
    by_tensor: frozenset[str]
    numbers: int


@dataclass(frozen=True)
class _Purchase:
    """Something that can be bought.

    Attributes:
        name: The activation tensor, weight or bias that gets numbers of its own.
        gain: Estimated bits that can do no harm any more, per channel.
        cost: Numbers stored beyond those that are shared.
    """

    name: str
    gain: float
    cost: int


def allocate(
    model: onnx.ModelProto,
    activations: Sequence[Activation],
    reach: Mapping[str, FloatArray],
    limit: int,
    *,
    thresholds: bool,
    scales: bool,
) -> Allocation:
    """Spend a number of stored numbers where they help most.

    Args:
        model: The prepared model.
        activations: Its activations, shapes known.
        reach: By activation tensor, the largest magnitude of each neuron.
        limit: Thresholds, scales and copies that may be stored.
        thresholds: Whether thresholds are bought: one for each channel instead of each layer.
        scales: Whether scales and copies are bought.

    Returns:
        The allocation. What everything shares is stored even if that alone exceeds the limit.

    Raises:
        ModelError: If the graph cannot be read.
    """
    layers = stored_layers(model)
    offers: list[_Purchase] = []
    numbers = 0
    if thresholds:
        numbers += sum(2 if activation.two_sided else 1 for activation in activations)
        below = _words_below(model, activations, layers)
        offers += [
            offer
            for a in activations
            if (offer := _own_thresholds(a, reach[a.tensor], below[a.tensor])) is not None
        ]
    if scales:
        numbers += _COPIES * sum(1 + (layer.bias is not None) for layer in layers)
        for layer in layers:
            offers += _own_scales(layer)
    bought: set[str] = set()
    # Of equals, the first in the graph.
    for offer in sorted(offers, key=lambda offer: -offer.gain / max(offer.cost, 1)):
        if offer.gain > 0 and numbers + offer.cost <= limit:
            bought.add(offer.name)
            numbers += offer.cost
    stored = {name for layer in layers for name in (layer.weight, layer.bias) if name and scales}
    return Allocation(
        tuple(
            replace(a, granularity="channel" if a.tensor in bought else "layer")
            for a in activations
        ),
        frozenset(stored - bought),
        numbers,
    )


def _own_thresholds(activation: Activation, reach: FloatArray, words: float) -> _Purchase | None:
    if not activation.shape or activation.shape[0] is None:
        return None
    by_channel = reach.reshape(len(reach), -1).max(axis=1)
    sides = 2 if activation.two_sided else 1
    return _Purchase(activation.tensor, words * _spread(by_channel), sides * (len(by_channel) - 1))


def _own_scales(layer: StoredLayer) -> list[_Purchase]:
    channels = layer.largest.size
    gain = layer.words / channels * _spread(layer.largest)
    offers = [_Purchase(layer.weight, gain, channels - _COPIES)]
    if layer.bias is not None:
        offers.append(_Purchase(layer.bias, 1 + _spread(np.abs(layer.biases)), layer.biases.size))
    return offers


def _spread(own: npt.NDArray[np.floating]) -> float:
    """Mean over channels of log2(largest range of all / own range); dead channels have none."""
    alive = own[own > 0]
    return float(np.log2(alive.max() / alive).mean()) if alive.size else 0.0


def _words_below(
    model: onnx.ModelProto, activations: Collection[Activation], layers: Sequence[StoredLayer]
) -> dict[str, float]:
    """Stored words per channel whose faults an activation is the first to meet."""
    linear = {layer.output: layer for layer in layers}
    bounded = {activation.tensor for activation in activations}
    found: dict[str, float] = {}
    met: dict[str, frozenset[str]] = {}
    for node in model.graph.node:
        before = frozenset().union(*(met.get(name, frozenset()) for name in node_reads(node)))
        for name in node.output:
            if name in bounded:
                found[name] = sum(linear[o].words / linear[o].largest.size for o in before)
                met[name] = frozenset()
            else:
                met[name] = frozenset({name}) if name in linear else before
    return {activation.tensor: found.get(activation.tensor, 0.0) for activation in activations}
