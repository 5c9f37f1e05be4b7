"""Fingerprints of data, which detect and name changes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesspec.operators.data.structures import flatten

__all__ = ["Fingerprint", "octets"]

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class Fingerprint(NamedTuple):
    """Fingerprint of a structure.

    Attributes
    ----------
    tensors : tuple of (str, tuple of float)
        Path, shape and position-weighted sums of each tensor: a flip, a crop or a permutation changes them.
    rest : str
        Digest of everything else in the structure.
    """

    tensors: tuple[tuple[str, tuple[float, ...]], ...]
    rest: str

    @classmethod
    def of(cls, **structures: Any) -> Fingerprint:
        """Compute the fingerprint of structures, by their names in messages."""
        sums: list[tuple[str, tuple[float, ...]]] = []
        keys = []
        for name, structure in structures.items():
            tensors, rest = flatten(structure)
            sums += [(name + path, _sums(tensor)) for path, tensor in zip(rest.paths, tensors, strict=True)]
            keys.append(rest.key)
        return cls(tuple(sums), hashlib.blake2b(repr(keys).encode(), digest_size=16).hexdigest())

    def difference(self, other: Fingerprint) -> str:
        """Describe how another fingerprint differs from this one; "" if it does not."""
        if [place for place, _ in self.tensors] != [place for place, _ in other.tensors]:
            return f"it had {len(self.tensors)} tensors, and now has {len(other.tensors)} in other positions"
        for (place, mine), (_, its) in zip(self.tensors, other.tensors, strict=True):
            if not _same(mine, its):
                return f"{place} had {_words(mine)}, and now has {_words(its)}"
        return "" if self.rest == other.rest else "its content other than tensors has changed"


def octets(tensor: Tensor) -> bytes:
    """Return the content of a tensor of any dtype and layout as bytes."""
    found = []
    for part in _dense(tensor):
        flat = part.detach().cpu().reshape(-1)
        # A single entry of a larger tensor counts as contiguous, whatever its stride.
        flat = flat if flat.stride() == (1,) else flat.clone(memory_format=torch.contiguous_format)
        found.append(flat.view(torch.uint8).numpy().tobytes())
    return b"".join(found)


def _dense(tensor: Tensor) -> Iterator[Tensor]:
    """Yield dense tensors that make up the content of any tensor."""
    if tensor.is_nested:
        for part in tensor.unbind():
            yield from _dense(part)
    elif tensor.layout is torch.sparse_coo:
        coalesced = tensor.detach().coalesce()
        yield from (coalesced.indices(), coalesced.values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    elif tensor.is_quantized:
        yield tensor.int_repr()
    else:
        yield tensor.resolve_conj().resolve_neg()


def _sums(tensor: Tensor) -> tuple[float, ...]:
    """Return the shape of a tensor and a position-weighted sum of its entries."""
    numbers: list[float] = []
    for part in _dense(tensor):
        numbers.extend(part.shape)
        real = torch.view_as_real(part.detach()) if part.is_complex() else part.detach()
        flat = real.reshape(-1).to(torch.float64)
        weights = (torch.arange(flat.numel(), dtype=torch.float64, device=flat.device) * GOLDEN_RATIO).frac_()
        numbers.append(float(flat @ weights.add_(0.5)))
    return tuple(numbers)


def _same(one: Iterable[float], other: Iterable[float]) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True)
    )


def _words(sums: tuple[float, ...]) -> str:
    *shape, total = sums
    return f"shape {tuple(map(int, shape))} and the checksum {total!r}"
