"""The fastest engine: one optimised session whose weights are flipped in place.

ONNX Runtime is fastest when weights are constants: it fuses operators and stores convolution
weights in blocked layouts. A session per trial would cost more than the inference itself. So the
model is optimised once, and the optimised graph is loaded with every initializer placed in memory
that belongs to us (``SessionOptions.add_initializer``). Writing there changes the next run.

Optimisers that calculate with parameters, or merge equal ones, are switched off: what is flipped is
always the stored parameter. So is packing, which makes a copy out of reach. Dense layers, batch
normalisations and dequantised weights are rewritten so that they need neither.
"""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import numpy_helper

from proact_onnx.engine.dense import dense_to_pointwise
from proact_onnx.engine.dequantise import (
    Dequantisation,
    dequantisations_to_constants,
    unread,
)
from proact_onnx.engine.derived import Derivation, derived_to_initializers
from proact_onnx.engine.layout import Places, find_places
from proact_onnx.engine.memory import aligned_copy
from proact_onnx.engine.normalise import Normalisation, normalisations_to_convolutions
from proact_onnx.engine.session import (
    Array,
    BatchRunner,
    Indices,
    Provider,
    create_session,
    session_options,
)

# Names as ONNX Runtime's optimisers register themselves. ConvActivationFusion writes the bounds of
# a Clip, one of which is a threshold, into an attribute; Relu is fused by the blocked layout too.
_CALCULATING_OPTIMIZERS = [
    "Avx2WeightS8ToU8Transformer",
    "ConstantFolding",
    "ConstantSharing",
    "ConvActivationFusion",
    "ConvAddFusion",
    "ConvBNFusion",
    "ConvMulFusion",
    "MatMul_BatchNormalization_Fusion",
    "MatMulScaleFusion",
    "WeightBiasQuantization",
]


Follower = Normalisation | Dequantisation | Derivation


class InPlaceEngine:
    """Runs a model on the CPU while its parameters are overwritten in place.

    Args:
        model: The model, every parameter an initializer.
        parameters: Names of the parameters that will be written to.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.

    Raises:
        LayoutError: If a parameter cannot be followed through the optimiser.
        ModelError: If ONNX Runtime refuses the model.
    """

    name = "in place"
    provider = Provider.CPU

    def __init__(
        self, model: onnx.ModelProto, parameters: list[str], threads: int = 0, batch_size: int = 128
    ) -> None:
        rewritten, normalisations = normalisations_to_convolutions(model)
        rewritten, dequantisations = dequantisations_to_constants(rewritten)
        wanted = set(parameters)
        rewritten, derivations = derived_to_initializers(rewritten, parameters)
        every: list[Follower] = [*normalisations, *dequantisations, *derivations]
        followed = [found for found in every if not wanted.isdisjoint(found.sources)]
        self._followed: dict[str, list[Follower]] = {}
        for found in followed:
            for name in found.sources:
                self._followed.setdefault(name, []).append(found)
        self._sources = {
            tensor.name: numpy_helper.to_array(tensor).reshape(-1).copy()
            for tensor in model.graph.initializer
            if tensor.name in self._followed
        }
        gone = unread(rewritten, set(self._followed))
        direct = [name for name in parameters if name not in gone]
        derived = [name for found in followed for name in found.results]
        optimised, self._places = _follow(rewritten, [*direct, *derived], threads)
        held = {buffer for places in self._places.values() for buffer, _ in places}
        self._buffers = {
            tensor.name: aligned_copy(numpy_helper.to_array(tensor))
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
        content = optimised.SerializeToString()
        del optimised
        session = create_session(content, Provider.CPU, options)
        self._runner = BatchRunner(session, model, batch_size)

    def run(self, images: Array, chosen: Indices | None = None) -> Array:
        """Return the model's first output for images with the parameters as they are now.

        Args:
            images: ``[N, ...]``.
            chosen: Indices of the images to run; all when absent.
        """
        return self._runner.run(images, chosen)

    def stream(self, images: Array, chosen: Indices | None = None) -> Iterator[list[Array]]:
        """Yield all outputs of the model batch by batch, each ``[batch, ...]``; see `run`."""
        return self._runner.stream(images, self._runner.outputs, chosen)

    def write(self, parameter: str, elements: Indices, values: Array) -> None:
        """Overwrite elements of a parameter, by flat index in its stored layout."""
        if parameter in self._places:
            self._put(parameter, elements, values)
        for found in self._followed.get(parameter, ()):
            self._sources[parameter][elements] = values
            for name, changed, results in found.follow(self._sources, parameter, elements):
                self._put(name, changed, results)

    def _put(self, name: str, elements: Indices, values: Array) -> None:
        for buffer_name, positions in self._places[name]:
            buffer = self._buffers[buffer_name].reshape(-1)
            buffer[elements if positions is None else positions[elements]] = values


def _follow(
    model: onnx.ModelProto, parameters: list[str], threads: int
) -> tuple[onnx.ModelProto, Mapping[str, Places]]:
    """Optimise a model, and find where its parameters went."""
    optimise = functools.partial(_optimise, threads=threads)
    optimised = optimise(model)
    return optimised, find_places(model, optimised, parameters, optimise)


def _optimise(model: onnx.ModelProto, threads: int) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = session_options(threads)
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Fused quantised operators derive the scales of biases, which a file holds as parameters.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        create_session(
            dense_to_pointwise(model),
            Provider.CPU,
            options,
            disabled_optimizers=_CALCULATING_OPTIMIZERS,
        )
        return onnx.load(path)
