"""Time to the confidence that the paper's protocol reaches, against the protocol itself.

    python benchmarks/protocol.py alexnet.onnx images.npz --mean 0.485,0.456,0.406 \
        --std 0.229,0.224,0.225 --ber 1e-6,3e-5

The protocol is 500 fault maps on 10,000 images, as a toolbox runs it that copies the model for
every map and flips every bit through an object; its time is extrapolated from a few of its trials.
Its half-width follows from a first campaign of 500 trials: the accuracies of the fault maps without
the noise of their images, with the same kind of interval. A second campaign, in a process of its
own, then starts from nothing and stops at this half-width; its time and peak memory count.
"""

import argparse
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.against_references import PAPER_MAPS, extrapolate_paper_protocol
from benchmarks.references import CopyingReference
from models.export import build_network
from proact_onnx.campaign import Campaign, CampaignResult, FaultSummary, mean_interval
from proact_onnx.data import Preprocessing, load_dataset
from proact_onnx.settings import InjectSettings

_REFERENCE_IMAGES = 256
# What a campaign may take: four times the model, the prepared images, and one GiB.
_MODEL_COPIES = 4
_SLACK = 1 << 30


@dataclass(frozen=True)
class Task:
    """A campaign to measure.

    Attributes:
        model: The model.
        images: Labelled images.
        preprocessing: How they become the model's input.
    """

    model: Path
    images: Path
    preprocessing: Preprocessing

    def run(self, settings: InjectSettings) -> CampaignResult:
        """Run it from nothing."""
        with tempfile.TemporaryDirectory() as folder:
            data = load_dataset(self.images)
            campaign = Campaign(self.model, data, settings, self.preprocessing)
            return campaign.run(Path(folder) / "run.jsonl")


@dataclass(frozen=True)
class Measured:
    """What one campaign took.

    Attributes:
        summary: Its result.
        seconds: Wall time, reading model and images included.
        bytes: Peak resident memory of its process.
    """

    summary: FaultSummary
    seconds: float
    bytes: int


def main() -> None:
    """Measure at every rate and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="an AlexNet for 32x32 pixels")
    parser.add_argument("images", type=Path, help="10,000 labelled images")
    parser.add_argument("--mean", default="0")
    parser.add_argument("--std", default="1")
    parser.add_argument("--ber", default="1e-6,3e-5")
    arguments = parser.parse_args()
    mean, std = (tuple(map(float, text.split(","))) for text in (arguments.mean, arguments.std))
    task = Task(arguments.model, arguments.images, Preprocessing(mean=mean, std=std))
    reference = CopyingReference(build_network("alexnet", 10, seed=0), _REFERENCE_IMAGES)
    noise = np.random.default_rng(0).standard_normal((_REFERENCE_IMAGES, 3, 32, 32), np.float32)
    columns = ["BER", "half-width", "protocol (h)", "trials", "images", "ours (s)"]
    table = Table(*columns, "times faster", "memory (MiB)", "allowed")
    for ber in map(float, arguments.ber.split(",")):
        wanted = _protocol_half_width(task.run(InjectSettings(ber=(ber,))).summaries[0])
        measured = _measure(task, InjectSettings(ber=(ber,), half_width=100 * wanted))
        hours = extrapolate_paper_protocol(reference, noise, ber).hours
        table.add_row(
            f"{ber:g}",
            f"{100 * wanted:.2f}",
            f"{hours:.2f}",
            f"{measured.summary.trials:,}",
            f"{measured.summary.evaluated:,}",
            f"{measured.seconds:.1f}",
            f"{3600 * hours / measured.seconds:.0f}",
            f"{measured.bytes / 2**20:.0f}",
            f"{_allowed(task) / 2**20:.0f}",
        )
    Console().print(table)


def _protocol_half_width(summary: FaultSummary) -> float:
    """Half-width of 500 fault maps whose accuracies are known without the noise of images."""
    values = np.array(summary.values[:PAPER_MAPS])
    spread = float(values.std(ddof=1))
    share = min(1.0, summary.spread.between / spread) if spread else 1.0
    exact = values.mean() + share * (values - values.mean())
    return mean_interval(np.clip(exact, 0.0, 1.0), (0.0, 1.0)).half_width


def _measure(task: Task, settings: InjectSettings) -> Measured:
    """Run a campaign in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_child, args=(task, settings, theirs))
    process.start()
    measured: Measured = mine.recv()
    process.join()
    return measured


def _child(task: Task, settings: InjectSettings, pipe: Connection) -> None:
    started = time.perf_counter()
    result = task.run(settings)
    seconds = time.perf_counter() - started
    # Kilobytes, but bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    pipe.send(Measured(result.summaries[0], seconds, peak))


def _allowed(task: Task) -> int:
    images = load_dataset(task.images).images
    prepared = math.prod(images.shape) * torch.float32.itemsize
    return _MODEL_COPIES * task.model.stat().st_size + images.nbytes + prepared + _SLACK


if __name__ == "__main__":
    main()
