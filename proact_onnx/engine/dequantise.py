"""Quantised weights as floating-point constants that follow the stored integers.

``DequantizeLinear`` of stored integers gives the same numbers in every run, and its result is no
constant to the optimiser, which leaves the convolution behind it in its slow layout. Here the node
becomes an initializer, ``w = (q - zero point) scale``, and whoever overwrites an integer, a scale
or a zero point overwrites what follows from it. The arithmetic is that of the file: integer
kernels, which fuse the quantisers around a layer, never read the scale of a bias.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.engine.session import Array, Indices
from proact_onnx.messages import node_reads, with_values

# A floating-point copy takes four times the memory of bytes. Networks with more weights than this
# are dequantised in every run.
_MOST_WEIGHTS = 1 << 26


@dataclass(frozen=True)
class Dequantisation:
    """A DequantizeLinear of stored integers, whose result became an initializer.

    Attributes:
        integers: Name of the stored integers.
        scale: Name of their scale, one number or one a channel.
        zero_point: Name of their zero point; empty where there is none.
        shape: Shape of the integers.
        axis: Axis of the channels.
        result: Name of the floating-point initializer.
    """

    integers: str
    scale: str
    zero_point: str
    shape: tuple[int, ...]
    axis: int
    result: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the initializers that the result follows from."""
        return tuple(name for name in (self.integers, self.scale, self.zero_point) if name)

    @property
    def results(self) -> tuple[str, ...]:
        """Name of the initializer that follows from them."""
        return (self.result,)

    def follow(
        self, stored: Mapping[str, Array], changed: str, elements: Indices
    ) -> Iterator[tuple[str, Indices, Array]]:
        """Yield what changes in the result: its name, flat indices and values.

        Args:
            stored: The sources, flat, by name.
            changed: The source that was overwritten.
            elements: Flat indices of the elements that were.
        """
        if changed != self.integers:
            elements = self._of_channels(elements, stored[changed].size)
        yield self.result, elements, self.values(stored, elements)

    def values(self, stored: Mapping[str, Array], elements: Indices) -> Array:
        """Dequantise some of the integers, by flat index."""
        channels = (elements // math.prod(self.shape[self.axis + 1 :])) % self._channels
        scale = stored[self.scale]
        integers = stored[self.integers][elements].astype(np.int64)
        if self.zero_point:
            points = stored[self.zero_point]
            integers -= points[channels if points.size > 1 else 0].astype(np.int64)
        # Faults make scales infinite: the outputs show it.
        with np.errstate(all="ignore"):
            product: Array = integers.astype(scale.dtype) * scale[channels if scale.size > 1 else 0]
        return product

    @property
    def _channels(self) -> int:
        return self.shape[self.axis] if self.shape else 1

    def _of_channels(self, channels: Indices, count: int) -> Indices:
        everything = np.arange(math.prod(self.shape))
        if count == 1:
            return everything
        return everything.reshape(self.shape).take(channels, self.axis).reshape(-1)


def dequantisations_to_constants(
    model: onnx.ModelProto,
) -> tuple[onnx.ModelProto, list[Dequantisation]]:
    """Put dequantised weights and biases in the place of the nodes that dequantise them.

    A node is replaced when its inputs are initializers, the scale float32, one for all or one a
    channel. All stay, if the model has more integers than are worth a floating-point copy.

    Args:
        model: A valid model; it is not changed.

    Returns:
        A model that computes the same, the model itself if nothing is replaced, and what was.
        Integers, scales and zero points stay initializers, whether or not they are read.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = {info.name for info in model.graph.output}
    found: list[Dequantisation] = []
    replaced: set[int] = set()
    for index, node in enumerate(model.graph.node):
        known = _dequantisation(node, stored)
        if known is not None and known.result not in outputs:
            found.append(known)
            replaced.add(index)
    if not found or sum(math.prod(known.shape) for known in found) > _MOST_WEIGHTS:
        return model, []
    flat = functools.cache(lambda name: numpy_helper.to_array(stored[name]).reshape(-1))
    rewritten = with_values(model, {})
    nodes = [node for index, node in enumerate(model.graph.node) if index not in replaced]
    del rewritten.graph.node[:]
    rewritten.graph.node.extend(nodes)
    for known in found:
        sources = {name: flat(name) for name in known.sources}
        values = known.values(sources, np.arange(math.prod(known.shape)))
        tensor = numpy_helper.from_array(values.reshape(known.shape), known.result)
        rewritten.graph.initializer.append(tensor)
    return rewritten, found


def unread(model: onnx.ModelProto, names: set[str]) -> set[str]:
    """Of some initializers, those that no node reads any more."""
    reads = Counter(name for node in model.graph.node for name in node_reads(node))
    return {name for name in names if not reads[name]}


def _dequantisation(
    node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]
) -> Dequantisation | None:
    """Describe a node that dequantises stored integers; None for any other."""
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return None
    if any(name not in stored for name in node.input if name):
        return None
    attributes = {a.name: a.i for a in node.attribute}
    integers, scale = stored[node.input[0]], stored[node.input[1]]
    shape = tuple(integers.dims)
    axis = attributes.get("axis", 1)
    axis += len(shape) * (axis < 0)
    size = math.prod(scale.dims)
    shared = size == 1 or (axis < len(shape) and size == shape[axis] and len(scale.dims) == 1)
    if attributes.get("block_size", 0) or not shared:
        return None
    if scale.data_type != onnx.TensorProto.FLOAT or attributes.get("output_dtype", 0) not in (0, 1):
        return None
    return Dequantisation(
        integers=node.input[0],
        scale=node.input[1],
        zero_point=node.input[2] if len(node.input) > 2 else "",
        shape=shape,
        axis=axis if size > 1 else 0,
        result=node.output[0],
    )
