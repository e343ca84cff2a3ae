"""How samples become calls of a model, and how what the calls give becomes the samples' own.

Samples are an array whose first axis counts them: images ``[N, ...]``, or, for a model with several
inputs, records ``[N]`` with a field for each (`proact_onnx.data.inputs`). Choosing, sending and
digesting them is choosing, sending and digesting one array; here alone it matters which it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from proact_onnx.errors import RunError
from proact_onnx.model import ModelInput

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Calls:
    """How a model is called with the samples of a data set.

    Attributes:
        inputs: Names of the inputs.
        size: Samples of a call.
        filled: Whether every call must have so many, because the model states its batch.
        whole: Whether a sample is all that one call is given, its batch axis included.
    """

    inputs: tuple[str, ...]
    size: int
    filled: bool
    whole: bool

    @classmethod
    def of(cls, inputs: Sequence[ModelInput], samples: Array, batch_size: int) -> Self:
        """Find out how a model takes samples.

        Args:
            inputs: The inputs of the model.
            samples: Preprocessed samples; their type alone is looked at.
            batch_size: Samples of a call, where the model leaves its batch axis free.
        """
        names = tuple(each.name for each in inputs)
        if samples.dtype.names is not None:
            # They are all alike in that (`proact_onnx.data.prepare_inputs`).
            first = inputs[0]
            if len(samples.dtype[first.name].shape) == len(first.shape):
                return cls(names, 1, filled=False, whole=True)
        stated = next((each.shape[0] for each in inputs if each.shape and each.shape[0]), None)
        return cls(names, stated or batch_size, filled=stated is not None, whole=False)

    def sizes(self, total: int) -> list[int]:
        """How many of ``total`` samples each call has."""
        return [min(self.size, total - start) for start in range(0, total, self.size)]

    def cut(self, samples: Array) -> Iterator[tuple[Array, int]]:
        """Cut samples, or indices of samples, into those of one call.

        A model that states its batch gets just so many, the last batch filled up by repeating its
        final sample.

        Yields:
            A batch, and how many of its samples are real.
        """
        for start in range(0, len(samples), self.size):
            batch = samples[start : start + self.size]
            count = len(batch)
            if self.filled and count < self.size:
                batch = np.concatenate([batch, np.repeat(batch[-1:], self.size - count, axis=0)])
            yield np.ascontiguousarray(batch), count

    def feeds(self, batch: Array) -> dict[str, Array]:
        """What a call is given, by name of the input.

        Args:
            batch: Samples of one call.
        """
        if batch.dtype.names is None:
            return {self.inputs[0]: batch}
        # A field lies among the others: runtimes read numbers that lie together, aligned.
        return {
            name: np.require(batch[name][0] if self.whole else batch[name], requirements=["C", "A"])
            for name in self.inputs
        }

    def apart(self, outputs: Sequence[Array], count: int) -> list[Array]:
        """Tell the outputs of a call apart by sample.

        Args:
            outputs: What the call gave.
            count: How many of its samples are real.

        Returns:
            Each ``[count, ...]``; where a sample is a call, ``[1, ...]``.
        """
        if self.whole:
            return [np.asarray(value)[None] for value in outputs]
        return [np.atleast_1d(value)[:count] for value in outputs]


def join(parts: Sequence[Array], what: str = "an output") -> Array:
    """Put together what an output is for the samples of several calls.

    Args:
        parts: Each ``[count, ...]``.
        what: How to call the output in a message.

    Raises:
        RunError: If the output has another shape from one call to another.
    """
    shapes = list(dict.fromkeys(part.shape[1:] for part in parts))
    if len(shapes) > 1:
        raise RunError(
            f"{what} has shape {list(shapes[0])} for some samples and {list(shapes[1])} for "
            "others, so they cannot be put together: give samples whose outputs have one shape"
        )
    return np.concatenate(parts)
