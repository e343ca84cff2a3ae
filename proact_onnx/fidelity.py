"""What hardening changes where there are no faults: accuracy, and the outputs themselves."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.data import Dataset, Preprocessing, check_labels, prepare_inputs
from proact_onnx.engine import Session, chance_warning, is_classifier, top1
from proact_onnx.methods import LabelledBatch


@dataclass(frozen=True)
class Fidelity:
    """A hardened model beside its original on the same images.

    Attributes:
        accuracy_before: Accuracy of the original; None where it is no classifier.
        accuracy_after: Accuracy of the hardened model; None likewise.
        output_change: Mean over the images of ``||hardened - original|| / ||original||`` of the
            first output (Euclidean norms); 1 for an image whose output has another shape.
    """

    accuracy_before: float | None
    accuracy_after: float | None
    output_change: float


def label_batch(data: Dataset, model: Session, preprocessing: Preprocessing) -> LabelledBatch:
    """Preprocess images, and label them by the model itself where they have no labels.

    Raises:
        DataError: If images or labels do not fit the model.
    """
    images = prepare_inputs(data.images, preprocessing, model.inputs)
    if not gives_scores(model, images):
        return LabelledBatch(images, None)
    check_labels(data, model.run(images[:1])[0].size)
    labels = data.labels if data.labels is not None else top1(model.run(images)).classes
    return LabelledBatch(images, labels)


def gives_scores(model: Session, images: npt.NDArray[Any]) -> bool:
    """Tell whether the first output is a vector of class scores for each image.

    What a call gives that is not cut along a batch may be anything, such as the bytes of an encoded
    image: scores are numbers with a fraction there, and as many for every call.
    """
    if not model.calls(images).whole:
        return is_classifier(model.run(images[:1]))
    kinds = {
        (scores.shape, scores.dtype.kind, is_classifier(scores))
        for [scores] in model.stream(images, model.outputs[:1])
    }
    return len(kinds) == 1 and kinds.pop()[1:] == ("f", True)


def guessing(model: Session, batch: LabelledBatch) -> str | None:
    """Warn of a classifier whose accuracy on labelled images is hardly better than guessing."""
    if batch.labels is None:
        return None
    scores = model.run(batch.images)
    accuracy = float(top1(scores).correct(batch.labels).mean())
    return chance_warning(accuracy, int(np.prod(scores.shape[1:])), len(batch.images))


def compare(original: Session, hardened: Session, batch: LabelledBatch) -> Fidelity:
    """Run both models on the same images, batch by batch."""
    changes, before, after = [], 0, 0
    start = 0
    for [ours], [theirs] in zip(
        hardened.stream(batch.images, hardened.outputs[:1]),
        original.stream(batch.images, original.outputs[:1]),
        strict=True,
    ):
        changes.append(_changes(ours, theirs))
        if batch.labels is not None:
            labels = batch.labels[start : start + len(ours)]
            before += int(top1(theirs).correct(labels).sum())
            after += int(top1(ours).correct(labels).sum())
        start += len(ours)
    known = batch.labels is not None
    return Fidelity(
        accuracy_before=before / start if known else None,
        accuracy_after=after / start if known else None,
        output_change=float(np.concatenate(changes).mean()),
    )


def _changes(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """By image, how far an output is from another, relative to its length."""
    if ours.shape != theirs.shape:
        return np.ones(len(theirs))
    wanted = theirs.reshape(len(theirs), -1).astype(np.float64)
    change = np.linalg.norm(ours.reshape(len(ours), -1) - wanted, axis=1)
    length = np.linalg.norm(wanted, axis=1)
    relative: npt.NDArray[np.float64] = np.divide(
        change, length, out=change.copy(), where=length > 0
    )
    return relative
