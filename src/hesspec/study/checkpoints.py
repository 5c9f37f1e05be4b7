"""Files of network weights: written as safetensors, read as safetensors or in PyTorch's own formats."""

import difflib
import hashlib
import itertools
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hesspec.backend.files import atomic_path
from hesspec.backend.text import in_words
from hesspec.study.foreign_weights import INDEX, inert_objects, named_as_in, shards_of, state_dict_in
from hesspec.study.training import EpochRecord, TrainingState

__all__ = [
    "has_tensors",
    "has_training_state",
    "is_whole",
    "load_training_state",
    "load_weights",
    "read_metadata",
    "save_checkpoint",
    "save_training_state",
    "tensor_shapes",
]

# Prefixes of tensors in the state of a training; the first one is also the metadata key of the rest of the optimiser.
OPTIMIZER, OBSERVERS = "optimizer", "observers"
# Metadata key in files written by hesspec: SHA-256 of all tensors. Other files do not have it.
DIGEST: Final = "hesspec_digest"


def save_checkpoint(path: str | os.PathLike[str], network: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a network's parameters and buffers to a safetensors file, atomically.

    Shared tensors (tied weights) are written under each of their names, so that any reader of safetensors gets a
    complete state dict.

    Parameters
    ----------
    path
        File to write, usually with the suffix `.safetensors`; missing folders are created.
    network
        Network on any device; it is left unchanged.
    metadata
        Strings to store with the weights, such as the epoch and the data set.

    Raises
    ------
    ValueError
        If the network's state contains something other than tensors.
    OSError
        If the file cannot be written.
    """
    tensors = {}
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"The network's state {name!r} is an object of type {type(value).__name__!r}; a "
                "checkpoint contains only tensors."
            )
        # A separate clone for each name, as safetensors rejects tensors that share memory.
        tensors[name] = value.cpu().clone(memory_format=torch.contiguous_format)
    _write(path, tensors, metadata)


def save_training_state(path: str | os.PathLike[str], state: TrainingState) -> None:
    """Write the optimiser's part of a training state to a safetensors file; records are stored separately.

    Parameters
    ----------
    path
        File to write; missing folders are created.
    state
        State after an epoch.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    parts = {OPTIMIZER: state.optimizer, OBSERVERS: state.observers}
    tensors = {
        f"{part}.{name}": value.cpu().clone(memory_format=torch.contiguous_format)
        for part, values in parts.items()
        for name, value in values.items()
    }
    _write(path, {**tensors, "generator": state.generator}, {OPTIMIZER: state.text})


def _write(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, with a digest of its tensors."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    with atomic_path(path, size=size) as temporary:
        try:
            save_file(tensors, temporary, metadata={**metadata, DIGEST: _digest(tensors)})
        except SafetensorError as error:
            # The library wraps errors of the system in its own, with their numbers in the text.
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error)) from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def is_whole(path: Path) -> bool:
    """Whether a safetensors file exists, is readable, and matches its digest, if it has one.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    if not path.is_file():
        return False
    state = path.stat()
    return _is_whole(path, (state.st_ino, state.st_size, state.st_mtime_ns))


@cache
def _is_whole(path: Path, _state: tuple[int, ...]) -> bool:
    try:
        _read(path)
    except ValueError:
        return False
    return True


def load_training_state(path: str | os.PathLike[str], history: Sequence[EpochRecord]) -> TrainingState:
    """Read a state written by `save_training_state`, and combine it with the records of its epochs.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is another kind of file, or damaged.
    """
    file = _existing(path)
    tensors = _read(file)
    text = _metadata(file).get(OPTIMIZER)
    if "generator" not in tensors or text is None:
        missing = "tensor 'generator'" if text is not None else f"metadata {OPTIMIZER!r}"
        raise ValueError(f"The file {str(file)!r} does not contain the state of a training: it has no {missing}.")
    optimizer, observers = (
        {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        for part in (OPTIMIZER, OBSERVERS)
    )
    return TrainingState(
        history=list(history), optimizer=optimizer, text=text, generator=tensors["generator"], observers=observers
    )


def has_training_state(path: Path) -> bool:
    """Whether a file is a whole state of a training that this version can resume; raises OSError as `is_whole`."""
    return is_whole(path) and OPTIMIZER in _metadata(path)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the strings that `save_checkpoint` stored with the weights, without the weights.

    Parameters
    ----------
    path
        A safetensors file.

    Returns
    -------
    dict of str to str
        Empty if the file has none.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a safetensors file.
    """
    metadata = _metadata(_existing(path))
    return {name: value for name, value in metadata.items() if name != DIGEST}


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as content:
            return dict(content.metadata() or {})
    except SafetensorError as error:
        raise _damaged(file, "safetensors", error) from error


def tensor_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors of a safetensors file, without the tensors; raises what `read_metadata` does."""
    file = _existing(path)
    try:
        with safe_open(file, framework="pt") as content:
            return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise _damaged(file, "safetensors", error) from error


def has_tensors(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says: others may have any size on disk, and no content."""
    try:
        tensor_shapes(file)
    except (ValueError, OSError):
        return False
    return True


def load_weights(
    network: nn.Module, path: str | os.PathLike[str], *, entry: str | None = None, keep: Sequence[str] = ()
) -> None:
    """Load weights from a file into a network; if they do not fit, the network is left unchanged.

    Parameters
    ----------
    network
        Network to change; its tensors keep their device and dtype.
    path
        A `.safetensors` file; a folder of them with an index, as transformers writes large models; a `.pt` or `.pth`
        file with a state dict, bare or as an entry such as `"state_dict"` or `"model"` of a dict; or a `.ckpt` file of
        Lightning, whose other content is ignored. Names may have the prefixes of wrappers and compiled modules
        (`module.`, `model.`, `_orig_mod.`), or that of the part of a larger model which the network is. One name of
        tied weights is enough, as other writers of safetensors omit the rest.
    entry
        Entry of the file that holds the weights, such as `"model_ema"`. By default those that were trained and, only if
        there are none, their moving average.
    keep
        Names of tensors of the network that keep their values; in the file they may have any shape, or be missing.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is of another kind or damaged, contains Python objects other than tensors (reading it does not run
        any code in it), has no such entry, or its names or shapes do not match the network.
    """
    file, shards = Path(path), shards_of(Path(path))
    loaded = _read(_existing(path), entry) if shards is None else _read_shards(file, shards)
    state = network.state_dict()
    own = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    tied = _tied(own)
    weights = named_as_in(own, loaded, tied)
    weights.update({name: own[name] for name in keep})
    for names in tied:
        given = [weights[name] for name in names if name in weights]
        weights.update({name: given[0] for name in names if given and name not in weights})
    faults = "; ".join(_faults(own, weights, tied))
    if faults:
        raise ValueError(f"The weights in {str(file)!r} do not fit the network: {faults}.")
    network.load_state_dict(weights)


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(file)!r} to load weights from.")
    return file


def _damaged(file: Path, kind: str, error: object) -> ValueError:
    return ValueError(f"The file {str(file)!r} is not a {kind} file, or is damaged: {error}.")


def _read(file: Path, entry: str | None = None) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        if entry is not None:
            raise ValueError(f"The file {str(file)!r} has tensors only, and no entry {entry!r}.")
        return _read_safetensors(file)
    if file.suffix not in {".pt", ".pth", ".ckpt"}:
        raise ValueError(
            f"The file {str(file)!r} has the suffix {file.suffix!r}; weights are read from "
            f"'.safetensors', '.pt', '.pth' and '.ckpt', and from folders with '*{INDEX}'."
        )
    return _read_torch(file, entry)


def _read_shards(path: Path, shards: Mapping[Path, list[str]]) -> dict[str, Tensor]:
    """Read weights from several files, by the names that the index has for each."""
    found: dict[str, Tensor] = {}
    for file, names in shards.items():
        tensors = _read_safetensors(_existing(file))
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(
                f"The file {str(file)!r} lacks {_first(map(repr, missing), len(missing))}, which the index in "
                f"{str(path)!r} says it has."
            )
        found |= {name: tensors[name] for name in names or tensors}
    return found


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors = dict(load_file(file))
    except SafetensorError as error:
        raise _damaged(file, "safetensors", error) from error
    except RuntimeError as error:  # of a file that cannot be mapped into memory
        size = in_words(file.stat().st_size)
        raise ValueError(f"The file {str(file)!r} has {size}, which cannot be mapped into memory.") from error
    expected = _metadata(file).get(DIGEST)
    if expected is not None and expected != _digest(tensors):
        raise _damaged(file, "safetensors", "its tensors do not match its digest")
    return tensors


def _check_archive(file: Path) -> None:
    """Reject an archive with compressed members, which PyTorch never writes: a few bytes could expand to any size."""
    if not zipfile.is_zipfile(file):
        return  # the older format of PyTorch, which is not compressed
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"The file {str(file)!r} is damaged: {error}.") from error
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or (
        sum(part.file_size for part in parts) > file.stat().st_size
    ):
        raise ValueError(f"The file {str(file)!r} was not written by PyTorch: it declares more data than it contains.")


def _read_torch(file: Path, entry: str | None) -> dict[str, Tensor]:
    _check_archive(file)
    try:
        with warnings.catch_warnings(), inert_objects(file) if file.suffix == ".ckpt" else nullcontext():
            # torch warns about what it then rejects (TorchScript), which the error below states.
            warnings.simplefilter("ignore")
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on damaged files, the unpickler raises errors of any type
        raise ValueError(
            f"The file {str(file)!r} is damaged or contains Python objects other than tensors, which "
            "are not read, as loading them runs code. Save weights with "
            "`torch.save(network.state_dict(), path)`."
        ) from error
    content = state_dict_in(content, entry)
    if not isinstance(content, dict):
        raise ValueError(
            f"The file {str(file)!r} contains an object of type {type(content).__name__!r}, not a "
            "state dict. Save weights with `torch.save(network.state_dict(), path)`."
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"The file {str(file)!r} contains a dict that is not a state dict: its entry {name!r} is "
                f"an object of type {type(value).__name__!r}, but should be a tensor with a text as its name."
            )
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            kind = "quantised" if value.is_quantized else "without values" if value.is_meta else str(value.layout)
            raise ValueError(
                f"The file {str(file)!r} has a tensor {name!r} that is {kind}; weights are dense numbers. Save "
                "`value.dequantize()` or `value.to_dense()` of it."
            )
    return dict(content)


def _tied(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Group the names of tensors with several names."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, value in state.items():
        if value.numel() > 0:
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
            groups.setdefault(key, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _faults(own: Mapping[str, Tensor], given: Mapping[str, Tensor], tied: list[list[str]]) -> Iterator[str]:
    """Describe all differences between given tensors and those of the network."""
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    if missing:
        names = (f"{name!r}{_nearest(name, unexpected)}" for name in missing)
        yield f"the file lacks {_first(names, len(missing))}"
    if unexpected:
        names = (f"{name!r}{_nearest(name, missing)}" for name in unexpected)
        yield f"the network lacks {_first(names, len(unexpected))}"
    misshapen = [name for name in own if name in given and given[name].shape != own[name].shape]
    if misshapen:
        shapes = (f"{name!r} of shape {tuple(given[name].shape)} for {tuple(own[name].shape)}" for name in misshapen)
        yield f"the file has {_first(shapes, len(misshapen))}"
    complex_names = [name for name in own if name in given and given[name].is_complex() and not own[name].is_complex()]
    if complex_names:
        shown = _first(map(repr, complex_names), len(complex_names))
        yield f"the file has complex numbers, whose imaginary parts would be lost, for {shown}"
    for first, *others in tied:
        for name in others:
            if name in given and not torch.equal(given[first], given[name]):
                yield f"{first!r} and {name!r} are one tensor in the network but differ in the file"


def _nearest(name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1)
    return f" (nearest: {nearest[0]!r})" if nearest else ""


def _first(items: Iterator[str], count: int) -> str:
    """Join the first few of `count` items, and count the others."""
    shown = list(itertools.islice(items, 3))
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return ", ".join(shown) + more
