"""Prefix reuse: a trial recomputes nothing that lies before its first fault.

What a network computes before the first faulted parameter is what the golden run computed there.
So the golden values of a few inner tensors are kept for all images, each with an engine for the
rest of the network, and a trial starts from the last such tensor before its faults.

The scores must be those of the whole network, bit for bit. The runtime optimises a part of a
network by itself, perhaps to other kernels that add in another order, so every stage must first
prove itself; one that does not is left out.
"""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.engine.calls import Calls, join
from proact_onnx.engine.cuts import Cut, Layout, Workload, choose_cuts, find_cuts
from proact_onnx.engine.device import DeviceEngine
from proact_onnx.engine.inplace import InPlaceEngine
from proact_onnx.engine.layout import LayoutError
from proact_onnx.engine.portable import FreshSessionEngine
from proact_onnx.engine.select import FaultEngine
from proact_onnx.engine.session import Array, Indices, Provider
from proact_onnx.errors import ModelError
from proact_onnx.messages import node_reads
from proact_onnx.model import model_inputs
from proact_onnx.rewrite import part_between

# Large enough to be felt by everything behind it, small enough to keep scores finite; of integers,
# the bits that change.
_DISTURBANCE = 0.25
_MASK = 4
_DISTURBED_ELEMENTS = 3
# How many images, about, are run in batches of each size that trials have.
_SAMPLE_IMAGES = 16


@dataclass(frozen=True)
class Stage:
    """A network from one of its tensors on, and the values of that tensor.

    Attributes:
        tensor: Name of the tensor; the whole network starts from its images, named by the first
            input.
        engine: Runs from the tensor to the scores. It holds the parameters behind the tensor, and
            no others.
        values: Golden values of the tensor for all images, ``[N, ...]``.
        outputs: Which of the network's outputs the engine gives, by number: the scores, 0, and
            those watched that are computed behind the tensor.
    """

    tensor: str
    engine: FaultEngine
    values: Array
    outputs: tuple[int, ...] = (0,)

    def run(self, chosen: Indices) -> Array:
        """Scores of some images, with the parameters as the engine holds them now.

        Args:
            chosen: Indices of the images, ascending and distinct.
        """
        return self.engine.run(self.values, self._some(chosen))

    def observe(self, chosen: Indices) -> list[Array]:
        """Scores of some images, and behind them the other outputs that the engine gives."""
        return _outputs(self, self.values, self._some(chosen))

    def _some(self, chosen: Indices) -> Indices | None:
        everything = len(chosen) == len(self.values) and self.engine.provider is Provider.CPU
        return None if everything else chosen


def run_all(engine: FaultEngine, images: Array, chosen: Indices | None = None) -> list[Array]:
    """All outputs of an engine for some images, each ``[N, ...]``; see `FaultEngine.stream`."""
    batches = list(engine.stream(images, chosen))
    return [join(values) for values in zip(*batches, strict=True)]


def _outputs(stage: Stage, values: Array, chosen: Indices | None = None) -> list[Array]:
    if len(stage.outputs) == 1:
        return [stage.engine.run(values, chosen)]
    return run_all(stage.engine, values, chosen)


class PrefixCache:
    """Stages of a network, made when a trial first asks for them.

    Args:
        model: The model that the engine runs: encoded, every parameter an initializer.
        engine: Runs the whole network; without faults whenever a stage is asked for.
        images: All images of the campaign, preprocessed, ``[N, ...]``.
        golden: The engine's scores for them, ``[N, ...]``.
        workload: What the campaign will ask for; names the parameters that can be faulted.
        budget: Bytes that cached values and engines may take; 0 keeps to the whole network.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.
        watched: Golden values of outputs that `observe` gives beside the scores, by name, each
            ``[N, ...]``. They must be the model's outputs behind the first. A stage gives those
            that it computes; the others have their golden values, as no fault lies before it.

    Attributes:
        whole: The stage that starts from the images.
        planned: Tensors that stages may start from, in topological order.
        bytes: What those stages take together when all are made.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        engine: FaultEngine,
        images: Array,
        golden: Array,
        workload: Workload,
        budget: int,
        threads: int = 0,
        batch_size: int = 128,
        watched: Mapping[str, Array] | None = None,
    ) -> None:
        self._model = model
        self._watched = tuple(watched or ())
        # The scores, and then what is watched.
        self._golden = [golden, *(watched or {}).values()]
        self._workload = workload
        self._arguments = (threads, batch_size)
        calls = Calls.of(model_inputs(model), images, batch_size)
        self._batch = calls.size
        self.whole = Stage(calls.inputs[0], engine, images, tuple(range(len(self._golden))))
        layout = Layout((), 0, {})
        # Inner tensors of calls that are whole have no axis of samples to be chosen along.
        if budget > 0 and not calls.whole:
            with contextlib.suppress(ModelError):
                layout = find_cuts(model, list(workload.bits), images, self._watched)
        self._first_uses = layout.first_uses
        self._cuts = choose_cuts(layout, workload, len(images), self._batch, budget)
        self._made: dict[int, Stage | None] = {}
        # Tensors of stages that start in the blocked layout of the CPU's convolutions.
        self._blocked: set[str] = set()
        self.planned = tuple(cut.info.name for cut in self._cuts)
        self.bytes = sum(cut.bytes(len(images), self._batch) for cut in self._cuts)

    @property
    def made(self) -> int:
        """Stages that were made and proved right."""
        return sum(stage is not None for stage in self._made.values())

    @property
    def discarded(self) -> int:
        """Stages that did not give the whole network's scores bit for bit, and are not used."""
        return len(self._made) - self.made

    def for_faults(self, parameters: Iterable[str]) -> Stage:
        """Return the last stage that starts before every one of some parameters.

        Faults are to be written into that stage's engine, and taken out again before the next
        stage is asked for.

        Args:
            parameters: Names of the faulted parameters.

        Raises:
            SettingsError: If the provider is not usable here.
        """
        names = list(parameters)
        # A parameter that nothing depends on is held by the whole network's engine alone.
        first = min((self._first_uses.get(name, -1) for name in names), default=-1)
        for cut in reversed(self._cuts):
            if cut.position < first:
                if cut.position not in self._made:
                    self._made[cut.position] = self._make(cut)
                stage = self._made[cut.position]
                if stage is not None:
                    return stage
        return self.whole

    def observe(self, stage: Stage, chosen: Indices) -> list[Array]:
        """Scores and watched outputs of some images, with the parameters as a stage holds them.

        Args:
            stage: From `for_faults`; nothing before it is faulted.
            chosen: Indices of the images, ascending and distinct.
        """
        computed = dict(zip(stage.outputs, stage.observe(chosen), strict=True))
        return [
            computed[number] if number in computed else values[chosen]
            for number, values in enumerate(self._golden)
        ]

    def _make(self, cut: Cut) -> Stage | None:
        try:
            values = self._golden_values(cut)
            if len(values) != len(self.whole.values):
                return None
            for blocked in (True, False) if self._may_enter_blocked(cut, values) else (False,):
                outputs = self._behind(cut.info.name)
                engine = self._open(cut.info, outputs, blocked=blocked)
                stage = Stage(cut.info.name, engine, values, outputs)
                if self._proved(stage, cut):
                    if blocked:
                        self._blocked.add(stage.tensor)
                    return stage
        except (LayoutError, ModelError):
            return None
        return None

    def _golden_values(self, cut: Cut) -> Array:
        """Run from the last stage before a cut up to it, with the kernels of a fault engine."""
        start, values = None, self.whole.values
        for other in self._cuts:
            stage = self._made.get(other.position)
            if stage is not None and other.position < cut.position:
                start, values = other.info, stage.values
        blocked = start is not None and start.name in self._blocked
        return self._open(start, cut.info, blocked=blocked).run(values)

    def _behind(self, tensor: str) -> tuple[int, ...]:
        """Numbers of the outputs to which the data come by way of a tensor alone."""
        beside = {each.name for each in model_inputs(self._model)}
        for node in self._model.graph.node:
            if not beside.isdisjoint(node_reads(node)):
                beside.update(name for name in node.output if name != tensor)
        watched = enumerate(self._watched, start=1)
        return (0, *(number for number, name in watched if name not in beside))

    def _open(
        self,
        start: onnx.ValueInfoProto | None,
        end: onnx.ValueInfoProto | Sequence[int],
        *,
        blocked: bool,
    ) -> FaultEngine:
        """Open an engine up to a tensor, or up to outputs by their numbers."""
        if not isinstance(end, onnx.ValueInfoProto):
            left_out = set(self._watched) - {self._watched[number - 1] for number in end if number}
            outputs = [info for info in self._model.graph.output if info.name not in left_out]
            part = part_between(self._model, start, outputs)
        else:
            part = part_between(self._model, start, end)
        if start is not None and blocked:
            _enter_blocked(part, start.name)
        held = [t.name for t in part.graph.initializer if t.name in self._workload.bits]
        return _open_alike(self.whole.engine, part, held, *self._arguments)

    def _may_enter_blocked(self, cut: Cut, values: Array) -> bool:
        readers = sum(cut.info.name in node.input for node in self._model.graph.node)
        on_cpu = self.whole.engine.provider is Provider.CPU
        floats = values.ndim == 4 and values.dtype == np.float32
        return on_cpu and readers > 1 and floats and bool(np.isfinite(values).all())

    def _proved(self, stage: Stage, cut: Cut) -> bool:
        """Compare a stage with the whole network: undisturbed, disturbed, and undone."""
        # The first batch already shows most differences.
        for part in (slice(self._batch), slice(self._batch, None)):
            values = stage.values[part]
            golden = [self._golden[number][part] for number in stage.outputs]
            if len(values) and not _same_bits(_outputs(stage, values), golden):
                return False
        trials = zip(self._samples, self._sample_outputs, strict=True)
        if not all(_same_bits(self.observe(stage, some), found) for some, found in trials):
            return False
        behind = {name for name, use in self._first_uses.items() if use > cut.position}
        tensors = [t for t in self._model.graph.initializer if t.name in behind]
        chosen = self._samples[0]
        expected = self._disturbed(self.whole, tensors, chosen)
        disturbed = self._disturbed(stage, tensors, chosen)
        undone = self.observe(stage, chosen)
        return _same_bits(disturbed, expected) and _same_bits(undone, self._sample_outputs[0])

    @functools.cached_property
    def _samples(self) -> list[Indices]:
        """Batches of images for the proof, of the sizes that trials have.

        Kernels for few rows round in another way than those for many, and cached values were
        computed in the batches of the golden run. Where trials take some of the images, these
        come in other batches, so cached values must prove not to depend on that: images of full
        batches in the rest of a trial, those of the golden run's rest in a full batch.
        """
        total = len(self.whole.values)
        wanted = min(self._workload.images or total, total)
        if wanted == total:
            return [np.arange(min(total, self._batch))]
        rest = total % self._batch if total > self._batch else 0
        rng = np.random.default_rng(0)
        samples: list[Indices] = []
        for size in (min(wanted, self._batch), wanted % self._batch):
            for _ in range(-(-_SAMPLE_IMAGES // size) if size else 0):
                last = min(rest, size - 1)
                others = rng.choice(total - rest, min(size - last, total - rest), replace=False)
                samples.append(np.concatenate([np.arange(total - last, total), others]))
        return samples

    @functools.cached_property
    def _sample_outputs(self) -> list[list[Array]]:
        return [self.observe(self.whole, chosen) for chosen in self._samples]

    def _disturbed(
        self, stage: Stage, tensors: Iterable[onnx.TensorProto], chosen: Indices
    ) -> list[Array]:
        """Outputs with some elements of parameters disturbed, which are undone."""
        rng = np.random.default_rng(0)
        originals = []
        for tensor in tensors:
            flat = numpy_helper.to_array(tensor).reshape(-1)
            elements = rng.choice(flat.size, min(flat.size, _DISTURBED_ELEMENTS), replace=False)
            before = flat[elements]
            integers = flat.dtype.kind in "iu"
            after = before ^ _MASK if integers else before + flat.dtype.type(_DISTURBANCE)
            stage.engine.write(tensor.name, elements, after)
            originals.append((tensor.name, elements, before))
        disturbed = self.observe(stage, chosen)
        for original in originals:
            stage.engine.write(*original)
        return disturbed


def _enter_blocked(part: onnx.ModelProto, start: str) -> None:
    """Read the input of a part through a pool of single elements, which changes no finite number.

    ONNX Runtime adds a skip connection inside the convolution, rounding in another order than by
    itself, where both lie in its blocked layout. A graph input never does; what a pool writes can.
    """
    entry = f"{start}/entry"
    for node in part.graph.node:
        names = [entry if name == start else name for name in node.input]
        del node.input[:]
        node.input.extend(names)
    pool = onnx.helper.make_node("MaxPool", [start], [entry], kernel_shape=[1, 1])
    part.graph.node.insert(0, pool)


def _open_alike(
    engine: FaultEngine, part: onnx.ModelProto, parameters: list[str], threads: int, batch_size: int
) -> FaultEngine:
    """Open an engine of the same kind for a part: other kinds round in another way."""
    if isinstance(engine, InPlaceEngine):
        return InPlaceEngine(part, parameters, threads, batch_size)
    kind = DeviceEngine if isinstance(engine, DeviceEngine) else FreshSessionEngine
    return kind(part, parameters, engine.provider, threads, batch_size)


def _same_bits(some: Sequence[Array], others: Sequence[Array]) -> bool:
    return all(
        one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
        for one, other in zip(some, others, strict=True)
    )
