"""What the statistics of a campaign save and promise, on recorded trials of a real network.

    python benchmarks/campaigns.py model.onnx images.npz --mean 0.485,0.456,0.406 \
        --std 0.229,0.224,0.225 --record predictions.npz

First the class of every image under every fault map is recorded, once. Then campaigns are repeated
by drawing fault maps from the recorded ones with replacement, and images as a campaign does. Their
truth is the mean accuracy of the recorded maps on all images, so it is known how often an interval
covers it. One kind of campaign follows the paper's protocol, 500 fault maps with all images; the
other draws few images per map and stops once its interval is as short as the protocol's.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from proact_onnx.campaign.encoded import encode_model
from proact_onnx.campaign.estimates import (
    Estimate,
    Spread,
    mean_interval,
    spread,
    trial_accuracies,
)
from proact_onnx.campaign.images import choose_images
from proact_onnx.campaign.plan import PILOT_IMAGES, PILOT_TRIALS, best_images, checks
from proact_onnx.data import Preprocessing, load_dataset, prepare
from proact_onnx.engine import choose_engine, top1
from proact_onnx.faults import FaultModel, Rate, fault_space, parse_format
from proact_onnx.model import image_input, load_model
from proact_onnx.rewrite import prepare as prepare_model

PROTOCOL_TRIALS = 500
PROTOCOL_IMAGES = 10_000

_MOST_TRIALS = 20_000

_ROWS = (
    "mean accuracy (%)",
    "std between maps (points)",
    "std within maps (points)",
    f"protocol, {PROTOCOL_TRIALS} x {PROTOCOL_IMAGES:,}: half-width (points)",
    "  coverage (%)",
    "ours to that half-width: trials",
    "  images per trial",
    "  images with the golden run",
    "  times fewer than the protocol",
    "  coverage (%)",
    "  mean error (points)",
)

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Recording:
    """Recorded trials at one bit error rate.

    Attributes:
        correct: Whether a fault map leaves an image classified as labelled, ``[maps, N]``.
        golden: Whether the golden run does, ``[N]``.
        labels: int64 ``[N]``.
        changed: Whether a fault map changes any bit, ``[maps]``.
    """

    correct: Flags
    golden: Flags
    labels: Counts
    changed: Flags

    @property
    def truth(self) -> float:
        """Mean accuracy under fault that campaigns estimate."""
        return float(self.correct.mean())


class RepeatedCampaign:
    """A campaign on fault maps drawn from a recording.

    Args:
        recording: What to draw from.
        seed: Decides maps and images.
    """

    def __init__(self, recording: Recording, seed: int) -> None:
        self._recording = recording
        self._seed = seed
        self._maps = np.random.default_rng(seed).integers(len(recording.correct), size=_MOST_TRIALS)
        self._counts: list[tuple[int, int, int, bool]] = []

    def run(self, trials: int, images: int) -> None:
        """Run trials until there are so many."""
        found = self._recording
        for trial in range(len(self._counts), trials):
            faulty = self._maps[trial]
            chosen = choose_images(len(found.golden), images, self._seed, trial, found.labels)
            self._counts.append(
                (
                    int(found.correct[faulty, chosen].sum()),
                    int(found.golden[chosen].sum()),
                    len(chosen),
                    bool(found.changed[faulty]),
                )
            )

    def accuracy(self) -> Estimate:
        """Mean accuracy with its interval."""
        return mean_interval(trial_accuracies(*self._arguments()), (0.0, 1.0))

    def spread(self) -> Spread:
        """Standard deviations between and within maps."""
        return spread(*self._arguments())

    def images(self) -> int:
        """Images evaluated so far, with those of the golden run."""
        return len(self._recording.golden) + sum(
            images for _, _, images, changed in self._counts if changed
        )

    def run_to(self, half_width: float) -> tuple[int, int]:
        """Run pilot and further trials until the interval is short enough.

        Returns:
            Trials it took, and images of each after the pilot.
        """
        self.run(PILOT_TRIALS, PILOT_IMAGES)
        images = best_images(self.spread(), len(self._recording.golden))
        for trials in checks(_MOST_TRIALS):
            self.run(trials, images)
            if self.accuracy().half_width <= half_width:
                break
        return trials, images

    def _arguments(self) -> tuple[Counts, Counts, Counts, Flags, float]:
        correct, golden, images, changed = zip(*self._counts, strict=True)
        return (
            np.array(correct, np.int64),
            np.array(golden, np.int64),
            np.array(images, np.int64),
            np.array(changed),
            float(self._recording.golden.mean()),
        )


def record(
    model: Path, data: Path, preprocessing: Preprocessing, rates: Array, maps: int
) -> dict[str, Array]:
    """Classify every image under every fault map.

    Returns:
        By name: ``predictions`` int16 ``[rates, maps, N]``, -1 where an output is not
        finite; ``flips`` ``[rates, maps]``; ``golden`` and ``labels`` ``[N]``; ``rates``.
    """
    loaded = prepare_model(load_model(model), fold_batchnorm=False).model
    declared, dataset = image_input(loaded), load_dataset(data)
    images = prepare(dataset.images, preprocessing, declared.shape, declared.dtype)
    memory_format = parse_format("Q15.16")
    space = fault_space(loaded, memory_format.width)
    encoded = encode_model(loaded, space, memory_format)
    engine = choose_engine(encoded.model, list(encoded.parameters), images).engine

    def classes() -> Array:
        found = top1(engine.run(images))
        return np.where(found.finite, found.classes, -1).astype(np.int16)

    golden = classes()
    predictions = np.empty((len(rates), maps, len(images)), np.int16)
    flips = np.zeros((len(rates), maps), np.int64)
    for rate, trial in track(list(np.ndindex(flips.shape)), "recording"):
        fault_model = FaultModel(Rate(float(rates[rate])))
        injection = encoded.inject(fault_model.draw(space, 0, trial))
        flips[rate, trial] = injection.flips
        injection.put(engine)
        predictions[rate, trial] = classes() if injection.words else golden
        injection.undo(engine)
    return {
        "predictions": predictions,
        "flips": flips,
        "golden": golden,
        "labels": np.asarray(dataset.labels),
        "rates": rates,
    }


def main() -> None:
    """Record, repeat campaigns, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--record", type=Path, required=True, help="kept, and read if it exists")
    parser.add_argument("--mean", type=_floats, default=(0.0,))
    parser.add_argument("--std", type=_floats, default=(1.0,))
    parser.add_argument("--ber", type=_floats, default=(1e-6, 1e-5, 3e-5))
    parser.add_argument("--maps", type=int, default=500, help="fault maps recorded at each rate")
    parser.add_argument("--campaigns", type=int, default=200)
    arguments = parser.parse_args()
    if not arguments.record.exists():
        preprocessing = Preprocessing(mean=arguments.mean, std=arguments.std)
        rates = np.array(arguments.ber)
        found = record(arguments.model, arguments.data, preprocessing, rates, arguments.maps)
        with arguments.record.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **found)
    with np.load(arguments.record) as recorded:
        predictions, flips, rates = (recorded[name] for name in ("predictions", "flips", "rates"))
        golden, labels = recorded["golden"], recorded["labels"]
    title = (
        f"{arguments.model.stem}: {predictions.shape[1]} recorded maps x {len(labels)} images, "
        f"{arguments.campaigns} campaigns of each kind"
    )
    results = []
    for classes, changes in zip(predictions, flips, strict=True):
        recording = Recording(classes == labels, golden == labels, labels, changes > 0)
        results.append(_compare(recording, arguments.campaigns))
    table = Table("BER", *(f"{rate:g}" for rate in rates), title=title)
    for name, cells in zip(_ROWS, zip(*results, strict=True), strict=True):
        table.add_row(name, *cells)
    Console().print(table)


def _compare(recording: Recording, campaigns: int) -> list[str]:
    everything = len(recording.golden)
    protocol = []
    for seed in range(campaigns):
        campaign = RepeatedCampaign(recording, seed)
        campaign.run(PROTOCOL_TRIALS, everything)
        protocol.append(campaign.accuracy())
    half_width = float(np.mean([estimate.half_width for estimate in protocol]))
    ours, trials, images, evaluated, spreads = [], [], [], [], []
    for seed in range(campaigns, 2 * campaigns):
        campaign = RepeatedCampaign(recording, seed)
        needed, each = campaign.run_to(half_width)
        ours.append(campaign.accuracy())
        trials.append(needed)
        images.append(each)
        evaluated.append(campaign.images())
        spreads.append(campaign.spread())
    total = float(np.mean(evaluated))
    truth = recording.truth
    return [
        f"{100 * truth:.2f}",
        f"{100 * np.mean([found.between for found in spreads]):.2f}",
        f"{100 * np.mean([found.within for found in spreads]):.1f}",
        f"{100 * half_width:.3f}",
        _coverage(protocol, truth),
        f"{np.mean(trials):,.0f}",
        f"{np.median(images):.0f}",
        f"{total:,.0f}",
        f"{PROTOCOL_TRIALS * PROTOCOL_IMAGES / total:.0f}",
        _coverage(ours, truth),
        f"{100 * (np.mean([estimate.mean for estimate in ours]) - truth):+.3f}",
    ]


def _coverage(estimates: list[Estimate], truth: float) -> str:
    return f"{100 * np.mean([found.low <= truth <= found.high for found in estimates]):.1f}"


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    main()
