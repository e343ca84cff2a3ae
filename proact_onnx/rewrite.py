"""Which rewrites a model goes through, and in which order: the only user of the passes."""

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner

import passes
from passes import (
    LOWEST_OPSET,
    Bound,
    DataFlow,
    Extremes,
    Form,
    Range,
    Refusal,
    Sharing,
    StoredLayer,
    data_flow,
)
from proact_onnx.activations import find_activations, tensor_types
from proact_onnx.errors import ModelError
from proact_onnx.functions import Sides
from proact_onnx.model import (
    FLOAT_LIMITS,
    FLOAT_TYPES,
    LOWER_SUFFIX,
    THRESHOLD_SUFFIX,
    check_model,
    opset,
)
from proact_onnx.thresholds import Thresholds
from proact_onnx.versions import convert_opset

__all__ = [
    "LOWEST_OPSET",
    "Bound",
    "DataFlow",
    "Extremes",
    "Form",
    "Inserted",
    "Prepared",
    "Range",
    "Refusal",
    "Rescaled",
    "Sharing",
    "StoredLayer",
    "add_monitor",
    "data_flow",
    "expose",
    "expose_extremes",
    "insert",
    "lower_name",
    "open_subgraphs",
    "part_between",
    "prepare",
    "rescale",
    "stored_layers",
    "threshold_name",
]


_Q15_16 = Range(bits=15, digits=31)
# What a monitor's output is called.
_COUNTS = "out_of_bounds"


@dataclass(frozen=True)
class Prepared:
    """A model in the form that the other rooms work on.

    Attributes:
        model: The rewritten model.
        changes: Number of changes by pass name.
        refusals: BatchNormalization nodes that were not folded, with the reason.
    """

    model: onnx.ModelProto
    changes: dict[str, int]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Inserted:
    """A hardened model.

    Attributes:
        model: The model with a bound behind every activation that has a threshold.
        raised_opset: The opset the model was converted to because its own lacks the operators of
            the form, or of a monitor; ``None`` if it kept its own.
        bounds: The bounds of the main graph, in its order.
    """

    model: onnx.ModelProto
    raised_opset: int | None
    bounds: tuple[Bound, ...]


@dataclass(frozen=True)
class Rescaled:
    """A model whose weights fill the range of fixed-point storage.

    Attributes:
        model: The model.
        layers: Number of layers that were rescaled.
        refusals: Layers with stored weights that were not, with the reason.
        biases: Layers that were, but whose bias is stored as before, with the reason.
    """

    model: onnx.ModelProto
    layers: int
    refusals: tuple[Refusal, ...]
    biases: tuple[Refusal, ...]


def prepare(
    model: onnx.ModelProto,
    fold_batchnorm: bool = True,
    restore_rectifiers: bool = False,
    expand_pools: bool = False,
) -> Prepared:
    """Bring a model into the form that is trained, measured and hardened.

    Model-local functions are inlined, constants become initializers, other spellings of Relu
    become Relu, BatchNormalization is folded into the layer before it, and dead nodes go. An If
    that always takes the same branch becomes that branch. What other subgraphs store moves to the
    main graph, their tensors get names that no other has, and other spellings of Relu become Relu
    there, too. Outputs stay the same up to rounding.

    Args:
        model: The model; it is not changed.
        fold_batchnorm: Whether to fold.
        restore_rectifiers: Whether a Relu that quantisation folded into the range of a quantiser
            becomes a node again, for a bound to stand behind it.
        expand_pools: Whether pools of quantised codes become pools of numbers, for faulty scales to
            run through.

    Raises:
        ModelError: If the graph cannot be rewritten.
    """
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except RuntimeError as error:
            raise ModelError(f"the model's functions cannot be inlined: {error}") from error
    model, opened = open_subgraphs(model)
    fold = passes.FoldBatchnorm()
    steps: list[passes.Pass] = [passes.LiftConstants(), passes.NormalizeActivations()]
    steps += [fold] if fold_batchnorm else []
    steps += [passes.RestoreRectifiers()] if restore_rectifiers else []
    steps += [passes.ExpandPools()] if expand_pools else []
    prepared, changes = _run(model, [*steps, passes.Cleanup()], _open_types(model))
    prepared, inside = _run_inside(prepared, lambda subgraph: [passes.NormalizeActivations()])
    changes |= opened
    for name, count in inside.items():
        changes[name] += count
    # The types were known for the passes' sake; the model keeps those it came with.
    stated = {info.name for info in model.graph.value_info}
    kept = [info for info in prepared.graph.value_info if info.name in stated]
    del prepared.graph.value_info[:]
    prepared.graph.value_info.extend(kept)
    check_model(prepared, "the prepared model")
    return Prepared(prepared, changes, tuple(fold.refusals))


def open_subgraphs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Move what subgraphs store to the main graph, and take branches that are always taken.

    See `passes.lift_subgraphs` and `passes.take_branches`.

    Returns:
        The model, or a rewritten copy, and the number of changes of either kind, if there are any.

    Raises:
        ModelError: If a subgraph cannot be read.
    """
    try:
        model, lifted = passes.lift_subgraphs(model)
    except passes.PassError as error:
        raise ModelError(f"a subgraph cannot be rewritten: {error}") from error
    model, taken = passes.take_branches(model)
    changes = {"lift-subgraphs": lifted, "take-branches": taken}
    return model, {name: count for name, count in changes.items() if count}


def insert(
    model: onnx.ModelProto,
    thresholds: Thresholds,
    form: Form = Form.HARD,
    *,
    slope: float = 20.0,
    relative_slope: bool = True,
    monitored: bool = False,
) -> Inserted:
    """Put a bound behind every activation that has a threshold, inside subgraphs as well.

    Thresholds are stored in the activation's own type, one initializer per activation named by
    `threshold_name`, and one for lower thresholds where it has some. They stand in the main graph,
    wherever the activation is. Behind float16 they end at the largest finite number.

    Args:
        model: The model; it is not changed.
        thresholds: By activation tensor; finite.
        form: How the bound is written, see `passes.InsertHyReLU` and `passes.InsertBounds`.
        slope: k of the smooth form.
        relative_slope: Whether k counts in units of 1 / threshold.
        monitored: Whether `add_monitor` is to follow, which may need a newer opset.

    Raises:
        ModelError: If a tensor is not an activation of the model, a threshold is not finite or
            does not broadcast against its activation, a lower one is missing, the element type is
            not float16, float32 or float64, or the opset is too low for the form and cannot be
            raised.
    """
    lowest = max(LOWEST_OPSET[form], passes.MONITOR_OPSET if monitored else 0)
    raised = lowest if opset(model) < lowest else None
    if raised is not None:
        bounds_need = "a monitor" if lowest > LOWEST_OPSET[form] else f"form {form.value!r}"
        try:
            model = convert_opset(model, raised)
        except ModelError as error:
            raise ModelError(f"{bounds_need} needs opset {raised}: {error}") from error
    activations = {a.tensor: a for a in find_activations(model, linear=True)}
    types = tensor_types(model, inside=any(a.is_inner for a in activations.values()))
    rectified: list[passes.Site] = []
    signed: list[passes.BoundedSite] = []
    for tensor, value in thresholds.values.items():
        if tensor not in activations:
            raise ModelError(f"tensor {tensor!r} is not an activation of the model")
        activation, below = activations[tensor], thresholds.lower.get(tensor)
        for ends in (value,) if below is None else (value, below):
            _check_fit(tensor, ends, activation.shape)
        dtype = (
            FLOAT_TYPES.get(types[tensor].type.tensor_type.elem_type) if tensor in types else None
        )
        if dtype is None:
            raise ModelError(
                f"activation {tensor!r} has no known floating-point type of 16, 32 or 64 bits"
            )
        if activation.two_sided and below is None:
            raise ModelError(f"activation {tensor!r} is two-sided and has no lower threshold")
        upper, name = _stored(value, dtype), threshold_name(tensor)
        # A Clip is tightened where the form allows it, and bounded like the others where not.
        if activation.sides is Sides.RECTIFIED and (
            activation.op != "Clip" or form is not Form.SATURATE
        ):
            rectified.append(passes.Site(tensor, upper, name, activation.shape))
        elif below is None:
            signed.append(passes.BoundedSite(tensor, upper, name))
        else:
            lower = _stored(below, dtype)
            signed.append(passes.BoundedSite(tensor, upper, name, lower, lower_name(tensor)))

    def steps(graph: onnx.GraphProto) -> list[passes.InsertBounds | passes.InsertHyReLU]:
        written = {name for node in graph.node for name in node.output}
        here = [site for site in rectified if site.tensor in written]
        also = [site for site in signed if site.tensor in written]
        slopes = (slope, relative_slope)
        # A tent moves its threshold into a convolution, so those that are bounded must be so
        # before.
        both = (passes.InsertBounds(also, form, *slopes), passes.InsertHyReLU(here, form, *slopes))
        return [step for step in both if step.sites]

    outer = steps(model.graph)
    hardened, _ = _run(model, outer)
    hardened, _ = _run_inside(hardened, steps)
    check_model(hardened, "the hardened model")
    order = list(activations)
    bounds = [bound for step in outer for bound in step.bounds]
    bounds.sort(key=lambda bound: order.index(bound.tensor))
    return Inserted(hardened, raised, tuple(bounds))


def add_monitor(model: onnx.ModelProto, bounds: Sequence[Bound]) -> onnx.ModelProto:
    """Append an output that counts what is out of bounds, see `passes.AddMonitor`.

    Args:
        model: A hardened model; it is not changed.
        bounds: What to watch, from `insert`: the columns of the output.

    Returns:
        The model; its last output, ``[N, bounds]``, is ``out_of_bounds``, with a number behind it
        where the model has a tensor of that name.

    Raises:
        ModelError: If there is no bound, or the opset is too low.
    """
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    taken.update(info.name for info in (*model.graph.input, *model.graph.output))
    names = itertools.chain([_COUNTS], (f"{_COUNTS}_{number}" for number in itertools.count(2)))
    output = next(name for name in names if name not in taken)
    monitored, _ = _run(model, [passes.AddMonitor(bounds, output)])
    check_model(monitored, "the monitored model")
    return monitored


def stored_layers(model: onnx.ModelProto) -> list[StoredLayer]:
    """List the layers that `rescale` can rescale, in topological order.

    Raises:
        ModelError: If the graph cannot be read.
    """
    survey = passes.SurveyLayers()
    _run(model, [survey])
    return survey.layers


def rescale(
    model: onnx.ModelProto,
    sharing: Sharing = Sharing.CHANNEL,
    by_tensor: Collection[str] = (),
    limits: Range = _Q15_16,
) -> Rescaled:
    """Store weights and biases enlarged by powers of two, see `passes.RescaleWeights`.

    Where bounds are wanted too, they come after: a tent goes into the nodes that rescaling adds.

    Args:
        model: A prepared model; it is not changed. Its opset is raised where it is too low.
        sharing: What shares a factor.
        by_tensor: Names of weights that share one factor and of biases that are stored once,
            whatever ``sharing`` says.
        limits: What enlarged numbers are to fill.

    Raises:
        ModelError: If the model is rescaled already, or cannot be rewritten.
    """
    if opset(model) < passes.RESCALE_OPSET:
        model = convert_opset(model, passes.RESCALE_OPSET)
    step = passes.RescaleWeights(sharing, by_tensor, limits)
    rescaled, changes = _run(model, [step])
    check_model(rescaled, "the rescaled model")
    layers = changes[step.name]
    return Rescaled(rescaled, layers, tuple(step.refusals), tuple(step.biases))


def expose(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """Make inner tensors graph outputs, behind the original ones.

    Args:
        model: The model; it is not changed.
        tensors: Names, in the order wanted. One that is an output already is not repeated.

    Raises:
        ModelError: If a tensor does not exist, or its type cannot be inferred.
    """
    wanted = list(tensors)
    return _run(model, [passes.ExposeTensors(wanted)], _open_types(model, wanted))[0]


def expose_extremes(
    model: onnx.ModelProto, tensors: Iterable[str]
) -> tuple[onnx.ModelProto, dict[str, Extremes]]:
    """Give out the extremes of tensors inside subgraphs, see `passes.expose_extremes`.

    Args:
        model: A prepared model; it is not changed.
        tensors: Their names.

    Raises:
        ModelError: If one is not a tensor of a branch of an If, or the body of a Loop or Scan.
    """
    try:
        return passes.expose_extremes(model, list(tensors))
    except passes.PassError as error:
        raise ModelError(f"the model cannot be rewritten: {error}") from error


def part_between(
    model: onnx.ModelProto,
    start: onnx.ValueInfoProto | None = None,
    end: onnx.ValueInfoProto | Sequence[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    """Take the part of a model between two tensors, see `passes.part_between`.

    Raises:
        ModelError: If what is wanted cannot be computed from ``start`` alone.
    """
    try:
        return passes.part_between(model, start, end)
    except passes.PassError as error:
        raise ModelError(f"the model cannot be cut: {error}") from error


def threshold_name(tensor: str) -> str:
    """Name of the initializer that stores an activation's thresholds, the upper ones of two."""
    return f"{tensor}{THRESHOLD_SUFFIX}"


def lower_name(tensor: str) -> str:
    """Name of the initializer that stores an activation's lower thresholds."""
    return f"{tensor}{LOWER_SUFFIX}"


def _stored(
    value: np.typing.NDArray[np.float32], dtype: np.dtype[np.floating]
) -> np.typing.NDArray[np.floating]:
    """Thresholds in the activation's own type, where they end at its largest finite number."""
    limit = FLOAT_LIMITS[dtype]
    return np.clip(value.astype(np.float64), -limit, limit).astype(dtype)


def _run_inside(
    model: onnx.ModelProto, steps: Callable[[onnx.GraphProto], Sequence[passes.Pass]]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    try:
        return passes.run_in_subgraphs(model, steps)
    except passes.PassError as error:
        raise ModelError(f"a subgraph cannot be rewritten: {error}") from error


def _run(
    model: onnx.ModelProto,
    steps: Sequence[passes.Pass],
    types: Sequence[onnx.ValueInfoProto] = (),
) -> tuple[onnx.ModelProto, dict[str, int]]:
    try:
        return passes.run_passes(model, steps, types)
    except passes.PassError as error:
        raise ModelError(f"the model cannot be rewritten: {error}") from error


def _open_types(
    model: onnx.ModelProto, wanted: Sequence[str] | None = None
) -> list[onnx.ValueInfoProto]:
    """Types that a model leaves open: those wanted, or all that are known."""
    types = tensor_types(model)
    stated = {info.name for info in (*model.graph.value_info, *model.graph.output)}
    stated.update(info.name for info in model.graph.input)
    names = [name for name in types if wanted is None or name in wanted]
    return [types[name] for name in names if name not in stated]


def _check_fit(
    tensor: str, value: np.typing.NDArray[np.float32], shape: tuple[int | None, ...]
) -> None:
    if not np.isfinite(value).all():
        raise ModelError(f"the threshold of activation {tensor!r} is not finite")
    full = (1, *shape)
    fits = value.ndim == 0 or not shape or value.ndim == len(full)
    for extent, wanted in zip(value.shape, full, strict=False):
        fits = fits and (extent == 1 or wanted is None or extent == wanted or not shape)
    if not fits:
        raise ModelError(
            f"thresholds of shape {value.shape} do not fit activation {tensor!r}, which is "
            f"{full} without its batch"
        )
