"""Batch normalisations as depthwise convolutions, whose factors follow the stored vectors.

ONNX Runtime calculates with the four vectors of a BatchNormalization before it runs, so none of
them is left to be overwritten. Here it becomes a convolution of extent 1 on each channel,
``y = f x + s`` with ``f = scale / sqrt(variance + epsilon)`` and ``s = bias - f mean``, and whoever
overwrites an element of a vector overwrites what follows from it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from proact_onnx.activations import tensor_types
from proact_onnx.engine.session import Array, Indices
from proact_onnx.messages import extents, node_reads


@dataclass(frozen=True)
class Normalisation:
    """A rewritten BatchNormalization.

    Attributes:
        vectors: Names of scale, bias, mean and variance, each ``[C]``.
        epsilon: What is added to the variance.
        factor: Name of the convolution's weights, ``[C, 1, ...]``.
        shift: Name of its bias, ``[C]``.
    """

    vectors: tuple[str, str, str, str]
    epsilon: float
    factor: str
    shift: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the initializers that weights and bias follow from."""
        return self.vectors

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the initializers that follow from them."""
        return self.factor, self.shift

    def follow(
        self, stored: Mapping[str, Array], changed: str, elements: Indices
    ) -> Iterator[tuple[str, Indices, Array]]:
        """Yield what changes when elements of a vector were overwritten: name, indices, values.

        Args:
            stored: The vectors, by name.
            changed: The vector that was overwritten.
            elements: Indices of the elements that were.
        """
        factors, shifts = self.derive(stored, elements)
        yield self.factor, elements, factors
        yield self.shift, elements, shifts

    def derive(self, stored: Mapping[str, Array], channels: Indices) -> tuple[Array, Array]:
        """Factors and shifts of some channels, ``[K]`` each.

        Args:
            stored: The vectors, by name.
            channels: Indices of channels, ``[K]``.
        """
        scale, bias, mean, variance = (stored[name][channels] for name in self.vectors)
        # Faults make variances negative and factors infinite: the outputs show it.
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(variance + np.float32(self.epsilon))
            return factor, bias - factor * mean


def normalisations_to_convolutions(
    model: onnx.ModelProto,
) -> tuple[onnx.ModelProto, list[Normalisation]]:
    """Rewrite the batch normalisations of images and sequences.

    One is rewritten when its input is known to have three to five axes and its vectors are float32
    initializers that nothing else reads.

    Args:
        model: A valid model; it is not changed.

    Returns:
        A model that computes the same, the model itself if nothing is normalised, and what was
        rewritten. The vectors stay initializers, which nothing reads.
    """
    if all(node.op_type != "BatchNormalization" for node in model.graph.node):
        return model, []
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    graph = rewritten.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {name: len(extents(info)) for name, info in tensor_types(model).items()}
    reads = Counter(name for node in graph.node for name in node_reads(node))
    reads.update(info.name for info in (*graph.input, *graph.output))
    found = []
    for index, node in enumerate(graph.node):
        if not _is_plain(node) or not 3 <= (rank := ranks.get(node.input[0], 0)) <= 5:
            continue
        if any(
            name not in stored
            or reads[name] > 1
            or stored[name].data_type != onnx.TensorProto.FLOAT
            for name in node.input[1:]
        ):
            continue
        x, scale, bias, mean, variance = node.input
        prefix = f"normalisation/{index}"
        given = [a.f for a in node.attribute if a.name == "epsilon"]
        normalisation = Normalisation(
            (scale, bias, mean, variance),
            given[0] if given else 1e-5,
            f"{prefix}/factor",
            f"{prefix}/shift",
        )
        values = {name: numpy_helper.to_array(stored[name]) for name in normalisation.vectors}
        channels = len(values[scale])
        factor, shift = normalisation.derive(values, np.arange(channels))
        kernel = factor.reshape(channels, *[1] * (rank - 1))
        graph.initializer.append(numpy_helper.from_array(kernel, normalisation.factor))
        graph.initializer.append(numpy_helper.from_array(shift, normalisation.shift))
        inputs = [x, normalisation.factor, normalisation.shift]
        convolution = helper.make_node("Conv", inputs, node.output[:1], prefix, group=channels)
        node.CopyFrom(convolution)
        found.append(normalisation)
    return rewritten, found


def _is_plain(node: onnx.NodeProto) -> bool:
    """Tell whether a node normalises a batch with stored statistics and returns nothing else."""
    training = any(a.name == "training_mode" and a.i for a in node.attribute)
    standard = node.domain in ("", "ai.onnx") and node.op_type == "BatchNormalization"
    return standard and not training and len(node.output) == 1
