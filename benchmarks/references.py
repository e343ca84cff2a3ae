"""Fault-injection campaigns in PyTorch: the references that the campaign engine is timed against.

``CopyingReference`` does what research code commonly does and ``InPlaceReference`` as much as
PyTorch gives without compiling anything. Both flip bits of the parameters of a network in Q15.16
(two's complement, 16 fraction bits). Neither touches buffers, so a network with batch normalisation
keeps its running statistics free of faults.
"""

# fxpmath calls itself typed and is not; linting must pass where it is not installed, too.
# mypy: disable-error-code="import-not-found, no-untyped-call"

import copy
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from fxpmath.objects import Fxp
from torch import Tensor, nn

WORD_BITS = 32
FRACTION_BITS = 16

Images = npt.NDArray[np.float32]

# By parameter name, the distinct positions of the bits to flip, int64: bit b of the element with
# flat index e is at 32 e + b, and bit 0 is the least significant.
Sites = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """What one trial computed and what its parts cost.

    Attributes:
        logits: The faulty network's outputs, ``[N, classes]``.
        copy_seconds: Copying the network.
        flip_seconds: Drawing the sites, flipping their bits and undoing it.
        inference_seconds: Running all images.
    """

    logits: npt.NDArray[np.float32]
    copy_seconds: float
    flip_seconds: float
    inference_seconds: float

    @property
    def seconds(self) -> float:
        """The whole trial."""
        return self.copy_seconds + self.flip_seconds + self.inference_seconds


Faults = TypeVar("Faults")


class Injector(Protocol[Faults]):
    """Runs one network under faults, of which each injector has its own representation."""

    def draw(self, ber: float, seed: int) -> Faults:
        """Draw the faults of one trial."""

    def run(self, images: Images, faults: Faults) -> Trial:
        """Run images ``[N, 3, H, W]`` under these faults and leave the network as it was."""


def timed_trial(injector: Injector[Faults], images: Images, ber: float, seed: int) -> Trial:
    """Draw faults and run images under them; drawing counts as part of flipping.

    Args:
        injector: What runs the trial.
        images: ``[N, 3, H, W]``.
        ber: Bit error rate.
        seed: Equal seeds give an injector equal faults.
    """
    started = time.perf_counter()
    faults = injector.draw(ber, seed)
    drawn = time.perf_counter() - started
    trial = injector.run(images, faults)
    return replace(trial, flip_seconds=trial.flip_seconds + drawn)


def encode(values: Tensor) -> Tensor:
    """Return the int32 Q15.16 words nearest to the values, ties to even, saturated."""
    limits = torch.iinfo(torch.int32)
    scaled = torch.round(torch.ldexp(values.double(), torch.tensor(FRACTION_BITS)))
    return scaled.clamp(limits.min, limits.max).to(torch.int32)


def decode(words: Tensor) -> Tensor:
    """Return the float32 values of int32 Q15.16 words."""
    return torch.ldexp(words.double(), torch.tensor(-FRACTION_BITS)).float()


def round_parameters(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose parameters all have a Q15.16 word."""
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(decode(encode(parameter)))
    return rounded


class CopyingReference:
    """Copies the network for every trial and flips one bit after another with ``fxpmath``.

    The number of flips in a parameter is its number of bits times the bit error rate, rounded down.

    Args:
        network: The network, parameters rounded to Q15.16.
        batch_size: Images per run.
    """

    def __init__(self, network: nn.Module, batch_size: int) -> None:
        self._network = network.eval()
        self._batch_size = batch_size

    def draw(self, ber: float, seed: int) -> Sites:
        """Draw distinct sites in every parameter."""
        rng = random.Random(seed)
        sites = {}
        for name, parameter in self._network.named_parameters():
            bits = parameter.numel() * WORD_BITS
            sites[name] = torch.tensor(rng.sample(range(bits), int(bits * ber)), dtype=torch.int64)
        return sites

    def run(self, images: Images, faults: Sites) -> Trial:
        """Run images ``[N, 3, H, W]`` through a faulty copy of the network."""
        started = time.perf_counter()
        faulty = copy.deepcopy(self._network)
        copied = time.perf_counter()
        with torch.no_grad():
            for name, parameter in faulty.named_parameters():
                elements = parameter.view(-1)
                for site in faults.get(name, torch.empty(0)).tolist():
                    element, bit = divmod(site, WORD_BITS)
                    elements[element] = _flip_with_fxpmath(elements[element].item(), bit)
            flipped = time.perf_counter()
            logits = _run_batches(faulty, images, self._batch_size)
        finished = time.perf_counter()
        return Trial(logits, copied - started, flipped - copied, finished - flipped)


def _flip_with_fxpmath(value: float, bit: int) -> float:
    word = Fxp(value, signed=True, n_word=WORD_BITS, n_frac=FRACTION_BITS)
    digits = list(word.bin())
    place = WORD_BITS - 1 - bit
    digits[place] = "1" if digits[place] == "0" else "0"
    word("0b" + "".join(digits))
    return float(word)


class InPlaceReference:
    """Keeps one network and its words, and overwrites the faulty parameters in place.

    Drawing, flipping and decoding are vectorised; the count of flips in a parameter of n bits is
    Binomial(n, BER), as in the campaign engine.

    Args:
        network: The network; it is copied once.
        batch_size: Images per run.
        memory_format: Layout of activations and convolution weights.
    """

    def __init__(
        self, network: nn.Module, batch_size: int, memory_format: torch.memory_format
    ) -> None:
        self._network = round_parameters(network).eval()
        # Words keep the order of the contiguous layout, whatever the layout of the parameters.
        self._words = {
            name: encode(parameter.detach()).flatten()
            for name, parameter in self._network.named_parameters()
        }
        self._network.to(memory_format=memory_format)  # type: ignore[call-overload]
        self._parameters = dict(self._network.named_parameters())
        self._batch_size = batch_size
        self._memory_format = memory_format

    def draw(self, ber: float, seed: int) -> Sites:
        """Draw distinct sites in every parameter."""
        generator = torch.Generator().manual_seed(seed)
        rate = torch.tensor(ber, dtype=torch.float64)
        sites = {}
        for name, words in self._words.items():
            bits = words.numel() * WORD_BITS
            population = torch.tensor(bits, dtype=torch.float64)
            count = int(torch.binomial(population, rate, generator))
            sites[name] = _draw_distinct(bits, count, generator)
        return sites

    def run(self, images: Images, faults: Sites) -> Trial:
        """Run images ``[N, 3, H, W]`` with the faults in place, then take them out."""
        with torch.inference_mode():
            started = time.perf_counter()
            faulty = {name: self._faulty_words(name, sites) for name, sites in faults.items()}
            for name, (elements, words) in faulty.items():
                self._put(name, elements, words)
            flipped = time.perf_counter()
            logits = _run_batches(self._network, images, self._batch_size, self._memory_format)
            finished = time.perf_counter()
            for name, (elements, _) in faulty.items():
                self._put(name, elements, self._words[name][elements])
            undone = time.perf_counter()
        return Trial(logits, 0.0, undone - finished + flipped - started, finished - flipped)

    def _faulty_words(self, name: str, sites: Tensor) -> tuple[Tensor, Tensor]:
        bits = torch.bitwise_left_shift(torch.ones_like(sites), sites % WORD_BITS)
        elements, owners = torch.unique(sites // WORD_BITS, return_inverse=True)
        # Sites are distinct, so the sum of their bits is the mask of a word.
        masks = torch.zeros_like(elements).index_add_(0, owners, bits)
        return elements, self._words[name][elements] ^ masks.to(torch.int32)

    def _put(self, name: str, elements: Tensor, words: Tensor) -> None:
        parameter = self._parameters[name]
        parameter.index_put_(torch.unravel_index(elements, parameter.shape), decode(words))


def faster_memory_format(
    network: nn.Module, images: Images, batch_size: int, repetitions: int = 5
) -> torch.memory_format:
    """Time both layouts that PyTorch has for images, and return the faster one's.

    Args:
        network: The network.
        images: ``[N, 3, H, W]``.
        batch_size: Images per run.
        repetitions: Runs of each; the fastest counts.
    """
    formats = (torch.contiguous_format, torch.channels_last)
    references = [InPlaceReference(network, batch_size, each) for each in formats]
    seconds = [
        [reference.run(images, {}).inference_seconds for reference in references]
        for _ in range(repetitions)
    ]
    return formats[int(np.argmin(np.min(seconds, axis=0)))]


def _draw_distinct(population: int, count: int, generator: torch.Generator) -> Tensor:
    drawn: Tensor = torch.unique(torch.randint(population, (count,), generator=generator))
    while len(drawn) < count:
        more = torch.randint(population, (count - len(drawn),), generator=generator)
        drawn = torch.unique(torch.cat([drawn, more]))
    return drawn


def _run_batches(
    network: Callable[[Tensor], Any],
    images: Images,
    batch_size: int,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> npt.NDArray[np.float32]:
    logits = [
        network(
            torch.from_numpy(images[start : start + batch_size]).to(memory_format=memory_format)
        )
        for start in range(0, len(images), batch_size)
    ]
    outputs: npt.NDArray[np.float32] = torch.cat(logits).numpy()
    return outputs
