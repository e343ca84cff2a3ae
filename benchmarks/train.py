"""Train AlexNet for a few minutes, so that campaigns on it have an accuracy to lose.

    python benchmarks/train.py images.npz --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 \
        --output build/bench/alexnet-trained.onnx

The network is far from the best that could be trained; for timings and for how accuracies scatter
under faults it does not need to be.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.nn import functional

from models.export import build_network, export_network
from proact_onnx.data import Preprocessing, load_dataset, prepare

_BATCH = 128


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", type=Path, help="labelled images, 32x32 pixels of three colours")
    parser.add_argument("--mean", default="0")
    parser.add_argument("--std", default="1")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    data = load_dataset(arguments.images)
    if data.labels is None:
        parser.error("the images have no labels")
    mean, std = (tuple(map(float, text.split(","))) for text in (arguments.mean, arguments.std))
    inputs = prepare(data.images, Preprocessing(mean=mean, std=std), (None, 3, 32, 32), np.float32)
    images, labels = torch.from_numpy(inputs), torch.from_numpy(data.labels)
    network = build_network("alexnet", int(labels.max()) + 1, seed=0).train()
    steps = arguments.epochs * -(-len(images) // _BATCH)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.02, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    batches = [
        batch
        for _ in range(arguments.epochs)
        for batch in torch.split(torch.randperm(len(images), generator=generator), _BATCH)
    ]
    for batch in track(batches, "training"):
        mirrored = torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5
        shown = torch.where(mirrored, images[batch].flip(3), images[batch])
        optimiser.zero_grad()
        loss = functional.cross_entropy(network(shown), labels[batch])
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    export_network(network.eval(), arguments.output, force=True)


if __name__ == "__main__":
    main()
