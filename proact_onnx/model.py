"""ONNX models as files: read with care, checked, digested, written whole or not at all."""

import hashlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx

from proact_onnx.errors import ModelError, OutputError
from proact_onnx.external_data import load_external_data, write_with_external_data
from proact_onnx.messages import extents, sort_nodes, weight_bytes, without_weights

LOWEST_OPSET = 7
# A protobuf message ends at 2 GiB; the rest is left for nodes and names.
INLINE_LIMIT_BYTES = (2 << 30) - (64 << 20)
# Elements up to which ONNX's checker sees the values of a weight, not only its type and shape.
_LARGEST_CHECKED = 4096

# Element types of the numbers that hardening and fault injection work on.
FLOAT_TYPES: dict[int, np.dtype[np.floating]] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    onnx.TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    onnx.TensorProto.DOUBLE: np.dtype(np.float64),
}
# Their largest finite numbers.
FLOAT_LIMITS = {
    **{np.dtype(kind): float(np.finfo(kind).max) for kind in (np.float16, np.float32, np.float64)},
    np.dtype(ml_dtypes.bfloat16): float.fromhex("0x1.fep127"),
}

PROVENANCE_PREFIX = "proact_onnx."
# Stands in the name of every tensor that hardening adds behind an activation.
HYRELU = "/hyrelu/"
THRESHOLD_SUFFIX = f"{HYRELU}threshold"
# Ends the name of what a bound made of convolutions compares with zero.
SHIFTED_SUFFIX = f"{HYRELU}shifted"
# Of two-sided bounds, the lower one.
LOWER_SUFFIX = f"{HYRELU}lower_threshold"
# Stands in the name of every node and tensor that rescaling adds behind a layer.
RESCALE = "/rescale/"
SCALE_SUFFIX = f"{RESCALE}scale"
COPY_SUFFIX = f"{RESCALE}copy"
# Stands in the name of every tensor that a monitor adds behind a bound.
MONITOR = "/monitor/"


@dataclass(frozen=True)
class ModelInput:
    """An input of a model.

    Attributes:
        name: Name of the graph input.
        shape: Extents, batch axis included; ``None`` where the model leaves one open.
        dtype: Element type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[np.generic]


def load_model(path: Path) -> onnx.ModelProto:
    """Read and check a model, with its external data loaded.

    Args:
        path: An ``.onnx`` file. External data must lie in the file's folder or below it.

    Raises:
        ModelError: If the file is missing, empty, cut off, not ONNX, not a valid graph, of an
            opset that is too old or too new, or its external data is missing or lies elsewhere.

    Nodes that are out of order, as float16 converters leave them, are put in order.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder: give the path of an .onnx file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    if not content:
        raise ModelError(f"{path} is empty: export the model again")
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf's own class, which it exports without types
        raise ModelError(
            f"{path} is not an ONNX model, or is cut off ({len(content)} bytes): copy or export "
            "it again"
        ) from error
    if not model.HasField("graph") or not model.graph.node:
        raise ModelError(f"{path} holds no ONNX graph: give a model exported to ONNX")
    _check_versions(model, path)
    load_external_data(model, path)
    sort_nodes(model)
    check_model(model, str(path))
    return model


def check_model(model: onnx.ModelProto, what: str) -> None:
    """Run ONNX's own checker.

    Args:
        model: The model, with its external data loaded.
        what: How to call the model in a message.

    Raises:
        ModelError: If the checker finds a fault.
    """
    if not model.graph.output:
        raise ModelError(f"{what} has no graph outputs: export it again with an output")
    try:
        # The checker takes the model as one message, which takes long and ends at 2 GiB.
        onnx.checker.check_model(without_weights(model, largest=_LARGEST_CHECKED))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{what} is not a valid ONNX model: {_one_line(error)}") from error
    for tensor in model.graph.initializer:
        needed = math.prod(tensor.dims) * FLOAT_TYPES.get(tensor.data_type, np.dtype("V0")).itemsize
        if tensor.HasField("raw_data") and len(tensor.raw_data) < needed:
            raise ModelError(
                f"{what} is not a valid ONNX model: initializer {tensor.name!r} needs {needed} "
                f"bytes and has {len(tensor.raw_data)}"
            )


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operator set that the model imports; 0 if it imports none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def model_digest(model: onnx.ModelProto | Path) -> str:
    """SHA-256 of a model, as hexadecimal digits.

    A path and the model loaded from it have the same digest, wherever its weights are stored.

    Raises:
        ModelError: If a path cannot be read as a model.
    """
    loaded = load_model(model) if isinstance(model, Path) else model
    digest = hashlib.sha256()
    for tensor in loaded.graph.initializer:
        digest.update(_tensor_bytes(tensor))
    digest.update(without_weights(loaded).SerializeToString(deterministic=True))
    return digest.hexdigest()


def refuse_overwrite(path: Path, force: bool) -> None:
    """Protect results that exist.

    Raises:
        OutputError: If the file exists and ``force`` is not set.
    """
    if path.exists() and not force:
        raise OutputError(f"{path} already exists: choose another name, or overwrite with --force")


def check_writable(path: Path, inputs: tuple[Path, ...] = ()) -> None:
    """Find out before long work whether `save_model` will be able to write a file.

    Args:
        path: Where to write.
        inputs: Files the model is made from, which must not be written over.

    Raises:
        OutputError: If ``path`` is a folder or one of ``inputs``, or its folder cannot be written.
    """
    if any(path.resolve() == source.resolve() for source in inputs):
        raise OutputError(f"{path} is the model that was read: choose another name to write to")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file to write")
    if not path.parent.exists():
        raise OutputError(f"cannot write {path}: create the folder {path.parent} first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def save_model(
    model: onnx.ModelProto,
    path: Path,
    *,
    inputs: tuple[Path, ...] = (),
    inline_limit: int = INLINE_LIMIT_BYTES,
) -> None:
    """Write a model whole, or not at all.

    Everything is written to temporary files in the same folder first, which are then renamed. A
    model too large for one protobuf message gets its weights in ``<name>.data`` beside it.

    Args:
        model: Model with its weights in memory.
        path: Where to.
        inputs: Files the model was made from, which must not be written over.
        inline_limit: Bytes above which the weights go to the second file.

    Raises:
        OutputError: If the folder cannot be written, or ``path`` is a folder or one of ``inputs``.
    """
    check_writable(path, inputs)
    data_path = path.with_name(f"{path.name}.data")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            scratch = Path(folder)
            if weight_bytes(model) < inline_limit:
                onnx.save_model(model, scratch / "model")
            else:
                write_with_external_data(model, scratch / "model", data_path.name)
                (scratch / data_path.name).replace(data_path)
            (scratch / "model").replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def set_provenance(model: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Record in the model's metadata how it was made; an entry that exists is replaced."""
    wanted = {PROVENANCE_PREFIX + key: value for key, value in entries.items()}
    kept = [prop for prop in model.metadata_props if prop.key not in wanted]
    new = [onnx.StringStringEntryProto(key=key, value=value) for key, value in wanted.items()]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, *new])


def provenance(model: onnx.ModelProto) -> dict[str, str]:
    """What `set_provenance` recorded; empty for a model that this tool did not write."""
    return {
        prop.key.removeprefix(PROVENANCE_PREFIX): prop.value
        for prop in model.metadata_props
        if prop.key.startswith(PROVENANCE_PREFIX)
    }


def is_threshold(name: str) -> bool:
    """Tell whether an initializer holds thresholds of an activation, upper or lower ones."""
    return name.endswith((THRESHOLD_SUFFIX, LOWER_SUFFIX))


def is_copy(name: str) -> bool:
    """Tell whether a name is that of a second copy of a bias."""
    return name.endswith(COPY_SUFFIX)


def is_scale(name: str) -> bool:
    """Tell whether an initializer holds the scales of a layer's weights."""
    return name.endswith(SCALE_SUFFIX)


def computes_in_float16(model: onnx.ModelProto) -> bool:
    """Tell whether a model holds 16-bit weights, so that outputs are no more precise."""
    types = {tensor.data_type for tensor in model.graph.initializer}
    return not types.isdisjoint((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16))


def image_input(model: onnx.ModelProto) -> ModelInput:
    """Return the model's one input that is not an initializer.

    Raises:
        ModelError: If there is none or several, or the one is not a tensor of known rank.
    """
    inputs = model_inputs(model)
    if len(inputs) != 1:
        names = ", ".join(repr(each.name) for each in inputs) or "none"
        raise ModelError(f"the model must have one input to feed images to, and has: {names}")
    return inputs[0]


def model_inputs(model: onnx.ModelProto) -> tuple[ModelInput, ...]:
    """Return the model's inputs that are not initializers, in order.

    Raises:
        ModelError: If one is not a tensor of known rank.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    found = []
    for info in model.graph.input:
        if info.name in stored:
            continue
        tensor = info.type.tensor_type
        if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise ModelError(
                f"input {info.name!r} has no shape: export the model with a fixed rank"
            )
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        found.append(ModelInput(info.name, extents(info), dtype))
    return tuple(found)


def output_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the graph outputs, in order."""
    return tuple(info.name for info in model.graph.output)


def put_first(model: onnx.ModelProto, output: str) -> None:
    """Make an output the first of a model, in place; the others keep their order.

    Raises:
        ModelError: If the model has no output of that name.
    """
    names = output_names(model)
    if output not in names:
        raise ModelError(f"the model has no output {output!r}: choose among {', '.join(names)}")
    infos = sorted(model.graph.output, key=lambda info: info.name != output)
    del model.graph.output[:]
    model.graph.output.extend(infos)


def _tensor_bytes(tensor: onnx.TensorProto) -> bytes:
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if tensor.data_type == onnx.TensorProto.STRING:
        return b"\0".join(tensor.string_data)
    return onnx.numpy_helper.to_array(tensor).tobytes()


def _check_versions(model: onnx.ModelProto, path: Path) -> None:
    version, newest = opset(model), onnx.defs.onnx_opset_version()
    if version < LOWEST_OPSET:
        raise ModelError(
            f"{path} has opset {version}: export it again, or convert it, at opset {LOWEST_OPSET} "
            "or newer"
        )
    if version > newest:
        raise ModelError(
            f"{path} has opset {version}, and the installed onnx knows {newest}: upgrade onnx, or "
            "export at an older opset"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
