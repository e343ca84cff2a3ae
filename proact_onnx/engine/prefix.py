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
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from proact_onnx.engine.cuts import Cut, Layout, Workload, choose_cuts, find_cuts
from proact_onnx.engine.device import DeviceEngine
from proact_onnx.engine.inplace import InPlaceEngine
from proact_onnx.engine.layout import LayoutError
from proact_onnx.engine.portable import FreshSessionEngine
from proact_onnx.engine.select import FaultEngine
from proact_onnx.engine.session import Array, Indices, Provider
from proact_onnx.errors import ModelError
from proact_onnx.model import image_input
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
        tensor: Name of the tensor; the whole network starts from its images.
        engine: Runs from the tensor to the scores. It holds the parameters behind the tensor, and
            no others.
        values: Golden values of the tensor for all images, ``[N, ...]``.
    """

    tensor: str
    engine: FaultEngine
    values: Array

    def run(self, chosen: Indices) -> Array:
        """Scores of some images, with the parameters as the engine holds them now.

        Args:
            chosen: Indices of the images, ascending and distinct.
        """
        if len(chosen) == len(self.values) and self.engine.provider is Provider.CPU:
            return self.engine.run(self.values)
        return self.engine.run(self.values, chosen)


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
    ) -> None:
        self._model = model
        self._golden = golden
        self._workload = workload
        self._arguments = (threads, batch_size)
        declared = image_input(model)
        self._batch = (declared.shape[0] if declared.shape else None) or batch_size
        self.whole = Stage(declared.name, engine, images)
        layout = Layout((), 0, {})
        if budget > 0:
            with contextlib.suppress(ModelError):
                layout = find_cuts(model, list(workload.bits), images)
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

    def _make(self, cut: Cut) -> Stage | None:
        try:
            values = self._golden_values(cut)
            if len(values) != len(self.whole.values):
                return None
            for blocked in (True, False) if self._may_enter_blocked(cut, values) else (False,):
                stage = Stage(cut.info.name, self._open(values, cut.info, blocked=blocked), values)
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
        return self._open(values, start, cut.info, blocked=blocked).run(values)

    def _open(
        self,
        values: Array,
        start: onnx.ValueInfoProto | None,
        end: onnx.ValueInfoProto | None = None,
        *,
        blocked: bool,
    ) -> FaultEngine:
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
            values, golden = stage.values[part], self._golden[part]
            if len(values) and not _same_bits(stage.engine.run(values), golden):
                return False
        trials = zip(self._samples, self._sample_scores, strict=True)
        if not all(_same_bits(stage.run(chosen), scores) for chosen, scores in trials):
            return False
        behind = {name for name, use in self._first_uses.items() if use > cut.position}
        tensors = [t for t in self._model.graph.initializer if t.name in behind]
        chosen = self._samples[0]
        expected = _disturbed(self.whole, tensors, chosen)
        disturbed, undone = _disturbed(stage, tensors, chosen), stage.run(chosen)
        return _same_bits(disturbed, expected) and _same_bits(undone, self._sample_scores[0])

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
    def _sample_scores(self) -> list[Array]:
        return [self.whole.run(chosen) for chosen in self._samples]


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


def _disturbed(stage: Stage, tensors: Iterable[onnx.TensorProto], chosen: Indices) -> Array:
    """Scores with some elements of parameters disturbed, which are undone."""
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
    disturbed = stage.run(chosen)
    for original in originals:
        stage.engine.write(*original)
    return disturbed


def _open_alike(
    engine: FaultEngine, part: onnx.ModelProto, parameters: list[str], threads: int, batch_size: int
) -> FaultEngine:
    """Open an engine of the same kind for a part: other kinds round in another way."""
    if isinstance(engine, InPlaceEngine):
        return InPlaceEngine(part, parameters, threads, batch_size)
    kind = DeviceEngine if isinstance(engine, DeviceEngine) else FreshSessionEngine
    return kind(part, parameters, engine.provider, threads, batch_size)


def _same_bits(one: Array, other: Array) -> bool:
    return (
        one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    )
