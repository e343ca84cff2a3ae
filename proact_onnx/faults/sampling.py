"""Random choices that stay the same whatever else a campaign does, and the maps they make."""

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Masks = npt.NDArray[np.uint32]

# Rounds of the network that orders a population: four make it pseudo-random (Luby and Rackoff,
# 1988), and a few more cost nothing here.
_ROUNDS = 8
# Expected faults up to which they are counted without a random stream.
_FEW = 20.0
# Below this a chance is lost in the rounding of those before it.
_NEVER = 1e-20


class Effect(StrEnum):
    """What a fault does to the bits it hits."""

    FLIP = "flip"
    STUCK_AT_0 = "stuck-at-0"
    STUCK_AT_1 = "stuck-at-1"


@dataclass(frozen=True)
class FaultMap:
    """The fault sites of one trial, grouped by the word they hit.

    Attributes:
        words: By parameter name, the flat indices of the words hit (ascending, distinct) and for
            each the mask of faulty bits. Parameters without a fault are absent.
        effect: What happens to these bits.
    """

    words: Mapping[str, tuple[Indices, Masks]]
    effect: Effect = Effect.FLIP

    @property
    def sites(self) -> int:
        """Number of faulty bits; a stuck one may hold its right value all the same."""
        return sum(int(np.bitwise_count(masks).sum()) for _, masks in self.words.values())

    def apply(self, words: Masks, masks: Masks) -> Masks:
        """Return stored words with the faults in them."""
        if self.effect is Effect.STUCK_AT_0:
            return words & ~masks
        return words | masks if self.effect is Effect.STUCK_AT_1 else words ^ masks


def stream(seed: int, trial: int, *key: float | str) -> np.random.Generator:
    """Return the random numbers of one purpose in one trial.

    Args:
        seed: Seed of the campaign.
        trial: Number of the trial, from 0.
        *key: What the numbers are for. Streams of different keys are independent.
    """
    return np.random.default_rng((seed, *map(_word, key), trial))


def draw_count(trials: int, probability: float, seed: int, trial: int, *key: float | str) -> int:
    """Draw from Binomial(trials, probability), the same number for the same key.

    Most parameters have no fault at a low rate, and opening a random stream for each of them would
    cost more than all else. So few expected faults are counted by inverting the distribution at a
    hash of the key; many come from the stream.

    Args:
        trials: Number of independent events.
        probability: Of each, from 0 to 1.
        seed: As for `stream`.
        trial: As for `stream`.
        *key: As for `stream`.
    """
    if trials * probability > _FEW or probability == 1.0:
        return int(stream(seed, trial, "count", *key).binomial(trials, probability))
    digest = hashlib.sha256(repr((seed, trial, *key)).encode()).digest()
    left = int.from_bytes(digest[:8], "little") / 2**64
    chance = math.exp(trials * math.log1p(-probability))
    odds = probability / (1.0 - probability)
    count = 0
    while left >= chance > _NEVER and count < trials:
        left -= chance
        chance *= odds * (trials - count) / (count + 1)
        count += 1
    return count


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
    drawn = _distinct(rng.integers(population, size=count))
    while drawn.size < count:
        more = rng.integers(population, size=count - drawn.size)
        drawn = _distinct(np.concatenate([drawn, more]))
    return drawn


def place_in_order(key: tuple[object, ...], population: int, position: int) -> int:
    """Return the element at one position of a random order of ``range(population)``.

    A Feistel network over the next even power of two, walked until it falls inside the range,
    is a permutation: the order is never written down, so a population of any size can be visited
    without repetition, one element at a time and by any number of workers.

    Args:
        key: Decides the order.
        population: Number of elements.
        position: From 0 to ``population - 1``.
    """
    half = max(1, (max(1, population - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    element = position
    while True:
        left, right = element >> half, element & mask
        for number in range(_ROUNDS):
            digest = hashlib.sha256(repr((key, population, number, right)).encode()).digest()
            left, right = right, left ^ (int.from_bytes(digest[:8], "little") & mask)
        element = left << half | right
        if element < population:
            return element


def _distinct(values: Indices) -> Indices:
    ascending = np.sort(values)
    fresh = np.empty(ascending.size, bool)
    fresh[:1] = True
    np.not_equal(ascending[1:], ascending[:-1], out=fresh[1:])
    return ascending if fresh.all() else ascending[fresh]


def _word(key: float | str) -> int:
    if isinstance(key, str):
        (word,) = struct.unpack("<Q", hashlib.sha256(key.encode()).digest()[:8])
    elif isinstance(key, float):
        (word,) = struct.unpack("<Q", struct.pack("<d", key))
    else:
        word = key
    return int(word)
