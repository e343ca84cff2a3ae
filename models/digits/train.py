"""Train the small example network on handwritten digits: ``python -m models.digits.train``.

Writes ``digits.onnx``, ``calibration.npz`` and ``test.npz``. The images are the 1,797 of
scikit-learn's ``load_digits`` (8x8 pixels of 0 to 16), so nothing is downloaded.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from models.export import export_network
from models.resnet import BasicBlock

TEST_IMAGES = 697
PIXEL_SCALE = 1 / 16
"""Brings the stored pixels to 0..1; ``proact.toml`` names the same factor."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes.

    Attributes:
        images: uint8 [N, 1, 8, 8], values 0 to 16.
        labels: int64 [N], values 0 to 9.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write both arrays into a compressed ``.npz`` file."""
        np.savez_compressed(path, images=self.images, labels=self.labels)


class DigitsNetwork(nn.Module):
    """Residual network for 8x8 grey images: 82,354 parameters, 7 ReLUs, two skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            BasicBlock(24, 24, stride=1),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            BasicBlock(48, 48, stride=1),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(48 * 2 * 2, 96), nn.ReLU(), nn.Linear(96, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 1, 8, 8], scaled to 0..1, to logits [N, 10]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def load_split(seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Split the digits into 1,100 training and 697 test images.

    Args:
        seed: Of the shuffle; both parts hold the classes in equal proportion.

    Returns:
        Training images, which also calibrate the thresholds, and test images.
    """
    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_IMAGES, stratify=labels, random_state=seed
    )
    return LabelledImages(train_images, train_labels), LabelledImages(test_images, test_labels)


def train(data: LabelledImages, *, seed: int, epochs: int) -> DigitsNetwork:
    """Train on randomly shifted images with AdamW and a one-cycle learning rate.

    Args:
        data: Training images.
        seed: Of weights, batches and shifts.
        epochs: Passes over the images.

    Returns:
        The network in evaluation mode.
    """
    torch.manual_seed(seed)
    # The order of floating-point sums depends on the number of threads.
    torch.set_num_threads(1)
    inputs, labels = _tensors(data)
    network = DigitsNetwork().train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    batches = len(inputs) // 50
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=epochs * batches
    )
    for _ in range(epochs):
        for indices in torch.randperm(len(inputs)).chunk(batches):
            optimizer.zero_grad()
            logits = network(_shift(inputs[indices]))
            loss = functional.cross_entropy(logits, labels[indices], label_smoothing=0.05)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.eval()


def accuracy(network: nn.Module, data: LabelledImages) -> float:
    """Share of images whose greatest logit is that of their label."""
    inputs, labels = _tensors(data)
    with torch.no_grad():
        return float((network(inputs).argmax(dim=1) == labels).double().mean())


def _tensors(data: LabelledImages) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.images).float() * PIXEL_SCALE, torch.from_numpy(data.labels)


def _shift(images: Tensor) -> Tensor:
    """Move every image by -1, 0 or 1 pixels both ways, filling with 0."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (1, 1, 1, 1))
    rows = torch.randint(3, (count, 1, 1)) + torch.arange(height).view(1, height, 1)
    columns = torch.randint(3, (count, 1, 1)) + torch.arange(width).view(1, 1, width)
    return padded[torch.arange(count).view(count, 1, 1), 0, rows, columns].unsqueeze(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words after the command's name; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m models.digits.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--force", action="store_true", help="replace existing files")
    options = parser.parse_args(arguments)
    model, calibration, test = (
        options.output / name for name in ("digits.onnx", "calibration.npz", "test.npz")
    )
    if not options.output.is_dir():
        parser.error(f"there is no folder {options.output}: create it")
    if not options.force and any(path.exists() for path in (model, calibration, test)):
        parser.error(f"{options.output} holds these files already: replace them with --force")
    training_part, test_part = load_split(options.seed)
    network = train(training_part, seed=options.seed, epochs=options.epochs)
    export_network(network, model, image_shape=(1, 8, 8), keep_batchnorm=True, force=True)
    training_part.save(calibration)
    test_part.save(test)
    print(
        f"accuracy: training {accuracy(network, training_part):.2%}, "
        f"test {accuracy(network, test_part):.2%}"
    )


if __name__ == "__main__":
    main()
