"""What a rule is: it compiles one node of the graph into a function of its input tensors."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, TypeVar

import onnx
import torch
from onnx import NodeProto, TensorProto
from torch import Tensor

from proact_onnx.errors import UnsupportedOperatorError
from proact_onnx.mirror.tensors import to_tensor

Operation = Callable[..., Tensor | tuple[Tensor, ...]]
"""Takes the node's inputs in order (``None`` for one left out), returns its output or outputs."""

Settings = Sequence[Tensor | None]
"""The inputs of a node after the first."""

Number = TypeVar("Number", int, float)


class Node:
    """A node of the graph, as its rule reads it while compiling.

    ONNX moves a setting such as ``axes`` from the attributes to the inputs in a later version of
    an operator. ``integers`` and ``numbers`` read both forms, so that one rule serves both.

    Attributes:
        op: Operator name.
        name: The node's name, or its first output's where the node has none.
        domain: Operator set, ``""`` for the standard one.
        opset: Version of the operator set that the model imports.
        inputs: Names of the inputs, ``""`` for one left out.
        outputs: Names of the outputs that the compiled operation returns.
        baked: Constants whose values went into the compiled operation.
    """

    def __init__(
        self,
        proto: NodeProto,
        domain: str,
        opset: int,
        constants: Mapping[str, Tensor],
        consumed: Container[str],
    ) -> None:
        self.op = proto.op_type
        self.name = proto.name or next((name for name in proto.output if name), proto.op_type)
        self.domain = domain
        self.opset = opset
        self.inputs = tuple(proto.input)
        self.outputs = tuple(proto.output)
        self.baked: set[str] = set()
        self._attributes: dict[str, Any] = {
            attribute.name: onnx.helper.get_attribute_value(attribute)
            for attribute in proto.attribute
        }
        self._constants = constants
        self._consumed = consumed

    def integer(self, attribute: str, default: int) -> int:
        """Read an integer attribute."""
        return int(self._attributes.get(attribute, default))

    def number(self, attribute: str, default: float) -> float:
        """Read a floating-point attribute."""
        return float(self._attributes.get(attribute, default))

    def text(self, attribute: str, default: str) -> str:
        """Read a string attribute."""
        value = self._attributes.get(attribute, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def sizes(self, attribute: str) -> tuple[int, ...] | None:
        """Read a list of integers, ``None`` where the attribute is absent."""
        values = self._attributes.get(attribute)
        return None if values is None else tuple(int(value) for value in values)

    def value(self, attribute: str, dtype: torch.dtype | None = None) -> Tensor | None:
        """Read a tensor, a number or a list of numbers; ``None`` where the attribute is absent.

        Args:
            attribute: Name of the attribute.
            dtype: Element type of the result where the attribute is no tensor.
        """
        value = self._attributes.get(attribute)
        if value is None:
            return None
        return (
            to_tensor(value) if isinstance(value, TensorProto) else torch.tensor(value, dtype=dtype)
        )

    def integers(self, attribute: str, index: int) -> Callable[[Settings], tuple[int, ...] | None]:
        """Give a reader of integers that are an attribute or the input at ``index`` (from 1 on).

        Returns:
            A function of the node's inputs after the first; it gives ``None`` where the node has
            neither form. A constant input is read once, here.
        """
        return self._reader(attribute, index, int)

    def numbers(self, attribute: str, index: int) -> Callable[[Settings], tuple[float, ...] | None]:
        """Give a reader of floating-point values; see ``integers``."""
        return self._reader(attribute, index, float)

    def _reader(
        self, attribute: str, index: int, kind: type[Number]
    ) -> Callable[[Settings], tuple[Number, ...] | None]:
        fixed: tuple[Number, ...] | None = None
        if attribute in self._attributes:
            value = self._attributes[attribute]
            values = value if isinstance(value, Sequence) else [value]
            fixed = tuple(kind(value) for value in values)
        elif index < len(self.inputs) and self.inputs[index]:
            name = self.inputs[index]
            if name not in self._constants:

                def read(settings: Settings) -> tuple[Number, ...] | None:
                    return _values(settings[index - 1], kind)

                return read
            fixed = _values(self._constants[name], kind)
            self.baked.add(name)

        def known(settings: Settings) -> tuple[Number, ...] | None:
            return fixed

        return known

    def keep_first_output(self) -> None:
        """Drop the outputs after the first, which only training or indexing uses.

        Raises:
            UnsupportedOperatorError: The graph consumes one of them.
        """
        for name in self.outputs[1:]:
            if name and name in self._consumed:
                raise self.unsupported(f"with its extra output '{name}'")
        self.outputs = self.outputs[:1]

    def unsupported(self, detail: str) -> UnsupportedOperatorError:
        """Build the error for a form of the operator that the mirror cannot compute."""
        return UnsupportedOperatorError(
            f"the mirror cannot compute operator {self.op} {detail} at node '{self.name}' "
            f"(domain '{self.domain or 'ai.onnx'}', opset {self.opset}): "
            "use a training-free method such as ranger"
        )


def _values(tensor: Tensor | None, kind: type[Number]) -> tuple[Number, ...] | None:
    return None if tensor is None else tuple(kind(value) for value in tensor.flatten().tolist())


Rule = Callable[[Node], Operation]


def _always(operation: Operation) -> Rule:
    return lambda node: operation


MICROSOFT = "com.microsoft"
"""Domain of the operators that ONNX Runtime adds to the standard's."""


class RuleTable(dict[tuple[str, str, int], Rule]):
    """Rules by (domain, operator, version that introduced the semantics the rule follows)."""

    def rule(self, op: str, since: int, domain: str = "") -> Callable[[Rule], Rule]:
        """Enter the decorated rule for an operator, standard by default, from a version on."""

        def enter(rule: Rule) -> Rule:
            assert (domain, op, since) not in self, f"{op} of version {since} is entered twice"
            self[domain, op, since] = rule
            return rule

        return enter

    def plain(self, operations: Mapping[tuple[str, int], Operation]) -> None:
        """Enter operations that need no attributes, by (operator, version)."""
        for (op, since), operation in operations.items():
            self.rule(op, since)(_always(operation))
