"""Fault models: how many faults a trial draws, what shape they have and what they do."""

import functools
import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from proact_onnx.errors import SettingsError
from proact_onnx.faults.sampling import (
    Effect,
    FaultMap,
    Indices,
    Masks,
    draw_count,
    draw_distinct,
    place_in_order,
    stream,
)
from proact_onnx.faults.space import FaultSpace, Parameter


class Along(StrEnum):
    """Which bits a burst hits."""

    BITS = "bits"
    WORDS = "words"


@dataclass(frozen=True)
class Shape:
    """The bits that one upset hits.

    Attributes:
        length: Number of bits.
        along: ``bits``: adjacent bits of one word. ``words``: the same bit of adjacent words of
            one parameter, as in memory that interleaves words.
    """

    length: int = 1
    along: Along = Along.BITS


@dataclass(frozen=True)
class Rate:
    """Every bit is faulty with the same probability.

    Upsets of one bit are independent. With bursts, upsets are independent and so frequent that
    the expected share of faulty bits is the bit error rate.

    Attributes:
        ber: Bit error rate, from 0 to 1.
    """

    ber: float

    @property
    def name(self) -> str:
        """As a record spells it."""
        return f"ber={self.ber!r}"


@dataclass(frozen=True)
class Count:
    """A fixed number of upsets, every set of places equally likely.

    Attributes:
        upsets: Number of upsets in one trial, at least 1.
    """

    upsets: int

    @property
    def name(self) -> str:
        """As a record spells it."""
        return f"flips={self.upsets}"


@dataclass(frozen=True)
class Single:
    """One upset a trial, and no place twice: a sample of the fault space without replacement.

    As many trials as there are places visit every one of them: an exhaustive campaign.
    """

    @property
    def name(self) -> str:
        """As a record spells it."""
        return "single"


Amount = Rate | Count | Single


@dataclass(frozen=True)
class FaultModel:
    """A fault model.

    Attributes:
        amount: How many upsets a trial draws.
        effect: What they do to the bits they hit.
        shape: Which bits one upset hits.
    """

    amount: Amount
    effect: Effect = Effect.FLIP
    shape: Shape = Shape()

    @property
    def name(self) -> str:
        """Spelled out, such as ``ber=1e-06 stuck-at-1 burst=2``; `parse_fault_model` reads it."""
        parts = [self.amount.name]
        if self.effect is not Effect.FLIP:
            parts.append(str(self.effect))
        if self.shape.length > 1:
            along = "" if self.shape.along is Along.BITS else f"-{self.shape.along}"
            parts.append(f"burst={self.shape.length}{along}")
        return " ".join(parts)

    def places(self, space: FaultSpace) -> int:
        """Number of places in a fault space where an upset of this shape fits."""
        return sum(_places(parameter, self.shape).count for parameter in space.parameters)

    def draw(self, space: FaultSpace, seed: int, trial: int) -> FaultMap:
        """Draw the faults of one trial; the cost grows with the faults, not with the space.

        Faults depend on nothing but the seed, the trial and the amount of this model: not on the
        order of trials or workers, nor on what else a campaign visits. Stuck bits are drawn at the
        places where flips would be.

        - At a *rate*, each parameter draws from a stream of its own, keyed by its name, a number
          of upsets from a binomial distribution and their places without replacement. Two models
          that share a parameter see the same faults on it, which makes their comparison paired.
        - A *count* is drawn over all weights and biases; each threshold fault then displaces one
          of these (their number is hypergeometric). So a model and its hardened file share all
          faults but the displaced ones.
        - *Single* upsets follow one random order of the fault space, every space its own; they are
          not paired.

        Args:
            space: The fault space.
            seed: Seed of the campaign.
            trial: Number of the trial, from 0.

        Raises:
            SettingsError: If the fault space has no place for so many faults.
        """
        every = [_places(parameter, self.shape) for parameter in space.parameters]
        if isinstance(self.amount, Rate):
            drawn = self._at_rate(every, self.amount.ber, seed, trial)
        elif isinstance(self.amount, Count):
            drawn = self._counted(every, self.amount.upsets, seed, trial)
        else:
            total = sum(places.count for places in every)
            if trial >= total:
                raise SettingsError(
                    f"the fault space has {total:,} places for '{self.name}', so there is no "
                    f"trial {trial:,}: ask for fewer trials"
                )
            drawn = _by_parameter(
                every, np.array([place_in_order((seed, space.digest), total, trial)])
            )
        words = {places.parameter.name: places.faulty_words(sites) for places, sites in drawn}
        return FaultMap(words, self.effect)

    def _at_rate(
        self, every: "list[_Places]", ber: float, seed: int, trial: int
    ) -> "list[tuple[_Places, Indices]]":
        drawn = []
        for places in every:
            key = (float(ber), places.parameter.name)
            count = draw_count(places.count, places.probability(ber), seed, trial, *key)
            if count:
                rng = stream(seed, trial, *key)
                drawn.append((places, draw_distinct(rng, places.count, count)))
        return drawn

    def _counted(
        self, every: "list[_Places]", upsets: int, seed: int, trial: int
    ) -> "list[tuple[_Places, Indices]]":
        added = [places for places in every if places.parameter.kind.is_added]
        shared = [places for places in every if not places.parameter.kind.is_added]
        in_added, in_shared = (sum(places.count for places in some) for some in (added, shared))
        if upsets > in_added + in_shared:
            raise SettingsError(
                f"the fault space has {in_added + in_shared:,} places for '{self.name}': ask for "
                "fewer flips"
            )
        rng = stream(seed, trial, self.amount.name, "weights and biases")
        sites = draw_distinct(rng, in_shared, min(upsets, in_shared))
        order = rng.permutation(sites.size)
        rng = stream(seed, trial, self.amount.name, "thresholds")
        displaced = int(rng.hypergeometric(in_added, in_shared, upsets)) if in_added else 0
        kept = np.sort(sites[order[: upsets - displaced]])
        others = draw_distinct(rng, in_added, displaced)
        return [*_by_parameter(shared, kept), *_by_parameter(added, others)]


class _Places:
    """Where in a parameter an upset of some shape can begin: one place an element and bit."""

    def __init__(self, parameter: Parameter, shape: Shape) -> None:
        self.parameter = parameter
        self._shape = shape
        if shape.along is Along.WORDS:
            self._bits = parameter.bits
            self._elements = max(0, parameter.size - shape.length + 1)
        else:
            exposed = set(parameter.bits)
            self._bits = tuple(
                bit for bit in parameter.bits if exposed.issuperset(range(bit, bit + shape.length))
            )
            self._elements = parameter.size
        self._positions = np.asarray(self._bits, np.uint32)
        self.count = self._elements * len(self._bits)

    def probability(self, ber: float) -> float:
        """Of an upset at one place, so that the expected share of faulty bits is ``ber``."""
        if self._shape.length == 1 or not self.count:
            return ber
        exposed = self.parameter.size * len(self.parameter.bits)
        return min(1.0, ber * exposed / (self._shape.length * self.count))

    def faulty_words(self, sites: Indices) -> tuple[Indices, Masks]:
        """Words and masks of upsets at ascending places."""
        elements = sites // len(self._bits)
        begins = self._positions[sites - elements * len(self._bits)]
        length = self._shape.length
        if self._shape.along is Along.WORDS and length > 1:
            elements = (elements[:, None] + np.arange(length)).reshape(-1)
            masks = np.repeat(np.uint32(1) << begins, length)
            order = np.argsort(elements, kind="stable")
            elements, masks = elements[order], masks[order]
        else:
            masks = np.uint32((1 << length) - 1) << begins
        # Elements ascend, so faults in one word stand side by side.
        begins_word = np.empty(elements.size, bool)
        begins_word[:1] = True
        np.not_equal(elements[1:], elements[:-1], out=begins_word[1:])
        if begins_word.all():
            return elements, masks
        first = np.flatnonzero(begins_word)
        return elements[first], np.bitwise_or.reduceat(masks, first)


# Every trial asks for the same few.
_places = functools.lru_cache(maxsize=4096)(_Places)


def _by_parameter(every: list[_Places], sites: Indices) -> list[tuple[_Places, Indices]]:
    ends: npt.NDArray[np.int64] = np.cumsum([places.count for places in every], dtype=np.int64)
    owners = np.searchsorted(ends, sites, side="right")
    return [
        (every[owner], sites[owners == owner] - (ends[owner] - every[owner].count))
        for owner in np.unique(owners).tolist()
    ]


_SPELLING = re.compile(
    r"(?:ber=(?P<ber>[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)|flips=(?P<flips>[0-9]+)|single)"
    r"(?: (?P<effect>stuck-at-[01]))?"
    r"(?: burst=(?P<burst>[0-9]+)(?:-(?P<along>words))?)?"
)


def parse_fault_model(name: str) -> FaultModel:
    """Read a fault model as `FaultModel.name` spells it.

    Args:
        name: Such as ``ber=1e-6``, ``flips=10 stuck-at-0`` or ``single burst=2-words``.

    Raises:
        SettingsError: If it is spelled in no such way.
    """
    match = _SPELLING.fullmatch(name)
    if match is None:
        raise SettingsError(
            f"there is no fault model {name!r}: write ber=RATE, flips=COUNT or single, then, if "
            "wanted, stuck-at-0 or stuck-at-1, then burst=LENGTH or burst=LENGTH-words"
        )
    amount: Amount = Single()
    if match["ber"]:
        amount = Rate(float(match["ber"]))
    elif match["flips"]:
        amount = Count(int(match["flips"]))
    effect = Effect(match["effect"]) if match["effect"] else Effect.FLIP
    shape = Shape(int(match["burst"] or 1), Along(match["along"] or Along.BITS))
    return FaultModel(amount, effect, shape)
