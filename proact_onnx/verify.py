"""Comparing a hardened model with its original where there are no faults."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from proact_onnx.data import Dataset, Preprocessing, check_labels, prepare
from proact_onnx.engine import Predictions, Provider, Session, top1
from proact_onnx.errors import ModelError
from proact_onnx.model import (
    MONITOR,
    THRESHOLD_SUFFIX,
    computes_in_float16,
    is_threshold,
    load_model,
    model_digest,
    provenance,
)
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.rewrite import expose
from proact_onnx.settings import RuntimeSettings

# Folding BatchNormalization and fusing operators changes the last digits, relative to the
# largest output.
TOLERANCE = 1e-4
TOLERANCE_FLOAT16 = 3e-2


@dataclass(frozen=True)
class ClippedLayer:
    """What a layer's thresholds did on fault-free images.

    Attributes:
        tensor: The activation.
        samples: Indices of the images with a value above its threshold.
        values: Number of such values over all images.
    """

    tensor: str
    samples: npt.NDArray[np.int64]
    values: int


@dataclass(frozen=True)
class VerifyReport:
    """Fault-free comparison of two models.

    Attributes:
        images: Images compared.
        untouched: Images on which no value passes a threshold.
        largest_difference: Largest difference of their outputs, relative to the largest output.
        layers: Layers that clip a value of some image, in topological order.
        tolerance: What rounding may change; None where the smooth form is deployed, which changes
            values below its thresholds too.
        changed: Indices of the images whose top-1 class differs.
        accuracy_original: Accuracy of the original; None without labels.
        accuracy_hardened: Accuracy of the hardened model; None without labels.
    """

    images: int
    untouched: int
    largest_difference: float
    layers: tuple[ClippedLayer, ...]
    tolerance: float | None
    changed: npt.NDArray[np.int64]
    accuracy_original: float | None
    accuracy_hardened: float | None

    @property
    def passed(self) -> bool:
        """Whether outputs agree where no value passes a threshold, as far as the form allows."""
        return self.tolerance is None or self.largest_difference <= self.tolerance


def verify(
    original: Path,
    hardened: Path,
    data: Dataset,
    preprocessing: Preprocessing | None = None,
    runtime: RuntimeSettings | None = None,
    reporter: Reporter | None = None,
) -> VerifyReport:
    """Run both models on the same images and compare them.

    Args:
        original: The model before hardening.
        hardened: The file that hardening wrote.
        data: Images, with labels where there are any.
        preprocessing: How images become the models' input.
        runtime: How ONNX Runtime executes.
        reporter: Receives progress.

    Raises:
        ModelError: If a model cannot be read, the two do not have the same input and output, or
            the second is not hardened.
        DataError: If images or labels do not fit.
    """
    runtime = runtime or RuntimeSettings()
    reporter = reporter or LogReporter()
    arguments = (Provider(runtime.provider), runtime.threads, runtime.batch_size)
    before, after = load_model(original), load_model(hardened)
    bounds = _bounds(after, hardened)
    tolerance: float | None = TOLERANCE_FLOAT16 if computes_in_float16(before) else TOLERANCE
    if any(bound.smooth for bound in bounds):
        tolerance = None
        # The outputs cannot tell whether the two files belong together, so their record must.
        if provenance(after).get("original_sha256", "") not in ("", model_digest(before)):
            raise ModelError(
                f"{hardened} was hardened from another model than {original}: give that one"
            )
    reference = Session(before, *arguments)
    bounded = Session(expose(after, [bound.rectified for bound in bounds]), *arguments)
    if (reference.input, reference.outputs[0]) != (bounded.input, bounded.outputs[0]):
        raise _other_model(original, hardened)
    images = prepare(
        data.images, preprocessing or Preprocessing(), reference.input.shape, reference.input.dtype
    )
    if bounded.run(images[:1]).shape != reference.run(images[:1]).shape:
        raise _other_model(original, hardened)
    expected = reference.run(images)
    check_labels(data, int(np.prod(expected.shape[1:])))
    clipped = np.zeros((len(bounds), len(images)), np.int64)
    scores = []
    reporter.begin("comparing", len(images))
    start = 0
    for output, *rectified in bounded.stream(
        images, [bounded.outputs[0], *(bound.rectified for bound in bounds)]
    ):
        part = slice(start, start + len(output))
        scores.append(output)
        for row, (bound, value) in enumerate(zip(bounds, rectified, strict=True)):
            above = ~(value <= bound.threshold)
            clipped[row, part] = above.reshape(len(above), -1).sum(axis=1)
        start = part.stop
        reporter.advance(len(output))
    actual = np.concatenate(scores)
    untouched = clipped.sum(axis=0) == 0
    ours, theirs = top1(actual), top1(expected)
    return VerifyReport(
        images=len(images),
        untouched=int(untouched.sum()),
        largest_difference=_difference(actual[untouched], expected[untouched]),
        layers=tuple(
            ClippedLayer(bound.tensor, np.flatnonzero(counts), int(counts.sum()))
            for bound, counts in zip(bounds, clipped, strict=True)
            if counts.any()
        ),
        tolerance=tolerance,
        changed=np.flatnonzero(ours.classes != theirs.classes),
        accuracy_original=_accuracy(theirs, data),
        accuracy_hardened=_accuracy(ours, data),
    )


def _other_model(original: Path, hardened: Path) -> ModelError:
    return ModelError(
        f"{hardened} does not have the input and output of {original}: compare a model with the "
        "file that was hardened from it"
    )


@dataclass(frozen=True)
class _Bound:
    tensor: str
    rectified: str
    threshold: npt.NDArray[Any]
    smooth: bool


def _bounds(model: onnx.ModelProto, path: Path) -> Sequence[_Bound]:
    """Find what every threshold of a hardened model is compared with."""
    written = {name for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    # The ramp adds a threshold to itself before it reads the activation.
    doubled = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Add" and node.input[0] == node.input[1]
    }
    bounds = []
    for node in model.graph.node:
        # A monitor looks at what a bound is compared with once more.
        if MONITOR in node.output[0]:
            continue
        reads = [doubled.get(name, name) for name in node.input]
        beside = [name for name in reads if name in written]
        for name in filter(is_threshold, reads):
            # The smooth form also reads a threshold alone, for its relative slope.
            if name in stored and beside:
                tensor = name.removesuffix(THRESHOLD_SUFFIX)
                values = numpy_helper.to_array(stored[name])
                smooth = node.op_type == "Sub" and name in node.input
                bounds.append(_Bound(tensor, beside[0], values, smooth))
    if not bounds:
        raise ModelError(f"{path} is not hardened: it stores no thresholds")
    return bounds


def _difference(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    if not actual.size:
        return 0.0
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(actual - expected).max()) / scale


def _accuracy(predictions: Predictions, data: Dataset) -> float | None:
    if data.labels is None:
        return None
    return float(predictions.correct(data.labels).mean())
