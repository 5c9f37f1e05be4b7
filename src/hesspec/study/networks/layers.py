"""Layers shared by several of the built-in networks."""

from torch import nn

__all__ = ["conv_bn_relu", "initialise_convolutions"]


def conv_bn_relu(inputs: int, outputs: int, *, bias: bool = False) -> list[nn.Module]:
    """Convolution of 3x3 that keeps the images' size, batch norm and ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU()]


def initialise_convolutions(network: nn.Module) -> None:
    """Draw all convolutions from He's normal distribution (fan-out), in the order of `modules()`, biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
