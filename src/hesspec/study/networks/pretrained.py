"""Files of the pretrained weights of torchvision and timm, where they are on this machine already."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import torch

__all__ = ["pretrained_file"]


def pretrained_file(network: str) -> Path:
    """Return the file of a network's pretrained weights, in the cache of its library; nothing is downloaded.

    Parameters
    ----------
    network
        `"torchvision:NAME"`, whose weights are those that torchvision calls `DEFAULT`, or `"timm:NAME"` or
        `"timm:NAME.TAG"`.

    Raises
    ------
    ModuleNotFoundError
        If the library is not installed.
    ValueError
        If the network is another one, or has no pretrained weights.
    FileNotFoundError
        If they are not on this machine; the message says how to download them.
    """
    library, _, name = network.partition(":")
    if library == "torchvision":
        return _of_torchvision(name)
    if library == "timm":
        return _of_timm(name)
    raise ValueError(
        f"There are no pretrained weights of {network!r}: --pretrained is for torchvision:NAME and timm:NAME. Give a "
        "file with --weights."
    )


def _of_torchvision(name: str) -> Path:
    from torchvision import models  # noqa: PLC0415 - an optional dependency

    if name not in models.list_models(module=models):
        raise ValueError(f"There is no torchvision classifier {name!r}; torchvision.models.list_models() has them.")
    url = str(models.get_model_weights(name)["DEFAULT"].url)  # an enumeration, by the name of its entry
    return _existing(_hub(url), f"torchvision.models.get_model({name!r}, weights='DEFAULT')", "torchvision")


def _of_timm(name: str) -> Path:
    import timm  # noqa: PLC0415 - an optional dependency
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - timm requires it

    found: Any = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if found is None or not (found.hf_hub_id or found.url):
        raise ValueError(
            f"timm has no pretrained weights of {name!r}; timm.list_models(pretrained=True) has the names of those "
            "that it has."
        )
    command = f"timm.create_model({name!r}, pretrained=True)"
    if found.hf_hub_id:
        cached = try_to_load_from_cache(found.hf_hub_id, found.hf_hub_filename or "model.safetensors")
        return _existing(Path(cached) if isinstance(cached, str) else None, command, "timm")
    return _existing(_hub(str(found.url)), command, "timm")


def _hub(url: str) -> Path:
    """Return where `torch.hub` keeps what it has downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(url).name


def _existing(file: Path | None, command: str, library: str) -> Path:
    if file is None or not file.is_file():
        where = "" if file is None else f", as {str(file)!r}"
        raise FileNotFoundError(
            f"The pretrained weights are not on this machine{where}, and hesspec downloads nothing. "
            f'Run once: python -c "import {library}; {command}"'
        )
    return file
