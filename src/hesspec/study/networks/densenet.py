"""DenseNet-40 for 32x32 images."""

import torch
from torch import Tensor, nn

from hesspec.study.networks.layers import initialise_convolutions

__all__ = ["densenet40"]


class _DenseLayer(nn.Module):
    """Batch norm, ReLU and convolution, whose outputs are appended to the inputs."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, self.conv(torch.relu(self.norm(inputs)))], dim=1)


class _DenseNet40(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        growth, layers = 12, 12
        width = 2 * growth
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for block in range(3):
            if block > 0:
                stages += [
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 1, bias=False),
                    nn.AvgPool2d(2),
                ]
            stages.append(nn.Sequential(*(_DenseLayer(width + growth * layer, growth) for layer in range(layers))))
            width += growth * layers
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stages(self.stem(inputs))))
        outputs: Tensor = self.fc(hidden.mean(dim=(2, 3)))
        return outputs


def densenet40(channels: int, classes: int) -> nn.Module:
    """DenseNet of 40 layers, as in arXiv 1811.07062: growth 12, no bottleneck, no compression.

    The stem has 24 outputs, twice the growth, as in the code released with that paper (arXiv
    1608.06993 has 16 for this form). Convolutions start from He's normal distribution (fan-out).

    Parameters
    ----------
    channels, classes
        Number of image channels and of outputs.

    Returns
    -------
    nn.Module
        Network from (N, channels, h, w) to (N, classes), for images of at least 4x4 pixels. It has
        1,058,866 parameters for 1 channel and 10 classes.

    References
    ----------
    Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional Networks" (arXiv
    1608.06993).
    """
    return _DenseNet40(channels, classes)
