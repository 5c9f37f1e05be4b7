"""Networks of the founding papers, a small one for quick runs, and the user's own."""

import inspect
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from hesspec._suggest import unknown
from hesspec.study.imports import load_object

__all__ = ["NETWORKS", "build_network", "densenet40", "resnet18", "small_cnn", "vgg11_bn"]


def small_cnn(channels: int, classes: int, size: int) -> nn.Sequential:
    """Three blocks of convolution, batch norm and ReLU, with max-pooling after the first two.

    Widths are 20, 40 and 80. PyTorch's default initialisation.

    Parameters
    ----------
    channels, classes
        Number of image channels and of outputs.
    size
        Height and width of the images in pixels, at least 4.

    Returns
    -------
    nn.Sequential
        Network from (N, channels, size, size) to (N, classes). It has 39,670 parameters for the
        digits (1 channel, 10 classes, 8x8).

    Raises
    ------
    ValueError
        If the images are smaller than 4x4.

    Examples
    --------
    >>> small_cnn(1, 10, 8)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if size < 4:
        raise ValueError(f"small_cnn halves the images twice and needs at least 4x4 pixels, not {size}x{size}.")
    return nn.Sequential(
        *_conv_bn_relu(channels, 20),
        nn.MaxPool2d(2),
        *_conv_bn_relu(20, 40),
        nn.MaxPool2d(2),
        *_conv_bn_relu(40, 80),
        nn.Flatten(),
        nn.Linear(80 * (size // 4) ** 2, classes),
    )


def _conv_bn_relu(inputs: int, outputs: int, *, bias: bool = False) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU()]


class _VGG(nn.Module):
    """Convolutions, then fully connected layers, under the names that torchvision gives them."""

    def __init__(self, channels: int, classes: int, size: int) -> None:
        super().__init__()
        features: list[nn.Module] = []
        width = channels
        for layer in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
            if isinstance(layer, int):
                features += _conv_bn_relu(width, layer, bias=True)
                width = layer
            else:
                features.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * (size // 32) ** 2, 4096, bias=False),
            nn.BatchNorm1d(4096),
            nn.ReLU(),
            nn.Linear(4096, 4096, bias=False),
            nn.BatchNorm1d(4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )
        _initialise_convolutions(self)
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

    References ---------- Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale
    Image Recognition" (arXiv 1409.1556), configuration A.
    """
    if size < 32:
        raise ValueError(
            "vgg11_bn halves the images five times and needs at least 32x32 pixels, not "
            f"{size}x{size}; load the data set with size=32."
        )
    return _VGG(channels, classes, size)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, under the names that torchvision gives them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.downsample(inputs))


class _ResNet18(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_BasicBlock(64, 64, 1), _BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(_BasicBlock(64, 128, 2), _BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(_BasicBlock(128, 256, 2), _BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(_BasicBlock(256, 512, 2), _BasicBlock(512, 512, 1))
        self.fc = nn.Linear(512, classes)
        _initialise_convolutions(self)

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
    return _ResNet18(channels, classes)


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
        _initialise_convolutions(self)
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

    References ---------- Huang, Liu, van der Maaten and Weinberger, "Densely Connected
    Convolutional Networks" (arXiv 1608.06993).
    """
    return _DenseNet40(channels, classes)


def _initialise_convolutions(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


NETWORKS: Final[dict[str, Callable[..., nn.Module]]] = {
    "small_cnn": small_cnn,
    "vgg11_bn": vgg11_bn,
    "resnet18": resnet18,
    "densenet40": densenet40,
}
"""The networks that a study file can name, by name."""


def build_network(name: str, *, channels: int, classes: int, size: int) -> nn.Module:
    """Build a network by its name in `NETWORKS`, or the user's own from `"module:callable"`.

    The user's callable is called with those of the keywords `channels`, `classes` and `size` that
    it names, or with all of them if it takes `**kwargs`. The weights are drawn from torch's global
    generator: call `torch.manual_seed` before.

    Parameters
    ----------
    name
        `"small_cnn"`, `"vgg11_bn"`, `"resnet18"`, `"densenet40"`, or `"module:callable"`.
    channels, classes
        Number of image channels and of classes of the data set.
    size
        Height and width of the images in pixels.

    Returns
    -------
    nn.Module
        The network, in training mode as PyTorch makes it, on the CPU.

    Raises
    ------
    ValueError
        If there is no such network, it needs arguments other than the three, it does not return an
        `nn.Module`, or the images are too small for it.

    Examples
    --------
    >>> network = build_network("small_cnn", channels=1, classes=10, size=8)
    >>> sum(parameter.numel() for parameter in network.parameters())
    39670
    """
    builder: Callable[..., object]
    if ":" in name:
        builder = load_object(name, "network")
    elif name in NETWORKS:
        builder = NETWORKS[name]
    else:
        hint = "A network of your own is named 'module:callable'."
        raise ValueError(f"{unknown('network', name, NETWORKS)} {hint}")

    offered = {"channels": channels, "classes": classes, "size": size}
    signature = inspect.signature(builder)
    parameters = signature.parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        offered = {key: value for key, value in offered.items() if key in signature.parameters}
    try:
        signature.bind(**offered)
    except TypeError as error:
        raise ValueError(
            f"The network {name!r} cannot be called with the keywords channels, classes and size: "
            f"{error}. Give its other arguments defaults."
        ) from error
    network = builder(**offered)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"The network {name!r} must return a torch.nn.Module, but it returned an object of "
            f"type {type(network).__name__!r}."
        )
    return network
