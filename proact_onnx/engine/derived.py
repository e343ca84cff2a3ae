"""Constants that a graph computes from parameters, as initializers that follow them.

A threshold may be subtracted from a bias before a convolution adds it, or a scale inverted before
it is a weight. Computed in every run, such constants keep ONNX Runtime from laying out weights in
blocks; folded when the model is loaded, they no longer follow what is written to the parameter. So
here they become initializers, and whoever overwrites a parameter overwrites what follows from it.
"""

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from proact_onnx.engine.session import Array, Indices, Provider, create_session, session_options
from proact_onnx.messages import node_reads, with_values

# A larger parameter is not computed with anew for every element that changes.
_MOST_ELEMENTS = 1 << 16
# What a runtime treats in its own way: quantised operators, and what is not the same twice.
_NEVER = ("Bernoulli", "DequantizeLinear", "Multinomial", "QuantizeLinear", "Random")


@dataclass(frozen=True)
class Derivation:
    """Constants that depend on the same parameters.

    Attributes:
        sources: Names of the parameters that they are computed from.
        shapes: Their shapes.
        results: Names of the constants, which are initializers now.
        content: A serialised model that computes them.
    """

    sources: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    results: tuple[str, ...]
    content: bytes

    def follow(
        self, stored: Mapping[str, Array], changed: str, elements: Indices
    ) -> Iterator[tuple[str, Indices, Array]]:
        """Yield what changes when elements of a parameter were overwritten.

        Args:
            stored: The parameters, flat, by name.
            changed: The parameter that was overwritten.
            elements: Flat indices of the elements that were.

        Returns:
            Names of results, flat indices and values.
        """
        for name, value in self.derive(stored).items():
            yield name, np.arange(value.size), value.reshape(-1)

    def derive(self, stored: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the constants, by name, from the parameters, flat or not, by name."""
        shaped = zip(self.sources, self.shapes, strict=True)
        feed = {name: stored[name].reshape(shape) for name, shape in shaped}
        values = self._session.run(list(self.results), feed)
        return dict(zip(self.results, values, strict=True))

    @functools.cached_property
    def _session(self) -> ort.InferenceSession:
        options = session_options(threads=1, optimise=False)
        return create_session(self.content, Provider.CPU, options)


def derived_to_initializers(
    model: onnx.ModelProto, parameters: Sequence[str]
) -> tuple[onnx.ModelProto, list[Derivation]]:
    """Replace the nodes that compute with parameters alone by what they compute.

    Args:
        model: A valid model, nodes in topological order; it is not changed.
        parameters: Names of initializers that will be overwritten.

    Returns:
        A model that computes the same, the model itself if it has no such nodes, and how to compute
        the new initializers. Parameters stay initializers, even if nothing reads them any more.

    Raises:
        ModelError: If ONNX Runtime cannot compute the constants.
    """
    graph = model.graph
    overridable = {info.name for info in graph.input}
    small = {
        tensor.name: tensor
        for tensor in graph.initializer
        if math.prod(tensor.dims) <= _MOST_ELEMENTS and tensor.name not in overridable
    }
    wanted = set(parameters)
    # By constant tensor, the parameters that it depends on.
    origins = {name: frozenset({name} & wanted) for name in small}
    folded = []
    kept = []
    for node in graph.node:
        if _computes_with(node, origins):
            found = frozenset().union(*(origins[name] for name in node_reads(node)))
            origins.update(dict.fromkeys(node.output, found))
            folded.append(node)
            # What depends on no parameter stays in the graph, too.
            kept += [] if found else [node]
        else:
            kept.append(node)
    read = {name for node in kept for name in node_reads(node)}
    read.update(info.name for info in graph.output)
    constants = [name for n in folded for name in n.output if name in read and origins[name]]
    if not constants:
        return model, []
    derivations = [
        Derivation(
            names,
            tuple(tuple(small[name].dims) for name in names),
            tuple(found),
            _part(model, folded, names, found),
        )
        for names, found in _groups({name: origins[name] for name in constants})
    ]
    rewritten = with_values(model, {})
    del rewritten.graph.node[:]
    rewritten.graph.node.extend(kept)
    stored = {name: numpy_helper.to_array(small[name]) for d in derivations for name in d.sources}
    for derivation in derivations:
        rewritten.graph.initializer.extend(
            numpy_helper.from_array(values, name)
            for name, values in derivation.derive(stored).items()
        )
    return rewritten, derivations


def _computes_with(node: onnx.NodeProto, constants: Collection[str]) -> bool:
    """Tell whether a node computes with these constants alone, and always the same."""
    standard = node.domain in ("", "ai.onnx") and not node.op_type.startswith(_NEVER)
    reads = node_reads(node)
    return standard and bool(reads) and all(name in constants for name in reads)


def _groups(
    origins: Mapping[str, frozenset[str]],
) -> list[tuple[tuple[str, ...], list[str]]]:
    """Divide constants so that none of two groups depend on a common parameter."""
    groups: list[tuple[set[str], list[str]]] = []
    for name, parameters in origins.items():
        joined, apart = (set(parameters), [name]), []
        for group in groups:
            if group[0].isdisjoint(parameters):
                apart.append(group)
            else:
                joined = (joined[0] | group[0], [*group[1], *joined[1]])
        groups = [*apart, joined]
    return [(tuple(sorted(parameters)), names) for parameters, names in groups]


def _part(
    model: onnx.ModelProto,
    folded: Sequence[onnx.NodeProto],
    parameters: Collection[str],
    constants: Collection[str],
) -> bytes:
    """Serialise the model that computes some constants."""
    needed = set(constants)
    nodes = []
    for node in reversed(folded):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed |= node_reads(node)
    held = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    graph = helper.make_graph(
        nodes[::-1],
        "derived",
        [
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in held
            if tensor.name in parameters
        ],
        [helper.make_empty_tensor_value_info(name) for name in constants],
        [tensor for tensor in held if tensor.name not in parameters],
    )
    part = helper.make_model(graph, ir_version=model.ir_version, opset_imports=model.opset_import)
    return bytes(part.SerializeToString())
