"""What an output means: predictions, and whether they can be trusted."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.errors import ModelError

Classes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_LEADING = 5


@dataclass(frozen=True)
class Predictions:
    """Predictions of a classifier.

    Attributes:
        classes: int64 ``[N]``, the class with the largest score; meaningless where not finite.
        finite: bool ``[N]``, whether all scores of the image are finite. An output with an
            infinity or a NaN is a detectable error, not a silent one.
        leading: int64 ``[N, min(5, K)]``, the classes with the largest scores, in no order.
    """

    classes: Classes
    finite: Flags
    leading: Classes

    def correct(self, labels: Classes) -> Flags:
        """Tell which images are classified as labelled, ``[N]``; a non-finite output is wrong."""
        right: Flags = self.finite & (self.classes == labels)
        return right

    def corrupted(self, golden: "Predictions") -> Flags:
        """Tell which images suffer silent data corruption, SDC-1, ``[N]``.

        Their output is finite and its top-1 class differs from the golden run's.
        """
        changed: Flags = self.finite & (self.classes != golden.classes)
        return changed

    def corrupted_beyond_5(self, golden: "Predictions") -> Flags:
        """Tell which images suffer SDC-5, ``[N]``.

        Their output is finite and its top-1 class is not among the golden run's top five (Li et
        al., SC 2017).
        """
        among = (self.classes[:, None] == golden.leading).any(axis=1)
        # Of more than five equal scores, the leading ones need not include the first.
        beyond: Flags = self.corrupted(golden) & ~among
        return beyond

    def take(self, indices: npt.NDArray[np.int64]) -> "Predictions":
        """Return the predictions for some of the images."""
        return Predictions(self.classes[indices], self.finite[indices], self.leading[indices])


def is_classifier(scores: npt.NDArray[Any]) -> bool:
    """Tell whether an output is one vector of at least two class scores per image."""
    return scores.ndim > 1 and 2 <= max(scores.shape[1:]) == math.prod(scores.shape[1:])


def top1(scores: npt.NDArray[Any]) -> Predictions:
    """Read class scores.

    Args:
        scores: ``[N, K]``, or with further axes of extent 1.

    Raises:
        ModelError: If the output is not one vector of class scores per image.
    """
    if not is_classifier(scores):
        raise ModelError(
            f"the model's first output has shape {list(scores.shape)}, which is not a vector of "
            "class scores per image: only classifiers can be measured"
        )
    flat = scores.reshape(len(scores), -1)
    finite = np.isfinite(flat).all(axis=1)
    usable = np.where(finite[:, None], flat, 0)
    count = min(_LEADING, flat.shape[1])
    leading = np.argpartition(usable, -count, axis=1)[:, -count:]
    return Predictions(usable.argmax(axis=1), finite, leading)


def chance_warning(accuracy: float, classes: int, images: int) -> str | None:
    """Warn of an accuracy that can hardly be told from guessing.

    Args:
        accuracy: Clean accuracy, from 0 to 1.
        classes: Number of classes.
        images: Number of images it was measured on.

    Returns:
        A sentence that names the usual cause, or None where accuracy lies more than half of
        chance level and three standard deviations above chance.
    """
    chance = 1.0 / classes
    if accuracy >= 1.5 * chance + 3.0 * float(np.sqrt(chance * (1 - chance) / images)):
        return None
    return (
        f"clean accuracy is {accuracy:.1%}, hardly better than guessing among {classes} classes: "
        "check the preprocessing (--scale, --mean, --std, --layout) and the labels"
    )
