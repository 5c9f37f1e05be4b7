"""Reading of a run's state from the files of a snapshot, which may be damaged or come from others."""

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
from hesspec.krylov.state_dicts import fields
from hesspec.krylov.storage import restored_storage, room_for_basis
from hesspec.krylov.vectors import Space

__all__ = ["Reader", "UnreadableError", "readable", "shown"]

T = TypeVar("T")

# Exceptions caused by unchecked content, from the files themselves and from a run that uses it.
FAULTS: Final = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RuntimeError),
    safetensors.SafetensorError,
)
# Largest number of characters shown of a text from a file.
SHOWN: Final = 200


class UnreadableError(ValueError):
    """The snapshot cannot be read; the message says what to do."""


def readable(folder: Path, action: Callable[[], T]) -> T:
    """Run an action that reads a snapshot or uses its content.

    Raises
    ------
    UnreadableError
        If the content of the snapshot makes the action fail.
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
            cause = f"it does not contain the state of a run ({type(error).__name__}: {error})"
        raise UnreadableError(
            f"The snapshot in {str(folder)!r} cannot be read: {shown(cause)}. To start over, use another folder with "
            "snapshot=..., or delete this one."
        ) from error


def shown(text: str) -> str:
    """Make a text from a file safe to print: no control characters, limited length."""
    short = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return short if short.isprintable() else repr(short)


class Reader:
    """Rebuilds the state of a run from a snapshot.

    Parameters
    ----------
    folder : Path
    record : Record
        Record that was read from it.
    space : Space
        The space R^p.
    dtype, device
        Dtype and device of the vectors.

    Attributes
    ----------
    bases : dict
        Rebuilt bases and the files of each, by the id of the basis.
    """

    def __init__(self, folder: Path, record: Record, space: Space, dtype: torch.dtype, device: torch.device) -> None:
        self._folder, self._record, self._space = folder, record, space
        self._dtype, self._device = dtype, device
        self._checked: set[str] = set()
        self.bases: dict[int, tuple[KrylovBasis, list[Listed]]] = {}

    def state(self) -> dict[str, Any]:
        """Return the state that was written.

        Raises
        ------
        UnreadableError
            If a file is missing or damaged, or does not match the state.
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
            raise ValueError(f"the {rows} vectors of a basis do not match the manifest")
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
        """Reject a basis that does not fit into memory, before reading it."""
        kept = restored_storage(state)
        needed = rows * kept.row_bytes(self._space.length, self._dtype)
        room = room_for_basis(kept, free_memory(self._device), self._device)
        if needed > room:
            raise MemoryError(
                f"The snapshot in {str(self._folder)!r} has a Krylov basis of {rows} vectors of "
                f"{self._space.size:,} numbers, stored as {kept.name!r}, which needs {in_words(needed)}; "
                f"{in_words(room)} are free."
            )

    def _read(self, listed: Listed, number: int, into: Tensor) -> None:
        """Read this rank's slice of a vector, whichever ranks wrote it, from verified files."""
        ranks, folder = self._space.ranks, self._folder
        if listed.name not in self._checked:
            if listed.parts[-1].end != self._space.size:
                raise ValueError(f"the vectors in {listed.name} do not have {self._space.size} numbers")
            # Ranks share the checks and wait for one another: no file is used unless all are valid.
            ranks.together(lambda: check_parts(folder, listed, range(ranks.rank, len(listed.parts), ranks.size)))
            self._checked.add(listed.name)
        ranks.together(lambda: read_vector(folder, listed, number, self._space.begin, into))
