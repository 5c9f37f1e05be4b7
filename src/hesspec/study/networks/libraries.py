"""Networks of torchvision and timm, adapted to the data set."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from hesspec.backend.extras import require
from hesspec.backend.suggest import unknown

__all__ = ["timm_network", "torchvision_network"]

# Exceptions of networks, in construction or in the first forward pass, if images do not suit them.
_FAULTS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError, ZeroDivisionError)


def torchvision_network(name: str, *, channels: int, classes: int, size: int) -> nn.Module:
    """A classifier of `torchvision.models`, untrained.

    torchvision has networks for 3 channels. Where `channels` is another number, the first
    convolution gets as many inputs while the network is made, so that its weights are drawn as
    torchvision draws them for that network. With 3 channels the weights are those of
    `torchvision.models.get_model` after the same seed.

    Vision transformers are made for images of `size`. Inception and GoogLeNet come without their
    auxiliary classifiers: these take no part in evaluation mode, in which spectra are measured.
    Neither does dropout of any kind.

    Parameters
    ----------
    name
        One of `torchvision.models.list_models(module=torchvision.models)`, for example
        `"shufflenet_v2_x0_5"`.
    channels, classes
        Number of image channels and of outputs.
    size
        Height and width of the images in pixels. Most of these networks shrink images 32 times.

    Returns
    -------
    nn.Module
        Network from (N, channels, size, size) to (N, classes), in training mode.

    Raises
    ------
    ModuleNotFoundError
        If torchvision is not installed.
    ValueError
        If there is no such network, or it cannot take such images, as two of them show, in
        evaluation mode.
    """
    require(f"'torchvision:{name}'", "hesspec[vision]", "torchvision")
    from torchvision import models  # noqa: PLC0415 - an optional dependency

    # Only the networks of this module classify images; torchvision has others for video, detection and so on.
    _check_name("torchvision", name, models.list_models(module=models), "torchvision.models.list_models()")
    options: dict[str, object] = {}
    if name.startswith("vit_"):
        options["image_size"] = size
    elif name.startswith("maxvit_"):
        options["input_size"] = (size, size)
    elif name in {"googlenet", "inception_v3"}:
        # The second is the current default, given explicitly because torchvision warns that it will change.
        options |= {"aux_logits": False, "init_weights": True}

    def build() -> nn.Module:
        with _first_convolution(channels):
            network: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
        return network

    return _built("torchvision", name, build, channels=channels, classes=classes, size=size)


def timm_network(name: str, *, channels: int, classes: int, size: int) -> nn.Module:
    """A classifier of timm, untrained, made for the number of channels and, where it asks for one, the size of images.

    Dropout of any kind takes no part in evaluation mode, in which spectra are measured.

    Parameters
    ----------
    name
        One of `timm.list_models()`, for example `"vit_tiny_patch16_224"`. Names of weights, which
        have a dot, name their network; no weights are loaded.
    channels, classes
        Number of image channels and of outputs.
    size
        Height and width of the images in pixels. Most of these networks shrink images 32 times;
        many of those with patches leave out what does not fill one.

    Returns
    -------
    nn.Module
        Network from (N, channels, size, size) to (N, classes), in training mode.

    Raises
    ------
    ModuleNotFoundError
        If timm is not installed.
    ValueError
        If there is no such network, or it cannot take such images, as two of them show, in
        evaluation mode.
    """
    require(f"'timm:{name}'", "hesspec[timm]", "timm")
    import timm  # noqa: PLC0415 - an optional dependency

    # Names that timm would look up on the internet ("hf-hub:...") or in a folder are none of its registry's.
    if not timm.is_model(name):
        _check_name("timm", name, timm.list_models(), "timm.list_models()")

    def build() -> nn.Module:
        create = partial(timm.create_model, name, pretrained=False, num_classes=classes, in_chans=channels)
        state = torch.get_rng_state()
        try:
            network: nn.Module = create(img_size=size)
        except TypeError as error:
            if "'img_size'" not in str(error):
                raise
            # It takes images of any size. What the attempt may have drawn must not change the weights.
            torch.set_rng_state(state)
            network = create()
        return network

    return _built("timm", name, build, channels=channels, classes=classes, size=size)


def _check_name(library: str, name: str, known: Sequence[str], all_names: str) -> None:
    if name in known:
        return
    # Not all of them where none is near: there are more than a thousand.
    nearest = difflib.get_close_matches(name, known, n=1)
    what = f"{library} classifier"
    said = unknown(what, name, nearest) if nearest else f"There is no {what} {name!r}; {all_names} has their names."
    raise ValueError(said)


@contextmanager
def _first_convolution(channels: int) -> Iterator[None]:
    """Give a network that is made meanwhile `channels` inputs in place of the 3 of its first convolution."""
    if channels == 3:
        yield
        return
    done = False

    # It is called when the convolution becomes a part of the network, and so before the network initialises its parts.
    def widen(_parent: nn.Module, _name: str, module: nn.Module | None) -> None:
        nonlocal done
        if not done and isinstance(module, nn.Conv2d) and module.in_channels == 3:
            done = True
            module.in_channels = channels
            module.weight = nn.Parameter(module.weight.new_empty(module.out_channels, channels, *module.kernel_size))
            module.reset_parameters()

    handle = register_module_module_registration_hook(widen)
    try:
        yield
    finally:
        handle.remove()


def _built(
    library: str, name: str, build: Callable[[], nn.Module], *, channels: int, classes: int, size: int
) -> nn.Module:
    """The network, once two images have gone through it and have given one number for each class."""
    what = f"The {library} network {name!r}"
    images = f"images of {channels}x{size}x{size} (channels, height, width)"
    try:
        network = build()
        # The generator is left as the weights left it, whatever the forward may draw.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = network.eval()(torch.zeros(2, channels, size, size))
    except torch.OutOfMemoryError:
        raise
    except _FAULTS as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            f"{what} cannot be used with {images}: {reason}. Load the data set with another size, or name another "
            "network."
        ) from error
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if shape != (2, classes):
        raise ValueError(
            f"{what} must give one number for each class, an output of shape {(2, classes)} for two {images}, but it "
            f"gave {shape}. Name another network, or your own, which makes that of it, as 'module:callable'."
        )
    return network.train()
