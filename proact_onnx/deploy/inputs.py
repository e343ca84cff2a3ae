"""Images to try a hardened model on, and the outputs they must give."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from proact_onnx.data import Dataset, Preprocessing, prepare
from proact_onnx.deploy.base import Array, Runtime
from proact_onnx.deploy.examine import run_batches
from proact_onnx.deploy.onnx_runtime import OnnxRuntime
from proact_onnx.deploy.plant import Bounds
from proact_onnx.deploy.reference import Reference
from proact_onnx.errors import ModelError
from proact_onnx.model import HYRELU, image_input, output_names
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
) -> Array:
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
        ``[N, ...]``, N a multiple of the model's batch extent.

    Raises:
        ModelError: If the input's extents are open and there are no images.
        DataError: If the images do not fit.
    """
    wanted = image_input(model)
    if len(wanted.shape) < 2:
        raise ModelError(
            f"input {wanted.name!r} has no axis for the images of a batch: runtimes are tried with "
            "models whose input is a batch"
        )
    batch = wanted.shape[0] or 1
    count = -(-count // batch) * batch
    generator = np.random.default_rng(_SEED)
    if data is not None:
        chosen = generator.choice(
            len(data.images), min(_CANDIDATES * count, len(data.images)), False
        )
        images = prepare(data.images[chosen], preprocessing, wanted.shape, wanted.dtype)
        images = images[np.arange(-(-len(images) // batch) * batch) % len(images)]
    elif None in wanted.shape[1:]:
        raise ModelError(
            f"input {wanted.name!r} leaves its extents open: name images of the right size with "
            "--data"
        )
    else:
        shape = (_CANDIDATES * count, *(extent or 1 for extent in wanted.shape[1:]))
        images = _random(generator, shape, wanted.dtype)
    far = np.argsort(-_distances(model, bounds, images, batch, plain), kind="stable")
    return np.ascontiguousarray(images[np.sort(far[:count])])


def expect(model: onnx.ModelProto, images: Array, batch: int, plain: OnnxRuntime) -> Expectation:
    """Run a model in ONNX's reference, or where that fails in ONNX Runtime as it is written.

    Raises:
        ModelError: If neither runs it.
    """
    shape = (batch, *images.shape[1:])

    def outputs(runtime: Runtime) -> tuple[Array, ...]:
        return tuple(run_batches(runtime.load(model, shape), images, batch))

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
    model: onnx.ModelProto, bounds: Bounds, images: Array, batch: int, plain: OnnxRuntime
) -> Array:
    """By image, the smallest distance of a value from its threshold, relative to it."""
    written = {name for node in model.graph.node for name in node.output}
    rectified = {
        f"{tensor}{HYRELU}relu": threshold
        for tensor, threshold in bounds.thresholds.items()
        if f"{tensor}{HYRELU}relu" in written
    }
    exposed = expose(model, rectified)
    program = plain.load(exposed, (batch, *images.shape[1:]))
    values = dict(zip(output_names(exposed), run_batches(program, images, batch), strict=True))
    distances = np.full(len(images), np.inf)
    for name, threshold in rectified.items():
        if len(values[name]) == len(images):
            # A step of height zero does not matter.
            limit = np.where(threshold == 0, np.nan, threshold).astype(np.float64)
            gap = np.nan_to_num(np.abs(values[name] / limit - 1), nan=np.inf)
            distances = np.minimum(distances, gap.reshape(len(images), -1).min(axis=1))
    return distances
