"""Storage of Krylov bases: place (device, host, disk) and precision."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from hesspec.backend.memory import free_memory, in_words
from hesspec.backend.memory_shares import DISK_SHARE, PINNED_SHARE
from hesspec.backend.suggest import unknown

__all__ = ["STORAGES", "Storage", "restored_storage", "room_for_basis", "storages"]

# Values of the options `basis` and `offload`, the latter after the place that needs none.
WIDTHS: Final = ("full", "half", "restarted", "auto")
PLACES: Final = ("device", "host", "disk")
HALVES: Final = {torch.float64: torch.float32, torch.float32: torch.float16}


@dataclass(frozen=True)
class Storage:
    """Storage of a Krylov basis.

    Attributes
    ----------
    half : bool
        Whether numbers are stored with half of the bits: float32 for float64 vectors, float16 for float32 vectors, with
        a scale for each vector. Semi-orthogonality requires errors of at most sqrt(eps); float16 rounds to 2^-12 =
        2.4e-4, below float32's 3.5e-4. (bfloat16 rounds to 2^-9, which is semi-orthogonal only if errors average out
        over many entries.) float32 rounds to 6e-8, above float64's 1.5e-8, if errors do not average out: orthogonality
        is estimated in any case, and its square is included in the error bounds.
    place : "device", "host" or "disk"
        In the memory of the operator's device, in that of the host, or in a memory-mapped file in the system's
        temporary folder (TMPDIR), which has no name and therefore disappears with the process.
    """

    half: bool = False
    place: Literal["device", "host", "disk"] = "device"

    def dtype(self, vectors: torch.dtype) -> torch.dtype:
        """Dtype in which vectors of this dtype are stored."""
        return HALVES[vectors] if self.half else vectors

    def row_bytes(self, size: int, vectors: torch.dtype) -> int:
        """Bytes of a stored vector of `size` numbers."""
        return size * self.dtype(vectors).itemsize

    @property
    def name(self) -> str:
        """Width and place, as text."""
        return f"{'half' if self.half else 'full'}{'' if self.place == 'device' else f' on {self.place}'}"

    def allocate(self, rows: int, size: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Allocate uninitialised rows for vectors of this dtype and device.

        Raises
        ------
        OSError
            If the file cannot be created, or there is no space for it.
        """
        kept = self.dtype(dtype)
        if self.place == "disk" and rows * size:
            with tempfile.NamedTemporaryFile(prefix="hesspec-basis-") as file:
                _reserve(file.fileno(), rows * size * kept.itemsize)
                return torch.from_file(file.name, shared=True, size=rows * size, dtype=kept).view(rows, size)
        if self.place == "host" and device.type != "cpu":
            return torch.empty(rows, size, dtype=kept, pin_memory=True, device="cpu")
        return torch.empty(rows, size, dtype=kept, device=device)


STORAGES: Final[dict[str, Storage]] = {
    kept.name: kept for place in PLACES for kept in (Storage(False, place), Storage(True, place))
}
"""Storages by name: "full", "half", "full on host", "half on host", "full on disk", "half on disk"."""


def _reserve(file: int, size: int) -> None:
    """Reserve disk space for a file: a write to a mapped file that finds none later kills the process.

    Raises
    ------
    OSError
        If there is no space.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)
    except OSError as error:
        folder = tempfile.gettempdir()
        raise OSError(
            f"The Krylov basis on disk needs another {in_words(size)}, but only "
            f"{in_words(shutil.disk_usage(folder).free)} are free in {folder!r} ({error.strerror}): set TMPDIR to a "
            "folder on a larger disk, or take fewer steps."
        ) from error


def storages(basis: str, offload: str | None) -> list[Storage]:
    """Storages that the options `basis` and `offload` of `hesspec.spectrum` allow, in the order of preference.

    Raises
    ------
    ValueError
        If one of them is not valid.
    """
    if not isinstance(basis, str) or basis not in WIDTHS:
        raise ValueError(unknown("basis", str(basis), WIDTHS))
    if offload is not None and (not isinstance(offload, str) or offload not in PLACES[1:]):
        raise ValueError(unknown("offload", str(offload), PLACES[1:]))
    if basis == "restarted":
        if offload is not None:
            raise ValueError(
                f"offload={offload!r} cannot be combined with basis='restarted', which keeps few vectors on the "
                "device; drop one of the two."
            )
        return []
    return [
        kept
        for kept in STORAGES.values()
        if basis in ("auto", "half" if kept.half else "full")
        and (kept.place == (offload or "device") or (basis == "auto" and offload is None))
    ]


def restored_storage(state: Mapping[str, Any]) -> Storage:
    """Return the storage with the `half` and `place` of a file.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = [kept for kept in STORAGES.values() if (kept.half, kept.place) == (state["half"], state["place"])]
    if not found:
        raise ValueError("a basis has an unknown storage")
    return found[0]


def room_for_basis(kept: Storage, budget: int, device: torch.device) -> int:
    """Return the number of bytes that a basis may occupy at its place: on the device, on the host or on the disk.

    Parameters
    ----------
    kept : Storage
    budget : int
        Memory that it may use on the device, in bytes.
    device : torch.device
        Device of the vectors.
    """
    if kept.place == "disk":
        return int(DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free)
    if kept.place == "host" and device.type != "cpu":
        return int(PINNED_SHARE * free_memory(torch.device("cpu")))
    return budget
