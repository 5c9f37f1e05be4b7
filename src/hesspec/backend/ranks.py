"""Processes that share a measurement: collectives, and propagation of errors to all ranks."""

from __future__ import annotations

import functools
import math
import platform
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, TypeVar
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from hesspec.backend.memory import is_out_of_memory
from hesspec.errors import RankError

__all__ = ["ALONE", "Ranks", "collectives_of_model"]

# Functions of this module have the default process group as a default argument, if it exists at the first import, and
# keep it alive forever; PyTorch imports it in the first trace. Imported here before there is a group. See
# `Ranks.group`.
with mock.patch.object(type(dist.group), "WORLD", None):
    import_module("torch.distributed.nn.functional")

T = TypeVar("T")


class Ranks:
    """Processes of a `torch.distributed` group, or this process alone.

    All methods except `part` are collective: every rank must call them, in the same order.

    Parameters
    ----------
    group : ProcessGroup, optional
        Group with the backend Gloo or NCCL; None for this process alone.

    Attributes
    ----------
    rank, size : int
        Rank of this process, and size of the group.

    Raises
    ------
    ValueError
        If this process is not in the group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = None if group is None else weakref.ref(group)
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        if self.rank < 0:
            raise ValueError("This process is not in the group; build the operator on its ranks only.")
        nccl = group is not None and "nccl" in dist.get_backend(group)
        # The device that the group was made for, if it is known: ranks may not have selected one.
        bound = group.bound_device_id if group is not None and nccl else None
        on_cuda = bound or (torch.device("cuda", torch.cuda.current_device()) if nccl else None)
        self._device = on_cuda or torch.device("cpu")
        # Gloo's own all-gather and reduce-scatter took 0.08 and 0.10 s for 28 million floats on two ranks of a machine,
        # sending and receiving the same slices 0.03 s.
        self._native = nccl

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group; None for this process alone.

        It is not kept alive: threads of a Gloo group that outlives `destroy_process_group` may release their last
        tensors during shutdown of Python, which aborts the process ("terminate called without an active exception").

        Raises
        ------
        ValueError
            If the group has been destroyed.
        """
        if self._group is None:
            return None
        group = self._group()
        if group is None:
            raise ValueError(
                "The process group of this operator has been destroyed; finish measuring before destroying it."
            )
        return group

    @functools.cached_property
    def neighbours(self) -> int:
        """Number of ranks on the machine of this rank, including itself."""
        return self.gather(platform.node()).count(platform.node())

    def part(self, size: int) -> tuple[int, int]:
        """Return the first index of this rank's slice of a vector (size,), and the index after its last.

        All slices except the last ones have ceil(size/ranks) entries, like those of a `DTensor` with the placement
        `Shard(0)`.
        """
        length = -(-size // self.size)
        return min(self.rank * length, size), min((self.rank + 1) * length, size)

    # Numbers and objects ----------------------------------------------------------------------------------------------

    def numbers(self, *values: float) -> Tensor:
        """Gather numbers from all ranks, (ranks, k), float64."""
        mine = torch.tensor(values, dtype=torch.float64, device="cpu")
        if self.size == 1:
            return mine[None]
        found = torch.empty(self.size, len(values), dtype=torch.float64, device=self._device)
        with _reported():
            dist.all_gather(list(found.unbind()), mine.to(self._device), group=self.group)
        return found.cpu()

    def total(self, value: float) -> float:
        """Sum over the ranks in their order; bitwise identical on all of them."""
        return value if self.size == 1 else sum(self.numbers(value)[:, 0].tolist())

    def least(self, value: float) -> float:
        """Minimum of the ranks' numbers."""
        return value if self.size == 1 else float(self.numbers(value).min())

    def norm(self, part: float) -> float:
        """Norm of a vector from the norms of its slices."""
        return part if self.size == 1 else math.hypot(*self.numbers(part)[:, 0].tolist())

    def gather(self, value: T) -> list[T]:
        """Gather small objects from all ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _reported():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def together(self, action: Callable[[], T]) -> T:
        """Return the result of an action that does not communicate; if it fails on one rank, all ranks raise.

        Raises
        ------
        Exception
            The original error, on the first rank where it failed.
        RankError
            On the other ranks.
        """
        if self.size == 1:
            return action()
        failure: Exception | None = None
        try:
            result = action()
        except Exception as error:  # noqa: BLE001 - raised below, when all ranks know of it
            failure = error
        failed = self.numbers(float(failure is not None))[:, 0]
        if not failed.any():
            return result
        first = int(failed.argmax())
        words = self.gather("" if failure is None else f"{type(failure).__name__}: {failure}")[first]
        if self.rank == first and failure is not None:
            raise failure
        raise RankError(f"Rank {first} of {self.size} ended with {words}", reported=True) from failure

    # Vectors ----------------------------------------------------------------------------------------------------------

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum tensors over the ranks, in place."""
        if self.size > 1:
            with _reported():
                dist.all_reduce(tensor, group=self.group)
        return tensor

    def whole(self, slice_: Tensor, size: int, into: Tensor | None = None) -> Tensor:
        """Gather the vector (size,) of which every rank has the slice `part(size)` (all-gather).

        Parameters
        ----------
        slice_ : Tensor
        size : int
        into : Tensor, optional
            Memory for the result, from `room`; new memory by default.
        """
        if self.size == 1:
            return slice_
        found = self.room(size, slice_) if into is None else into
        pieces = found.view(self.size, -1)
        padded = _padded(slice_, pieces.shape[1])
        with _reported():
            if self._native:
                _all_gather(found, padded, group=self.group)
            else:
                self._swap([padded] * self.size, list(pieces))
                pieces[self.rank] = padded
        return found[:size]

    def slice_of_sum(self, vector: Tensor, room: Tensor | None = None) -> Tensor:
        """Return this rank's slice of the sum of all ranks' vectors (size,) (reduce-scatter).

        Parameters
        ----------
        vector : Tensor (size,)
        room : Tensor, optional
            Working memory, from `room`; new memory by default.
        """
        if self.size == 1:
            return vector
        begin, end = self.part(len(vector))
        pieces = (self.room(len(vector), vector) if room is None else room).view(self.size, -1)
        padded = _padded(vector, pieces.numel())
        with _reported():
            if self._native:
                _reduce_scatter(pieces[0], padded, group=self.group)
                return pieces[0, : end - begin].clone()
            mine = padded.view_as(pieces)
            self._swap(list(mine), list(pieces))
            pieces[self.rank] = mine[self.rank]
        return pieces[:, : end - begin].sum(dim=0)

    def room(self, size: int, like: Tensor) -> Tensor:
        """Allocate memory for a vector (size,), padded to slices of equal length."""
        return torch.empty(-(-size // self.size) * self.size, dtype=like.dtype, device=like.device)

    def _swap(self, sent: list[Tensor], received: list[Tensor]) -> None:
        """Send one tensor to each other rank, and receive one from each."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        works = [dist.isend(sent[rank], group=self.group, group_dst=rank) for rank in others]
        works += [dist.irecv(received[rank], group=self.group, group_src=rank) for rank in others]
        for work in works:
            if work is not None:
                work.wait()

    def exchange(self, pieces: list[Tensor], lengths: list[int]) -> list[Tensor]:
        """Send a piece (n,) to each rank, and receive one of these lengths from each."""
        if self.size == 1:
            return pieces
        found = torch.empty(sum(lengths), dtype=pieces[0].dtype, device=pieces[0].device)
        with _reported():
            dist.all_to_all_single(
                found, torch.cat(pieces), lengths, [len(piece) for piece in pieces], group=self.group
            )
        return list(torch.split(found, lengths))


def _padded(vector: Tensor, length: int) -> Tensor:
    return vector.contiguous() if len(vector) == length else torch.nn.functional.pad(vector, (0, length - len(vector)))


# Renamed in PyTorch 2.14, where the old names issue warnings.
_all_gather: Final[Callable[..., Any]] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Final[Callable[..., Any]] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@contextmanager
def _reported() -> Iterator[None]:
    """Convert failures of collectives to `RankError`."""
    try:
        with warnings.catch_warnings():
            # Warnings about PyTorch's implementation, on which a user cannot act.
            warnings.simplefilter("ignore")
            yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise _gone(error) from error


@contextmanager
def collectives_of_model() -> Iterator[None]:
    """Convert failures of a model's own collectives to `RankError`; other errors of the model pass unchanged."""
    try:
        yield
    except RuntimeError as error:
        # Gloo has no error type; its messages name source files.
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise _gone(error) from error


def _gone(error: RuntimeError) -> RankError:
    cause = str(error).strip().partition("\n")[0]
    return RankError(
        f"A rank exited, or did not answer within the group's timeout ({cause}). Look at the output of the other "
        "ranks for the cause; with snapshot=..., the same call continues from the last snapshot."
    )


ALONE: Final = Ranks()
"""This process alone."""
