"""Networks by name: built-in ones, those of libraries, and the user's own."""

import functools
import inspect
from collections.abc import Callable
from typing import Final

from torch import nn

from hesspec.backend.suggest import unknown
from hesspec.study.imports import code_digest, load_object
from hesspec.study.networks.densenet import densenet40
from hesspec.study.networks.gpt import gpt_small, gpt_tiny
from hesspec.study.networks.libraries import timm_network, torchvision_network
from hesspec.study.networks.resnet import resnet18, resnet34, resnet50
from hesspec.study.networks.small_cnn import small_cnn
from hesspec.study.networks.tanh_mlp import tanh_mlp
from hesspec.study.networks.transformers_models import TRANSFORMERS, transformers_digest, transformers_network
from hesspec.study.networks.vgg import vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn

__all__ = ["NETWORKS", "build_network", "network_digest"]

NETWORKS: Final[dict[str, Callable[..., nn.Module]]] = {
    "small_cnn": small_cnn,
    "tanh_mlp": tanh_mlp,
    "vgg11_bn": vgg11_bn,
    "vgg13_bn": vgg13_bn,
    "vgg16_bn": vgg16_bn,
    "vgg19_bn": vgg19_bn,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "densenet40": densenet40,
    "gpt_tiny": gpt_tiny,
    "gpt_small": gpt_small,
}
"""The networks that a study file can name, by name."""

_LIBRARIES: Final[dict[str, Callable[..., nn.Module]]] = {"torchvision": torchvision_network, "timm": timm_network}


def network_digest(name: str) -> str:
    """Compute a digest of the user's own code or weights of a network; empty if it has none."""
    library, colon, library_name = name.partition(":")
    if colon and library == TRANSFORMERS:
        return transformers_digest(library_name)
    return code_digest(name) if colon else ""


def build_network(name: str, *, channels: int, classes: int, size: int) -> nn.Module:
    """Build a network by its name in `NETWORKS` or in a library, or the user's own from `"module:callable"`.

    The user's callable is called with those of the keywords `channels`, `classes` and `size` that
    it names, or with all of them if it takes `**kwargs`. The weights are drawn from torch's global
    generator: call `torch.manual_seed` before. Dropout of any kind takes no part in evaluation
    mode, in which spectra are measured.

    Parameters
    ----------
    name
        A name in `NETWORKS`, `"torchvision:NAME"` (see `torchvision_network`), `"timm:NAME"` (see
        `timm_network`), `"transformers:FOLDER_OR_CONFIGURATION"` (see `transformers_network`), or
        `"module:callable"`. Those for text are `"gpt_tiny"`, `"gpt_small"` and those of transformers: they take tokens
        (N, L) and return logits (N, V, L).
    channels, classes
        Number of image channels and of classes of the data set (for text, of tokens).
    size
        Height and width of the images in pixels; for text, tokens in a sequence.

    Returns
    -------
    nn.Module
        The network, in training mode as PyTorch makes it, on the CPU.

    Raises
    ------
    ModuleNotFoundError
        If it is the network of a library that is not installed.
    ValueError
        If there is no such network, it needs arguments other than the three, it does not return an
        `nn.Module`, or the images or sequences do not suit it.
    FileNotFoundError
        If the folder or the configuration of transformers is missing.

    Examples
    --------
    >>> network = build_network("small_cnn", channels=1, classes=10, size=8)
    >>> sum(parameter.numel() for parameter in network.parameters())
    39670
    """
    library, colon, library_name = name.partition(":")
    if colon and library in _LIBRARIES:
        return _LIBRARIES[library](library_name, channels=channels, classes=classes, size=size)
    builder: Callable[..., object]
    if colon and library == TRANSFORMERS:
        builder = functools.partial(transformers_network, library_name)
    elif colon:
        builder = load_object(name, "network")
    elif name in NETWORKS:
        builder = NETWORKS[name]
    else:
        hint = (
            "A library's network is named 'torchvision:NAME', 'timm:NAME' or 'transformers:FOLDER', one of your own "
            "'module:callable'."
        )
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
