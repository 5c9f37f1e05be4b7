"""ResNets for small images, of 18, 34 and 50 layers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hesspec.study.networks.layers import initialise_convolutions

__all__ = ["resnet18", "resnet34", "resnet50"]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Identity where shapes agree, otherwise a 1x1 convolution with batch norm."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


# The layers of blocks and networks have the names that torchvision gives them, and are made in that order, on which the
# random numbers that they start from depend.


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.outputs = width
        self.conv1 = _convolution(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, self.outputs, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.downsample(inputs))


class _Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, the last four times as wide, with a shortcut.

    The stride is that of the 3x3 convolution, as in torchvision; in arXiv 1512.03385 it is that of the first.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.outputs = 4 * width
        self.conv1 = _convolution(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, self.outputs, 1)
        self.bn3 = nn.BatchNorm2d(self.outputs)
        self.downsample = _shortcut(inputs, self.outputs, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        hidden = torch.relu(self.bn2(self.conv2(hidden)))
        return torch.relu(self.bn3(self.conv3(hidden)) + self.downsample(inputs))


class _ResNet(nn.Module):
    """A stem, four stages of blocks, each twice as wide as the one before, and a linear layer on the images' mean."""

    def __init__(
        self,
        block: Callable[[int, int, int], _BasicBlock | _Bottleneck],
        depths: tuple[int, int, int, int],
        channels: int,
        classes: int,
    ) -> None:
        super().__init__()
        inputs = 64
        self.conv1 = _convolution(channels, inputs, 3)
        self.bn1 = nn.BatchNorm2d(inputs)
        stages: list[nn.Sequential] = []
        for stage, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for index in range(depth):
                blocks.append(made := block(inputs, 64 * 2**stage, 2 if stage > 0 and index == 0 else 1))
                inputs = made.outputs
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(inputs, classes)
        initialise_convolutions(self)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        outputs: Tensor = self.fc(hidden.mean(dim=(2, 3)))
        return outputs


def resnet18(channels: int, classes: int) -> nn.Module:
    """ResNet18 for 32x32 images: a 3x3 stem of stride 1 and no max-pooling, as in arXiv 1811.07062.

    The parameters have the names of torchvision's `resnet18`. Convolutions start from He's normal
    distribution (fan-out).

    Parameters
    ----------
    channels, classes
        Number of image channels and of outputs.

    Returns
    -------
    nn.Module
        Network from (N, channels, h, w) to (N, classes), for images of any size. It has 11,172,810
        parameters for 1 channel and 10 classes.

    References
    ----------
    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
    """
    return _ResNet(_BasicBlock, (2, 2, 2, 2), channels, classes)


def resnet34(channels: int, classes: int) -> nn.Module:
    """ResNet34 for 32x32 images: `resnet18` with 3, 4, 6 and 3 blocks in its stages.

    Parameters and output are those of `resnet18`; 21,280,970 parameters for 1 channel and 10
    classes, with the names of torchvision's `resnet34`.
    """
    return _ResNet(_BasicBlock, (3, 4, 6, 3), channels, classes)


def resnet50(channels: int, classes: int) -> nn.Module:
    """ResNet50 for 32x32 images: `resnet34` with bottleneck blocks, whose stride is that of the 3x3 convolution.

    Parameters and output are those of `resnet18`; 23,519,690 parameters for 1 channel and 10
    classes, with the names of torchvision's `resnet50`.
    """
    return _ResNet(_Bottleneck, (3, 4, 6, 3), channels, classes)
