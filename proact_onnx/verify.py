"""Comparing a hardened model with its original where there are no faults."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from proact_onnx.data import Dataset, Preprocessing, check_labels, prepare_inputs
from proact_onnx.engine import (
    Predictions,
    Provider,
    Session,
    load_operators,
    top1,
)
from proact_onnx.errors import ModelError
from proact_onnx.fidelity import gives_scores
from proact_onnx.messages import nested_graphs
from proact_onnx.model import (
    HYRELU,
    LOWER_SUFFIX,
    SHIFTED_SUFFIX,
    THRESHOLD_SUFFIX,
    computes_in_float16,
    is_threshold,
    load_model,
    model_digest,
    provenance,
)
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.rewrite import expose, expose_extremes
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
        samples: Indices of the images with a value outside its thresholds.
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
        layers: Layers that clip a value of some image, in topological order, those in subgraphs
            last.
        tolerance: What rounding may change; None where the smooth form is deployed, which changes
            values below its thresholds too.
        changed: Indices of the images whose top-1 class differs; None where the model is no
            classifier.
        accuracy_original: Accuracy of the original; None without labels.
        accuracy_hardened: Accuracy of the hardened model; None without labels.
    """

    images: int
    untouched: int
    largest_difference: float
    layers: tuple[ClippedLayer, ...]
    tolerance: float | None
    changed: npt.NDArray[np.int64] | None
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
    notice = load_operators(runtime.operators, before)
    if notice is not None:
        reporter.notice(notice)
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
    exposed, extremes = _expose(after, bounds)
    bounded = Session(exposed, *arguments)
    if (reference.inputs, reference.outputs[0]) != (bounded.inputs, bounded.outputs[0]):
        raise _other_model(original, hardened)
    images = prepare_inputs(data.images, preprocessing or Preprocessing(), reference.inputs)
    ours, theirs = (session.run(images[:1]) for session in (bounded, reference))
    # How long an output is may depend on what a call computes.
    if ours.ndim != theirs.ndim or (
        ours.shape != theirs.shape and not reference.calls(images).whole
    ):
        raise _other_model(original, hardened)
    classifies = gives_scores(reference, images)
    if classifies:
        check_labels(data, theirs[0].size)
    golden = [value for [value] in reference.stream(images, reference.outputs[:1])]
    clipped = np.zeros((len(bounds), len(images)), np.int64)
    scores = []
    reporter.begin("comparing", len(images))
    start = 0
    sizes = bounded.calls(images).sizes(len(images))
    wanted = [bounded.outputs[0], *(name for bound in bounds for name in extremes[bound.rectified])]
    for size, values in zip(sizes, bounded.stream(images, wanted), strict=True):
        part = slice(start, start + size)
        given = dict(zip(wanted, values, strict=True))
        scores.append(given[wanted[0]])
        for row, bound in enumerate(bounds):
            outside = bound.outside([given[name] for name in extremes[bound.rectified]])
            if len(outside) == size:
                clipped[row, part] = outside.reshape(size, -1).sum(axis=1)
            elif outside.any():
                # The batch is not the first axis, so it may be any image of these.
                clipped[row, part] = -(-int(outside.sum()) // size)
        start = part.stop
        reporter.advance(size)
    actual, expected = _joined(scores, golden)
    untouched = clipped.sum(axis=0) == 0
    predictions = (top1(actual), top1(expected)) if classifies else None
    return VerifyReport(
        images=len(images),
        untouched=int(untouched.sum()),
        largest_difference=_difference(actual, expected, untouched),
        layers=tuple(
            ClippedLayer(bound.tensor, np.flatnonzero(counts), int(counts.sum()))
            for bound, counts in zip(bounds, clipped, strict=True)
            if counts.any()
        ),
        tolerance=tolerance,
        changed=predictions and np.flatnonzero(predictions[0].classes != predictions[1].classes),
        accuracy_original=_accuracy(predictions and predictions[1], data),
        accuracy_hardened=_accuracy(predictions and predictions[0], data),
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
    lower: npt.NDArray[Any]
    smooth: bool
    is_inner: bool

    def outside(self, given: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
        """Tell of values, or of the extremes inside a subgraph, whether they pass a threshold."""
        highest, lowest = (given[0], -given[1]) if self.is_inner else (given[0], given[0])
        # A comparison with NaN does not hold.
        return np.asarray(~((highest <= self.threshold) & (lowest >= self.lower)))


def _expose(
    model: onnx.ModelProto, bounds: Sequence[_Bound]
) -> tuple[onnx.ModelProto, dict[str, tuple[str, ...]]]:
    """Give out what bounds compare; by its name, what it is given out as."""
    outer = [bound.rectified for bound in bounds if not bound.is_inner]
    inner = [bound.rectified for bound in bounds if bound.is_inner]
    names: dict[str, tuple[str, ...]] = {name: (name,) for name in outer}
    exposed = expose(model, outer)
    if inner:
        exposed, extremes = expose_extremes(exposed, inner)
        names |= {name: (each.highest, each.lowest) for name, each in extremes.items()}
    return exposed, names


def _bounds(model: onnx.ModelProto, path: Path) -> Sequence[_Bound]:
    """Find what the thresholds of a hardened model are compared with, those in subgraphs last."""
    stored = {t.name: t for t in model.graph.initializer if is_threshold(t.name)}
    below = [node for graph in nested_graphs(model.graph) for node in graph.node]
    inside = {name for node in below for name in node.output}
    nodes = [*model.graph.node, *below]
    written = [name for node in nodes for name in node.output]
    # A Clip that was tightened has no tensor of its own before the bound.
    sources = {
        name.removesuffix(THRESHOLD_SUFFIX): node.input[0]
        for node in nodes
        for name in node.input
        if node.op_type == "Clip" and name in stored
    }
    smooth = set()
    for name in written:
        tensor, _, role = name.partition(HYRELU)
        # A name that was taken has a number behind it.
        role = role.partition("_")[0]
        if role in ("relu", "value", "shifted"):
            sources[tensor] = name
        elif role == "gate":
            smooth.add(tensor)
    bounds = []
    for tensor in filter(sources.__contains__, written):
        upper, lower = (stored.get(tensor + suffix) for suffix in (THRESHOLD_SUFFIX, LOWER_SUFFIX))
        if upper is None:
            continue
        least = np.array(-np.inf) if lower is None else numpy_helper.to_array(lower)
        values = numpy_helper.to_array(upper)
        if sources[tensor].endswith(SHIFTED_SUFFIX):
            # A tent compares the difference from the threshold with zero.
            values = np.zeros(())
        source = sources[tensor]
        bounds.append(_Bound(tensor, source, values, least, tensor in smooth, source in inside))
    if not bounds:
        raise ModelError(f"{path} is not hardened: it stores no thresholds")
    return bounds


def _joined(
    ours: Sequence[npt.NDArray[Any]], theirs: Sequence[npt.NDArray[Any]]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Put the outputs of two models together, ``[N, ...]``.

    Outputs of different shapes, which calls may give, become rows that end in zeros.
    """
    parts = (*ours, *theirs)
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(ours), np.concatenate(theirs)
    width = max(part[0].size for part in parts)
    rows = [part.reshape(len(part), -1) for part in parts]
    filled = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in rows]
    return np.concatenate(filled[: len(ours)]), np.concatenate(filled[len(ours) :])


def _difference(
    actual: npt.NDArray[Any], expected: npt.NDArray[Any], untouched: npt.NDArray[np.bool_]
) -> float:
    """Largest difference of outputs on some images, relative to the largest output on these."""
    if len(actual) == len(untouched):
        actual, expected = actual[untouched], expected[untouched]
    if not actual.size or not untouched.any():
        return 0.0
    if expected.dtype.kind in "biu":
        # Their differences do not fit into their own type.
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(actual - expected).max()) / scale


def _accuracy(predictions: Predictions | None, data: Dataset) -> float | None:
    if data.labels is None or predictions is None:
        return None
    return float(predictions.correct(data.labels).mean())
