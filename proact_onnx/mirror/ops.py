"""The one table of operators, and the look-up that compiles a node by it.

Rules are keyed by (domain, operator, version). A node's operator set names the version of the
operator in force; the newest rule not above it applies, because a rule is entered again only where
the meaning changed. Operator sets before 7 are out: broadcasting worked by another scheme there.
"""

from collections.abc import Container, Mapping

import onnx.defs
from onnx import NodeProto
from torch import Tensor

from proact_onnx.mirror import (
    ops_activation,
    ops_create,
    ops_elementwise,
    ops_index,
    ops_linear,
    ops_normalize,
    ops_pooling,
    ops_qlinear,
    ops_quantise,
    ops_reduce,
    ops_resize,
    ops_shape,
)
from proact_onnx.mirror.rule import Node, Operation, RuleTable

NEWEST_OPSET = 28
"""Newest standard operator set whose changes the rules were compared with."""

TABLE = RuleTable()
for _family in (
    ops_activation,
    ops_create,
    ops_elementwise,
    ops_index,
    ops_linear,
    ops_normalize,
    ops_pooling,
    ops_qlinear,
    ops_quantise,
    ops_reduce,
    ops_resize,
    ops_shape,
):
    TABLE |= _family.RULES

# Operators that ONNX itself does not define. None of them has changed since version 1.
_UNVERSIONED = {(domain, op) for domain, op, _ in TABLE if domain}


def compile_node(
    proto: NodeProto,
    opsets: Mapping[str, int],
    constants: Mapping[str, Tensor],
    consumed: Container[str],
) -> tuple[Node, Operation]:
    """Compile a node by the rule for its operator in the model's operator set.

    Args:
        proto: The node.
        opsets: Imported version by domain.
        constants: Values known before the graph runs, by tensor name.
        consumed: Names of the tensors that some node or the graph's outputs use.

    Raises:
        UnsupportedOperatorError: No rule covers the operator, its version or this form of it.
    """
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    opset = opsets.get(domain, 1)
    node = Node(proto, domain, opset, constants, consumed)
    if (domain, node.op) in _UNVERSIONED:
        return node, TABLE[domain, node.op, 1](node)
    try:
        since = onnx.defs.get_schema(node.op, opset, domain).since_version
    except onnx.defs.SchemaError as error:
        raise node.unsupported("that ONNX does not define") from error
    if since > NEWEST_OPSET:
        raise node.unsupported(f"as changed in operator set {since}")
    for version in range(since, 0, -1):
        rule = TABLE.get((domain, node.op, version))
        if rule is not None:
            return node, rule(node)
    raise node.unsupported(f"of version {since}")
