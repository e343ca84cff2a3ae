"""The student: a mirror that takes as many images as there are."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from proact_onnx.errors import ModelError
from proact_onnx.mirror.graph import Mirror
from proact_onnx.mirror.hyrelu import hard_gate, two_sided
from proact_onnx.model import image_input
from proact_onnx.thresholds import FloatArray

# How activations (``[N, ...]``) that are not negative are bounded by thresholds.
Gate = Callable[[Tensor, Tensor], Tensor]
# What is kept for one layer over all images, at most; beyond, it is computed for every batch.
CACHE_BYTES = 1 << 30
# Scores of the same image in two batches differ by rounding only.
_ROUNDING = 1e-4


class Student:
    """A classifier in PyTorch whose activations can be bounded.

    A graph exported with a fixed batch often works for any, only its inputs say otherwise. Where
    the batch is written into the constants of a Reshape it does not, and the graph runs in chunks
    of that batch, the last one filled up by repeating its final image.

    Args:
        model: The model, without bounds.
        images: Images ``[N, ...]`` to find out with.
        batch: Images per run where gradients are not needed.
        both_sides: Activations whose thresholds are packed, lower and upper ones.

    Attributes:
        mirror: The graph.
        chunk: Images per run of the graph, ``None`` where it takes any number.
    """

    def __init__(
        self,
        model: ModelProto,
        images: Tensor,
        batch: int = 128,
        both_sides: Collection[str] = (),
    ) -> None:
        self.mirror = Mirror(model)
        self._both_sides = both_sides
        self.chunk: int | None = None
        self._batch = batch
        fixed = image_input(model).shape[0]
        if fixed is not None and not self._takes_any_batch(images, fixed):
            self.chunk = fixed

    def bound(self, tensor: str, threshold: FloatArray) -> None:
        """Bound an activation as deployed."""
        self.mirror.gates[tensor] = self._deployed(tensor, threshold)

    def gate(self, tensor: str, gate: Gate, threshold: Tensor) -> Callable[[Tensor], Tensor]:
        """Bound an activation by some gate, on both sides where it has two.

        Args:
            tensor: The activation.
            gate: Bounds values that are not negative.
            threshold: Its thresholds.
        """
        if tensor in self._both_sides:
            return partial(two_sided, thresholds=threshold, gate=gate)
        return partial(_bound, gate, threshold)

    def _deployed(self, tensor: str, threshold: FloatArray) -> Callable[[Tensor], Tensor]:
        fixed = torch.from_numpy(np.array(threshold, np.float32))
        return self.gate(tensor, hard_gate, fixed)

    def logits(
        self, feeds: Mapping[str, Tensor], parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Class scores ``[N, K]``, float32, of the graph's first output.

        Args:
            feeds: Values by tensor name, each ``[N, ...]``.
            parameters: Values that stand in for those of initializers.
        """
        output = self.mirror.outputs[0]
        return self._evaluate(feeds, [output], parameters or {})[output].flatten(1).float()

    def predict(self, images: Tensor) -> Tensor:
        """Class scores of many images, ``[N, K]``, without gradients."""
        with torch.no_grad():
            return torch.cat(
                [
                    self.logits({self.mirror.inputs[0]: images[part]})
                    for part in batches(len(images), self._batch)
                ]
            )

    def predict_from(self, layer: "SuffixInputs", threshold: FloatArray) -> Tensor:
        """Class scores of many images, ``[N, K]``, with one activation bounded as deployed.

        Args:
            layer: From `inputs_from`; the graph up to this activation is not run again.
            threshold: Of that activation.
        """
        gate = self._deployed(layer.tensor, threshold)
        scores = []
        with torch.no_grad():
            for part in batches(len(layer), self._batch):
                feeds = layer.take(part)
                feeds[layer.tensor] = gate(feeds[layer.tensor])
                scores.append(self.logits(feeds))
        return torch.cat(scores)

    def inputs(self, images: Tensor) -> "SuffixInputs":
        """Give the graph's own input, for images ``[N, ...]``."""
        name = self.mirror.inputs[0]
        return SuffixInputs(name, lambda chosen: {name: images[chosen]}, len(images))

    def inputs_from(
        self,
        tensor: str,
        images: Tensor,
        limit: int = CACHE_BYTES,
        parameters: Sequence[str] = (),
    ) -> "SuffixInputs":
        """Run the graph up to an activation, for all images.

        While that layer is trained nothing before it changes, so only what follows need be run
        again.

        Args:
            tensor: The activation.
            images: ``[N, ...]``.
            limit: Bytes to keep at most; what needs more is computed again for every batch.
            parameters: Initializers before the activation that change, too: the graph is run up to
                where they are read.

        Raises:
            ModelError: If a tensor that the rest of the graph needs has no batch axis.
        """
        names = self.mirror.suffix_inputs(*(parameters or [tensor]))
        compute = partial(self._prefix, tensor, names)
        kept: dict[str, Tensor] = {}
        for part in batches(len(images), self._batch):
            for name, value in compute(images[part]).items():
                if name not in kept:
                    kept[name] = value.new_empty((len(images), *value.shape[1:]))
                kept[name][part] = value
            if sum(value.nbytes for value in kept.values()) > limit:
                return SuffixInputs(tensor, lambda chosen: compute(images[chosen]), len(images))
        return SuffixInputs(
            tensor, lambda chosen: {name: kept[name][chosen] for name in kept}, len(images)
        )

    def _prefix(self, tensor: str, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
        gate = self.mirror.gates.pop(tensor, None)
        try:
            with torch.no_grad():
                found = self._evaluate({self.mirror.inputs[0]: images}, names)
        finally:
            if gate is not None:
                self.mirror.gates[tensor] = gate
        for name, value in found.items():
            if value.dim() == 0 or len(value) != len(images):
                raise ModelError(
                    f"tensor {name!r} of shape {list(value.shape)} does not have the batch as its "
                    "first axis, so the thresholds before it cannot be trained: use a method that "
                    "needs no training, such as ranger"
                )
        return found

    def _evaluate(
        self,
        feeds: Mapping[str, Tensor],
        targets: Sequence[str],
        parameters: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        if self.chunk is None:
            return self.mirror.evaluate({**feeds, **parameters}, targets)
        total = min(map(len, feeds.values()))
        pieces = []
        for part in batches(total, self.chunk):
            filled = torch.arange(part.start, part.start + self.chunk).clamp_max(total - 1)
            chosen = {name: value[filled] for name, value in feeds.items()}
            pieces.append(self.mirror.evaluate({**chosen, **parameters}, targets))
        return {name: torch.cat([piece[name] for piece in pieces])[:total] for name in targets}

    def _takes_any_batch(self, images: Tensor, fixed: int) -> bool:
        """Compare two batches run at once with the same two run one by one."""
        [name, *_] = self.mirror.inputs
        two = images[torch.arange(2 * fixed) % len(images)]
        with torch.no_grad():
            apart = torch.cat([self.logits({name: half}) for half in (two[:fixed], two[fixed:])])
            try:
                together = self.logits({name: two})
            # Whatever the operators make of sizes that do not fit.
            except (RuntimeError, IndexError, ValueError):
                return False
        return together.shape == apart.shape and torch.allclose(
            together, apart, rtol=0, atol=_ROUNDING * float(apart.abs().max())
        )


class SuffixInputs:
    """Everything the graph needs to finish from one tensor, for a set of images.

    Args:
        tensor: The activation, or the graph's input.
        take: Gives the values for some of the images.
        total: Number of images.
    """

    def __init__(
        self, tensor: str, take: Callable[[Tensor | slice], dict[str, Tensor]], total: int
    ) -> None:
        self.tensor = tensor
        self._take = take
        self._total = total

    def __len__(self) -> int:
        return self._total

    def take(self, chosen: Tensor | slice) -> dict[str, Tensor]:
        """Return the values for some of the images, by tensor name, ``[N, ...]``.

        The activation's own values are those before its bound.
        """
        return self._take(chosen)


def batches(total: int, size: int) -> Iterator[slice]:
    """Cut a range into slices of at most ``size``."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _bound(gate: Gate, threshold: Tensor, values: Tensor) -> Tensor:
    return gate(values, threshold)
