"""From settings to a hardened model, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from proact_onnx.activations import Activation
from proact_onnx.allocation import allocate
from proact_onnx.campaign import Executor
from proact_onnx.code_ranges import Coded, act_on_codes, code_ranges
from proact_onnx.engine import ActivationProfile, Provider, Session
from proact_onnx.faults import FixedPoint, added_count, parse_format
from proact_onnx.fidelity import compare
from proact_onnx.methods import METHODS, Checkpoint, FitContext, LabelledBatch
from proact_onnx.methods.base import profiled_thresholds
from proact_onnx.progress import Reporter
from proact_onnx.rewrite import (
    Bound,
    Form,
    Inserted,
    Range,
    Refusal,
    Rescaled,
    Sharing,
    insert,
    rescale,
)
from proact_onnx.settings import HardenSettings, RuntimeSettings, ThresholdScale
from proact_onnx.thresholds import (
    FloatArray,
    Granularity,
    Thresholds,
    memory_overhead,
    threshold_count,
)


@dataclass(frozen=True)
class Workpiece:
    """A model that is being hardened, and what is known of it.

    Attributes:
        model: The prepared model, without bounds.
        parameters: How many weights and biases it stores.
        activations: What may be bounded, in topological order, shapes known; outputs of linear
            layers are, if the settings say so.
        profile: Maxima over the calibration images.
        calibration: Images to learn from.
        accept: Other images, which decide whether something is kept.
        runtime: How ONNX Runtime and PyTorch execute.
        executor: Where trials under fault run.
    """

    model: onnx.ModelProto
    parameters: int
    activations: Sequence[Activation]
    profile: ActivationProfile
    calibration: LabelledBatch
    accept: LabelledBatch
    runtime: RuntimeSettings
    executor: Executor


@dataclass(frozen=True)
class Built:
    """A hardened model.

    Attributes:
        model: The model.
        thresholds: What its activations are bounded by.
        coded: What became of thresholds in front of quantisers.
        activations: What is bounded.
        numbers: How many thresholds, scales and copies it stores.
        overhead: These in per cent of the parameters (Eq. 6).
        bounds: The bounds that stand in its main graph, in topological order.
        rescaled: Which layers were rescaled; None if that was not wanted.
        evaluations: Images classified under fault to find the thresholds.
    """

    model: onnx.ModelProto
    thresholds: Thresholds
    coded: Coded
    activations: tuple[Activation, ...]
    numbers: int
    overhead: float
    bounds: tuple[Bound, ...]
    rescaled: Rescaled | None
    evaluations: int

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Layers whose weights could not be rescaled."""
        return () if self.rescaled is None else self.rescaled.refusals


def build(
    workpiece: Workpiece, settings: HardenSettings, checkpoint: Checkpoint, reporter: Reporter
) -> Built:
    """Find thresholds, rescale, and insert bounds.

    Args:
        workpiece: The model and its data; nothing of it is changed.
        settings: Method and its options, resolved.
        checkpoint: Where finished layers are kept.
        reporter: Receives progress.

    Raises:
        ModelError: If the model cannot be hardened in this way.
        SettingsError: If a setting does not go with the method.
    """
    linear = settings.protect == "linear"
    activations = [a for a in workpiece.activations if linear or not a.is_linear]
    activations, rescaled = _share(workpiece, settings, activations)
    model = workpiece.model if rescaled is None else rescaled.model
    context = FitContext(
        model=workpiece.model,
        activations=[activation for activation in activations if not activation.is_inner],
        profile=workpiece.profile,
        calibration=workpiece.calibration,
        accept=workpiece.accept,
        settings=settings,
        runtime=workpiece.runtime,
        checkpoint=checkpoint,
        reporter=reporter,
        executor=workpiece.executor,
    )
    fitted = METHODS[settings.method].fit(context)
    # Methods look at the main graph alone; inside subgraphs nothing but extremes is known.
    inner = profiled_thresholds(
        replace(context, activations=[a for a in activations if a.is_inner])
    )
    found = fitted.thresholds.joined(inner)
    form = Form(str(settings.form))
    ranges = code_ranges(workpiece.model, activations)

    def bound(thresholds: Thresholds) -> Inserted:
        return insert(
            model,
            thresholds,
            form,
            slope=settings.slope,
            relative_slope=settings.slope_scale is ThresholdScale.RELATIVE,
            monitored=settings.monitor,
        )

    coded = act_on_codes(found, ranges, zero_top_code=form is Form.HARD)
    inserted = bound(coded.thresholds)
    if coded.lowered:
        lost = _cost(workpiece, inserted.model)
        if lost > settings.max_accuracy_drop:
            reporter.notice(
                f"setting saturated codes to zero would cost {lost:.2g} points on the accept "
                f"images, and {settings.max_accuracy_drop:g} are allowed: they are kept"
            )
            coded = act_on_codes(found, ranges, zero_top_code=False)
            inserted = bound(coded.thresholds)
    numbers = added_count(inserted.model)
    return Built(
        model=inserted.model,
        thresholds=coded.thresholds,
        coded=coded,
        activations=tuple(a for a in activations if a.tensor in coded.thresholds.values),
        numbers=numbers,
        overhead=memory_overhead(numbers, workpiece.parameters),
        bounds=inserted.bounds,
        rescaled=rescaled,
        evaluations=fitted.evaluations,
    )


def _share(
    workpiece: Workpiece, settings: HardenSettings, activations: Sequence[Activation]
) -> tuple[list[Activation], Rescaled | None]:
    """Decide what shares a threshold and a scale, within the limit on memory, and rescale."""

    def rescaled(by_tensor: frozenset[str] = frozenset()) -> Rescaled:
        sharing = Sharing.TENSOR if settings.rescale == "tensor" else Sharing.CHANNEL
        return rescale(workpiece.model, sharing, by_tensor, storage_range(settings.format))

    fixed = rescaled() if settings.rescale in ("tensor", "channel") else None
    if "auto" not in (settings.granularity, settings.rescale):
        return list(activations), fixed
    thresholds = settings.granularity == Granularity.AUTO
    limit = int(settings.max_memory_overhead / 100.0 * workpiece.parameters)
    if not thresholds:
        limit -= threshold_count(activations, Granularity(str(settings.granularity)))
    if fixed is not None:
        limit -= added_count(fixed.model)
    allocation = allocate(
        workpiece.model,
        activations,
        _reach(workpiece.profile),
        limit,
        thresholds=thresholds,
        scales=settings.rescale == "auto",
    )
    if settings.rescale == "auto":
        fixed = rescaled(allocation.by_tensor)
    return list(allocation.activations), fixed


def _cost(workpiece: Workpiece, model: onnx.ModelProto) -> float:
    """Points of accuracy lost; for what is no classifier, per cent by which outputs change."""
    runtime = workpiece.runtime
    provider = (Provider(runtime.provider), runtime.threads, runtime.batch_size)
    original, bounded = (Session(each, *provider) for each in (workpiece.model, model))
    clean = compare(original, bounded, workpiece.accept)
    if clean.accuracy_before is None or clean.accuracy_after is None:
        return 100 * clean.output_change
    return 100 * (clean.accuracy_before - clean.accuracy_after)


def _reach(profile: ActivationProfile) -> dict[str, FloatArray]:
    """Largest magnitude of each neuron on a side that is bounded."""
    return {
        tensor: np.maximum(highest, -profile.minima.get(tensor, -highest))
        for tensor, highest in profile.maxima.items()
    }


def storage_range(name: str) -> Range:
    """What weights are enlarged to, in a memory format.

    Fixed point is filled up to its end. In the others a weight just below 1 has the exponent with
    most ones below the first place, where a flip upwards is either harmless or so large that a
    bound takes it away.

    Raises:
        SettingsError: If there is no such format.
    """
    found = parse_format(name)
    if isinstance(found, FixedPoint):
        return Range(found.integer_bits, found.integer_bits + found.fraction_bits)
    return Range(bits=0)
