"""A smooth network for full-batch training at the edge of stability."""

from torch import nn

__all__ = ["tanh_mlp"]


def tanh_mlp(channels: int, classes: int, size: int) -> nn.Sequential:
    """Fully connected network with two hidden layers of 12 units, tanh, and no biases.

    Parameters
    ----------
    channels, classes
        Number of image channels and of outputs.
    size
        Height and width of the images in pixels.

    Returns
    -------
    nn.Sequential
        Network from (N, channels, size, size) to (N, classes). It has 1,032 parameters for the digits (1 channel, 10
        classes, 8x8).

    Examples
    --------
    >>> import torch
    >>> tanh_mlp(1, 10, 8)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    width = 12
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size**2, width, bias=False),
        nn.Tanh(),
        nn.Linear(width, width, bias=False),
        nn.Tanh(),
        nn.Linear(width, classes, bias=False),
    )
