"""Samples of a batch: their number, their positions in its structure, and batches of some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from hesspec.operators.data.structures import flatten, parts_of, rows_of

__all__ = ["Count", "Division", "count_samples", "joined"]


@dataclass(frozen=True)
class Division:
    """Positions of the samples in structures of one kind.

    It is determined from one structure and used for others, so that a tensor that happens to have as many rows as one
    batch has samples, such as a mask shared by all samples, is treated in the same way in all batches.

    Attributes
    ----------
    rows : frozenset of str
        Paths of the tensors whose first dimension is that of the samples.
    lists : frozenset of str
        Paths of the lists and tuples that have one member for each sample.
    whole : frozenset of str
        Paths of the tensors that all samples share.
    """

    rows: frozenset[str]
    lists: frozenset[str]
    whole: frozenset[str]

    @classmethod
    def of(cls, structure: Any, samples: int) -> Self:
        """Determine the positions in a structure of this number of samples."""
        return cls._at(_places(structure, ""), samples)

    @classmethod
    def _at(cls, places: Iterable[tuple[str, Any]], samples: int, *, members: bool = True) -> Self:
        rows: set[str] = set()
        lists: set[str] = set()
        whole: set[str] = set()
        for path, item in places:
            if isinstance(item, Tensor):
                (rows if rows_of(item) == samples else whole).add(path)
            elif members and len(item) == samples and not _of_rows(item, samples) and _shared(item) != samples:
                lists.add(path)
        rows, whole = ({path for path in paths if not _inside(path, lists)} for paths in (rows, whole))
        return cls(frozenset(rows), frozenset(lists), frozenset(whole))

    @classmethod
    def of_pair(cls, pair: tuple[Any, Any] | list[Any], samples: int) -> Self:
        """Determine the positions in (inputs, targets), a pair that is not itself a list of two samples.

        Nor is the batch of a closure, as `inputs`, that consists of two lists of two samples.
        """
        pairs = {"", "[0]"} if pair[1] is None and _zipped(pair[0]) else {""}
        return cls._at((place for place in _places(pair, "") if place[0] not in pairs), samples)

    @classmethod
    def of_rows(cls, structure: Any, samples: int) -> Self:
        """Determine the positions if no list has one member for each sample, whatever its length."""
        return cls._at(_places(structure, ""), samples, members=False)

    @property
    def divides(self) -> bool:
        """Whether there is anything to divide."""
        return bool(self.rows or self.lists)

    def shared(self, path: str) -> Self:
        """Return the division in which all samples share the tensor at a path."""
        return replace(self, rows=self.rows - {path}, whole=self.whole | {path})

    def sharing(self, one: Any, other: Any) -> Self:
        """Return the division in which rows that are equal in two structures are tensors that all samples share."""
        tensors = [
            {path: item for path, item in _places(each, "") if isinstance(item, Tensor)} for each in (one, other)
        ]
        equal = {
            path for path in self.rows & tensors[0].keys() & tensors[1].keys() if _equal(*(t[path] for t in tensors))
        }
        return replace(self, rows=self.rows - equal, whole=self.whole | equal)

    def fits(self, structure: Any, samples: int) -> bool:
        """Whether a structure of this number of samples has them exactly at these positions."""
        found = set()
        for path, item in _places(structure, ""):
            if _inside(path, self.lists):
                continue
            if path in self.rows or path in self.lists:
                found.add(path)
                if (rows_of(item) if isinstance(item, Tensor) else len(item)) != samples:
                    return False
            elif isinstance(item, Tensor) and path not in self.whole:
                return False
        return found >= self.rows | self.lists

    def taken(self, structure: Any, group: Tensor) -> Any:
        """Return samples of a structure by their indices (k,), ascending; shared tensors are taken whole."""
        return self._taken(structure, "", group)

    def _taken(self, item: Any, path: str, group: Tensor) -> Any:
        if isinstance(item, np.ndarray):
            tensors, rest = flatten(item)
            return rest.fill([self._taken(tensor, path, group) for tensor in tensors])
        if isinstance(item, Tensor):
            return _rows(item, group) if path in self.rows else item
        if path in self.lists:
            return type(item)(item[index] for index in group.tolist())
        parts = parts_of(item)
        if parts is None:
            return item
        return parts.build(
            [
                self._taken(member, path + place, group)
                for place, member in zip(parts.places, parts.members, strict=True)
            ]
        )


def _places(item: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield all plain tensors, lists and tuples in a structure, with their paths."""
    if isinstance(item, np.ndarray):
        (item,), _ = flatten(item)
    if isinstance(item, Tensor):
        yield path, item
    parts = parts_of(item)
    if parts is not None:
        if type(item) in (list, tuple):
            yield path, item
        for place, member in zip(parts.places, parts.members, strict=True):
            yield from _places(member, path + place)


def _inside(path: str, containers: set[str] | frozenset[str]) -> bool:
    """Whether a path is inside a container at one of these paths, at any depth."""
    return any(path != place and path.startswith(place) and path[len(place)] in "[." for place in containers)


def _of_rows(members: Sequence[Any], samples: int) -> bool:
    """Whether the members of a list are tensors of all samples, rather than one member for each sample."""
    tensors = [member for member in members if isinstance(member, Tensor)]
    return bool(tensors) and all(rows_of(tensor) == samples for tensor in tensors)


def _rows(tensor: Tensor, group: Tensor) -> Tensor:
    """Return samples of a tensor, as a view if they are contiguous."""
    if bool((group.diff() == 1).all()):
        return tensor[int(group[0]) : int(group[-1]) + 1]
    return tensor.index_select(0, group.to(tensor.device))


def joined(one: Any, other: Any, division: Division) -> Any:
    """Join the samples of two structures with this division; None if they cannot be joined.

    Shared tensors must be equal, and rows must have the same shape.
    """
    return _joined(one, other, "", division)


def _joined(one: Any, other: Any, path: str, division: Division) -> Any:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape[1:] == other.shape[1:] and one.dtype == other.dtype
        if path in division.rows:
            return torch.cat([one, other]) if alike else None
        return one if _equal(one, other) else None
    if path in division.lists:
        return type(one)([*one, *other])
    parts, others = parts_of(one), parts_of(other)
    if parts is None or others is None or parts.key != others.key:
        return one if parts is None and flatten(one)[1] == flatten(other)[1] else None
    members = [
        _joined(member, second, path + place, division)
        for place, member, second in zip(parts.places, parts.members, others.members, strict=True)
    ]
    lost = any(member is None and own is not None for member, own in zip(members, parts.members, strict=True))
    return None if lost else parts.build(members)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and entries."""
    return one.dtype == other.dtype and torch.equal(one, other)


class Count(NamedTuple):
    """Number of samples of a batch.

    Attributes
    ----------
    samples : int
        Number of samples.
    agreed : bool
        Whether inputs and targets agree on it.
    first : int
        Most likely number according to the targets alone; 0 if there are none.
    """

    samples: int
    agreed: bool
    first: int


def count_samples(inputs: Any, targets: Any, *, closed: bool = False) -> Count:
    """Number of samples of a batch, which is `inputs` if it is that of a closure (`closed`).

    It is the first dimension of tensors, or the length of a list of other objects: the first such number of the targets
    that also occurs in the inputs. If there are only targets or only inputs, it is theirs; they agree if there is no
    other, or if they are a tuple or list of unlike members, as the batch of a closure, that all have it.
    """
    if targets is None and (common := _zipped(inputs) or _shared(inputs)):
        return Count(common, agreed=True, first=0)
    if closed and (count := _rows_of_all(inputs)):
        # Two images of three channels each, or two tensors of three samples each.
        return Count(count, agreed=False, first=0)
    ours, theirs = list(dict.fromkeys(_counts(inputs))), list(dict.fromkeys(_counts(targets)))
    found = theirs or ours or [1]
    # A list of images of three channels and one of three tensors (3, ...) each look alike, but with lists of targets.
    members = set(_members(inputs, arguments=True))
    shared = [count for count in theirs if count in ours or count in members]
    first = [*theirs, 0][0]
    if shared:
        return Count(shared[0], agreed=True, first=first)
    return Count(found[0], agreed=not (ours and theirs) and len(found) < 2, first=first)


def _shared(side: Any) -> int:
    """Return the first number of samples that all members of a tuple or list have, if they are unlike; otherwise 0.

    Members of one type, or mappings with a key in common, may be samples, whose tensors can agree by chance. Two tuples
    are unlike if their tensors are, by dimensions or dtype.
    """
    members = [member for member in side if flatten(member)[0]] if type(side) in (list, tuple) else []
    kinds: set[Any] = {Tensor if isinstance(member, Tensor | np.ndarray) else type(member) for member in members}
    if len(members) == 2 and all(type(member) in (list, tuple) for member in members):
        # Inputs and targets; of samples, these are alike.
        kinds = {tuple((tensor.dim(), tensor.dtype) for tensor in flatten(member)[0]) for member in members}
    mappings = [member for member in members if isinstance(member, Mapping)]
    apart = len(members) > 1 and len(mappings) == len(members) and not set.intersection(*map(set, mappings))
    if len(kinds) < 2 and not apart:
        return 0
    first, *others = ([*_counts(member)] for member in members)
    return next((count for count in first if all(count in other for other in others)), 0)


def _zipped(side: Any) -> int:
    """Length of the lists that a batch consists of, if it is that of all, as of `zip(*samples)`; 0 otherwise.

    Lists of tensors with equal numbers of rows may be several inputs and several targets.
    """
    if type(side) not in (list, tuple) or len(side) < 2 or any(type(member) not in (list, tuple) for member in side):
        return 0
    rows = {rows_of(part) if isinstance(part, Tensor) else None for member in side for part in member}
    lengths = {len(member) for member in side}
    return lengths.pop() if len(lengths) == 1 and (len(rows) > 1 or None in rows) else 0


def _rows_of_all(side: Any) -> int:
    """Number of rows of tensors of one kind in a list, which may be samples or have a row for each sample; 0 if none.

    If there are as many tensors, it is the number of samples in either case.
    """
    if type(side) not in (list, tuple) or len(side) < 2 or not all(isinstance(member, Tensor) for member in side):
        return 0
    kinds = {(member.dtype, member.dim(), rows_of(member)) for member in side}
    rows = kinds.pop()[2]
    return rows if rows and not kinds and rows != len(side) else 0


def _members(side: Any, *, arguments: bool = False) -> Iterator[int]:
    """Yield lengths of all lists and tuples in a structure, but for one that holds the arguments of a model."""
    parts = parts_of(side)
    if type(side) in (list, tuple) and not arguments:
        yield len(side)
    for member in parts.members if parts else ():
        yield from _members(member)


def _counts(side: Any) -> Iterator[int]:
    """Yield candidates for the number of samples, most likely first."""
    if isinstance(side, PackedSequence):
        yield int(side.batch_sizes[0])
    firsts = [tensor.size(0) for tensor in flatten(side)[0] if tensor.dim()]
    is_list = type(side) in (list, tuple) and len(side) > 0
    bare = is_list and all(isinstance(member, Tensor | np.ndarray) for member in side)
    # Tensors with equal numbers of rows are several inputs or targets; other lists have one member for each sample.
    by_member = is_list and not (bare and len(set(firsts)) == 1)
    if by_member and (type(side) is list or not bare):
        yield len(side)
    yield from firsts
    if by_member:
        yield len(side)
    parts = parts_of(side)
    for member in parts.members if parts else ():
        if type(member) in (list, tuple):
            yield from _counts(member)
