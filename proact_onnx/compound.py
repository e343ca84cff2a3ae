"""Activation functions in parts: Swish, HardSwish, Mish and Gelu as ``x * g(x)``, and choices."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from scipy import special

from proact_onnx.messages import node_reads

Array = npt.NDArray[np.float64]

# Where a function is evaluated to find its lowest value, and beyond what it counts as endless.
_FAR = 1e4
_GRID = np.concatenate([[-_FAR], np.linspace(-50.0, 50.0, 10_001), [_FAR]])
# The grid misses the lowest value by less.
_MISSED = 1e-3
_MOST_NODES = 12


@dataclass(frozen=True)
class CompoundFunction:
    """An activation function that several nodes compute together, element by element.

    Attributes:
        op: The operator that computes the same, such as ``Swish``; ``Where`` for a choice between
            functions that has no operator of its own.
        output: The tensor with the result.
        nodes: Positions of the nodes that compute it, the last one's last.
        lowest: The lowest value of the function; minus infinity where it has none.
    """

    op: str
    output: str
    nodes: tuple[int, ...]
    lowest: float


def find_compound(
    model: onnx.ModelProto, graph: onnx.GraphProto, ignored: Callable[[onnx.NodeProto], bool]
) -> list[CompoundFunction]:
    """List such functions of a graph, in topological order.

    1. ``Mul(c x, g(x))`` in either order, g made of element-by-element operators, numbers, and at
       least one of Sigmoid, HardSigmoid, Tanh, Erf and Clip; behind it products with numbers.
       ``x * sigmoid(x)``, ``x * clip(x + 3, 0, 6) / 6``, ``x * tanh(softplus(x))``,
       ``0.5 x (1 + erf(x / sqrt(2)))`` and Gelu's approximation by tanh are of this kind.
    2. ``Where(compare(x, number), f(x), g(x))``, such as a Softplus that hands large x on.

    Args:
        model: The model; nodes in topological order, numbers stored in its main graph.
        graph: Its main graph, or a subgraph, which is looked at by itself.
        ignored: Tells of a node that it belongs to no such function.
    """
    search = _Search(graph, _numbers(model), ignored)
    candidates = (search.at(position) for position in range(len(graph.node)))
    found = [function for function in candidates if function is not None]
    # A function may be a part of another one, as Softplus is of Mish.
    inner = {position for function in found for position in function.nodes[:-1]}
    return [function for function in found if function.nodes[-1] not in inner]


class _Search:
    def __init__(
        self,
        graph: onnx.GraphProto,
        numbers: Mapping[str, Array],
        ignored: Callable[[onnx.NodeProto], bool],
    ) -> None:
        self._nodes = list(graph.node)
        self._outputs = {info.name for info in graph.output}
        self._numbers = numbers
        self._makers: dict[str, int] = {}
        self._readers: dict[str, list[int]] = defaultdict(list)
        for position, node in enumerate(self._nodes):
            for name in node_reads(node):
                self._readers[name].append(position)
            elementwise = node.op_type in _FUNCTIONS and node.domain in ("", "ai.onnx")
            if elementwise and not ignored(node):
                self._makers[node.output[0]] = position

    def at(self, position: int) -> CompoundFunction | None:
        """The function whose product or choice is this node, if it is one."""
        node = self._nodes[position]
        if self._makers.get(node.output[0]) != position:
            return None
        if node.op_type == "Where":
            return self._choice(position, node)
        return self._product(position, node) if node.op_type == "Mul" else None

    def _choice(self, position: int, node: onnx.NodeProto) -> CompoundFunction | None:
        for source in node.input[1:]:
            nodes = None if source in self._numbers else self._between(node.output[0], source)
            if nodes is not None:
                operators = {self._nodes[p].op_type for p in nodes}
                op = "Softplus" if "Softplus" in operators else "Where"
                return self._function(op, position, source)
        return None

    def _product(self, position: int, node: onnx.NodeProto) -> CompoundFunction | None:
        for factor, gate in (node.input, tuple(reversed(node.input))):
            if factor in self._numbers or gate in self._numbers:
                return None
            for source in self._sources(factor):
                inner = self._between(gate, source)
                op = _name({self._nodes[p].op_type for p in inner or ()})
                if inner is not None and op is not None:
                    return self._function(op, position, source)
        return None

    def _function(self, op: str, position: int, source: str) -> CompoundFunction | None:
        output = self._nodes[position].output[0]
        # Products with numbers behind it belong to it, such as Gelu's half.
        while output not in self._outputs and len(self._readers[output]) == 1:
            [reader] = self._readers[output]
            node = self._nodes[reader]
            scaled = self._makers.get(node.output[0]) == reader and node.op_type in ("Mul", "Div")
            others = [name for name in node.input if name != output]
            if not scaled or len(others) != 1 or others[0] not in self._numbers:
                break
            output = node.output[0]
        nodes = self._between(output, source)
        if nodes is None:
            return None
        values = dict(self._numbers) | {source: _GRID}
        with np.errstate(all="ignore"):
            for p in nodes:
                step = self._nodes[p]
                inputs = [values[name] if name else None for name in step.input]
                values[step.output[0]] = _FUNCTIONS[step.op_type](step, inputs)
        result = np.nan_to_num(values[output])
        lowest = float(result.min())
        lowest -= _MISSED if lowest < 0 else 0.0
        if lowest < -_FAR / 2:
            lowest = -math.inf
        return CompoundFunction(op, output, tuple(nodes), lowest)

    def _sources(self, name: str) -> Iterator[str]:
        """A factor, and what it is a multiple of."""
        yield name
        position = self._makers.get(name)
        while position is not None and self._nodes[position].op_type in ("Mul", "Div"):
            node = self._nodes[position]
            others = [other for other in node.input if other not in self._numbers]
            if len(others) != 1:
                return
            yield others[0]
            position = self._makers.get(others[0])

    def _between(self, name: str, source: str) -> list[int] | None:
        """Positions of the nodes that compute a tensor from a source and numbers alone, sorted."""
        found: set[int] = set()
        pending = [name]
        while pending:
            tensor = pending.pop()
            if tensor in self._numbers or tensor in (source, ""):
                continue
            position = self._makers.get(tensor)
            if position is None or len(found) > _MOST_NODES:
                return None
            found.add(position)
            pending += self._nodes[position].input
        return sorted(found)


def _name(operators: set[str]) -> str | None:
    """What a product with a gate of these operators is called."""
    if "Softplus" in operators and "Tanh" in operators:
        return "Mish"
    names = {"Erf": "Gelu", "Tanh": "Gelu", "Sigmoid": "Swish"}
    names |= {"HardSigmoid": "HardSwish", "Clip": "HardSwish"}
    return next((name for op, name in names.items() if op in operators), None)


def _numbers(model: onnx.ModelProto) -> dict[str, Array]:
    """Constants of one element, by name."""
    return {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64).reshape(())
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) == 1 and tensor.data_type in _NUMBER_TYPES
    }


_NUMBER_TYPES = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
    }
)


def _hard_sigmoid(node: onnx.NodeProto, inputs: list[Any]) -> Array:
    given = {attribute.name: attribute.f for attribute in node.attribute}
    line = given.get("alpha", 0.2) * inputs[0] + given.get("beta", 0.5)
    return np.asarray(np.clip(line, 0.0, 1.0))


def _clip(node: onnx.NodeProto, inputs: list[Any]) -> Array:
    given = {attribute.name: attribute.f for attribute in node.attribute}
    ends = [*inputs[1:], None, None][:2]
    low = given.get("min", -np.inf) if ends[0] is None else ends[0]
    high = given.get("max", np.inf) if ends[1] is None else ends[1]
    return np.asarray(np.clip(inputs[0], low, high))


# By operator: what it computes from its inputs, element by element, on float64.
_FUNCTIONS: Mapping[str, Callable[[onnx.NodeProto, list[Any]], npt.NDArray[Any]]] = {
    "Add": lambda node, inputs: inputs[0] + inputs[1],
    "Sub": lambda node, inputs: inputs[0] - inputs[1],
    "Mul": lambda node, inputs: inputs[0] * inputs[1],
    "Div": lambda node, inputs: inputs[0] / inputs[1],
    "Pow": lambda node, inputs: inputs[0] ** inputs[1],
    "Sqrt": lambda node, inputs: np.sqrt(inputs[0]),
    "Abs": lambda node, inputs: np.abs(inputs[0]),
    "Sign": lambda node, inputs: np.sign(inputs[0]),
    "Neg": lambda node, inputs: -inputs[0],
    "Cast": lambda node, inputs: inputs[0],
    "Identity": lambda node, inputs: inputs[0],
    "Greater": lambda node, inputs: inputs[0] > inputs[1],
    "GreaterOrEqual": lambda node, inputs: inputs[0] >= inputs[1],
    "Less": lambda node, inputs: inputs[0] < inputs[1],
    "LessOrEqual": lambda node, inputs: inputs[0] <= inputs[1],
    "Where": lambda node, inputs: np.where(*inputs),
    "Softplus": lambda node, inputs: np.logaddexp(inputs[0], 0.0),
    "Sigmoid": lambda node, inputs: np.exp(-np.logaddexp(-inputs[0], 0.0)),
    "Tanh": lambda node, inputs: np.tanh(inputs[0]),
    "Erf": lambda node, inputs: special.erf(inputs[0]),
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
}
