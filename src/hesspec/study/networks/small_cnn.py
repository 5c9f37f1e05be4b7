"""A small network for quick runs."""

from torch import nn

from hesspec.study.networks.layers import conv_bn_relu

__all__ = ["small_cnn"]


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
    >>> import torch
    >>> small_cnn(1, 10, 8)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if size < 4:
        raise ValueError(f"small_cnn halves the images twice and needs at least 4x4 pixels, not {size}x{size}.")
    return nn.Sequential(
        *conv_bn_relu(channels, 20),
        nn.MaxPool2d(2),
        *conv_bn_relu(20, 40),
        nn.MaxPool2d(2),
        *conv_bn_relu(40, 80),
        nn.Flatten(),
        nn.Linear(80 * (size // 4) ** 2, classes),
    )
