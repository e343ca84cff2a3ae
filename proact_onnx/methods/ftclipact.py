"""FT-ClipAct: a threshold for every layer, searched by injecting faults.

Source: Hoang, Hanif and Shafique, "FT-ClipAct: Resilience Analysis of Deep Neural Networks and
Improving their Fault Tolerance using Clipped Activation", DATE 2020.

1. Every threshold starts at the profiled maximum of its layer.
2. For one layer after the other: the interval from 0 to the maximum is cut into four, the area
   under the curve of accuracy over bit error rate is measured by fault injection with the
   threshold at each end of a piece, and the search goes on between the neighbours of the best
   one, until it gains little or ``--search-rounds`` are over.

The area is ``integral of accuracy d(log10 BER) / span of log10 BER`` by the trapezoidal rule.

Differences from the original, or where it leaves a choice: faults hit the parameters of the layer
whose threshold is searched; layers are searched from the last to the first, so that what lies
before them is the golden run's and computed once; all thresholds of a layer are tried under the
same faults on the same images, and among equals the highest wins, which costs legitimate values
least. Thresholds themselves are free of faults meanwhile. Clean accuracy is not watched: the paper
finds that FT-ClipAct costs most of it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from proact_onnx.activations import Activation
from proact_onnx.campaign.encoded import Injection, encode_model
from proact_onnx.campaign.images import choose_images
from proact_onnx.engine import PrefixCache, Stage, Workload, choose_engine, top1
from proact_onnx.errors import ModelError, RunError
from proact_onnx.faults import FaultModel, FaultSpace, Kind, Rate, fault_space, parse_format
from proact_onnx.messages import node_reads
from proact_onnx.methods.base import FitContext, Fitted, profiled_thresholds
from proact_onnx.rewrite import Form, insert, lower_name, threshold_name
from proact_onnx.thresholds import FloatArray, Granularity, pack, unpack

_PIECES = 4
# A round that gains less area than this is the last.
_LEAST_GAIN = 1e-3
# Images that fault maps draw theirs from, at most; their golden values are kept.
_MOST_IMAGES = 1000

Measure = Callable[[float], float]


def fit(context: FitContext) -> Fitted:
    """Search the threshold of every layer, last to first.

    Raises:
        ModelError: If the model is no classifier, or the granularity is not layer-wise.
    """
    settings = context.settings
    if settings.granularity != Granularity.LAYER:
        raise ModelError(
            f"method ftclipact searches one threshold for each layer, not {settings.granularity}-"
            "wise ones: leave --granularity out, or choose another method"
        )
    profiled = pack(profiled_thresholds(context))
    finished = context.checkpoint.finished()
    thresholds = {**profiled, **finished}
    trials = _LayerTrials(context, profiled)
    context.reporter.begin("searching thresholds", len(context.activations))
    context.reporter.advance(len(finished))
    for activation in reversed(context.activations):
        tensor = activation.tensor
        if tensor not in finished:
            measure = trials.measure(activation, thresholds)
            # An activation that is never above zero has nothing to search for.
            if measure is not None and profiled[tensor].any():
                found = search(measure, float(profiled[tensor].max()), settings.search_rounds)
                thresholds[tensor] = _with_largest(profiled[tensor], found)
            context.checkpoint.store(tensor, thresholds[tensor])
            context.reporter.advance()
    context.reporter.notice(
        f"ftclipact classified {trials.evaluations:,} images under fault to find "
        f"{len(thresholds)} thresholds"
    )
    return Fitted(unpack(thresholds, context.two_sided), trials.evaluations)


def search(measure: Measure, maximum: float, rounds: int) -> float:
    """Find the threshold with the largest measure, by narrowing an interval.

    Args:
        measure: What a threshold is worth.
        maximum: Upper end of the first interval; its lower end is 0, which is not tried.
        rounds: How often to narrow it, at most.
    """
    low, high = 0.0, maximum
    known: dict[float, float] = {}
    best = -np.inf
    for _ in range(rounds):
        for point in np.linspace(low, high, _PIECES + 1).tolist():
            if point > 0.0 and point not in known:
                known[point] = measure(point)
        found = max(known, key=lambda point: (known[point], point))
        gain, best = known[found] - best, known[found]
        if gain < _LEAST_GAIN:
            return found
        step = (high - low) / _PIECES
        low, high = max(0.0, found - step), min(maximum, found + step)
    return found


def layer_spaces(
    model: onnx.ModelProto, activations: Sequence[Activation], space: FaultSpace
) -> dict[str, FaultSpace]:
    """Divide parameters by the first activation that they reach.

    Args:
        model: The model.
        activations: In topological order.
        space: The parameters.

    Returns:
        By activation output; an activation that no parameter reaches first is absent.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    unclaimed = {parameter.name: parameter for parameter in space.parameters}
    seen: set[str] = set()
    found = {}
    for activation in activations:
        pending, reached = [activation.tensor], set()
        while pending:
            name = pending.pop()
            if name in unclaimed:
                reached.add(name)
            elif name in makers and name not in seen:
                pending.extend(node_reads(makers[name]))
            seen.add(name)
        if reached:
            found[activation.tensor] = FaultSpace(
                tuple(unclaimed.pop(p.name) for p in space.parameters if p.name in reached)
            )
    return found


class _LayerTrials:
    """Fault injection into one layer at a time, with any threshold behind it."""

    def __init__(self, context: FitContext, profiled: Mapping[str, FloatArray]) -> None:
        settings = context.settings
        images = context.calibration.images[:_MOST_IMAGES]
        labels = context.calibration.labels
        if labels is None:
            raise ModelError(
                "method ftclipact measures accuracy, and the model's first output is not a vector "
                "of class scores: use --method ranger"
            )
        self._context, self._labels, self._profiled = context, labels[:_MOST_IMAGES], profiled
        memory_format = parse_format(settings.format)
        form = Form(settings.form or Form.HARD)
        model = insert(context.model, unpack(profiled, context.two_sided), form).model
        faulted = [kind for kind in Kind if kind is not Kind.THRESHOLD]
        space = fault_space(model, memory_format.width).restrict(faulted)
        self._spaces = layer_spaces(context.model, context.activations, space)
        self._encoded = encode_model(model, space, memory_format)
        names = [name for tensor in profiled for name in self._names(tensor)]
        # Thresholds are written too, though no fault hits them.
        bits = {parameter.name: parameter.size for parameter in space.parameters}
        bits.update(dict.fromkeys(names, 0))
        engine = choose_engine(self._encoded.model, list(bits), images, *context.engine).engine
        per_layer = settings.search_rounds * _PIECES * len(settings.search_ber)
        trials = per_layer * settings.search_trials * len(profiled)
        self._stages = PrefixCache(
            self._encoded.model,
            engine,
            images,
            engine.run(images),
            Workload(bits, trials, settings.search_images),
            context.runtime.cache_memory << 20,
            *context.engine[1:],
        )
        self.evaluations = 0

    def measure(
        self, activation: Activation, thresholds: Mapping[str, FloatArray]
    ) -> Measure | None:
        """Give the area under the curve of accuracy by threshold; None without parameters.

        Args:
            activation: Where the threshold is tried; faults hit the parameters before it.
            thresholds: Those of the layers behind are used; none before may differ from the
                profiled one yet.
        """
        space = self._spaces.get(activation.tensor)
        if space is None:
            return None
        for tensor, value in self._profiled.items():
            self._write(self._stages.whole, tensor, value)
        stage = self._stages.for_faults([parameter.name for parameter in space.parameters])
        behind = self._context.activations[self._context.activations.index(activation) + 1 :]
        for other in behind:
            self._write(stage, other.tensor, thresholds[other.tensor])
        settings = self._context.settings
        rates = sorted(settings.search_ber)
        drawn = [
            [
                self._encoded.inject(FaultModel(Rate(rate)).draw(space, settings.seed, trial))
                for trial in range(settings.search_trials)
            ]
            for rate in rates
        ]
        scale = np.log10(rates)

        def area(threshold: float) -> float:
            limits = _with_largest(self._profiled[activation.tensor], threshold)
            self._write(stage, activation.tensor, limits)
            accuracies = [
                np.mean([self._accuracy(stage, faults, n) for n, faults in enumerate(maps)])
                for maps in drawn
            ]
            return float(np.trapezoid(accuracies, scale) / (scale[-1] - scale[0]))

        return area

    def _accuracy(self, stage: Stage, faults: Injection, trial: int) -> float:
        settings = self._context.settings
        total = len(self._labels)
        chosen = choose_images(total, settings.search_images, settings.seed, trial, self._labels)
        try:
            faults.put(stage.engine)
            scores = stage.run(chosen)
        except RunError:
            # The runtime refuses some faulty scales of quantised models: nothing is classified.
            scores = None
        finally:
            faults.undo(stage.engine)
        self.evaluations += len(chosen)
        return 0.0 if scores is None else float(top1(scores).correct(self._labels[chosen]).mean())

    def _names(self, tensor: str) -> tuple[str, ...]:
        """Names of the stored thresholds, the upper one first."""
        names = (threshold_name(tensor), lower_name(tensor))
        return names if tensor in self._context.two_sided else names[:1]

    def _write(self, stage: Stage, tensor: str, packed: FloatArray) -> None:
        names = self._names(tensor)
        # The lower magnitude comes first.
        magnitudes = packed.reshape(-1)[::-1]
        for name, value, sign in zip(names, magnitudes, (1, -1), strict=False):
            stage.engine.write(name, np.array([0]), np.array([sign * value], np.float32))


def _with_largest(packed: FloatArray, largest: float) -> FloatArray:
    """Thresholds in the proportions of others, the largest magnitude given."""
    found = np.float32(largest)
    top = packed.max()
    return np.where(packed == top, found, packed * (found / top)).astype(np.float32)
