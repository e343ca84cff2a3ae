"""Small convolutional networks with random weights, in the style of well-known ones.

Each takes images [N, 3, 32, 32] and gives logits [N, 10].
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


def _unit(
    channels: int, width: int, kernel: int | tuple[int, int], activation: nn.Module, **options: int
) -> nn.Sequential:
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2)
    convolution = nn.Conv2d(channels, width, sides, padding=padding, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), activation)


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow without an activation; then a skip."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        hidden = 3 * channels
        self.layers = nn.Sequential(
            _unit(channels, hidden, 1, nn.ReLU6()),
            _unit(hidden, hidden, 3, nn.ReLU6(), stride=stride, groups=hidden),
            _unit(hidden, width, 1, nn.Identity()),
        )
        self.skips = stride == 1 and channels == width

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, width, H / stride, W / stride]."""
        changed: Tensor = self.layers(features)
        return features + changed if self.skips else changed


def mobilenet_v2() -> nn.Module:
    """ReLU6, depthwise convolutions, inverted residuals."""
    return nn.Sequential(
        _unit(3, 8, 3, nn.ReLU6(), stride=2),
        InvertedResidual(8, 8, 1),
        InvertedResidual(8, 12, 2),
        InvertedResidual(12, 12, 1),
        _unit(12, 32, 1, nn.ReLU6()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32, CLASSES),
    )


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1x1 and 3x3 convolutions side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.narrow = nn.Conv2d(squeezed, expanded, 1)
        self.wide = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, 2 * expanded, H, W]."""
        squeezed = functional.relu(self.squeeze(features))
        branches = (functional.relu(self.narrow(squeezed)), functional.relu(self.wide(squeezed)))
        return torch.cat(branches, dim=1)


def squeezenet() -> nn.Module:
    """Fire modules, pools in ceil mode, a convolution as the classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(12, 4, 8),
        Fire(16, 4, 8),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(16, 6, 12),
        nn.Dropout(0.5),
        nn.Conv2d(24, CLASSES, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class DenseLayer(nn.Module):
    """BatchNormalization before activation before convolution; the input stays beside it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * growth, 1, bias=False),
            nn.BatchNorm2d(2 * growth),
            nn.ReLU(),
            nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, channels + growth, H, W]."""
        return torch.cat((features, self.layers(features)), dim=1)


def densenet() -> nn.Module:
    """Dense blocks with an average pool between them; BatchNormalization that cannot fold."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        DenseLayer(8, 4),
        DenseLayer(12, 4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1, bias=False),
        nn.AvgPool2d(2),
        DenseLayer(8, 4),
        DenseLayer(12, 4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


class InceptionBlock(nn.Module):
    """Four branches side by side, one through a factorised 7x7, one through an average pool."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _unit(channels, width, 1, nn.ReLU()),
                nn.Sequential(
                    _unit(channels, width, 1, nn.ReLU()), _unit(width, width, 5, nn.ReLU())
                ),
                nn.Sequential(
                    _unit(channels, width, (1, 7), nn.ReLU()),
                    _unit(width, width, (7, 1), nn.ReLU()),
                ),
                nn.Sequential(
                    nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
                    _unit(channels, width, 1, nn.ReLU()),
                ),
            ]
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, 4 * width, H, W]."""
        return torch.cat([branch(features) for branch in self.branches], dim=1)


def inception() -> nn.Module:
    """Parallel branches, convolutions that are not square, pools that leave padding out."""
    return nn.Sequential(
        _unit(3, 8, 3, nn.ReLU(), stride=2),
        nn.MaxPool2d(3, stride=2, padding=1),
        InceptionBlock(8, 4),
        InceptionBlock(16, 6),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "squeezenet": squeezenet,
    "densenet": densenet,
    "inception": inception,
}


def build(name: str) -> nn.Module:
    """Build a network in evaluation mode; the statistics of its normalisations are drawn too."""
    torch.manual_seed(0)
    network = ARCHITECTURES[name]()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
    return network.eval()
