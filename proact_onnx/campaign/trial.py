"""One trial: sample, flip, run, score, undo."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.campaign.encoded import EncodedModel
from proact_onnx.campaign.store import TrialResult
from proact_onnx.engine import FaultEngine, Predictions, top1
from proact_onnx.faults import FaultSpace, draw_faults

# Keeps the choice of images apart from the choice of faults under the same seed.
_IMAGES_STREAM = 0x1A6E5


@dataclass(frozen=True)
class TrialRunner:
    """Everything the trials of a campaign share.

    Attributes:
        engine: Runs the model; holds no faults between trials.
        encoded: The model's parameters as stored.
        space: Where faults can hit.
        images: Preprocessed images, ``[N, ...]``.
        golden: The golden run's predictions for them.
        labels: int64 ``[N]``.
        images_per_trial: Images drawn for each trial; 0 takes all.
        seed: Decides every fault and every choice of images.
    """

    engine: FaultEngine
    encoded: EncodedModel
    space: FaultSpace
    images: npt.NDArray[Any]
    golden: Predictions
    labels: npt.NDArray[np.int64]
    images_per_trial: int
    seed: int

    def run(self, ber: float, trial: int) -> TrialResult:
        """Run one trial; without a flip it is the golden run, and nothing is computed."""
        faults = draw_faults(self.space, ber, self.seed, trial)
        chosen = choose_images(len(self.images), self.images_per_trial, self.seed, trial)
        golden, labels = self.golden.take(chosen), self.labels[chosen]
        faulty = golden
        if faults.flips:
            try:
                self.encoded.flip(self.engine, faults)
                faulty = top1(self.engine.run(self.images[chosen]))
            finally:
                self.encoded.restore(self.engine, faults)
        return TrialResult(
            ber=ber,
            trial=trial,
            flips=faults.flips,
            images=len(chosen),
            correct=int(faulty.correct(labels).sum()),
            golden_correct=int(golden.correct(labels).sum()),
            sdc=int(faulty.corrupted(golden).sum()),
            nonfinite=int((~faulty.finite).sum()),
        )


def choose_images(total: int, count: int, seed: int, trial: int) -> npt.NDArray[np.int64]:
    """Draw a trial's images without replacement: the same for every model and bit error rate.

    Args:
        total: Images there are.
        count: Images to draw; 0, or more than there are, takes all.
        seed: Seed of the campaign.
        trial: Number of the trial.

    Returns:
        Indices in ascending order.
    """
    if not 0 < count < total:
        return np.arange(total)
    rng = np.random.default_rng((seed, _IMAGES_STREAM, trial))
    return np.sort(rng.choice(total, count, replace=False))
