"""The fastest engine: one optimised session whose weights are flipped in place.

ONNX Runtime is fastest when weights are constants: it fuses operators and stores convolution
weights in blocked layouts. A session per trial would cost more than the inference itself. So the
model is optimised once, and the optimised graph is loaded with every initializer placed in memory
that belongs to us (``SessionOptions.add_initializer``). Writing there changes the next run.

Where the optimiser reordered a parameter, its layout is found by optimising the model a second
time with parameters whose bit patterns are their own indices. Optimisers that calculate with
parameters, or merge equal ones, are switched off: what is flipped is always the stored parameter.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from proact_onnx.engine.session import Array, BatchRunner, Provider, create_session, session_options

Indices = npt.NDArray[np.int64]

# Names as ONNX Runtime's optimisers register themselves. ConvActivationFusion writes the bounds of
# a Clip, one of which is a threshold, into an attribute; Relu is fused by the blocked layout too.
_CALCULATING_OPTIMIZERS = [
    "ConstantFolding",
    "ConstantSharing",
    "ConvActivationFusion",
    "ConvAddFusion",
    "ConvBNFusion",
    "ConvMulFusion",
    "MatMul_BatchNormalization_Fusion",
    "MatMulScaleFusion",
]

# Index i is written as the float whose bit pattern is this base plus i: 1.0 and upwards, far from
# zeros, subnormals and NaNs that an optimiser might treat specially.
_PROBE_BASE = 0x3F800000
_PROBE_LIMIT = 0x7F800000 - _PROBE_BASE


class LayoutError(Exception):
    """The optimised graph does not hold every parameter as stored; the message says why."""


class InPlaceEngine:
    """Runs a model on the CPU while its parameters are overwritten in place.

    Args:
        model: The model, every parameter an initializer.
        parameters: Names of the parameters that will be written to.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.

    Raises:
        LayoutError: If a parameter cannot be followed through the optimiser.
    """

    name = "in place"
    provider = Provider.CPU

    def __init__(
        self, model: onnx.ModelProto, parameters: list[str], threads: int = 0, batch_size: int = 128
    ) -> None:
        optimised = _optimise(model, threads)
        self._places = _probe_layout(model, optimised, parameters, threads)
        held = {buffer for places in self._places.values() for buffer, _ in places}
        self._buffers = {
            tensor.name: numpy_helper.to_array(tensor).copy()
            for tensor in optimised.graph.initializer
            if tensor.name in held
        }
        # ONNX Runtime keeps no reference to the values it is given.
        self._values = {
            name: ort.OrtValue.ortvalue_from_numpy(buffer) for name, buffer in self._buffers.items()
        }
        options = session_options(threads, optimise=False)
        options.add_session_config_entry("session.disable_prepacking", "1")
        for name, value in self._values.items():
            options.add_initializer(name, value)
        session = create_session(optimised, Provider.CPU, options)
        self._runner = BatchRunner(session, model, batch_size)

    def run(self, images: Array) -> Array:
        """Return the model's first output for all images with the parameters as they are now."""
        return self._runner.run(images)

    def write(self, parameter: str, elements: Indices, values: Array) -> None:
        """Overwrite elements of a parameter, by flat index in its stored layout."""
        for buffer_name, positions in self._places[parameter]:
            buffer = self._buffers[buffer_name].reshape(-1)
            buffer[elements if positions is None else positions[elements]] = values


def _optimise(model: onnx.ModelProto, threads: int) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = session_options(threads)
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.disable_prepacking", "1")
        create_session(model, Provider.CPU, options, disabled_optimizers=_CALCULATING_OPTIMIZERS)
        return onnx.load(path)


def _probe_layout(
    model: onnx.ModelProto, optimised: onnx.ModelProto, parameters: list[str], threads: int
) -> Mapping[str, list[tuple[str, Indices | None]]]:
    """Find where each element of each parameter lies in the optimised graph.

    Returns:
        By parameter, the buffers that hold it, each with the position of every element (None
        where the layout is the stored one).
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names: list[str] = []
    starts = [0]
    wanted = set(parameters)
    for tensor in probe.graph.initializer:
        if tensor.name not in wanted:
            continue
        stored = numpy_helper.to_array(tensor)
        if stored.dtype != np.float32:
            raise LayoutError(f"parameter {tensor.name!r} is stored as {stored.dtype}")
        end = starts[-1] + stored.size
        if end > _PROBE_LIMIT:
            raise LayoutError("the model has too many parameters to number them")
        patterns = np.arange(starts[-1], end, dtype=np.uint32) + np.uint32(_PROBE_BASE)
        marked = patterns.view(np.float32).reshape(stored.shape)
        tensor.CopyFrom(numpy_helper.from_array(marked, tensor.name))
        names.append(tensor.name)
        starts.append(end)
    probed = _optimise(probe, threads)
    twins = _match(probed, optimised)
    places: dict[str, list[tuple[str, Indices | None]]] = {name: [] for name in parameters}
    for tensor in probed.graph.initializer:
        marked = numpy_helper.to_array(tensor)
        if marked.dtype != np.float32 or tensor.name not in twins:
            continue
        indices = marked.reshape(-1).view(np.uint32).astype(np.int64) - _PROBE_BASE
        # Blocked layouts pad with zeros, which lie outside the numbered range.
        numbered = np.flatnonzero((indices >= 0) & (indices < starts[-1]))
        owners = np.searchsorted(starts, indices[numbered], side="right") - 1
        for owner in np.unique(owners):
            held = numbered[owners == owner]
            size = starts[owner + 1] - starts[owner]
            positions = np.full(size, -1, np.int64)
            positions[indices[held] - starts[owner]] = held
            if held.size != size or (positions < 0).any():
                raise LayoutError(
                    "the optimiser calculates with parameters, or splits them, as with "
                    f"{names[owner]!r}"
                )
            stored_order = bool((positions == np.arange(size)).all())
            places[names[owner]].append((twins[tensor.name], None if stored_order else positions))
    for name, found in places.items():
        if not found:
            raise LayoutError(f"the optimiser leaves no trace of parameter {name!r}")
    return places


def _match(probed: onnx.ModelProto, optimised: onnx.ModelProto) -> dict[str, str]:
    """Pair the tensors of two optimised graphs that differ in the names the optimiser makes up.

    Returns:
        Names in the optimised graph by names in the probed one.

    Raises:
        LayoutError: If the graphs differ in anything else.
    """
    twins: dict[str, str] = {}
    same = len(probed.graph.node) == len(optimised.graph.node)
    for ours, theirs in zip(probed.graph.node, optimised.graph.node, strict=False):
        same = same and _signature(ours) == _signature(theirs)
        pairs = zip([*ours.input, *ours.output], [*theirs.input, *theirs.output], strict=False)
        same = same and all(twins.setdefault(a, b) == b for a, b in pairs)
    if not same or len(set(twins.values())) < len(twins):
        raise LayoutError("the optimiser treats the graph differently for other values")
    return twins


def _signature(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return (node.domain, node.op_type, len(node.input), len(node.output), *attributes)
