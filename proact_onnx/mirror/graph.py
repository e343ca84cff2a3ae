"""The mirror: an ONNX graph run by PyTorch, so that thresholds in it can be trained."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx.inliner
from onnx import ModelProto
from torch import Tensor, nn

from proact_onnx.errors import ModelError
from proact_onnx.mirror.steps import Step, compile_steps
from proact_onnx.mirror.tensors import CODES, to_tensor


@dataclass(frozen=True)
class Plan:
    """What one call of ``evaluate`` runs.

    Attributes:
        constants: Names of the constants it reads.
        steps: The steps in order, each with the tensors that nothing needs after it.
    """

    constants: tuple[str, ...]
    steps: tuple[tuple[Step, tuple[str, ...]], ...]


class Mirror(nn.Module):
    """An ONNX graph as a PyTorch module that agrees with ONNX Runtime.

    Every node is compiled once, here. Initializers, and all that follows from constants alone, are
    buffers without gradient; a value computed from constants is computed once, so a later change
    of an initializer in place does not reach it. BatchNormalization and Dropout always act as in
    inference. ``.to(...)`` moves the buffers.

    The codes of quantisers are floating-point tensors inside, so that gradients pass
    (`proact_onnx.mirror.codes`).

    Args:
        model: The model, its external data loaded. It is not changed.

    Raises:
        UnsupportedOperatorError: An operator has no rule; the message names it.
        ModelError: A node reads a tensor that nothing before it computes, or a tensor has an
            element type that PyTorch lacks.

    Attributes:
        inputs: Names of the graph's inputs that are not initializers.
        outputs: Names of the graph's outputs.
        gates: Functions by tensor name, each applied to its tensor right after a node computes
            it, so that all consumers see the result; a tensor that is fed bypasses its gate.
    """

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        constants = {proto.name: to_tensor(proto) for proto in model.graph.initializer}
        names = [value.name for value in model.graph.input]
        self.inputs = tuple(name for name in names if name not in constants)
        self.outputs = tuple(value.name for value in model.graph.output)
        self._codes = {
            value.name: CODES[value.type.tensor_type.elem_type]
            for value in model.graph.output
            if value.type.tensor_type.elem_type in CODES
        }
        self.gates: dict[str, Callable[[Tensor], Tensor]] = {}
        self._plans: dict[tuple[frozenset[str], tuple[str, ...]], Plan] = {}
        self._steps = compile_steps(model, constants)
        computed = {name for step in self._steps for name in step.outputs if name}
        self._computed = frozenset(computed.difference(constants))
        # Buffer names must not contain dots, ONNX names may.
        self._buffer_names = {name: f"constant_{index}" for index, name in enumerate(constants)}
        for name, tensor in constants.items():
            self.register_buffer(self._buffer_names[name], tensor, persistent=False)

    def parameter(self, name: str) -> Tensor:
        """Give the value of an initializer, or of a tensor that follows from constants alone.

        Raises:
            ModelError: The tensor is no constant of the graph.
        """
        if name not in self._buffer_names:
            raise ModelError(
                f"tensor '{name}' is no constant of the graph: name an initializer of the model"
            )
        return self.get_buffer(self._buffer_names[name])

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the graph's outputs.

        Args:
            *inputs: One tensor for each name in ``inputs``, of the graph's shapes and types.

        Returns:
            The output where the graph has one, else a tuple in the order of ``outputs``.

        Raises:
            ModelError: There are more or fewer tensors than inputs.
        """
        if len(inputs) != len(self.inputs):
            raise ModelError(
                f"the graph has {len(self.inputs)} inputs ({', '.join(self.inputs)}) but was given "
                f"{len(inputs)}: pass one tensor for each"
            )
        values = self.evaluate(dict(zip(self.inputs, inputs, strict=True)), self.outputs)
        results = tuple(
            values[name].to(self._codes[name]) if name in self._codes else values[name]
            for name in self.outputs
        )
        return results[0] if len(results) == 1 else results

    def evaluate(self, feeds: Mapping[str, Tensor], targets: Sequence[str]) -> dict[str, Tensor]:
        """Compute tensors of the graph from others, running only the nodes between them.

        Args:
            feeds: Values by tensor name; any tensor of the graph may be fed.
            targets: Names of the tensors to compute.

        Returns:
            The targets by name. A target that is fed comes back as it is.

        Raises:
            ModelError: A name is no tensor of the graph, a target depends on an input that is not
                fed, or a feed would change a constant that went into a compiled node.
        """
        key = (frozenset(feeds), tuple(targets))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(*key)
        if not self._computed.issuperset(self.gates):
            stray = min(self.gates.keys() - self._computed)
            raise ModelError(
                f"the gate of '{stray}' would never act, because no node computes that tensor from "
                "the graph's inputs: gate the output of a node"
            )
        values: dict[str, Tensor | None] = {"": None, **feeds}
        values.update((name, self.parameter(name)) for name in plan.constants)
        for step, finished in plan.steps:
            for name, result in step.run(values):
                if name not in feeds:
                    gate = self.gates.get(name)
                    values[name] = result if gate is None else gate(result)
            for name in finished:
                del values[name]
        return {name: value for name in targets if (value := values[name]) is not None}

    def suffix_inputs(self, *changing: str) -> tuple[str, ...]:
        """Name what must be kept to compute the outputs again when some tensors change.

        Args:
            *changing: The tensors that change; none is computed from another.

        Returns:
            These, then every other value that does not depend on them and that the outputs
            still need beside them: what a skip connection carries past them, and outputs that do
            not depend on them. Constants are left out, also among those that change. Instead of a
            value that depends on nothing but the shape of a tensor, that tensor is named, so that
            the kept values may be cut along the batch. ``evaluate`` with these, and with the
            constants that change, as feeds gives all outputs.

        Raises:
            ModelError: One is no tensor of the graph.
        """
        self._check_names(changing)
        computed_anew = (self._descendants(changing) | self._shapes()).difference(changing)
        needed = set(self.outputs)
        suffix = []
        for step in reversed(self._steps):
            if any(name in needed and name in computed_anew for name in step.outputs):
                needed.update(step.inputs)
                suffix.append(step)
        used = [name for step in reversed(suffix) for name in step.inputs if name]
        kept = [
            name
            for name in (*changing, *used, *self.outputs)
            if name not in computed_anew and name not in self._buffer_names
        ]
        return tuple(dict.fromkeys(kept))

    def _shapes(self) -> set[str]:
        """Tensors that depend on the shapes of other tensors and on no values but constants."""
        shapes: set[str] = set()
        for step in self._steps:
            sources = {name for name in step.inputs if name and name not in self._buffer_names}
            if sources and (step.reads_shape or shapes.issuperset(sources)):
                shapes.update(step.outputs)
        return shapes

    def _descendants(self, roots: Iterable[str]) -> set[str]:
        """The roots and all that is computed from them."""
        reached = set(roots)
        for step in self._steps:
            if not reached.isdisjoint(step.inputs):
                reached.update(name for name in step.outputs if name)
        return reached

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if not any(
                name in known for known in (self._computed, self._buffer_names, self.inputs)
            ):
                raise ModelError(
                    f"'{name}' is no tensor of the graph: take a name from the model's nodes, "
                    "inputs or initializers"
                )

    def _plan(self, feeds: frozenset[str], targets: tuple[str, ...]) -> Plan:
        self._check_names([*sorted(feeds), *targets])
        changed = self._descendants(feeds)
        needed = set(targets)
        constants: set[str] = set()
        last_use = set(targets) | {""}
        steps: list[tuple[Step, tuple[str, ...]]] = []
        for step in reversed(self._steps):
            wanted = {
                name
                for name in step.outputs
                if name in needed
                and name not in feeds
                and (name not in self._buffer_names or name in changed)
            }
            if not wanted:
                continue
            if not changed.isdisjoint(step.baked):
                baked = min(changed & step.baked)
                raise ModelError(
                    f"tensor '{baked}' went into node '{step.name}' when the mirror was built: "
                    "feed a tensor after that node instead"
                )
            finished = {*step.inputs, *(set(step.outputs) - feeds)} - last_use
            last_use.update(step.inputs)
            last_use.update(step.outputs)
            needed.update(step.inputs)
            steps.append((step, tuple(sorted(finished))))
        for name in needed - feeds - {""}:
            if name in self._buffer_names and name not in changed:
                constants.add(name)
            elif name in self.inputs:
                raise ModelError(
                    f"graph input '{name}' is needed to compute {', '.join(targets)}: feed it"
                )
        return Plan(tuple(sorted(constants)), tuple(reversed(steps)))
