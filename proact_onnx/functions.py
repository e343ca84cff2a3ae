"""Activation functions: which nodes are one, and what values each can give."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx

from proact_onnx.compound import find_compound
from proact_onnx.messages import subgraphs
from proact_onnx.model import FLOAT_TYPES, HYRELU, is_threshold, opset

Range = tuple[float, float]


class Sides(StrEnum):
    """From which sides the values of an activation must be bounded."""

    RECTIFIED = "rectified"
    """They are never negative: from above."""
    ABOVE = "above"
    """Negative ones end at a floor of the function itself: from above."""
    BOTH = "both"
    """Nothing limits them: from above and from below."""


@dataclass(frozen=True)
class Function:
    """An activation function of a graph.

    Attributes:
        op: ONNX operator, or the customary name of what several nodes compute together.
        output: The tensor it writes.
        nodes: Positions of its nodes in the graph.
        lowest: No value it gives is lower; minus infinity where nothing limits them.
        highest: No value it gives is higher; infinity likewise.
        is_bounded: Whether hardening has bounded it.
        is_narrow: Whether its values lie in a narrow range by nature, such as Sigmoid's.
    """

    op: str
    output: str
    nodes: tuple[int, ...]
    lowest: float
    highest: float
    is_bounded: bool
    is_narrow: bool

    @property
    def needs_bound(self) -> bool:
        """Whether it can be hardened."""
        return not (self.is_bounded or self.is_narrow)

    @property
    def sides(self) -> Sides:
        """From which sides its values must be bounded."""
        if self.lowest >= 0:
            return Sides.RECTIFIED
        # A Clip may end anywhere; the floors of the others are small.
        ends = math.isfinite(self.lowest) and self.op != "Clip"
        return Sides.ABOVE if ends else Sides.BOTH


_ENDLESS = (-math.inf, math.inf)
_POSITIVE = (0.0, math.inf)
_UNIT = (0.0, 1.0)
_SIGNED_UNIT = (-1.0, 1.0)

# By operator: the values it can give, where no attribute decides.
_RANGES: Mapping[str, Range] = {
    "Relu": _POSITIVE,
    "Softplus": _POSITIVE,
    "LeakyRelu": _ENDLESS,
    "PRelu": _ENDLESS,
    # The least values of x * clip(x / 6 + 0.5, 0, 1), x * sigmoid(x), x * tanh(softplus(x)) and
    # x * Phi(x).
    "HardSwish": (-0.375, math.inf),
    "Swish": (-0.2785, math.inf),
    "Mish": (-0.3089, math.inf),
    "Gelu": (-0.17, math.inf),
    "Sigmoid": _UNIT,
    "HardSigmoid": _UNIT,
    "Tanh": _SIGNED_UNIT,
    "Softsign": _SIGNED_UNIT,
    "Erf": _SIGNED_UNIT,
}
# Their values lie in a range as narrow as any bound would make it.
_NARROW = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Softsign", "Erf"})
_WITH_ATTRIBUTES = frozenset({"Clip", "Celu", "Elu", "Selu", "ThresholdedRelu"})
_SCALE_OF_SELU, _ALPHA_OF_SELU = 1.0507009873554805, 1.6732632423543772


def find_functions(model: onnx.ModelProto, graph: onnx.GraphProto | None = None) -> list[Function]:
    """List the activation functions of the main graph, or of a subgraph, in topological order.

    Those that are bounded already are listed, by the name of the bounded tensor. The bounds
    themselves are not.

    Args:
        model: The model; nodes in topological order, constants stored in its main graph.
        graph: The subgraph; those within it are left out.
    """
    graph = model.graph if graph is None else graph
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    version = opset(model)
    compound = find_compound(model, graph, ignored=_is_in_bound)
    inner = {position for function in compound for position in function.nodes}
    found = [
        Function(
            op=function.op,
            output=function.output.split(HYRELU)[0],
            nodes=function.nodes,
            lowest=function.lowest,
            highest=math.inf,
            is_bounded=HYRELU in function.output,
            is_narrow=False,
        )
        for function in compound
    ]
    for position, node in enumerate(graph.node):
        values = _range(node, constants, version)
        if values is None or position in inner:
            continue
        [output, *_] = node.output
        found.append(
            Function(
                op=node.op_type,
                output=output.split(HYRELU)[0],
                nodes=(position,),
                lowest=values[0],
                highest=values[1],
                is_bounded=HYRELU in output or any(map(is_threshold, node.input)),
                is_narrow=node.op_type in _NARROW,
            )
        )
    return sorted(found, key=lambda function: function.nodes[-1])


@dataclass(frozen=True)
class InnerFunction:
    """An activation function inside a subgraph.

    Attributes:
        name: The node's name, or its output's where the node has none.
        function: The function; its positions are those in the subgraph.
        owner: Name of the node of the main graph that holds the subgraph, at whatever depth; its
            operator where it has no name.
        position: Where that node stands.
        is_reachable: Whether only If, Loop and Scan lie between, out of which its values can be
            given.
    """

    name: str
    function: Function
    owner: str
    position: int
    is_reachable: bool


# Operators whose subgraphs hand values outwards, and the opset that has all it takes.
_REACHABLE = frozenset({"If", "Loop", "Scan"})
_REACHABLE_SINCE = 9


def find_inner_functions(model: onnx.ModelProto) -> list[InnerFunction]:
    """List the activation functions inside subgraphs, in the order of their owners.

    Args:
        model: A prepared model, whose subgraphs have names of their own for every tensor.
    """
    new_enough = opset(model) >= _REACHABLE_SINCE
    return [
        InnerFunction(name, function, node.name or node.op_type, position, is_reachable)
        for position, node in enumerate(model.graph.node)
        for name, function, is_reachable in _inside(model, node, new_enough)
    ]


def _inside(
    model: onnx.ModelProto, node: onnx.NodeProto, is_reachable: bool
) -> Iterator[tuple[str, Function, bool]]:
    is_reachable = is_reachable and node.op_type in _REACHABLE
    for graph in subgraphs(node):
        found = {function.nodes[-1]: function for function in find_functions(model, graph)}
        for position, below in enumerate(graph.node):
            yield from _inside(model, below, is_reachable)
            if position in found:
                function = found[position]
                yield below.name or function.output, function, is_reachable


def _range(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], version: int
) -> Range | None:
    """The values that a node can give; None where it is no activation function."""
    if node.domain not in ("", "ai.onnx") or _is_in_bound(node):
        return None
    if node.op_type == "Clip":
        return _clip_range(node, constants, version)
    if node.op_type == "Selu":
        scale = _attribute(node, "gamma", _SCALE_OF_SELU)
        return -abs(scale * _attribute(node, "alpha", _ALPHA_OF_SELU)), math.inf
    if node.op_type == "ThresholdedRelu":
        return min(_attribute(node, "alpha", 1.0), 0.0), math.inf
    if node.op_type in ("Elu", "Celu"):
        return -abs(_attribute(node, "alpha", 1.0)), math.inf
    return _RANGES.get(node.op_type)


def _is_in_bound(node: onnx.NodeProto) -> bool:
    """Tell whether a node is part of a bound: it reads what the function wrote, by its new name."""
    return any(HYRELU in name and not is_threshold(name) for name in node.input)


def _clip_range(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], version: int
) -> Range | None:
    """Limits of a Clip of floating-point numbers, as far as they are constants."""
    if version < 11:
        ends = [_attribute(node, "min", -math.inf), _attribute(node, "max", math.inf)]
    else:
        ends = []
        known = False
        for place, endless in ((1, -math.inf), (2, math.inf)):
            name = node.input[place] if place < len(node.input) else ""
            stored = constants.get(name)
            if stored is None:
                ends.append(endless)
            elif stored.data_type in FLOAT_TYPES:
                known = True
                values = onnx.numpy_helper.to_array(stored)
                ends.append(float(values.min() if place == 1 else values.max()))
            else:
                return None
        if not known:
            return None
    limit = float(np.finfo(np.float32).max)
    lowest, highest = (math.copysign(math.inf, e) if abs(e) >= limit else e for e in ends)
    return lowest, highest


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    return next((a.f for a in node.attribute if a.name == name), default)
