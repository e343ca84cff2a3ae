"""AlexNet for 32x32 images, with the layer shapes behind Table III of the ProAct paper."""

from torch import Tensor, nn


class AlexNet(nn.Module):
    """Five convolutions and three fully connected layers, seven ReLUs between them.

    The first convolution has stride 2 and the second one padding 2, which makes its output
    10x10; with ten classes the network has 23,272,266 parameters and 66,176 hidden neurons, the
    figures from which the paper's AlexNet / CIFAR-10 row follows.

    Args:
        classes: Number of outputs.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, kernel_size=3, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(256 * 2 * 2, 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, 32, 32] to logits [N, classes]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
