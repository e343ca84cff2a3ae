"""Versions that a model states: its operator set, and the format of its file."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.version_converter
from onnx import numpy_helper

from proact_onnx.errors import ModelError
from proact_onnx.messages import all_nodes, without_weights
from proact_onnx.model import check_model, opset

# From this IR version on, an initializer that is also a graph input is a default value that a
# caller may override.
_OVERRIDABLE_SINCE_IR = 4
# Operators that compute something else in older sets although nodes look the same: the version that
# changed them, and the attribute that must be set for it to matter, if any.
_CHANGED = {
    "Softmax": (13, None),
    "LogSoftmax": (13, None),
    "Hardmax": (13, None),
    "Resize": (11, None),
    "AveragePool": (19, "ceil_mode"),
}
# Before this operator set, axes count from the front alone.
_NEGATIVE_AXES = 11


def convert_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Convert a model to another operator set; names and metadata stay.

    Newer ones are onnx's converter's work. It knows almost no way back, so for an older set nodes
    are kept as they are, which is right where the older operators have the same inputs, attributes
    and meaning; most operators changed only in the types they take.

    Args:
        model: The model; it is not changed.
        version: The operator set.

    Raises:
        ModelError: If the model cannot be converted; the message says why.
    """
    if version == opset(model):
        return model
    raised = version > opset(model)
    result = _raise(model, version) if raised else _lower(model, version)
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = version
    check_model(result, f"the model converted to opset {version}")
    try:
        # What the types of an operator were is known to the inference of types alone.
        onnx.checker.check_model(without_weights(result), full_check=not raised)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _impossible(model, version, " ".join(str(error).split())) from error
    return result


def trim_ir_version(model: onnx.ModelProto) -> None:
    """State the oldest version of the file format that has what the model needs.

    Exporters state their own, which runtimes of the same operator set need not know. A version
    that is too old for the operator set is raised; initializers, which old files list as inputs,
    are constants then.

    Args:
        model: The model; it is changed in place.
    """
    needed = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    # What it means that an initializer is no input must stay the same.
    needed = max(needed, min(model.ir_version, _OVERRIDABLE_SINCE_IR))
    if model.ir_version < _OVERRIDABLE_SINCE_IR <= needed:
        stored = {tensor.name for tensor in model.graph.initializer}
        inputs = [info for info in model.graph.input if info.name not in stored]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    model.ir_version = needed


def _raise(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    try:
        converted = onnx.version_converter.convert_version(model, version)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise _impossible(model, version, " ".join(str(error).split())) from error
    # The converter keeps the graph and drops what stands around it.
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.CopyFrom(converted.graph)
    return result


def _lower(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    newer = opset(model)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in all_nodes(result.graph.node):
        if node.domain not in ("", "ai.onnx"):
            continue
        reason = _fit(node, newer, version, stored)
        if reason:
            raise _impossible(model, version, f"node {node.name or node.output[0]!r}: {reason}")
    return result


def _fit(
    node: onnx.NodeProto, newer: int, older: int, stored: Mapping[str, onnx.TensorProto]
) -> str | None:
    """Make a node one of an older operator set; say why where that is impossible."""
    now = onnx.defs.get_schema(node.op_type, newer)
    if not onnx.defs.has(node.op_type, max_inclusive_version=older, domain=""):
        return f"opset {older} has no {node.op_type}"
    then = onnx.defs.get_schema(node.op_type, older)
    if then.since_version == now.since_version:
        return None
    changed, only_with = _CHANGED.get(node.op_type, (0, None))
    if older < changed and only_with in (None, *(a.name for a in node.attribute if a.i)):
        return f"{node.op_type} means something else in opset {older}"
    if not then.min_input <= len(node.input) <= then.max_input:
        return f"{node.op_type} takes {then.max_input} inputs in opset {older}"
    for attribute in list(node.attribute):
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name not in then.attributes:
            default = now.attributes[attribute.name].default_value
            is_default = default.name and onnx.helper.get_attribute_value(default) == value
            if not is_default and not _is_idle(node, attribute.name, stored):
                return f"{node.op_type} has no attribute {attribute.name!r} in opset {older}"
            node.attribute.remove(attribute)
        elif older < _NEGATIVE_AXES and attribute.name == "axis" and value < 0:
            return f"{node.op_type} counts axes from the front in opset {older}"
    given = {attribute.name for attribute in node.attribute}
    missing = [name for name, a in then.attributes.items() if a.required and name not in given]
    if missing:
        return f"{node.op_type} needs an attribute {missing[0]!r} in opset {older}"
    return None


def _is_idle(node: onnx.NodeProto, attribute: str, stored: Mapping[str, onnx.TensorProto]) -> bool:
    """Tell whether an attribute changes nothing: what a zero means, in a shape without one."""
    if (node.op_type, attribute) != ("Reshape", "allowzero") or node.input[1] not in stored:
        return False
    return bool(np.all(numpy_helper.to_array(stored[node.input[1]])))


def _impossible(model: onnx.ModelProto, version: int, reason: str) -> ModelError:
    return ModelError(
        f"the model has opset {opset(model)} and cannot be converted to {version} ({reason}): "
        f"export it again at opset {version}"
    )
