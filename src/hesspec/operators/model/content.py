"""Content hashes of networks, losses and weights, which identify a run."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hesspec.operators.data.fingerprints import octets

__all__ = ["architecture", "digest", "loss_with_settings"]

# Number of digits of a digest that are shown: 64 bits.
SHOWN = 16


def digest(parts: Iterable[str | bytes]) -> str:
    """Hash parts in order to 128 bits, in hexadecimal."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()


def architecture(model: nn.Module) -> str:
    """Class of a model, and a digest of its modules and the settings in their `repr`.

    Anything that the `repr` of a module does not show, such as the code of `forward`, is not included.
    """
    return f"{type(model).__name__} {digest([_without_addresses(repr(model))])[:SHOWN]}"


def loss_with_settings(loss_fn: Any) -> str:
    """Describe a loss as text: its name, and the settings of a module or the arguments of a partial function.

    Tensors among them, such as class weights, are shown by their digests. Objects that a function refers to are not
    included.

    Examples
    --------
    >>> loss_with_settings(nn.CrossEntropyLoss(label_smoothing=0.5))
    'CrossEntropyLoss(ignore_index=-100, label_smoothing=0.5, reduction=mean)'
    """
    if isinstance(loss_fn, functools.partial):
        settings = {**{str(place): value for place, value in enumerate(loss_fn.args)}, **loss_fn.keywords}
        return f"{loss_with_settings(loss_fn.func)}({_listed(settings)})"
    if isinstance(loss_fn, nn.Module):
        return f"{type(loss_fn).__name__}({_listed(dict(_settings(loss_fn)))})"
    return str(getattr(loss_fn, "__name__", type(loss_fn).__name__))


def _settings(loss: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes of a module and its submodules, as set by their constructors, and its tensors."""
    for prefix, module in loss.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and name != "training":
                yield ".".join(filter(None, (prefix, name))), value
    yield from loss.state_dict(keep_vars=True).items()


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in sorted(settings.items()) if value is not None)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return digest([repr(tuple(value.shape)), octets(value)])[:SHOWN]
    return _without_addresses(str(value))


def _without_addresses(text: str) -> str:
    """Remove memory addresses, which differ between processes."""
    return re.sub(r"\bat 0x[0-9a-fA-F]+", "", text)
