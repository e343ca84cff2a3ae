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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from proact_onnx.activations import Activation
from proact_onnx.campaign.executor import Stored
from proact_onnx.campaign.probe import Case, Probe, open_probe, unsaved
from proact_onnx.errors import ModelError
from proact_onnx.faults import FaultSpace, Kind
from proact_onnx.methods.base import FitContext, Fitted, profiled_thresholds
from proact_onnx.methods.layer_spaces import layer_spaces
from proact_onnx.rewrite import Form, insert, lower_name, threshold_name
from proact_onnx.thresholds import FloatArray, Granularity, Thresholds, pack, unpack

_PIECES = 4
# A round that gains less area than this is the last.
_LEAST_GAIN = 1e-3
# Images that fault maps draw theirs from, at most; their golden values are kept.
_MOST_IMAGES = 1000

Measure = Callable[[Sequence[float]], Sequence[float]]


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
    context.reporter.begin("searching thresholds", len(context.activations))
    context.reporter.advance(len(finished))
    with open_trials(context, profiled) as trials:
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
        measure: What each of some thresholds is worth.
        maximum: Upper end of the first interval; its lower end is 0, which is not tried.
        rounds: How often to narrow it, at most.
    """
    low, high = 0.0, maximum
    known: dict[float, float] = {}
    best = -np.inf
    for _ in range(rounds):
        points = np.linspace(low, high, _PIECES + 1).tolist()
        new = [point for point in points if point > 0.0 and point not in known]
        known.update(zip(new, measure(new), strict=True))
        found = max(known, key=lambda point: (known[point], point))
        gain, best = known[found] - best, known[found]
        if gain < _LEAST_GAIN:
            return found
        step = (high - low) / _PIECES
        low, high = max(0.0, found - step), min(maximum, found + step)
    return found


class LayerTrials:
    """Fault injection into one layer at a time, with any threshold behind it.

    Args:
        context: What the method was given.
        probe: Measures the model with profiled thresholds.
        spaces: By activation output, the parameters before it; see `layer_spaces`.
    """

    def __init__(self, context: FitContext, probe: Probe, spaces: Mapping[str, FaultSpace]) -> None:
        self._context, self._probe, self._spaces = context, probe, spaces

    @property
    def evaluations(self) -> int:
        """Images classified under fault so far."""
        return self._probe.evaluations

    def measure(
        self, activation: Activation, thresholds: Mapping[str, FloatArray]
    ) -> Measure | None:
        """Give the area under the curve of accuracy by threshold; None without parameters.

        Args:
            activation: Where thresholds are tried; faults hit the parameters before it.
            thresholds: Those of this layer, in whose proportions others are tried, and of all
                behind; none before may differ from the profiled one yet.
        """
        tensor, activations = activation.tensor, self._context.activations
        if tensor not in self._spaces:
            return None
        behind = activations[activations.index(activation) + 1 :]
        fixed = {other.tensor: thresholds[other.tensor] for other in behind}
        scale = np.log10(sorted(self._context.settings.search_ber))

        def areas(tried: Sequence[float]) -> list[float]:
            limits = [_with_largest(thresholds[tensor], threshold) for threshold in tried]
            cases = [Case(tensor, self._stored({**fixed, tensor: limit})) for limit in limits]
            return [
                float(np.trapezoid(list(found.values()), scale) / (scale[-1] - scale[0]))
                for found in self._probe.accuracies(cases)
            ]

        return areas

    def _stored(self, packed: Mapping[str, FloatArray]) -> Stored:
        named = _named(unpack(packed, self._context.two_sided))
        return tuple((name, tuple(values.reshape(-1).tolist())) for name, values in named.items())


@contextmanager
def open_trials(context: FitContext, profiled: Mapping[str, FloatArray]) -> Iterator[LayerTrials]:
    """Get ready to inject faults into a model with profiled thresholds.

    Args:
        context: What the method was given.
        profiled: The thresholds, packed.

    Raises:
        ModelError: If the model is no classifier, or cannot be run.
    """
    settings, labels = context.settings, context.calibration.labels
    if labels is None:
        raise ModelError(
            "method ftclipact measures accuracy, and the model's first output is not a vector "
            "of class scores: use --method ranger"
        )
    thresholds = unpack(profiled, context.two_sided)
    model = insert(context.model, thresholds, Form(settings.form or Form.HARD)).model
    faulted = [kind for kind in Kind if kind is not Kind.THRESHOLD]
    images = context.calibration.images[:_MOST_IMAGES]
    subject = unsaved(
        model, images, labels[:_MOST_IMAGES], settings.search(faulted), context.runtime
    )
    spaces = layer_spaces(context.model, context.activations, subject.space)
    cases = settings.search_rounds * _PIECES * len(profiled)
    with open_probe(
        subject, context.executor, context.reporter, spaces, _named(thresholds), cases
    ) as probe:
        yield LayerTrials(context, probe, spaces)


def _named(thresholds: Thresholds) -> dict[str, FloatArray]:
    """Thresholds by the names under which a model stores them."""
    upper = {threshold_name(tensor): values for tensor, values in thresholds.values.items()}
    return upper | {lower_name(tensor): values for tensor, values in thresholds.lower.items()}


def _with_largest(packed: FloatArray, largest: float) -> FloatArray:
    """Thresholds in the proportions of others, the largest magnitude given."""
    found = np.float32(largest)
    top = packed.max()
    return np.where(packed == top, found, packed * (found / top)).astype(np.float32)
