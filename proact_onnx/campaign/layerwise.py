"""Mean distance of activations under faults in one layer at a time (Table V of the paper)."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from proact_onnx.campaign.distance import ActivationMeter, mean_distance
from proact_onnx.campaign.subject import Subject
from proact_onnx.campaign.trial import TrialRunner
from proact_onnx.faults import FaultModel, FaultSpace, Parameter, Rate
from proact_onnx.progress import Reporter


def layers(space: FaultSpace) -> Mapping[str, FaultSpace]:
    """Divide the weights and biases of a fault space by layer, in the order of the graph.

    What hardening added is left out, so that every method meets the same faults.
    """
    found: dict[str, list[Parameter]] = {}
    for parameter in space.parameters:
        if not parameter.kind.is_added:
            found.setdefault(parameter.layer, []).append(parameter)
    return {layer: FaultSpace(tuple(parameters)) for layer, parameters in found.items()}


def layerwise_distances(
    subject: Subject, ber: float, trials: int, images: int, reporter: Reporter
) -> npt.NDArray[np.float64]:
    """Measure the L2 distance of activations (Eq. 9), faults in one layer at a time.

    Args:
        subject: The model and its images.
        ber: Bit error rate in the faulted layer.
        trials: Fault maps for each layer.
        images: Images for each fault map, drawn afresh; the same for every model.
        reporter: Receives progress.

    Returns:
        By number of the trial, the mean over the faulted layers of the mean squared distance of
        all activations, ``[trials]``; infinite where a faulty value is not finite.

    Raises:
        ModelError: If the model cannot be run, or has no activation.
    """
    golden = subject.golden_run(reporter, trials, images, (ber,))
    meter = ActivationMeter(golden.encoded, golden.images, subject.arguments)
    seed = subject.settings.seed
    runner = TrialRunner(golden, seed, record_faults=False, meter=meter)
    model = FaultModel(Rate(ber))
    spaces = layers(subject.space)
    reporter.begin(f"{subject.path.name} distances", trials * len(spaces))
    found = np.zeros((trials, len(spaces)))
    for trial in range(trials):
        chosen = golden.images[runner.choose(trial, images)]
        activations = meter.golden(chosen)
        for column, space in enumerate(spaces.values()):
            injection = golden.encoded.inject(model.draw(space, seed, trial))
            if injection.words:
                _, effects = meter.effects(injection, chosen, activations)
                found[trial, column] = mean_distance(effects)
            reporter.advance()
    return np.asarray(np.nan_to_num(found, nan=np.inf, posinf=np.inf).mean(axis=1))
