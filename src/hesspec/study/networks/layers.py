"""Layers shared by several of the built-in networks."""

from torch import Tensor, nn

__all__ = ["check_tokens", "conv_bn_relu", "initialise_convolutions"]


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


def check_tokens(tokens: Tensor) -> None:
    """Raise ValueError unless a language model is given tokens (N, L) of integers."""
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(
            f"A language model takes tokens of shape (N, L), integers, but it was given {tokens.dtype} of shape "
            f"{tuple(tokens.shape)}: use a data set of text."
        )
