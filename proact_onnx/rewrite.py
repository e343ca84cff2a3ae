"""Which rewrites a model goes through, and in which order: the only user of the passes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner

import passes
from passes import LOWEST_OPSET, DataFlow, Form, Refusal, Sharing, data_flow
from proact_onnx.activations import find_activations, tensor_types
from proact_onnx.errors import ModelError
from proact_onnx.model import FLOAT_TYPES, THRESHOLD_SUFFIX, check_model, opset
from proact_onnx.thresholds import Thresholds
from proact_onnx.versions import convert_opset

__all__ = [
    "LOWEST_OPSET",
    "DataFlow",
    "Form",
    "Inserted",
    "Prepared",
    "Refusal",
    "Rescaled",
    "Sharing",
    "data_flow",
    "expose",
    "insert",
    "part_between",
    "prepare",
    "rescale",
    "threshold_name",
]


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
            the form; ``None`` if it kept its own.
    """

    model: onnx.ModelProto
    raised_opset: int | None


@dataclass(frozen=True)
class Rescaled:
    """A model whose weights fill the range of fixed-point storage.

    Attributes:
        model: The model.
        layers: Number of layers that were rescaled.
        refusals: Layers with stored weights that were not, with the reason.
    """

    model: onnx.ModelProto
    layers: int
    refusals: tuple[Refusal, ...]


def prepare(model: onnx.ModelProto, fold_batchnorm: bool = True) -> Prepared:
    """Bring a model into the form that is trained, measured and hardened.

    Model-local functions are inlined, constants become initializers, other spellings of Relu
    become Relu, BatchNormalization is folded into the layer before it, and dead nodes go. Outputs
    stay the same up to rounding.

    Args:
        model: The model; it is not changed.
        fold_batchnorm: Whether to fold.

    Raises:
        ModelError: If the graph cannot be rewritten.
    """
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except RuntimeError as error:
            raise ModelError(f"the model's functions cannot be inlined: {error}") from error
    fold = passes.FoldBatchnorm()
    steps: list[passes.Pass] = [passes.LiftConstants(), passes.NormalizeActivations()]
    steps += [fold] if fold_batchnorm else []
    prepared, changes = _run(_with_types(model), [*steps, passes.Cleanup()])
    # The types were added for the passes' sake; the model keeps those it came with.
    stated = {info.name for info in model.graph.value_info}
    kept = [info for info in prepared.graph.value_info if info.name in stated]
    del prepared.graph.value_info[:]
    prepared.graph.value_info.extend(kept)
    check_model(prepared, "the prepared model")
    return Prepared(prepared, changes, tuple(fold.refusals))


def insert(
    model: onnx.ModelProto,
    thresholds: Thresholds,
    form: Form = Form.HARD,
    *,
    slope: float = 20.0,
    relative_slope: bool = True,
) -> Inserted:
    """Put a bound behind every activation that has a threshold.

    Thresholds are stored in the activation's own type, one initializer per activation named by
    `threshold_name`. Behind float16 they end at the largest finite number.

    Args:
        model: The model; it is not changed.
        thresholds: By activation tensor; finite.
        form: How the bound is written, see `passes.InsertHyReLU`.
        slope: k of the smooth form.
        relative_slope: Whether k counts in units of 1 / threshold.

    Raises:
        ModelError: If a tensor is not an activation of the model, a threshold is not finite or
            does not broadcast against its activation, the element type is not float16, float32 or
            float64, or the opset is too low for the form and cannot be raised.
    """
    lowest = LOWEST_OPSET[form]
    raised = lowest if opset(model) < lowest else None
    if raised is not None:
        try:
            model = convert_opset(model, raised)
        except ModelError as error:
            raise ModelError(f"form {form.value!r} needs opset {raised}: {error}") from error
    shapes = {activation.tensor: activation.shape for activation in find_activations(model)}
    types = tensor_types(model)
    sites = []
    for tensor, value in thresholds.values.items():
        if tensor not in shapes:
            raise ModelError(f"tensor {tensor!r} is not an activation of the model")
        _check_fit(tensor, value, shapes[tensor])
        dtype = (
            FLOAT_TYPES.get(types[tensor].type.tensor_type.elem_type) if tensor in types else None
        )
        if dtype is None:
            raise ModelError(
                f"activation {tensor!r} has no known floating-point type of 16, 32 or 64 bits"
            )
        limit = np.finfo(dtype).max
        stored = np.clip(value.astype(np.float64), -float(limit), float(limit)).astype(dtype)
        sites.append(passes.Site(tensor, stored, threshold_name(tensor)))
    step = passes.InsertHyReLU(sites, form, slope, relative_slope)
    hardened, _ = _run(model, [step])
    check_model(hardened, "the hardened model")
    return Inserted(hardened, raised)


def rescale(model: onnx.ModelProto, sharing: Sharing = Sharing.CHANNEL) -> Rescaled:
    """Store weights and biases enlarged by powers of two, see `passes.RescaleWeights`.

    Args:
        model: A prepared or hardened model; it is not changed.
        sharing: What shares a factor.

    Raises:
        ModelError: If the model is rescaled already, or cannot be rewritten.
    """
    step = passes.RescaleWeights(sharing)
    rescaled, changes = _run(model, [step])
    check_model(rescaled, "the rescaled model")
    return Rescaled(rescaled, changes[step.name], tuple(step.refusals))


def expose(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """Make inner tensors graph outputs, behind the original ones.

    Args:
        model: The model; it is not changed.
        tensors: Names, in the order wanted. One that is an output already is not repeated.

    Raises:
        ModelError: If a tensor does not exist, or its type cannot be inferred.
    """
    wanted = list(tensors)
    return _run(_with_types(model, wanted), [passes.ExposeTensors(wanted)])[0]


def part_between(
    model: onnx.ModelProto,
    start: onnx.ValueInfoProto | None = None,
    end: onnx.ValueInfoProto | None = None,
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
    """Name of the initializer that stores an activation's thresholds."""
    return f"{tensor}{THRESHOLD_SUFFIX}"


def _run(
    model: onnx.ModelProto, steps: list[passes.Pass]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    try:
        return passes.run_passes(model, steps)
    except passes.PassError as error:
        raise ModelError(f"the model cannot be rewritten: {error}") from error


def _with_types(model: onnx.ModelProto, wanted: Sequence[str] | None = None) -> onnx.ModelProto:
    """Copy a model, stating types that it leaves open: those wanted, or all that are known."""
    types = tensor_types(model)
    stated = {info.name for info in (*model.graph.value_info, *model.graph.output)}
    stated.update(info.name for info in model.graph.input)
    names = [name for name in types if wanted is None or name in wanted]
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    typed.graph.value_info.extend(types[name] for name in names if name not in stated)
    return typed


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
