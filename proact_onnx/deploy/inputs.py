"""Images to try a hardened model on, and the outputs they must give."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from proact_onnx.data import Dataset, Preprocessing, prepare_inputs
from proact_onnx.deploy.base import Array, Runtime
from proact_onnx.deploy.examine import first_feeds, run_batches, shapes_of
from proact_onnx.deploy.onnx_runtime import OnnxRuntime
from proact_onnx.deploy.plant import Bounds
from proact_onnx.deploy.reference import Reference
from proact_onnx.engine import Calls
from proact_onnx.errors import ModelError
from proact_onnx.model import HYRELU, ModelInput, model_inputs, output_names
from proact_onnx.rewrite import expose

# Images looked at for each that is taken.
_CANDIDATES = 4
_SEED = 0


@dataclass(frozen=True)
class Expectation:
    """What a model gives without faults.

    Attributes:
        outputs: Each ``[N, ...]``.
        reference: Name of the runtime that says so.
    """

    outputs: tuple[Array, ...]
    reference: str


def draw_images(
    model: onnx.ModelProto,
    bounds: Bounds,
    count: int,
    data: Dataset | None,
    preprocessing: Preprocessing,
    plain: OnnxRuntime,
) -> tuple[Array, Calls]:
    """Draw images on which all correct runtimes must agree.

    A hard bound is a step: where a value lies on its threshold up to rounding, runtimes may differ
    by the whole value and be right. So several times as many images are drawn, and those are taken
    whose values keep the largest distance from their thresholds.

    Args:
        model: The hardened model.
        bounds: Its bounds.
        count: Images wanted.
        data: Where to draw from; random numbers when absent.
        preprocessing: How images become the model's input.
        plain: Runs the model to see the values.

    Returns:
        ``[N, ...]``, or records ``[N]`` for several inputs, N a multiple of the model's batch
        extent; and how they become runs.

    Raises:
        ModelError: If there are no images, and random numbers cannot stand in: the input's extents
            are open, or there are several inputs.
        DataError: If the images do not fit.
    """
    inputs = model_inputs(model)
    generator = np.random.default_rng(_SEED)
    if data is None:
        wanted = _one_closed_input(inputs)
        calls = Calls.of(inputs, np.empty(0, wanted.dtype), 1)
        count = -(-count // calls.size) * calls.size
        shape = (_CANDIDATES * count, *(extent or 1 for extent in wanted.shape[1:]))
        images = _random(generator, shape, wanted.dtype)
    else:
        calls = Calls.of(inputs, prepare_inputs(data.images[:1], preprocessing, inputs), 1)
        count = -(-count // calls.size) * calls.size
        chosen = generator.choice(
            len(data.images), min(_CANDIDATES * count, len(data.images)), False
        )
        images = prepare_inputs(data.images[chosen], preprocessing, inputs)
        images = images[np.arange(-(-len(images) // calls.size) * calls.size) % len(images)]
    far = np.argsort(-_distances(model, bounds, images, calls, plain), kind="stable")
    return np.ascontiguousarray(images[np.sort(far[:count])]), calls


def _one_closed_input(inputs: Sequence[ModelInput]) -> ModelInput:
    """The input that random numbers can be drawn for."""
    if len(inputs) != 1:
        names = ", ".join(repr(each.name) for each in inputs) or "none"
        raise ModelError(
            f"the model does not have one input that random numbers could be drawn for, but {names}"
            ": name samples of all with --data"
        )
    [wanted] = inputs
    if len(wanted.shape) < 2:
        raise ModelError(
            f"input {wanted.name!r} has no axis for the images of a batch: name samples that are "
            "whole calls with --data"
        )
    if None in wanted.shape[1:]:
        raise ModelError(
            f"input {wanted.name!r} leaves its extents open: name images of the right size with "
            "--data"
        )
    return wanted


def expect(model: onnx.ModelProto, images: Array, calls: Calls, plain: OnnxRuntime) -> Expectation:
    """Run a model in ONNX's reference, or where that fails in ONNX Runtime as it is written.

    Raises:
        ModelError: If neither runs it.
    """
    shapes = shapes_of(first_feeds(images, calls))

    def outputs(runtime: Runtime) -> tuple[Array, ...]:
        return tuple(run_batches(runtime.load(model, shapes), images, calls))

    reference = Reference()
    try:
        return Expectation(outputs(reference), reference.name)
    except Exception:  # the reference has no class of its own for what it lacks
        return Expectation(outputs(plain), plain.name)


def _random(
    generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype[np.generic]
) -> Array:
    if dtype.kind in "ui":
        # Pixels, in a type of 8 bits or more.
        return generator.integers(0, 128, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def _distances(
    model: onnx.ModelProto, bounds: Bounds, images: Array, calls: Calls, plain: OnnxRuntime
) -> Array:
    """By image, the smallest distance of a value from its threshold, relative to it."""
    written = {name for node in model.graph.node for name in node.output}
    rectified = {
        f"{tensor}{HYRELU}relu": threshold
        for tensor, threshold in bounds.thresholds.items()
        if f"{tensor}{HYRELU}relu" in written
    }
    exposed = expose(model, rectified)
    program = plain.load(exposed, shapes_of(first_feeds(images, calls)))
    values = dict(zip(output_names(exposed), run_batches(program, images, calls), strict=True))
    distances = np.full(len(images), np.inf)
    for name, threshold in rectified.items():
        if len(values[name]) == len(images):
            # A step of height zero does not matter.
            limit = np.where(threshold == 0, np.nan, threshold).astype(np.float64)
            gap = np.nan_to_num(np.abs(values[name] / limit - 1), nan=np.inf)
            distances = np.minimum(distances, gap.reshape(len(images), -1).min(axis=1))
    return distances
