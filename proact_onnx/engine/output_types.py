"""Types that ONNX's own inference cannot know: those behind operators of other domains."""

import onnx

from proact_onnx.activations import tensor_types
from proact_onnx.engine.session import Provider, create_session, session_options

_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
# As ONNX Runtime spells them.
_TYPES = {f"tensor({name.lower()})": kind for name, kind in onnx.TensorProto.DataType.items()}


def with_output_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """State the types of what operators outside ONNX write; inference finds all others from there.

    Args:
        model: The model; it is not changed.

    Returns:
        A copy that states them, without shapes, or the model itself if all are known.

    Raises:
        ModelError: If ONNX Runtime refuses the model.
    """
    known = {
        name
        for name, info in tensor_types(model).items()
        if info.type.WhichOneof("value") != "tensor_type" or info.type.tensor_type.elem_type
    }
    local = {(function.domain, function.name) for function in model.functions}
    unknown = [
        name
        for node in model.graph.node
        if node.domain not in _STANDARD and (node.domain, node.op_type) not in local
        for name in node.output
        if name and name not in known
    ]
    if not unknown:
        return model
    asked, typed = onnx.ModelProto(), onnx.ModelProto()
    asked.CopyFrom(model)
    asked.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, unknown))
    session = create_session(asked, Provider.CPU, session_options(1, optimise=False))
    typed.CopyFrom(model)
    typed.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(found.name, _TYPES[found.type], None)
        for found in session.get_outputs()
        if found.name in unknown and found.type in _TYPES
    )
    return typed
