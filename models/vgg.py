"""VGG-16 with batch normalisation for 32x32 images."""

from torch import Tensor, nn

WIDTHS_BY_STAGE = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of the 13 convolutions; each stage ends with a pooling that halves the image."""


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions, each with batch normalisation and ReLU, then the classifier.

    Five poolings leave one pixel of 512 channels. With ``hidden=None`` the classifier is one
    fully connected layer, so the last hidden activation is that of the 13th convolution (14.72
    million parameters with ten classes: the paper's VGG-16 / CIFAR-10 row). With ``hidden=4096``
    it has the two hidden layers of the original VGG-16 (34.0 million parameters with a hundred
    classes), which is what the paper's VGG-16 / CIFAR-100 row fits.

    Args:
        classes: Number of outputs.
        hidden: Width of two hidden fully connected layers; ``None`` for no such layers.
    """

    def __init__(self, classes: int, hidden: int | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in WIDTHS_BY_STAGE:
            for width in stage:
                layers += [
                    nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Flatten())
        if hidden is not None:
            for _ in range(2):
                self.classifier.extend([nn.Linear(channels, hidden), nn.ReLU()])
                channels = hidden
        self.classifier.append(nn.Linear(channels, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, 32, 32] to logits [N, classes]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
