"""Weights as other libraries store them: within checkpoints of trainings, under prefixes, and in several files."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from torch import Tensor

from hesspec.backend.suggest import unknown
from hesspec.study.json_files import read_json

__all__ = ["INDEX", "inert_objects", "named_as_in", "shards_of", "state_dict_in"]

logger = logging.getLogger(__name__)

INDEX: Final = ".safetensors.index.json"

# Entries of checkpoints with the weights, by preference: those that were trained before their moving averages.
ENTRIES: Final = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params")
AVERAGES: Final = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "shadow_params", "params_ema")
# Part of a name that `torch.compile` adds, and the one that `torch.optim.swa_utils.AveragedModel` has besides weights.
COMPILED: Final = "_orig_mod."
AVERAGED: Final = "n_averaged"
# Prefixes of wrappers, where not all weights of the network are found under one prefix.
PREFIXES: Final = ("module.", "model.", "network.")


class _StandIn:
    """Stands for every class and function of a checkpoint: makes an empty mapping, whatever the arguments."""

    def __new__(cls, *_: object, **__: object) -> Any:
        """Return an empty mapping, into which the unpickler can put the entries or the state of an object."""
        return OrderedDict()


def inert_objects(file: Path) -> AbstractContextManager[Any]:
    """Let `torch.load(weights_only=True)` read a checkpoint with other objects than tensors, of which none is created.

    Checkpoints of Lightning hold the states of loops and callbacks, and hyperparameters, of any classes. Within this
    context, PyTorch takes a class that makes empty mappings for each name of a class or function in the file that it
    does not allow itself; names are only compared, and nothing is imported or called. Names in `os`, `sys` and the like
    remain refused by PyTorch.

    Raises
    ------
    Exception
        Of any class, if the file is damaged.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except ValueError:  # the older format of PyTorch, in which they cannot be looked up
        return nullcontext()
    return torch.serialization.safe_globals([(_StandIn, name) for name in names])


def state_dict_in(content: object, entry: str | None = None) -> Any:
    """Return the state dict in the content of a checkpoint; the content itself if there is none.

    Parameters
    ----------
    content
        A state dict, or a mapping that holds one, at any depth.
    entry
        Name of the entry that holds it. By default that of the trained weights or, if there is none, of their moving
        average.

    Raises
    ------
    ValueError
        If there is no such entry.
    """
    if entry is not None:
        if not isinstance(content, dict) or entry not in content:
            names = [str(name) for name in content] if isinstance(content, dict) else []
            raise ValueError(unknown("entry of the checkpoint", entry, names))
        content = content[entry]
    seen: set[int] = set()  # a file may hold an entry that is a part of itself
    while isinstance(content, dict) and id(content) not in seen:
        seen.add(id(content))
        if content and all(isinstance(value, Tensor) for value in content.values()):
            break
        held = [name for name in (*ENTRIES, *AVERAGES) if isinstance(content.get(name), dict)]
        if not held:
            break
        if others := [name for name in held[1:] if name in AVERAGES]:
            logger.info("the checkpoint also has the moving averages %s", ", ".join(others))
        content = content[held[0]]
    return content


def named_as_in(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], tied: Iterable[Iterable[str]]
) -> dict[str, Tensor]:
    """Name tensors as a network does, if they have its names but for prefixes of wrappers.

    Weights of a network that is a part of a larger model, as of a `LightningModule`, are found under the prefix that
    all of them have; what is under others belongs to other parts, and is left out.

    Parameters
    ----------
    own
        State of the network.
    given
        Tensors of a file.
    tied
        Groups of names of the network's tensors that have several; one of them is enough.

    Returns
    -------
    dict of str to Tensor
        Tensors by new names; by their own if they do not fit.
    """
    plain = {_plain(name): value for name, value in given.items()}
    wanted = {_plain(name): name for name in own}
    if wanted and all(name.startswith("module.") for name in wanted) and not plain.keys() & wanted.keys():
        wanted = {name.removeprefix("module."): own_name for name, own_name in wanted.items()}
    groups = [{_plain(name) for name in group} for group in tied]
    needed = [{name} for name in wanted if not any(name in group for group in groups)]
    found = [
        prefix
        for prefix in _prefixes(wanted, plain)
        if all(any(f"{prefix}{name}" in plain for name in names) for names in needed + groups)
    ]
    # Of several parts that have the names of the network, none is the network's unless its wrapper says so.
    prefix = found[0] if found and (len(found) == 1 or found[0] in ("", *PREFIXES)) else None
    if prefix is not None:
        left = [name for name in plain if not name.startswith(prefix)]
        if left:
            logger.info("%d tensors outside of %r were left out, such as %r", len(left), prefix, left[0])
        plain = {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}
    else:
        for wrapper in PREFIXES:
            if plain and all(name.startswith(wrapper) for name in plain) and not _any(wanted, wrapper):
                plain = {name.removeprefix(wrapper): value for name, value in plain.items()}
    if AVERAGED in plain and AVERAGED not in wanted:
        del plain[AVERAGED]
    return {wanted.get(name, name): value for name, value in plain.items()}


def _plain(name: str) -> str:
    return name.replace(COMPILED, "")


def _any(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _prefixes(wanted: Mapping[str, str], plain: Mapping[str, Tensor]) -> list[str]:
    """Prefixes under which the file has a tensor of the network: none first, then those of wrappers, then others."""
    if not wanted:
        return []
    # Tied weights may be missing under one name, so one name is not enough to find prefixes; two, of three, are.
    names = sorted(wanted, key=len, reverse=True)[:3]
    found = {
        given.removesuffix(name) for name in names for given in plain if given == name or given.endswith(f".{name}")
    }
    return sorted(found, key=lambda prefix: (prefix != "", prefix not in PREFIXES, prefix.count("."), prefix))


def shards_of(path: Path) -> dict[Path, list[str]] | None:
    """Return the files of weights in a folder, or of an index of them, with the names of their tensors.

    Parameters
    ----------
    path
        A folder as transformers writes it, with `NAME.safetensors.index.json` and the files that it lists, or with one
        file `*.safetensors`; or such an index.

    Returns
    -------
    dict of Path to list of str
        The names are empty for a single file, of which all tensors are taken. None if the path is neither.

    Raises
    ------
    ValueError
        If the folder has no weights or several files without an index, or the index is damaged or names files
        elsewhere.
    """
    if path.is_dir():
        indices, files = sorted(path.glob(f"*{INDEX}")), sorted(path.glob("*.safetensors"))
        if len(indices) == 1:
            path = indices[0]
        elif len(files) == 1 and not indices:
            return {files[0]: []}
        else:
            raise ValueError(
                f"The folder {str(path)!r} has {len(files)} files named *.safetensors and {len(indices)} named "
                f"*{INDEX}; weights are read from a folder with one index, or with one file. Name one of them."
            )
    elif not path.name.endswith(INDEX) or not path.is_file():
        return None
    content = read_json(path, "Save or download the weights again.")
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"The file {str(path)!r} is not an index of weights: it has no mapping 'weight_map' to files.")
    found: dict[str, list[str]] = {}
    for name, place in places.items():
        found.setdefault(place, []).append(name)
    for place in found:
        if PurePosixPath(place).name != place or not place.endswith(".safetensors"):
            raise ValueError(
                f"The index {str(path)!r} has weights in {place!r}; only files *.safetensors in its folder are read."
            )
    return {path.parent / place: names for place, names in found.items()}
