"""Division of data among the ranks of a group."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
import torch.distributed as dist

from hesspec.backend.ranks import Ranks
from hesspec.operators.data.division import Division, count_samples
from hesspec.operators.data.items import as_pair, check_data
from hesspec.operators.data.structures import flatten
from hesspec.operators.model.ambient import OwnRandomness

__all__ = ["check_cut", "check_share", "is_distributed", "shard_data"]


class _Shard:
    def __init__(self, data: Iterable[Any], ranks: Ranks) -> None:
        self._data, self._ranks = data, ranks
        count = len(data) if isinstance(data, Sized) else None
        # Later batches are split.
        self._dealt = None if count is None else count // ranks.size * ranks.size
        self.cut = False
        """Whether a batch was split in a pass over the data."""

    def __iter__(self) -> Iterator[Any]:
        rank, size = self._ranks.rank, self._ranks.size
        for index, item in enumerate(self._data):
            whole = self._dealt is None or index < self._dealt
            divided = None if whole else self._divided(index, item)
            if divided is not None:
                division, samples = divided
                self.cut = True
                yield division.taken(item, torch.arange(samples, device="cpu").tensor_split(size)[rank])
            elif index % size == rank:
                yield item

    def _divided(self, index: int, item: Any) -> tuple[Division, int] | None:
        """Return the positions of an item's samples and their number; None if they are too few or unknown."""
        sides = as_pair(index, item)
        samples, agreed, _ = count_samples(*sides)
        if samples < self._ranks.size or not agreed or flatten(item)[1].opaque:
            return None
        if not all(Division.of(side, samples).divides for side in sides if flatten(side)[0]):
            return None
        positions = Division.of_pair if type(item) in (list, tuple) else Division.of
        return positions(item, samples), samples

    def is_empty(self) -> bool:
        """Whether this rank has no share of nonempty data."""
        # With at least as many batches as ranks, each rank has one.
        return (
            not self._dealt
            and next(iter(OwnRandomness(self)), None) is None
            and next(iter(OwnRandomness(self._data)), None) is not None
        )


def check_share(data: Iterable[Any], ranks: Ranks) -> None:
    """Raise ValueError if there is too little data for this rank to have a share."""

    def check() -> None:
        if isinstance(data, _Shard) and data.is_empty():
            raise ValueError(
                f"Rank {ranks.rank} of {ranks.size} has no share of the data: there are fewer batches than ranks, and "
                "none that can be split into as many parts. Start fewer ranks, or use more samples or smaller batches."
            )

    ranks.together(check)


def check_cut(data: Iterable[Any], indivisible: str, ranks: Ranks) -> None:
    """Raise ValueError if batches were split among ranks that must not be split.

    Parameters
    ----------
    data : iterable
    indivisible : str
        Why batches may not be split; "" if they may.
    ranks : Ranks
    """

    def check() -> None:
        if indivisible and isinstance(data, _Shard) and data.cut:
            raise ValueError(
                f"hesspec.shard_data has split batches that must not be split: {indivisible}. Use a number of batches "
                "that is a multiple of the number of ranks."
            )

    ranks.together(check)


def shard_data(data: Iterable[Any], group: dist.ProcessGroup) -> Iterable[Any]:
    """Return this rank's share of data that every rank of a group has, for operators with `group=`.

    Batches are dealt in turn. The remaining ones at the end, fewer than ranks, are split along their samples, so that
    one batch serves any number of ranks; a batch that cannot be split (`hesspec.operators.risk.batches`), or data whose
    number of batches is not known in advance, is assigned whole to one rank. Every rank iterates over all of the data;
    if reading it is expensive, pass each rank its own share instead, in which no sample occurs twice
    (`torch.utils.data.DistributedSampler` repeats some unless their number is divisible).

    Parameters
    ----------
    data : iterable of (inputs, targets)
        Data, the same on every rank and in the same order.
    group : ProcessGroup
        Group of processes.

    Returns
    -------
    iterable of (inputs, targets)
        This rank's share.

    Raises
    ------
    ValueError
        If the data can be iterated only once, or is not an iterable of batches.
    """
    check_data(data)
    return _Shard(data, Ranks(group))


def is_distributed(value: object) -> bool:
    """Whether a tensor is distributed over ranks (a `DTensor`)."""
    # Slow to import, and already imported if there is such a tensor.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
