"""Where a network is worth cutting, so that trials need not recompute what lies before a fault.

Costs are counted in multiply-accumulate operations (MACs), bytes in what the values really take.
Nothing here is timed, so equal campaigns make equal choices.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from proact_onnx.engine.costs import Costs
from proact_onnx.engine.session import Array
from proact_onnx.rewrite import data_flow

# About what a processor computes while the sessions of a stage are opened: in all, and for every
# byte of their parameters.
_OPENING = 1e10
_OPENING_BYTE = 1e3
# An engine holds its parameters, the places of their elements, and what the runtime copies.
_PARAMETER_COPIES = 4
# The runtime takes memory in steps, each twice the last.
_ARENA_EXCESS = 2
# The budget is divided into so many units; sizes are rounded up to whole ones.
_UNITS = 1000


@dataclass(frozen=True)
class Workload:
    """What a campaign will ask for: decides which cuts pay.

    Attributes:
        bits: By parameter, how many of its bits can flip.
        trials: Trials of the campaign, all rates together.
        images: Images of a trial; 0 means all.
        rates: Bit error rates, each as often as the others. Without any, a trial has faults in
            one parameter, drawn in proportion to its bits.
    """

    bits: Mapping[str, int]
    trials: int
    images: int = 0
    rates: tuple[float, ...] = ()

    def beyond(self, before: int) -> float:
        """Probability that a trial has faults, and none in the first ``before`` bits."""
        total = sum(self.bits.values())
        if not self.rates:
            return (total - before) / total if total else 0.0
        shares = [(1.0 - rate) ** before - (1.0 - rate) ** total for rate in self.rates]
        return sum(shares) / len(shares)


@dataclass(frozen=True)
class Cut:
    """A tensor from which the rest of the network can be run.

    Attributes:
        info: Name, type and shape; the batch axis comes first, as open as the model's own.
        position: Index of the node that writes it.
        skipped: MACs an image that lie before it.
        elements: Elements an image.
        image_bytes: Bytes an image.
        parameter_bytes: Bytes of the parameters behind it.
        batch_bytes: Bytes an image of a batch that running the rest takes at its peak.
    """

    info: onnx.ValueInfoProto
    position: int
    skipped: float
    elements: int
    image_bytes: int
    parameter_bytes: int
    batch_bytes: int

    def bytes(self, images: int, batch_size: int) -> int:
        """Memory that a stage with ``images`` cached values takes, about."""
        engine = _PARAMETER_COPIES * self.parameter_bytes
        return engine + images * self.image_bytes + _ARENA_EXCESS * batch_size * self.batch_bytes


@dataclass(frozen=True)
class Layout:
    """The places where a network can be cut.

    Attributes:
        cuts: In topological order, at most one between two layers with parameters.
        total: MACs an image of the whole network.
        first_uses: By parameter, the index of the first node that depends on it.
    """

    cuts: tuple[Cut, ...]
    total: float
    first_uses: Mapping[str, int]


def find_cuts(
    model: onnx.ModelProto,
    parameters: Sequence[str],
    images: Array,
    ignored: Collection[str] = (),
) -> Layout:
    """List the cuts that can serve trials.

    Between two layers with parameters all cuts serve the same trials; the smallest tensor is
    taken, and among equal ones the last. A tensor whose first axis is not the batch is no cut.

    Args:
        model: The model, every parameter an initializer.
        parameters: Those that can be faulted.
        images: Preprocessed images, ``[N, ...]``; two of them are run to see sizes.
        ignored: Outputs that need not be computed behind a cut.

    Raises:
        ModelError: If ONNX Runtime refuses the model.
    """
    flow = data_flow(model, ignored)
    costs = Costs(model, images)
    macs = {index: costs.macs(model.graph.node[index]) for index in flow.nodes}
    uses = {name: flow.first_uses[name] for name in parameters if name in flow.first_uses}
    cuts: dict[int, Cut] = {}
    for point in flow.cut_points:
        info = costs.batched(point.tensor)
        uses_before = sum(use <= point.position for use in uses.values())
        if info is None or not 0 < uses_before < len(uses):
            continue
        image_bytes = costs.bytes(point.tensor)
        known = cuts.get(uses_before)
        if known is not None and known.image_bytes < image_bytes:
            continue
        behind = [index for index in flow.nodes if index > point.position]
        stored = [name for name, use in flow.first_uses.items() if use > point.position]
        cuts[uses_before] = Cut(
            info=info,
            position=point.position,
            skipped=sum(macs.values()) - sum(macs[index] for index in behind),
            elements=costs.elements(point.tensor),
            image_bytes=image_bytes,
            parameter_bytes=sum(costs.bytes(name) for name in stored),
            batch_bytes=costs.peak_bytes([model.graph.node[index] for index in behind]),
        )
    return Layout(tuple(cuts.values()), sum(macs.values()), uses)


def choose_cuts(
    layout: Layout, workload: Workload, images: int, batch_size: int, budget: int
) -> tuple[Cut, ...]:
    """Choose the cuts that save most within a budget; fewer where more would not pay.

    A trial is served by the last chosen cut before its first fault. So a chosen cut i behind
    another, j, saves (MACs before i - MACs before j) x P(a trial has its faults behind i), and
    the best choice follows from the best choices for smaller budgets (dynamic programming).
    Making a stage costs about one run of the network on all images, and opening its sessions.

    Args:
        layout: The cuts there are.
        workload: What the campaign will ask for.
        images: Images of the campaign.
        batch_size: Images per run.
        budget: Bytes.

    Returns:
        In topological order.
    """
    if budget <= 0:
        return ()
    cuts = layout.cuts
    per_trial = workload.images or images
    # Reading a cached value costs about as much as computing with it once.
    saved = np.array([0.0] + [max(0.0, cut.skipped - cut.elements) for cut in cuts])
    sizes = [math.ceil(_UNITS * cut.bytes(images, batch_size) / budget) for cut in cuts]
    # By last cut chosen (0: none) and units spent: the greatest saving, and the cut before it.
    best = np.full((len(cuts) + 1, _UNITS + 1), -np.inf)
    best[0] = 0.0
    previous = np.zeros(best.shape, np.int64)
    for number, (cut, size) in enumerate(zip(cuts, sizes, strict=True), start=1):
        if size > _UNITS:
            continue
        before = sum(
            bits
            for name, bits in workload.bits.items()
            if layout.first_uses.get(name, 0) <= cut.position
        )
        served = workload.trials * per_trial * workload.beyond(before)
        making = images * layout.total + _OPENING + _OPENING_BYTE * cut.parameter_bytes
        gains = (saved[number] - saved[:number]) * served - making
        reached = best[:number, : _UNITS + 1 - size] + gains[:, None]
        previous[number, size:] = reached.argmax(axis=0)
        best[number, size:] = reached.max(axis=0)
    number, spent = (int(index) for index in np.unravel_index(best.argmax(), best.shape))
    chosen: list[Cut] = []
    while number:
        chosen.insert(0, cuts[number - 1])
        number, spent = int(previous[number, spent]), spent - sizes[number - 1]
    return tuple(chosen)
