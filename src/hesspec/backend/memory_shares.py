"""Shares of the free memory, and of the free disk space, that products and the Krylov basis may use."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from hesspec.backend.memory import free_memory, parse_memory
from hesspec.backend.ranks import ALONE, Ranks

__all__ = ["BASIS_SHARE", "DISK_SHARE", "PINNED_SHARE", "PRODUCTS_SHARE", "Shares", "free_shares", "shares_of"]

# Of the free memory, what products may keep, and what the basis may fill; the system wants some as well.
PRODUCTS_SHARE: Final = 0.5
BASIS_SHARE: Final = 0.4
# Of the free memory of a host, for a basis that is not kept on its device, and of the free space of a disk. PyTorch
# rounds pinned memory up to a power of two bytes: 0.4 may take 0.8.
PINNED_SHARE: Final = 0.4
DISK_SHARE: Final = 0.9


class Shares(NamedTuple):
    """Bytes that products may keep, and bytes that the Krylov basis may fill."""

    products: int
    basis: int


def free_shares(device: torch.device, ranks: Ranks = ALONE) -> Shares:
    """Shares of what is free on a device, of which each rank on a machine may use its part of the machine's memory.

    Ranks may find different numbers: what decides on their arithmetic is to be the least of them (`Ranks.least`).
    """
    free = free_memory(device) // (ranks.neighbours if device.type == "cpu" else 1)
    return Shares(int(PRODUCTS_SHARE * free), int(BASIS_SHARE * free))


def shares_of(memory: str | int) -> Shares:
    """Shares of one budget, "8GB" or a number of bytes, in the same proportion."""
    size = parse_memory(memory)
    products = int(size * PRODUCTS_SHARE / (PRODUCTS_SHARE + BASIS_SHARE))
    return Shares(products, size - products)
