"""A model whose parameters went through a memory format, and how faults get into it."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from proact_onnx.engine import FaultEngine
from proact_onnx.errors import ModelError
from proact_onnx.faults import (
    FaultMap,
    FaultSpace,
    FloatingPoint,
    Integer,
    MemoryFormat,
    NumberFormat,
)
from proact_onnx.messages import with_values_from

Words = npt.NDArray[np.uint32]
NarrowWords = npt.NDArray[np.unsignedinteger[Any]]
Indices = npt.NDArray[np.int64]
Values = npt.NDArray[Any]

# Elements encoded together: what the conversion through float64 takes stays in the cache.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class StoredParameter:
    """One parameter as memory holds it.

    Attributes:
        words: Flat array of stored words, of the narrowest type that holds them.
        number_format: What the words stand for.
        dtype: The type the model computes with.
    """

    words: NarrowWords
    number_format: NumberFormat
    dtype: np.dtype[Any]

    def values(self, words: Words) -> npt.NDArray[Any]:
        """Decode words through float64 and cast once to the type the model computes with."""
        with np.errstate(over="ignore"):
            return self.number_format.decode(words).astype(self.dtype)


@dataclass(frozen=True)
class FaultyWords:
    """The words of one parameter that a trial changes.

    Attributes:
        parameter: The parameter.
        elements: Their flat indices, ascending.
        before: The words as stored.
        after: The words with the faults in them.
    """

    parameter: StoredParameter
    elements: Indices
    before: Words
    after: Words


@dataclass(frozen=True)
class Injection:
    """What one trial changes, ready to go into an engine and out again.

    Attributes:
        words: By parameter, its faulty words. A parameter none of whose words change is absent.
        replaced: By parameter, all of its values as the model has them, and those that the trial
            stores instead; both flat.
    """

    words: Mapping[str, FaultyWords]
    replaced: Mapping[str, tuple[Values, Values]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that change."""
        return (*self.words, *self.replaced)

    @property
    def flips(self) -> int:
        """Number of bits that faults change."""
        changes = (faulty.before ^ faulty.after for faulty in self.words.values())
        return sum(int(np.bitwise_count(change).sum()) for change in changes)

    def put(self, engine: FaultEngine) -> None:
        """Bring the changes into an engine that runs this model."""
        for name, (_, after) in self.replaced.items():
            engine.write(name, np.arange(after.size), after)
        for name, faulty in self.words.items():
            engine.write(name, faulty.elements, faulty.parameter.values(faulty.after))

    def undo(self, engine: FaultEngine) -> None:
        """Take the changes out again."""
        for name, (before, _) in self.replaced.items():
            engine.write(name, np.arange(before.size), before)
        for name, faulty in self.words.items():
            engine.write(name, faulty.elements, faulty.parameter.values(faulty.before))


@dataclass(frozen=True)
class EncodedModel:
    """A model with its parameters as a memory format keeps them.

    Attributes:
        model: The model with decoded parameters: the one the golden run executes.
        parameters: By name, what memory holds.
        saturated: Number of parameters outside the range of the format.
    """

    model: onnx.ModelProto
    parameters: Mapping[str, StoredParameter]
    saturated: int

    def inject(
        self, faults: FaultMap, stored: Sequence[tuple[str, Sequence[float]]] = ()
    ) -> Injection:
        """Find the words that a fault map changes; a stuck bit may hold its right value.

        Args:
            faults: The faults.
            stored: By parameter, values in its order that stand in for the model's own. They go
                through no format, and no fault hits them.
        """
        changed = {}
        for name, (elements, masks) in faults.words.items():
            parameter = self.parameters[name]
            before = parameter.words[elements].astype(np.uint32)
            after = faults.apply(before, masks)
            differs = before != after
            if differs.all():
                changed[name] = FaultyWords(parameter, elements, before, after)
            elif differs.any():
                changed[name] = FaultyWords(
                    parameter, elements[differs], before[differs], after[differs]
                )
        return Injection(changed, {name: self._replace(name, values) for name, values in stored})

    def _replace(self, name: str, values: Sequence[float]) -> tuple[Values, Values]:
        before = numpy_helper.to_array(self._tensors[name]).reshape(-1)
        return before, np.asarray(values, before.dtype)

    @functools.cached_property
    def _tensors(self) -> Mapping[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}


def encode_model(
    model: onnx.ModelProto, space: FaultSpace, memory_format: MemoryFormat
) -> EncodedModel:
    """Bring the parameters of a fault space through a format.

    Args:
        model: The model, every parameter an initializer; it is not changed.
        space: Which parameters.
        memory_format: How floating-point parameters are stored; integers stay as they are.

    Raises:
        ModelError: If a parameter is NaN.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    parameters = {}
    converted = set()
    saturated = 0
    for parameter in space.parameters:
        name = parameter.name
        values = numpy_helper.to_array(tensors[name])
        if parameter.stored_as:
            own = (
                Integer(values.dtype) if values.dtype.kind in "iu" else FloatingPoint(values.dtype)
            )
            words, _ = _encode(values, own)
            parameters[name] = StoredParameter(words, own, values.dtype)
            continue
        if np.isnan(values).any():
            raise ModelError(
                f"parameter {name!r} holds NaN, which no memory format can be asked to keep: "
                "repair the model"
            )
        number_format = memory_format.fit(values)
        words, outside = _encode(values, number_format)
        parameters[name] = StoredParameter(words, number_format, values.dtype)
        saturated += outside
        if number_format.name != values.dtype.name:
            converted.add(name)

    def decoded(name: str) -> npt.NDArray[Any] | None:
        return _decode(parameters[name], tensors[name].dims) if name in converted else None

    encoded = with_values_from(model, decoded) if converted else model
    return EncodedModel(encoded, parameters, saturated)


def _encode(values: npt.NDArray[Any], number_format: NumberFormat) -> tuple[NarrowWords, int]:
    """Words of a tensor, and how many of its values lie outside the format."""
    flat = values.reshape(-1)
    size = next(size for size in (1, 2, 4) if 8 * size >= number_format.width)
    words = np.empty(flat.size, f"u{size}")
    outside = 0
    for start in range(0, flat.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        words[part] = number_format.encode(flat[part])
        outside += number_format.saturated(flat[part])
    return words, outside


def _decode(parameter: StoredParameter, shape: Sequence[int]) -> npt.NDArray[Any]:
    values = np.empty(parameter.words.size, parameter.dtype)
    for start in range(0, values.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        values[part] = parameter.values(parameter.words[part].astype(np.uint32))
    return values.reshape(shape)
