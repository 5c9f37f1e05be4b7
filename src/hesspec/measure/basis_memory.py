"""Choice of the storage of a Krylov basis, and the number of steps and of probes for which it has room."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hesspec.backend.algebra import SymmetricOperator
from hesspec.backend.ranks import Ranks
from hesspec.krylov.run import AUTO_FIRST
from hesspec.krylov.storage import STORAGES, Storage, room_for_basis, storages
from hesspec.krylov.vectors import Space

__all__ = ["choose_storage", "most_steps", "parallel_probes", "same_on_all_ranks", "storage_text"]

# Smallest number of vectors of a restarted basis: half of fewer would be less than the outliers of most networks.
RESTARTED_FROM = 8


def choose_storage(
    operator: SymmetricOperator, p: int, rows: int, basis: str, offload: str | None, budget: int
) -> Storage | int:
    """Choose how to store a basis of `rows` vectors; returns the number of vectors if it must be restarted."""
    dtype, device, allowed = operator.dtype, torch.device(operator.device), storages(basis, offload)
    for chosen in allowed:
        if rows * chosen.row_bytes(p, dtype) <= room_for_basis(chosen, budget, device):
            return chosen
    if allowed and (basis, offload) != ("auto", None):
        needed, space = rows * chosen.row_bytes(p, dtype), room_for_basis(chosen, budget, device)
        raise MemoryError(
            f"The Krylov basis of {rows} vectors of {p:,} numbers, stored as {chosen.name!r}, needs "
            f"{needed / 1e9:.1f} GB, but may use only {space / 1e9:.1f} GB; take fewer steps (at most "
            f'{space * rows // needed}), or use basis="auto".'
        )
    # While a basis is rotated, half of it is in memory twice.
    size = min(budget // Storage().row_bytes(p, dtype) * 2 // 3, rows)
    if size < min(RESTARTED_FROM, rows):
        raise MemoryError(
            f"Vectors of {p:,} numbers need {p * dtype.itemsize / 1e9:.2f} GB each, and the Krylov basis may use "
            f"{budget / 1e9:.2f} GB on {device}: not enough of them fit for a spectrum. Increase memory=."
        )
    return int(size)


def most_steps(operator: SymmetricOperator, space: Space, basis: str, offload: str | None, budget: int) -> int:
    """Largest number of steps that "auto" may take."""
    allowed, p = storages(basis, offload), space.size
    if not allowed:
        raise ValueError('steps="auto" needs the whole basis: give a number of steps with basis="restarted".')
    # As many as fit with half of the bits, where that is left open, on the device or where it is offloaded to.
    kept = STORAGES["half"] if (basis, offload) == ("auto", None) else allowed[-1]
    room = room_for_basis(kept, budget, torch.device(operator.device))
    fitting = int(space.ranks.least(room // kept.row_bytes(-(-p // space.ranks.size), operator.dtype)))
    if fitting < min(p, AUTO_FIRST):
        raise MemoryError(
            f'steps="auto" needs a basis of {min(p, AUTO_FIRST)} vectors of {p:,} numbers at least, but only {fitting} '
            f"fit into the {budget / 1e9:.2f} GB that it may use; increase memory=, or give a number of steps."
        )
    return min(p, fitting)


def parallel_probes(operator: SymmetricOperator, space: Space, keeping: Storage | int, limit: int, budget: int) -> int:
    """Number of probes whose bases fit into memory together with the resolved eigenvectors."""
    length = -(-space.size // space.ranks.size)
    if isinstance(keeping, int):
        return max(1, budget // (4 * Storage().row_bytes(length, operator.dtype)))
    room = int(space.ranks.least(room_for_basis(keeping, budget, torch.device(operator.device))))
    return max(1, room // (limit * keeping.row_bytes(length, operator.dtype)) - 1)


def storage_text(keeping: Storage | int) -> str:
    """Describe how a basis is stored, as in the attributes of a spectrum."""
    if isinstance(keeping, int):
        return f"restarted, {keeping} vectors"
    return next(name for name, kept in STORAGES.items() if kept == keeping)


def same_on_all_ranks(ranks: Ranks, choose: Callable[[], Storage | int]) -> Storage | int:
    """Return rank 0's choice on every rank: free memory differs between machines, but the arithmetic must not."""
    return ranks.gather(ranks.together(choose))[0]
