"""Snapshots of a Krylov run, from which it can be resumed; written atomically."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from hesspec.backend.file_lock import FileLock
from hesspec.backend.numbers import is_real
from hesspec.backend.tensor_files import DTYPES, writing
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.snapshot_files import (
    LOCK,
    STATE,
    VERSION,
    ForeignError,
    Listed,
    Part,
    Record,
    VersionError,
    is_token,
    key,
    new_token,
    part_file,
    read_record,
    remove_unlisted,
    write_part,
    write_record,
)
from hesspec.krylov.snapshot_reader import Reader, readable, shown
from hesspec.krylov.vectors import Space

__all__ = ["STATE", "Snapshot", "parse_duration", "remove_snapshot"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Approximate size of files of rows; each is dropped from the system's cache once it is on disk.
FILE_BYTES: Final = 1 << 28
# Longer than any run, in seconds; integers may exceed the range of floats.
NEVER: Final = 1e18
UNITS: Final = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hours": 3600, "minutes": 60, "seconds": 1}


def parse_duration(every: str | float) -> float:
    """Convert "10min", "30s", "2h" or a number of seconds to seconds.

    Raises
    ------
    ValueError
        If the value is not a duration, or is negative.
    """
    advice = 'give a duration such as "10min", "30s" or "2h", or a number of seconds.'
    if isinstance(every, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", every)
        if found is None or found[2] not in UNITS:
            raise ValueError(f"every={every!r} is not a valid duration; {advice}")
        return float(found[1]) * UNITS[found[2]]
    if not is_real(every) or not every >= 0:
        raise ValueError(f"every={every!r} is not a valid duration; {advice}")
    return float(min(every, NEVER))


@dataclass
class _Contents:
    """Content of a snapshot that cannot be stored in JSON, collected while it is written."""

    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    listed: dict[str, Listed] = field(default_factory=dict)
    # By the id of each basis, which is stored so that its id is not reused.
    bases: dict[int, tuple[KrylovBasis, list[Listed]]] = field(default_factory=dict)


class Snapshot:
    """Folder with the last snapshot of one run, locked while the run uses it.

    It contains the rows of Krylov bases, in files with the rows between two snapshots, so that no row is written twice;
    the vectors for the next step; and `state.safetensors`, with everything that is not of length p and a manifest of
    the other files. The state is written last and renamed into place, and only then are files that are no longer listed
    removed: whenever the process dies, the folder contains the previous snapshot or the new one. Other files in the
    folder are never touched.

    Every rank of a group writes its slices to separate files; any number of ranks can read them.

    Use it as a context manager, which releases the lock on exit.

    Parameters
    ----------
    folder : path
        Folder, created if it is missing; otherwise empty, or with a snapshot. It must be the same for all ranks.
    every : str or float
        Smallest time between two snapshots: "10min", or a number of seconds.
    space : Space
        The space R^p.
    dtype, device
        Dtype and device of the vectors.
    identity : dict of str to str
        Identity of the run (matrix, model, data and so on); a snapshot of another run is rejected.

    Raises
    ------
    ValueError
        If `every` is not a valid duration, or the folder has files but no snapshot.
    BlockingIOError
        If another run uses the folder.
    OSError
        If the folder cannot be created or written to.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: str | float,
        space: Space,
        *,
        dtype: torch.dtype,
        device: torch.device,
        identity: dict[str, str],
    ) -> None:
        self._folder, self._every, self._space = Path(folder), parse_duration(every), space
        self._dtype, self._device, self._identity = dtype, device, identity
        self._last = time.monotonic()
        self._numbers = itertools.count()
        self._bases: dict[int, tuple[KrylovBasis, list[Listed]]] = {}
        # Files listed by the snapshot in the folder, and the signature of its state.
        self._files: set[str] = set()
        self._seen: tuple[int, ...] | None = None
        self._made = False
        self._lock: FileLock | None = None
        self.seconds = 0.0
        """Seconds spent on writing so far."""
        ranks = space.ranks
        ranks.together(self._claim if ranks.rank == 0 else lambda: None)
        self._run, self._session = ranks.gather(self._tokens())[0]

    def __enter__(self) -> Self:
        """Return the snapshot itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock, and remove the remains of a failed snapshot, or an empty folder."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        # Clean-up, which the next run does if this one cannot; an error here would hide the one that matters.
        with suppress(OSError):
            if _signature(self._folder) == self._seen:
                remove_unlisted(self._folder, self._run, self._files, self._session)
        lock.release()
        with suppress(OSError):
            if self._made and not any(self._folder.iterdir()):
                self._folder.rmdir()

    # The folder -------------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Lock the folder."""
        self._made = not self._folder.exists()
        self._lock = _locked(self._folder)

    def _tokens(self) -> tuple[str, str]:
        """Tokens of the run, as stored with the lock or a new one, and of this process."""
        left = {} if self._lock is None else self._lock.note
        return (str(left["run"]) if is_token(left.get("run")) else new_token()), new_token()

    def _name(self, run: str, listed: set[str]) -> None:
        """Adopt the token of a run, store it with the lock, and remove files left by killed processes."""
        self._run, self._files = run, listed
        if self._lock is not None:
            with writing(self._folder):
                self._lock.leave({"run": run})
                if self._lock.certain:
                    remove_unlisted(self._folder, run, listed)

    # Writing ----------------------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether a snapshot is due, by the clock of rank 0."""
        return bool(self._space.ranks.numbers(float(time.monotonic() - self._last >= self._every))[0, 0])

    def write(self, state: dict[str, Any]) -> None:
        """Write a snapshot.

        Parameters
        ----------
        state : dict
            State, a dict of None, bool, int, float, str, arrays, vectors (p,) as tensors, bases, and lists and dicts of
            these.

        Raises
        ------
        OSError
            If a file cannot be written, or another run has written to the folder. The previous snapshot is unharmed.
        """
        start, ranks = time.monotonic(), self._space.ranks
        contents = _Contents()
        tree = self._flat(state, contents)
        vectors = self._write_vectors("vectors", 0, contents.vectors) if contents.vectors else None
        if vectors is not None:
            contents.listed[vectors.name] = vectors
        content = {"vectors": None if vectors is None else vectors.name, "tree": tree}
        record = Record(self._run, self._identity, contents.listed, content, contents.arrays)
        ranks.together(lambda: self._finish(record) if ranks.rank == 0 else None)
        self._bases = contents.bases
        self._last = time.monotonic()
        self.seconds += self._last - start

    def _finish(self, record: Record) -> None:
        """Replace the state, and remove files that are no longer listed."""
        if _signature(self._folder) != self._seen:
            raise OSError(
                f"The snapshot in {str(self._folder)!r} was changed or removed by another process while this run used "
                "it. Start again, and use a separate folder for each run with snapshot=...."
            )
        with self._writing(sum(array.nbytes for array in record.arrays.values())):
            write_record(self._folder, record, self._session)
            self._seen = _signature(self._folder)
            before, self._files = self._files, record.files
            for name in before - self._files:
                (self._folder / name).unlink(missing_ok=True)

    def _writing(self, size: int) -> AbstractContextManager[None]:
        after = "The previous snapshot is unharmed." if self._seen else ""
        return writing(self._folder, size, after=after)

    def _flat(self, value: Any, contents: _Contents) -> Any:
        """Return the JSON form of a value; arrays, vectors and bases are collected in the contents."""
        if isinstance(value, dict):
            return {str(name): self._flat(entry, contents) for name, entry in value.items()}
        if isinstance(value, list):
            if value and all(isinstance(entry, float) for entry in value):
                return {"$floats": _kept_array(np.array(value), contents)["$array"]}
            return [self._flat(entry, contents) for entry in value]
        return self._leaf(value, contents)

    def _leaf(self, value: Any, contents: _Contents) -> Any:
        if isinstance(value, np.ndarray):
            return _kept_array(value, contents)
        if isinstance(value, Tensor):
            name = key(len(contents.vectors))
            contents.vectors[name] = value
            return {"$vector": int(name)}
        if isinstance(value, KrylovBasis):
            files = self._write_rows(value)
            contents.bases[id(value)] = value, files
            contents.listed.update({listed.name: listed for listed in files})
            return {"$basis": {"state": self._flat(value.state(), contents), "files": [one.name for one in files]}}
        return value

    def _write_rows(self, basis: KrylovBasis) -> list[Listed]:
        """Write the rows of a basis that are not in a file yet; return all of its files."""
        files = list(self._bases[id(basis)][1]) if id(basis) in self._bases else []
        size = max(1, FILE_BYTES // max(basis.row_bytes, 1))
        for first in range(files[-1].last if files else 0, len(basis), size):
            rows = {key(i): basis.kept_row(i) for i in range(first, min(first + size, len(basis)))}
            files.append(self._write_vectors("rows", first, rows))
        return files

    def _write_vectors(self, kind: str, first: int, vectors: dict[str, Tensor]) -> Listed:
        ranks, space = self._space.ranks, self._space
        name = f"{kind}-{self._run}-{self._session}-{next(self._numbers):06}"
        dtype = DTYPES[next(iter(vectors.values())).dtype]
        path = self._folder / part_file(name, ranks.rank)

        def write() -> Part:
            with self._writing(sum(vector.nbytes for vector in vectors.values())):
                return write_part(path, vectors, space.begin, space.end)

        part = ranks.together(write)
        return Listed(name, first, first + len(vectors), dtype, tuple(ranks.gather(part)))

    # Reading ----------------------------------------------------------------------------------------------------------

    def read(self) -> dict[str, Any] | None:
        """Return the state of the last snapshot; None if there is none.

        Raises
        ------
        ValueError
            If it belongs to another run, or a file is missing or cannot be read.
        MemoryError
            If its vectors do not fit into memory.
        """
        ranks = self._space.ranks
        if not any(ranks.gather(os.path.lexists(self._folder / STATE))):
            ranks.together(lambda: self._name(self._run, set()))
            return None
        record = ranks.together(lambda: _record(self._folder))
        ranks.together(lambda: self._refuse_another(record.identity))
        ranks.together(lambda: self._name(record.run, record.files))
        self._seen = _signature(self._folder)
        reader = Reader(self._folder, record, self._space, self._dtype, self._device)
        state, self._bases = reader.state(), reader.bases
        logger.info("resuming from the snapshot in %s", self._folder)
        return state

    def readable(self, action: Callable[[], T]) -> T:
        """Run an action that uses the content that was read; raise ValueError if the content is invalid."""
        return readable(self._folder, action)

    def _refuse_another(self, found: dict[str, str]) -> None:
        for what in {**self._identity, **found}:
            here, there = self._identity.get(what, "none"), found.get(what, "none")
            if here != there:
                raise self.of_another_run(f"its {shown(what)} is {shown(there)}, but here it is {here}")

    def of_another_run(self, difference: str) -> ValueError:
        """Return the error for a snapshot of another run, with the difference as a clause."""
        return ValueError(
            f"The snapshot in {str(self._folder)!r} belongs to another run: {difference}. Use another folder with "
            "snapshot=..., or delete this one."
        )


def remove_snapshot(folder: str | os.PathLike[str]) -> None:
    """Remove a snapshot after the result of its run was saved, and its folder if it contains nothing else.

    Raises
    ------
    BlockingIOError
        If a run uses the folder.
    ValueError
        If it is not a folder of snapshots, or its manifest cannot be read.
    OSError
        If a file cannot be removed.
    """
    path = Path(folder)
    if not path.exists():
        return
    lock = _locked(path)
    try:
        if os.path.lexists(path / STATE):
            record = _record(path)
            # The state first: without it there is no snapshot.
            (path / STATE).unlink()
            for name in record.files:
                (path / name).unlink(missing_ok=True)
            remove_unlisted(path, record.run, set())
    finally:
        lock.release()
    if not any(path.iterdir()):
        path.rmdir()


def _locked(folder: Path) -> FileLock:
    """Lock a folder, which is created if it is missing, unless it contains other files."""
    if folder.exists():
        if not folder.is_dir():
            raise NotADirectoryError(f"{str(folder)!r} is a file, but snapshots need a folder.")
        names = {path.name for path in folder.iterdir()}
        if names and not names & {STATE, LOCK}:
            raise _not_ours(folder, f"it contains {_some(names)}, but no snapshot")
    else:
        with writing(folder):
            folder.mkdir(parents=True)
    try:
        return FileLock(folder / LOCK)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"Another run uses the snapshots in {str(folder)!r}: {error} Wait until it ends, or use another folder "
            "with snapshot=...."
        ) from None
    except OSError:
        with writing(folder):
            raise


def _record(folder: Path) -> Record:
    try:
        return readable(folder, lambda: read_record(folder))
    except ForeignError as error:
        raise _not_ours(folder, f"{STATE} in it is not one: {error}") from error
    except VersionError as error:
        raise ValueError(
            f"The snapshot in {str(folder)!r} has version {shown(str(error))} of the format, but this hesspec reads "
            f"version {VERSION}. Finish the run with the version of hesspec that started it, or use another folder "
            "with snapshot=... to start over."
        ) from error


def _not_ours(folder: Path, why: str) -> ValueError:
    return ValueError(
        f"{str(folder)!r} is not a folder of snapshots: {shown(why)}. Use a new or an empty folder with snapshot=...."
    )


def _some(names: set[str]) -> str:
    """Show the first of several names."""
    first, *others = sorted(names)
    return f"{first!r}" + (f" and {len(others)} more" if others else "")


def _signature(folder: Path) -> tuple[int, ...] | None:
    """Signature that distinguishes a state from one that another process has written; None if there is none."""
    try:
        found = (folder / STATE).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _kept_array(array: np.ndarray[Any, Any], contents: _Contents) -> dict[str, Any]:
    """Return an array with its memory order, on which the last bit of products may depend."""
    name, transposed = key(len(contents.arrays)), array.flags.f_contiguous and not array.flags.c_contiguous
    contents.arrays[name] = np.ascontiguousarray(array.T if transposed else array)
    return {"$array": name, "transposed": transposed}
