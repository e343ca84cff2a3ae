"""Faults in the parameters of single layers, for thresholds that are trained under them."""

from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor

from proact_onnx.activations import Activation
from proact_onnx.campaign.encoded import encode_model
from proact_onnx.faults import FaultModel, FaultSpace, Rate, fault_space, parse_format
from proact_onnx.methods.layer_spaces import layer_spaces
from proact_onnx.mirror.tensors import to_tensor

# Campaigns count their trials from 0: no threshold may be trained under the very faults that it is
# measured under.
_FIRST_TRIAL = 1 << 32


class ParameterFaults:
    """Bit flips in the parameters before activations, as training sees them.

    A parameter belongs to the first activation it reaches; those behind the last activation are
    left out, because no threshold stands behind them.

    Args:
        model: The model, without bounds; every parameter an initializer.
        activations: In topological order.
        memory_format: Name of the format that parameters are stored in.
        ber: Probability that a stored bit is flipped.
        seed: Decides the faults, with their number.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        activations: Sequence[Activation],
        memory_format: str,
        ber: float,
        seed: int,
    ) -> None:
        known = parse_format(memory_format)
        space = fault_space(model, known.width)
        self._encoded = encode_model(model, space, known)
        self._spaces = layer_spaces(model, activations, space)
        self._stored = {
            tensor.name: to_tensor(tensor)
            for tensor in self._encoded.model.graph.initializer
            if tensor.name in self._encoded.parameters
        }
        self._model, self._seed = FaultModel(Rate(ber)), seed

    def names(self, tensors: Sequence[str]) -> tuple[str, ...]:
        """Name the parameters of activations, given by their outputs."""
        return tuple(parameter.name for parameter in self._space(tensors).parameters)

    def draw(self, tensors: Sequence[str], number: int) -> Mapping[str, Tensor]:
        """Give the parameters of activations as memory holds them, faults and all.

        Args:
            tensors: Outputs of the activations.
            number: Of the fault map; the same number gives the same faults.

        Returns:
            All parameters of these activations by name, the same tensors every time where no
            fault hits them.
        """
        faults = self._model.draw(self._space(tensors), self._seed, _FIRST_TRIAL + number)
        found = {name: self._stored[name] for name in self.names(tensors)}
        for name, faulty in self._encoded.inject(faults).words.items():
            values = torch.as_tensor(faulty.parameter.values(faulty.after).astype(float))
            found[name] = found[name].clone()
            found[name].view(-1)[torch.from_numpy(faulty.elements)] = values.to(found[name].dtype)
        return found

    def _space(self, tensors: Sequence[str]) -> FaultSpace:
        spaces = [self._spaces[tensor] for tensor in tensors if tensor in self._spaces]
        return FaultSpace(tuple(p for space in spaces for p in space.parameters))
