"""VGG with batch norm, of 11 to 19 layers."""

from typing import Final

from torch import Tensor, nn

from hesspec.study.networks.layers import conv_bn_relu, initialise_convolutions

__all__ = ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]

_WIDTHS: Final = (64, 128, 256, 512, 512)

# Convolutions of each width, before the images are halved: configurations A, B, D and E of arXiv 1409.1556, Table 1.
_CONVOLUTIONS: Final = {
    "vgg11_bn": (1, 1, 2, 2, 2),
    "vgg13_bn": (2, 2, 2, 2, 2),
    "vgg16_bn": (2, 2, 3, 3, 3),
    "vgg19_bn": (2, 2, 4, 4, 4),
}


class _VGG(nn.Module):
    """Convolutions, then fully connected layers, under the names that torchvision gives them."""

    def __init__(self, name: str, channels: int, classes: int, size: int) -> None:
        super().__init__()
        if size < 32:
            raise ValueError(
                f"{name} halves the images five times and needs at least 32x32 pixels, not "
                f"{size}x{size}; load the data set with size=32."
            )
        features: list[nn.Module] = []
        inputs = channels
        for width, convolutions in zip(_WIDTHS, _CONVOLUTIONS[name], strict=True):
            for _ in range(convolutions):
                features += conv_bn_relu(inputs, width, bias=True)
                inputs = width
            features.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs * (size // 32) ** 2, 4096, bias=False),
            nn.BatchNorm1d(4096),
            nn.ReLU(),
            nn.Linear(4096, 4096, bias=False),
            nn.BatchNorm1d(4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )
        initialise_convolutions(self)
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(self.features(inputs))
        return outputs


def vgg11_bn(channels: int = 1, classes: int = 10, size: int = 32) -> nn.Module:
    """VGG11 with batch norm after every hidden layer, as in arXiv 1811.07062.

    The fully connected layers have width 4096, batch norm in place of dropout and therefore no
    bias, except the last. Convolutions start from He's normal distribution (fan-out), fully
    connected layers from a normal one of standard deviation 0.01, as in the code released with the
    paper.

    Parameters
    ----------
    channels, classes
        Number of image channels and of outputs.
    size
        Height and width of the images in pixels, at least 32.

    Returns
    -------
    nn.Module
        Network from (N, channels, size, size) to (N, classes). It has 28,156,554 parameters for 1
        channel, 10 classes and 32x32.

    Raises
    ------
    ValueError
        If the images are smaller than 32x32.

    References
    ----------
    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
    (arXiv 1409.1556), configuration A.
    """
    return _VGG("vgg11_bn", channels, classes, size)


def vgg13_bn(channels: int = 1, classes: int = 10, size: int = 32) -> nn.Module:
    """VGG13 with batch norm, configuration B: `vgg11_bn` with two convolutions of each width.

    Parameters, output and errors are those of `vgg11_bn`; 28,341,450 parameters for 1 channel, 10
    classes and 32x32.
    """
    return _VGG("vgg13_bn", channels, classes, size)


def vgg16_bn(channels: int = 1, classes: int = 10, size: int = 32) -> nn.Module:
    """VGG16 with batch norm, configuration D: `vgg13_bn` with a third convolution in each of the last three groups.

    Parameters, output and errors are those of `vgg11_bn`; 33,653,706 parameters for 1 channel, 10
    classes and 32x32.
    """
    return _VGG("vgg16_bn", channels, classes, size)


def vgg19_bn(channels: int = 1, classes: int = 10, size: int = 32) -> nn.Module:
    """VGG19 with batch norm, configuration E: `vgg16_bn` with a fourth convolution in each of the last three groups.

    Parameters, output and errors are those of `vgg11_bn`; 38,965,962 parameters for 1 channel, 10
    classes and 32x32.
    """
    return _VGG("vgg19_bn", channels, classes, size)
