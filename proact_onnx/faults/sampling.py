"""Drawing faults: which bits flip in one trial."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proact_onnx.faults.space import FaultSpace

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FaultMap:
    """The fault sites of one trial, grouped by the word they hit.

    Attributes:
        words: By parameter name, the flat indices of the words hit (ascending, distinct) and for
            each the mask of flipped bits. Parameters without a fault are absent.
    """

    words: Mapping[str, tuple[Indices, npt.NDArray[np.uint32]]]

    @property
    def flips(self) -> int:
        """Number of flipped bits."""
        return sum(int(np.bitwise_count(masks).sum()) for _, masks in self.words.values())


def draw_faults(space: FaultSpace, ber: float, seed: int, trial: int) -> FaultMap:
    """Flip every bit of the fault space independently with probability ``ber``.

    The number of flips in a parameter of n bits is drawn from Binomial(n, ber) and their
    positions without replacement, so the count over the whole space is Binomial(bits, ber) and
    the cost grows with the flips, not with the space.

    Each parameter has a random stream of its own, keyed by (seed, BER, trial, name). The faults
    therefore depend on nothing else: not on the order of trials, workers or initializers, nor on
    which other BERs a campaign visits. Two models that share a parameter see the same faults on
    it, which is what makes their comparison paired.

    Args:
        space: The fault space.
        ber: Bit error rate, from 0 to 1.
        seed: Seed of the campaign.
        trial: Number of the trial, from 0.

    Returns:
        The fault sites.
    """
    words = {}
    for parameter in space.parameters:
        bits = parameter.size * space.width
        rng = np.random.default_rng((seed, *_key(ber, parameter.name), trial))
        count = int(rng.binomial(bits, ber))
        if count:
            sites = draw_distinct(rng, bits, count)
            elements = sites // space.width
            flipped = np.uint32(1) << (sites - elements * space.width).astype(np.uint32)
            # Sites ascend, so those of one word stand side by side.
            first = np.flatnonzero(np.diff(elements, prepend=-1))
            words[parameter.name] = (elements[first], np.bitwise_or.reduceat(flipped, first))
    return FaultMap(words)


def draw_distinct(rng: np.random.Generator, population: int, count: int) -> Indices:
    """Draw ``count`` distinct integers below ``population``, every subset equally likely.

    Args:
        rng: Source of randomness.
        population: Number of integers to choose from.
        count: How many to draw, at most ``population``.

    Returns:
        int64 array in ascending order.
    """
    if count > population // 2:
        absent = draw_distinct(rng, population, population - count)
        return np.setdiff1d(np.arange(population), absent, assume_unique=True)
    drawn = np.unique(rng.integers(population, size=count))
    while drawn.size < count:
        drawn = np.union1d(drawn, rng.integers(population, size=count - drawn.size))
    return drawn


def _key(ber: float, name: str) -> tuple[int, int]:
    (bits,) = struct.unpack("<Q", struct.pack("<d", ber))
    (digest,) = struct.unpack("<Q", hashlib.sha256(name.encode()).digest()[:8])
    return bits, digest
