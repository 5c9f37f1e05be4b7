"""A run's state from the files of a snapshot, which may be damaged or somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import safetensors
import torch
from torch import Tensor

from hesspec.backend.memory import free_memory, in_words, is_out_of_memory
from hesspec.errors import RankError
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.snapshot_files import ForeignError, Listed, Record, VersionError, check_parts, read_vector
from hesspec.krylov.state import fields
from hesspec.krylov.storage import available, restored_storage
from hesspec.krylov.vectors import Space

__all__ = ["Reader", "UnreadableError", "readable", "shown"]

T = TypeVar("T")

# What comes of content that nobody has checked: of the files themselves, and of what a run makes of it.
FAULTS: Final = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RuntimeError),
    safetensors.SafetensorError,
)
# Characters of a text from a file that are shown.
SHOWN: Final = 200


class UnreadableError(ValueError):
    """A snapshot that cannot be read; the message says what to do."""


def readable(folder: Path, action: Callable[[], T]) -> T:
    """Result of an action that reads a snapshot, or makes something of what was read.

    Raises
    ------
    UnreadableError
        Where anything in the snapshot does not let it.
    """
    try:
        return action()
    except (UnreadableError, ForeignError, VersionError, RankError):
        raise
    except FAULTS as error:
        if is_out_of_memory(error):
            raise
        cause = str(error)
        if not isinstance(error, ValueError | OSError):
            cause = f"it does not hold the state of a run ({type(error).__name__}: {error})"
        raise UnreadableError(
            f"The snapshot in {str(folder)!r} cannot be read: {shown(cause)}. Name another folder with snapshot=... to "
            "start again, or remove this one."
        ) from error


def shown(text: str) -> str:
    """A text from a file, such that it does nothing to a terminal and does not fill it."""
    short = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return short if short.isprintable() else repr(short)


class Reader:
    """Rebuilds what a run has put into a snapshot.

    Parameters
    ----------
    folder : Path
    record : Record
        That was read from it.
    space : Space
    dtype, device
        Of the vectors.

    Attributes
    ----------
    bases : dict
        The bases that were rebuilt and the files of each, by their ids.
    """

    def __init__(self, folder: Path, record: Record, space: Space, dtype: torch.dtype, device: torch.device) -> None:
        self._folder, self._record, self._space = folder, record, space
        self._dtype, self._device = dtype, device
        self._checked: set[str] = set()
        self.bases: dict[int, tuple[KrylovBasis, list[Listed]]] = {}

    def state(self) -> dict[str, Any]:
        """What was written.

        Raises
        ------
        UnreadableError
            If a file is missing or damaged, or does not hold what the state says.
        MemoryError
            If a basis does not fit into memory.
        """
        tree = readable(self._folder, lambda: self._full(self._record.state["tree"]))
        return readable(self._folder, lambda: dict(tree))

    def _full(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._full(entry) for entry in value]
        return self._entry(value) if isinstance(value, dict) else value

    def _entry(self, value: dict[str, Any]) -> Any:
        if "$array" in value:
            array = self._record.arrays[value["$array"]]
            return array.T if value["transposed"] else array
        if "$floats" in value:
            return self._record.arrays[value["$floats"]].tolist()
        if "$vector" in value:
            vector = torch.empty(self._space.length, dtype=self._dtype, device=self._device)
            self._read(self._record.listed[self._record.state["vectors"]], value["$vector"], vector)
            return vector
        if "$basis" in value:
            return self._basis(**fields(value["$basis"], {"state": dict, "files": list}))
        return {name: self._full(entry) for name, entry in value.items()}

    def _basis(self, state: dict[str, Any], files: list[str]) -> KrylovBasis:
        state, listed = self._full(state), [self._record.listed[name] for name in files]
        rows, ends = len(fields(state, {"scales": list})["scales"]), [0, *(one.last for one in listed)]
        if [one.first for one in listed] != ends[:-1] or ends[-1] != rows:
            raise ValueError(f"the {rows} vectors of a basis are not those that are listed")
        owners = [one for one in listed for _ in range(one.first, one.last)]
        self._space.ranks.together(lambda: self._check_room(state, rows))
        basis = KrylovBasis.restored(
            state,
            self._space,
            lambda index, row: self._read(owners[index], index, row),
            dtype=self._dtype,
            device=self._device,
        )
        self.bases[id(basis)] = basis, listed
        return basis

    def _check_room(self, state: dict[str, Any], rows: int) -> None:
        """Refuse a basis that does not fit, before any of it is read."""
        kept = restored_storage(state)
        needed = rows * kept.row_bytes(self._space.length, self._dtype)
        room = available(kept, free_memory(self._device), self._device)
        if needed > room:
            raise MemoryError(
                f"The snapshot in {str(self._folder)!r} has a Krylov basis of {rows} vectors of "
                f"{self._space.size:,} numbers, kept {kept.name!r}, which needs {in_words(needed)}; {in_words(room)} "
                "are free."
            )

    def _read(self, listed: Listed, number: int, into: Tensor) -> None:
        """Read this rank's slice of a vector, whoever wrote it, from files that are as they were written."""
        ranks, folder = self._space.ranks, self._folder
        if listed.name not in self._checked:
            if listed.parts[-1].end != self._space.size:
                raise ValueError(f"the vectors in {listed.name} do not have {self._space.size} numbers")
            # Ranks share the work, and wait for one another: whole files are good, or none is used.
            ranks.together(lambda: check_parts(folder, listed, range(ranks.rank, len(listed.parts), ranks.size)))
            self._checked.add(listed.name)
        ranks.together(lambda: read_vector(folder, listed, number, self._space.begin, into))
