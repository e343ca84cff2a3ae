"""One trial: draw, inject, run, judge, undo."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.campaign.distance import ActivationMeter, mean_distance
from proact_onnx.campaign.encoded import Injection
from proact_onnx.campaign.images import choose_images
from proact_onnx.campaign.judge import Verdict
from proact_onnx.campaign.store import TrialResult
from proact_onnx.campaign.subject import GoldenRun
from proact_onnx.errors import RunError
from proact_onnx.faults import FaultMap, FaultModel, FaultSpace

Indices = npt.NDArray[np.int64]


class TrialRunner:
    """Runs trials on one model.

    Args:
        golden: The model and its golden run.
        seed: Decides every fault and every choice of images.
        record_faults: Whether results name the words hit.
        meter: Measures the distance of activations, if that is wanted.
    """

    def __init__(
        self,
        golden: GoldenRun,
        seed: int,
        record_faults: bool = False,
        meter: ActivationMeter | None = None,
    ) -> None:
        self._golden = golden
        self._seed = seed
        self._record_faults = record_faults
        self._meter = meter
        # Labels make every choice of images hold the classes in proportion.
        self._strata = golden.labels

    def run(
        self,
        model: FaultModel,
        space: FaultSpace,
        trial: int,
        images: int,
        name: str = "",
        stored: Sequence[tuple[str, Sequence[float]]] = (),
    ) -> TrialResult:
        """Run one trial; where no bit changes it is the golden run, and nothing is computed.

        Args:
            model: What to draw.
            space: Where faults can hit.
            trial: Number of the trial, from 0.
            images: Number of images; as many as there are where there are not so many.
            name: What the record calls the fault model, if not by its name.
            stored: By parameter, values in its order that this trial stores in place of the
                model's own. The parameter is none that faults hit.
        """
        faults = model.draw(space, self._seed, trial)
        chosen = self.choose(trial, images)
        return self.evaluate(name or model.name, faults, trial, chosen, stored)

    def choose(self, trial: int, images: int) -> Indices:
        """Draw a trial's images: the same for every model and fault model."""
        total = len(self._golden.images)
        return choose_images(total, images, self._seed, trial, self._strata)

    def evaluate(
        self,
        name: str,
        faults: FaultMap,
        trial: int,
        chosen: Indices,
        stored: Sequence[tuple[str, Sequence[float]]] = (),
    ) -> TrialResult:
        """Evaluate given faults on given images.

        Args:
            name: Name of the fault model.
            faults: The faults.
            trial: Number of the trial.
            chosen: Indices of the images, ascending.
            stored: See `run`.
        """
        injection = self._golden.encoded.inject(faults, stored)
        verdict, distance = self._verdict(injection, chosen)
        return TrialResult(
            fault=name,
            trial=trial,
            sites=faults.sites,
            flips=injection.flips,
            verdict=verdict,
            distance=distance,
            words=_spell(faults) if self._record_faults else None,
        )

    def _verdict(self, injection: Injection, chosen: Indices) -> tuple[Verdict, float | None]:
        golden = self._golden
        if not injection.names:
            return golden.judge.unchanged(chosen), None if self._meter is None else 0.0
        distance = None
        try:
            if self._meter is not None:
                outputs, effects = self._meter.effects(injection, golden.images[chosen])
                distance = mean_distance(effects)
                if golden.monitor is None:
                    return golden.judge.compare(outputs, chosen), distance
            outputs, raised = self._observed(injection, chosen)
        except RunError:
            # Operators of quantised models refuse some scales: a fault that is detected.
            outputs = np.full((len(chosen), *golden.output_shape), np.nan, np.float32)
            raised = None if golden.monitor is None else np.ones(len(chosen), bool)
        return golden.judge.compare(outputs, chosen, raised), distance

    def _observed(
        self, injection: Injection, chosen: Indices
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        stage = self._golden.stages.for_faults(injection.names)
        try:
            injection.put(stage.engine)
            return self._golden.observe(stage, chosen)
        finally:
            injection.undo(stage.engine)


def _spell(faults: FaultMap) -> dict[str, list[tuple[int, int]]]:
    return {
        name: list(zip(elements.tolist(), masks.tolist(), strict=True))
        for name, (elements, masks) in faults.words.items()
    }
