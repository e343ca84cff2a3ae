"""A campaign's trials beside the same trials in PyTorch: medians and ratios, measured in one run.

    python benchmarks/against_references.py

AlexNet with random weights, in Q15.16. Engine and references alternate, so that all see the same
machine, and use the same number of threads. The second table says how long the protocol of the
ProAct paper would take with the slower reference.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.references import (
    WORD_BITS,
    CopyingReference,
    Images,
    Injector,
    InPlaceReference,
    Trial,
    faster_memory_format,
    round_parameters,
    timed_trial,
)
from models.export import build_network, export_network
from proact_onnx.campaign.encoded import encode_model
from proact_onnx.engine import Provider, choose_engine
from proact_onnx.faults import FaultMap, FaultModel, FixedPoint, Rate, fault_space
from proact_onnx.model import load_model
from proact_onnx.rewrite import prepare

# The protocol of section VI-A, and the ends of the range of rates at which AlexNet is measured.
PAPER_MAPS = 500
PAPER_IMAGES = 10_000
_PAPER_RATES = (1e-6, 3e-5)

_CHECK_RATE = 1e-6
_CHECK_IMAGES = 8
_AGREEMENT = 1e-3


class EngineInjector:
    """The campaign engine of proact-onnx, run as a campaign runs it.

    Args:
        network: The network; it is exported.
        images: A few images ``[N, 3, H, W]`` for the engine's test of itself.
        threads: Threads within an operator.
        batch_size: Images per run.
    """

    def __init__(self, network: nn.Module, images: Images, threads: int, batch_size: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            export_network(network, path)
            model = prepare(load_model(path), fold_batchnorm=False).model
        number_format = FixedPoint(15, 16)
        self._space = fault_space(model, number_format.width)
        self._encoded = encode_model(model, self._space, number_format)
        self._engine = choose_engine(
            self._encoded.model,
            list(self._encoded.parameters),
            images,
            Provider.CPU,
            threads,
            batch_size,
        ).engine

    @property
    def name(self) -> str:
        """How the engine works, in a few words."""
        return self._engine.name

    def draw(self, ber: float, seed: int) -> FaultMap:
        """Draw the faults of one trial."""
        return FaultModel(Rate(ber)).draw(self._space, seed, 0)

    def run(self, images: Images, faults: FaultMap) -> Trial:
        """Run images ``[N, 3, H, W]`` with the faults in place, then take them out."""
        started = time.perf_counter()
        injection = self._encoded.inject(faults)
        injection.put(self._engine)
        flipped = time.perf_counter()
        logits = self._engine.run(images)
        finished = time.perf_counter()
        injection.undo(self._engine)
        restored = time.perf_counter()
        return Trial(logits, 0.0, restored - finished + flipped - started, finished - flipped)


@dataclass(frozen=True)
class PaperProtocol:
    """What the paper's protocol costs at one bit error rate: every fault map sees every image.

    Attributes:
        ber: Bit error rate.
        copy_seconds: Copying the network, per map.
        flip_seconds: Drawing and flipping, per map.
        image_seconds: Inference, per image.
    """

    ber: float
    copy_seconds: float
    flip_seconds: float
    image_seconds: float

    @property
    def hours(self) -> float:
        """Hours for 500 maps and 10,000 images."""
        per_map = self.copy_seconds + self.flip_seconds + PAPER_IMAGES * self.image_seconds
        return PAPER_MAPS * per_map / 3600


def extrapolate_paper_protocol(
    injector: Injector[Any], images: Images, ber: float, trials: int = 3
) -> PaperProtocol:
    """Estimate the cost of the paper's protocol from a few of its trials with fewer images.

    Args:
        injector: What runs the trials.
        images: Images of one trial, ``[N, 3, H, W]``.
        ber: Bit error rate.
        trials: How many to run; medians count.
    """
    parts = _median_parts([timed_trial(injector, images, ber, seed) for seed in range(trials)])
    return PaperProtocol(ber, parts["copy"], parts["flips"], parts["inference"] / len(images))


def measure(
    injectors: Mapping[str, Injector[Any]], images: Images, ber: float, repetitions: int
) -> dict[str, dict[str, float]]:
    """Time trials of all injectors in turn.

    Args:
        injectors: By name.
        images: Images of one trial, ``[N, 3, H, W]``.
        ber: Bit error rate.
        repetitions: Trials of each.

    Returns:
        By injector, median seconds of ``copy``, ``flips``, ``inference`` and the whole ``trial``.
    """
    for injector in injectors.values():
        timed_trial(injector, images, 0.0, 0)
    trials: dict[str, list[Trial]] = {name: [] for name in injectors}
    for seed in range(repetitions):
        for name, injector in injectors.items():
            trials[name].append(timed_trial(injector, images, ber, seed))
    return {name: _median_parts(each) for name, each in trials.items()}


def check_agreement(
    engine: EngineInjector, references: Mapping[str, Injector[Any]], images: Images
) -> None:
    """Make sure that equal faults give equal outputs, so that equal work is timed.

    Args:
        engine: The engine.
        references: References by name.
        images: ``[N, 3, H, W]``.

    Raises:
        RuntimeError: If a reference computes something else than the engine.
    """
    faults = engine.draw(_CHECK_RATE, 0)
    sites = _sites(faults)
    expected = engine.run(images, faults).logits
    golden = engine.run(images, FaultMap({})).logits
    tolerance = _AGREEMENT * np.abs(expected).max()
    if np.abs(golden - expected).max() <= tolerance:
        raise RuntimeError("the faults of the check do not show in the outputs")
    for name, reference in references.items():
        faulty = reference.run(images, sites).logits
        again = reference.run(images, {}).logits
        if not (
            np.abs(faulty - expected).max() <= tolerance
            and np.abs(again - golden).max() <= _AGREEMENT * np.abs(golden).max()
        ):
            raise RuntimeError(f"{name} and the engine disagree under the same faults")


def main() -> None:
    """Compare the engine with both references and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256, help="images a trial, in one batch")
    parser.add_argument("--ber", type=float, default=3e-5)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = round_parameters(build_network("alexnet", 10, seed=0))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((arguments.images, 3, 32, 32), np.float32)
    batch = arguments.images
    memory_format = faster_memory_format(network, images, batch)
    layout = "NHWC" if memory_format is torch.channels_last else "NCHW"
    engine = EngineInjector(network, images, arguments.threads, batch)
    copying = CopyingReference(network, batch)
    references: dict[str, Injector[Any]] = {
        "PyTorch, copy + fxpmath": copying,
        f"PyTorch, in place, {layout}": InPlaceReference(network, batch, memory_format),
    }
    check_agreement(engine, references, images[:_CHECK_IMAGES])
    medians = measure(
        {f"engine, {engine.name}": engine, **references},
        images,
        arguments.ber,
        arguments.repetitions,
    )
    console = Console()
    console.print(_comparison(medians, arguments))
    protocols = [extrapolate_paper_protocol(copying, images, ber) for ber in _PAPER_RATES]
    console.print(_extrapolation(protocols))


def _median_parts(trials: Sequence[Trial]) -> dict[str, float]:
    return {
        "copy": statistics.median(trial.copy_seconds for trial in trials),
        "flips": statistics.median(trial.flip_seconds for trial in trials),
        "inference": statistics.median(trial.inference_seconds for trial in trials),
        "trial": statistics.median(trial.seconds for trial in trials),
    }


def _sites(faults: FaultMap) -> dict[str, Tensor]:
    """List the single bits of a fault map; initializers are named as the network's parameters."""
    sites = {}
    for name, (elements, masks) in faults.words.items():
        flipped = (masks[:, None] >> np.arange(WORD_BITS, dtype=np.uint32)) & 1
        rows, bits = np.nonzero(flipped)
        sites[name] = torch.from_numpy(elements[rows] * WORD_BITS + bits)
    return sites


def _comparison(medians: Mapping[str, Mapping[str, float]], arguments: argparse.Namespace) -> Table:
    title = (
        f"AlexNet, BER {arguments.ber:g}, {arguments.images} images, {arguments.threads} threads, "
        f"median seconds of {arguments.repetitions}"
    )
    columns = ["", "copy", "flips", "inference", "trial", "trial / engine"]
    table = Table(*columns, title=title)
    engine = next(iter(medians.values()))["trial"]
    for name, parts in medians.items():
        seconds = [f"{part:.3f}" for part in parts.values()]
        table.add_row(name, *seconds, f"{parts['trial'] / engine:.2f}")
    return table


def _extrapolation(protocols: Sequence[PaperProtocol]) -> Table:
    columns = ["BER", "copy", "flips", "inference", "all maps (h)"]
    title = f"{PAPER_MAPS} x {PAPER_IMAGES:,} images, copy + fxpmath: seconds a map"
    table = Table(*columns, title=title)
    for protocol in protocols:
        table.add_row(
            f"{protocol.ber:g}",
            f"{protocol.copy_seconds:.2f}",
            f"{protocol.flip_seconds:.2f}",
            f"{PAPER_IMAGES * protocol.image_seconds:.1f}",
            f"{protocol.hours:.1f}",
        )
    return table


if __name__ == "__main__":
    main()
