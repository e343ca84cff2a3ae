"""Time to the confidence that the paper's protocol reaches, against the protocol itself.

    python benchmarks/protocol.py alexnet.onnx images.npz --mean 0.485,0.456,0.406 \
        --std 0.229,0.224,0.225 --ber 1e-6,3e-5

The protocol is 500 fault maps on 10,000 images, as a toolbox runs it that copies the model for
every map and flips every bit through an object; its time is extrapolated from a few of its trials.
Its half-width follows from a first campaign of 500 trials: the accuracies of the fault maps without
the noise of their images, with the same kind of interval. A second campaign, by the command a user
would give, then starts from nothing and stops at this half-width; its time and peak memory count.
"""

import argparse
import csv
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.against_references import PAPER_MAPS, extrapolate_paper_protocol
from benchmarks.references import CopyingReference
from models.export import build_network
from proact_onnx.campaign import Campaign, mean_interval
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
        mean: How they become the model's input: taken off, one number or one for each channel.
        std: Then divided by.
    """

    model: Path
    images: Path
    mean: str
    std: str

    def half_width(self, ber: float) -> float:
        """Half-width of 500 fault maps whose accuracies are known without the noise of images."""
        mean, std = (tuple(map(float, text.split(","))) for text in (self.mean, self.std))
        data, preprocessing = load_dataset(self.images), Preprocessing(mean=mean, std=std)
        with tempfile.TemporaryDirectory() as folder:
            campaign = Campaign(self.model, data, InjectSettings(ber=(ber,)), preprocessing)
            [summary] = campaign.run(Path(folder) / "run.jsonl").summaries
        values = np.array(summary.values[:PAPER_MAPS])
        spread = float(values.std(ddof=1))
        share = min(1.0, summary.spread.between / spread) if spread else 1.0
        exact = values.mean() + share * (values - values.mean())
        return mean_interval(np.clip(exact, 0.0, 1.0), (0.0, 1.0)).half_width

    def measure(self, ber: float, half_width: float) -> "Measured":
        """Run a campaign by its command until its interval is short enough."""
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "proact_onnx.cli", "inject", str(self.model)]
            command += ["--data", str(self.images), "--mean", self.mean, "--std", self.std]
            command += ["--ber", f"{ber:g}", "--half-width", f"{100 * half_width}"]
            command += ["--output-folder", folder]
            started = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - started
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, command)
            [table] = Path(folder).glob("*.csv")
            [found] = csv.DictReader(table.read_text().splitlines())
        # Kilobytes, but bytes on macOS.
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Measured(int(found["trials"]), int(found["images"]), seconds, peak)


@dataclass(frozen=True)
class Measured:
    """What one campaign took.

    Attributes:
        trials: Trials until its interval was short enough.
        images: Images evaluated in them.
        seconds: Wall time, reading model and images included.
        bytes: Peak resident memory of its process.
    """

    trials: int
    images: int
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
    task = Task(arguments.model, arguments.images, arguments.mean, arguments.std)
    reference = CopyingReference(build_network("alexnet", 10, seed=0), _REFERENCE_IMAGES)
    noise = np.random.default_rng(0).standard_normal((_REFERENCE_IMAGES, 3, 32, 32), np.float32)
    columns = ["BER", "half-width", "protocol (h)", "trials", "images", "ours (s)"]
    table = Table(*columns, "times faster", "memory (MiB)", "allowed")
    for ber in map(float, arguments.ber.split(",")):
        wanted = task.half_width(ber)
        measured = task.measure(ber, wanted)
        hours = extrapolate_paper_protocol(reference, noise, ber).hours
        table.add_row(
            f"{ber:g}",
            f"{100 * wanted:.2f}",
            f"{hours:.2f}",
            f"{measured.trials:,}",
            f"{measured.images:,}",
            f"{measured.seconds:.1f}",
            f"{3600 * hours / measured.seconds:.0f}",
            f"{measured.bytes / 2**20:.0f}",
            f"{_allowed(task) / 2**20:.0f}",
        )
    Console().print(table)


def _allowed(task: Task) -> int:
    images = load_dataset(task.images).images
    prepared = math.prod(images.shape) * torch.float32.itemsize
    return _MODEL_COPIES * task.model.stat().st_size + images.nbytes + prepared + _SLACK


if __name__ == "__main__":
    main()
