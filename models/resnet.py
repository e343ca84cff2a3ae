"""Residual networks for 32x32 images: ResNet-20 and ResNet-50 (He et al., CVPR 2016)."""

from torch import Tensor, nn
from torch.nn import functional


class PaddedShortcut(nn.Module):
    """Shortcut without parameters (option A): every other pixel, new channels filled with 0.

    Args:
        stride: Step between the pixels that are kept.
        added_channels: Channels of zeros to add, half of them in front and half behind.
    """

    def __init__(self, stride: int, added_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.front = added_channels // 2
        self.behind = added_channels - self.front

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C + added_channels, H / stride, W / stride]."""
        kept = features[:, :, :: self.stride, :: self.stride]
        return functional.pad(kept, (0, 0, 0, 0, self.front, self.behind))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        channels: Channels of the input.
        width: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels == width
            else PaddedShortcut(stride, width - channels)
        )
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, width, H / stride, W / stride]."""
        activated: Tensor = self.activation(self.convolutions(features) + self.shortcut(features))
        return activated


class BottleneckBlock(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, the last one four times as wide, and a shortcut.

    The 3x3 convolution carries the stride; where shapes differ, the shortcut is a 1x1
    convolution with batch normalisation (option B).

    Args:
        channels: Channels of the input.
        width: Channels inside the block; the output has four times as many.
        stride: Stride of the 3x3 convolution and of the shortcut.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = width * self.expansion
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels == wide
            else nn.Sequential(
                nn.Conv2d(channels, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide)
            )
        )
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, 4 * width, H / stride, W / stride]."""
        activated: Tensor = self.activation(self.convolutions(features) + self.shortcut(features))
        return activated


class ResNet(nn.Module):
    """A 3x3 stem at full resolution, the blocks, global average pooling, one linear layer.

    Args:
        stem: The stem's convolution, batch normalisation and activation.
        blocks: The residual blocks, in order.
        features: Channels of the last block.
        classes: Number of outputs.
    """

    def __init__(
        self, stem: nn.Module, blocks: list[nn.Module], features: int, classes: int
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, 32, 32] to logits [N, classes]."""
        logits: Tensor = self.classifier(self.pooling(self.blocks(self.stem(images))))
        return logits


def resnet20(classes: int) -> ResNet:
    """ResNet-20 for CIFAR: 19 ReLUs, and 269,722 parameters with ten classes.

    Args:
        classes: Number of outputs.
    """
    channels = 16
    stem = _stem(channels)
    blocks: list[nn.Module] = []
    for width in (16, 32, 64):
        for position in range(3):
            stride = 2 if position == 0 and width != channels else 1
            blocks.append(BasicBlock(channels, width, stride))
            channels = width
    return ResNet(stem, blocks, channels, classes)


def resnet50(classes: int) -> ResNet:
    """ResNet-50 for 32x32 images: 49 ReLUs, and 23,520,842 parameters with ten classes.

    The stem of the ImageNet network (7x7 convolution with stride 2, pooling) is replaced by a
    3x3 convolution with stride 1, so the four stages work on 32, 16, 8 and 4 pixels a side.

    Args:
        classes: Number of outputs.
    """
    channels = 64
    stem = _stem(channels)
    blocks: list[nn.Module] = []
    for depth, width, first_stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
        for position in range(depth):
            stride = first_stride if position == 0 else 1
            blocks.append(BottleneckBlock(channels, width, stride))
            channels = width * BottleneckBlock.expansion
    return ResNet(stem, blocks, channels, classes)


def _stem(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )
