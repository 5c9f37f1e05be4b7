"""Tensors in arbitrary structures: finding them, replacing them, and comparing the rest."""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hesspec.backend.text import kind_of
from hesspec.operators.data.objects import CONSTANTS, Content, content_of, rebuilt

__all__ = [
    "Structure",
    "describe",
    "flatten",
    "map_tensors",
    "named_tensors",
    "parts_of",
    "rows_of",
    "tensors_of",
]

# NumPy's kinds of dtype that have a counterpart in PyTorch: bool, signed and unsigned integer, floating, complex.
NUMERIC = "biufc"

# Largest number of members of a structure in a message.
SHOWN = 8

# Advice for objects that cannot be copied.
ADVICE = "pass its tensors in a tuple, dict or dataclass instead"

Fill = Callable[[Iterator[Tensor]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """Structure without its tensors.

    Structures compare equal, and have the same hash, if they differ only in their tensors: they have the same
    containers, and equal constants (numbers, strings, booleans, None) in the same positions. A structure with an object
    that cannot be compared is equal only to itself.

    Attributes
    ----------
    key : hashable
        Key for comparison.
    paths : tuple of str
        Path of each tensor, as an expression: "['x'][0]".
    opaque : bool
        Whether it contains an object whose content is not known to be tensors and constants.
    """

    key: Hashable
    paths: tuple[str, ...]
    opaque: bool
    _fill: Fill

    def __eq__(self, other: object) -> bool:
        """Whether the two differ only in their tensors."""
        return isinstance(other, Structure) and (self is other or (not self.opaque and self.key == other.key))

    def __hash__(self) -> int:
        """Hash of the key."""
        return hash(self.key)

    def fill(self, tensors: Sequence[Tensor]) -> Any:
        """Return the structure with these tensors, in the order of `paths`.

        Raises
        ------
        ValueError
            If an object in it cannot be copied with other tensors.
        """
        supply = iter(tensors)
        filled = self._fill(supply)
        if next(supply, None) is not None:
            raise RuntimeError("There are more tensors than the structure has positions for.")
        return filled


def flatten(structure: Any) -> tuple[list[Tensor], Structure]:
    """Separate the tensors of a structure from the rest of it.

    Lists, tuples, named tuples, dicts, dataclasses and packed sequences are traversed; NumPy arrays are converted to
    tensors. Any other object is searched for tensors in the state from which it would be copied; it makes the structure
    opaque, as do tensors that are sparse, nested, quantised or of a subclass.
    """
    tensors: list[Tensor] = []
    paths: list[str] = []
    key, fill, opaque = _taken_apart(structure, "", tensors, paths)
    return tensors, Structure(key, tuple(paths), opaque, fill)


def tensors_of(structure: Any) -> list[Tensor]:
    """Return all tensors of a structure; see `flatten`."""
    return flatten(structure)[0]


def named_tensors(structure: Any, name: str) -> dict[str, Tensor]:
    """Return all tensors of a structure by the expressions that access them from a variable of this name."""
    tensors, rest = flatten(structure)
    return {name + path: tensor for path, tensor in zip(rest.paths, tensors, strict=True)}


def map_tensors(function: Callable[[Tensor], Tensor], structure: Any) -> Any:
    """Copy a structure with a function applied to each tensor.

    A tensor that occurs several times is also a single tensor in the copy.

    Raises
    ------
    ValueError
        If an object in it cannot be copied with other tensors.
    """
    tensors, rest = flatten(structure)
    # Stored with the tensors themselves, so that ids are not reused meanwhile.
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for tensor in tensors:
        if id(tensor) not in found:
            found[id(tensor)] = tensor, function(tensor)
    return rest.fill([found[id(tensor)][1] for tensor in tensors])


def rows_of(tensor: Tensor) -> int | None:
    """Return the first dimension of a tensor, if it can be indexed; None for scalars, sparse and nested tensors."""
    return len(tensor) if _is_plain(tensor) and tensor.dim() else None


def describe(structure: Any) -> str:
    """Describe a structure for messages: kinds, shapes and dtypes.

    Examples
    --------
    >>> describe({"x": torch.zeros(2, 3), "y": [None, 1.5]})
    "dict {'x': Tensor (2, 3) torch.float32, 'y': list [None, 1.5]}"
    """
    if isinstance(structure, Tensor | np.ndarray):
        return f"{type(structure).__name__} {tuple(structure.shape)} {structure.dtype}"
    if isinstance(structure, CONSTANTS):
        return repr(structure) if len(repr(structure)) < 40 else type(structure).__name__
    if isinstance(structure, Mapping):
        return f"{type(structure).__name__} {{{_listed(f'{key!r}: ' for key in structure)(structure.values())}}}"
    if isinstance(structure, list | tuple) and not isinstance(structure, PackedSequence):
        opening, closing = "[]" if isinstance(structure, list) else "()"
        return f"{type(structure).__name__} {opening}{_listed(None)(structure)}{closing}"
    parts = parts_of(structure)
    if parts is not None:
        names = (f"{place.lstrip('.')}: " for place in parts.places)
        return f"{type(structure).__name__} ({_listed(names)(parts.members)})"
    tensors = tensors_of(structure)
    return type(structure).__name__ + (f" with {_listed(None)(tensors)}" if tensors else "")


def _listed(names: Iterator[str] | None) -> Callable[[Any], str]:
    def listed(members: Any) -> str:
        members = list(members)
        shown = [(next(names) if names else "") + describe(member) for member in members[:SHOWN]]
        return ", ".join([*shown, "..."] if len(members) > SHOWN else shown)

    return listed


class Parts(NamedTuple):
    """Parts of a container: its key, its members with their paths, and a function to rebuild it."""

    key: Any
    places: Sequence[str]
    members: Sequence[Any]
    build: Callable[[Sequence[Any]], Any]


def parts_of(container: Any) -> Parts | None:
    """Return the parts of a container whose state is known to be its members; None for any other object."""
    kind = type(container)
    if kind in (list, tuple):
        return Parts((kind, len(container)), [f"[{i}]" for i in range(len(container))], container, kind)
    if kind in (dict, OrderedDict):
        return _parts_of_dict(container)
    named = isinstance(container, tuple) and hasattr(kind, "_fields") and not isinstance(container, PackedSequence)
    # State besides the fields might be derived from them.
    if named and not getattr(container, "__dict__", None):
        return Parts(
            kind, [f".{name}" for name in kind._fields], container, lambda members: tuple.__new__(kind, members)
        )
    if dataclasses.is_dataclass(container) and not isinstance(container, type | Mapping | tuple | list):
        return _parts_of_dataclass(container)
    return None


def _parts_of_dict(container: dict[Any, Any]) -> Parts | None:
    kind, keys = type(container), list(container)
    if not all(isinstance(key, CONSTANTS) for key in keys):
        return None
    return Parts(
        (kind, tuple(map(_constant, keys))),
        [f"[{key!r}]" for key in keys],
        list(container.values()),
        lambda members: kind(zip(keys, members, strict=True)),
    )


def _parts_of_dataclass(container: Any) -> Parts | None:
    kind, names = type(container), [field.name for field in dataclasses.fields(container)]
    if set(getattr(container, "__dict__", names)) != set(names):
        return None
    members = [getattr(container, name) for name in names]
    return Parts(kind, [f".{name}" for name in names], members, _filled(kind, names))


def _filled(kind: type, names: Sequence[str]) -> Callable[[Sequence[Any]], Any]:
    def build(members: Sequence[Any]) -> Any:
        # Its own constructor may take other arguments and convert them.
        built: Any = object.__new__(kind)
        for name, member in zip(names, members, strict=True):
            object.__setattr__(built, name, member)
        return built

    return build


def _taken_apart(item: Any, path: str, tensors: list[Tensor], paths: list[str]) -> tuple[Hashable, Fill, bool]:
    """Return the key of an item, a function to fill it, and whether it is opaque; append its tensors and paths."""
    if isinstance(item, np.ndarray) and item.dtype.kind in NUMERIC:
        item = _tensor(item)
    if isinstance(item, Tensor):
        tensors.append(item)
        paths.append(path)
        return Tensor, next, not _is_plain(item)
    if isinstance(item, CONSTANTS):
        return _constant(item), lambda _: item, False
    if isinstance(item, PackedSequence):
        return _taken_apart_packed(item, path, tensors, paths)
    parts = parts_of(item)
    if parts is None:
        return _taken_apart_object(item, path, tensors, paths)
    found = [
        _taken_apart(member, path + place, tensors, paths)
        for place, member in zip(parts.places, parts.members, strict=True)
    ]
    fills, build = [fill for _, fill, _ in found], parts.build
    return (
        (parts.key, tuple(key for key, _, _ in found)),
        lambda supply: build([fill(supply) for fill in fills]),
        any(opaque for _, _, opaque in found),
    )


def _taken_apart_packed(
    packed: PackedSequence, path: str, tensors: list[Tensor], paths: list[str]
) -> tuple[Hashable, Fill, bool]:
    # Batch sizes stay on the CPU, whatever the device; their values are read while the model runs.
    sizes = packed.batch_sizes.clone()
    names = [name for name in ("data", "sorted_indices", "unsorted_indices") if getattr(packed, name) is not None]
    tensors += [getattr(packed, name) for name in names]
    paths += [f"{path}.{name}" for name in names]

    def fill(supply: Iterator[Tensor]) -> PackedSequence:
        return PackedSequence(batch_sizes=sizes.clone(), **{name: next(supply) for name in names})

    return (PackedSequence, tuple(sizes.tolist()), tuple(names)), fill, True


def _taken_apart_object(item: Any, path: str, tensors: list[Tensor], paths: list[str]) -> tuple[Hashable, Fill, bool]:
    content = content_of(item)
    tensors += content.tensors
    numbered = len(content.tensors) > 1
    paths += [
        f"{path} (tensor {i} in it)" if numbered else f"{path} (tensor in it)" for i in range(len(content.tensors))
    ]
    return (type(item), content.words), lambda supply: _copied(item, content, supply), True


def _copied(item: Any, content: Content, supply: Iterator[Tensor]) -> Any:
    """Deep-copy an object with other tensors in it."""
    given = [next(supply) for _ in content.tensors]
    replaced = {id(old): new for old, new in zip(content.tensors, given, strict=True)}
    try:
        copied = copy.deepcopy(item, dict(replaced))
    except Exception as error:
        raise ValueError(
            f"The data contains {kind_of(item)} that cannot be copied ({type(error).__name__}: {error}); {ADVICE}."
        ) from error
    if _holds(copied, given):
        return copied
    # A class with its own __deepcopy__ may share some members with its copies, as graphs do.
    words = f"The data contains {kind_of(item)} whose copies have other tensors"
    try:
        copied = rebuilt(item, replaced)
    except Exception as error:
        raise ValueError(f"{words}, and which cannot be pickled ({error}); {ADVICE}.") from error
    if not _holds(copied, given):
        raise ValueError(f"{words}; {ADVICE}.")
    return copied


def _holds(item: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether these are the tensors of an object."""
    return [id(tensor) for tensor in content_of(item).tensors] == list(dict.fromkeys(map(id, tensors)))


def _is_plain(tensor: Tensor) -> bool:
    """Whether a trace needs only the shape and dtype of a tensor."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
    )


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Convert an array to a tensor, sharing its memory if PyTorch supports it."""
    native = array.dtype.isnative and array.flags.writeable and all(stride >= 0 for stride in array.strides)
    try:
        return torch.from_numpy(array if native else array.astype(array.dtype.newbyteorder("="), order="C", copy=True))
    except TypeError as error:
        raise ValueError(
            f"The data contains an array of {array.dtype}, which has no counterpart in PyTorch."
        ) from error


def _constant(value: Any) -> Hashable:
    """Return a key that distinguishes constants: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if isinstance(value, np.generic):
        return type(value), value.tobytes()
    if isinstance(value, enum.Enum):
        return type(value), value.name
    return type(value), repr(value)
