"""Snapshots of a Krylov run: all that it needs to go on, written so that it is there whole or as it was before."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from hesspec._files import atomic_path
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.vectors import Space

__all__ = ["STATE", "Snapshot", "parse_duration", "remove_snapshot"]

logger = logging.getLogger(__name__)

STATE: Final = "state.safetensors"
VERSION: Final = 2
# Rows go into files of about this size, each of which is forgotten by the system's cache once it is on the disk: the
# next one is written into the same memory. A row of 113 MB took 0.10 s in place of 0.22, in a virtual machine whose
# memory had not been touched before.
FILE_BYTES: Final = 1 << 28
# Numbers of which a file has more than fit into a name.
DIGITS: Final = 6
UNITS: Final = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hours": 3600, "minutes": 60, "seconds": 1}


def parse_duration(every: str | float) -> float:
    """Seconds of "10min", "30s", "2h" or a number of seconds.

    Raises
    ------
    ValueError
        If it is neither, or negative.
    """
    advice = 'give a duration such as "10min", "30s" or "2h", or a number of seconds.'
    if isinstance(every, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", every)
        if found is None or found[2] not in UNITS:
            raise ValueError(f"every={every!r} is no duration; {advice}")
        return float(found[1]) * UNITS[found[2]]
    if isinstance(every, bool) or not isinstance(every, int | float) or not every >= 0:
        raise ValueError(f"every={every!r} is no duration; {advice}")
    return float(every)


class Snapshot:
    """A folder with the last snapshot of one run.

    What is in it: the rows of Krylov bases, in files of as many as came between two snapshots, so that no row is
    written twice; the vectors of the step that comes next; and `state.safetensors`, with everything that is not of
    length p and the names of the other files. It is written last and renamed into place, and only then are files
    removed that it does not name: whenever the process dies, the folder holds the snapshot before or the new one.

    Alone, a process writes safetensors. The ranks of a group write with `torch.distributed.checkpoint`, each its slice;
    either can be read by any number of ranks.

    Parameters
    ----------
    folder : path
        Made with the first snapshot. All ranks of a group see the same.
    every : str or float
        Time between two snapshots, at least: "10min", or a number of seconds.
    space : Space
    dtype, device
        Of the vectors.
    identity : dict of str to str
        What the run is of; a snapshot of another one is refused.

    Raises
    ------
    ValueError
        If `every` is no duration, or the folder's snapshot is of another run, or cannot be read.
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
        # Of each basis that is written: its number, its files by the rows that they hold, and the basis itself, which
        # is kept so that no other one comes to have its id.
        self._bases: dict[int, tuple[int, dict[str, tuple[int, int]], KrylovBasis]] = {}
        self._numbers = itertools.count()
        self.seconds = 0.0
        """Time that writing took so far."""

    # Writing ----------------------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether it is time for a snapshot, by the clock of the first rank."""
        return bool(self._space.ranks.numbers(float(time.monotonic() - self._last >= self._every))[0, 0])

    def write(self, state: dict[str, Any]) -> None:
        """Write a snapshot.

        Parameters
        ----------
        state : dict
            Of str to None, bool, int, float, str, arrays, vectors (p,) as tensors, bases, lists and dicts of these.

        Raises
        ------
        OSError
            If a file cannot be written.
        """
        start = time.monotonic()
        ranks = self._space.ranks
        ranks.together(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        arrays: dict[str, Tensor] = {}
        vectors: dict[str, Tensor] = {}
        used: set[str] = set()
        tree = self._flat(state, arrays, vectors, used)
        name = f"vectors-{next(self._numbers):0{DIGITS}}"
        if vectors:
            self._write_vectors(name, vectors)
            used.add(name)
        record = {"version": VERSION, "identity": self._identity, "vectors": name, "state": tree}

        def finish() -> None:
            if ranks.rank == 0:
                with atomic_path(self._folder / STATE) as temporary:
                    save_file(arrays, temporary, {"hesspec": json.dumps(record)})
                _remove_all_but(self._folder, used)

        ranks.together(finish)
        self._bases = {key: entry for key, entry in self._bases.items() if used.issuperset(entry[1])}
        self._last = time.monotonic()
        self.seconds += self._last - start

    def _flat(self, value: Any, arrays: dict[str, Tensor], vectors: dict[str, Tensor], used: set[str]) -> Any:
        """What JSON takes of a value; all else goes into the other three."""
        if isinstance(value, dict):
            return {str(key): self._flat(entry, arrays, vectors, used) for key, entry in value.items()}
        if isinstance(value, list):
            return [self._flat(entry, arrays, vectors, used) for entry in value]
        if isinstance(value, np.ndarray):
            name = f"{len(arrays):0{DIGITS}}"
            arrays[name] = torch.from_numpy(np.ascontiguousarray(value))
            return {"$array": name}
        if isinstance(value, Tensor):
            name = f"{len(vectors):0{DIGITS}}"
            vectors[name] = value
            return {"$vector": name}
        if isinstance(value, KrylovBasis):
            files = self._write_rows(value)
            used.update(files)
            return {"$basis": {"state": value.state(), "files": files}}
        return value

    def _write_rows(self, basis: KrylovBasis) -> dict[str, tuple[int, int]]:
        """Write those rows of a basis that are in no file yet; its files, with the first and the last row of each."""
        if id(basis) not in self._bases:
            self._bases[id(basis)] = next(self._numbers), {}, basis
        number, files, _ = self._bases[id(basis)]
        begun = max((end for _, end in files.values()), default=0)
        size = max(1, FILE_BYTES // max(basis.row_bytes, 1))
        for first in range(begun, len(basis), size):
            last = min(first + size, len(basis))
            name = f"rows-{number:0{DIGITS}}-{first:0{DIGITS}}"
            self._write_vectors(name, {f"{i:0{DIGITS}}": basis.kept_row(i) for i in range(first, last)})
            files[name] = first, last
        return dict(files)

    def _write_vectors(self, name: str, vectors: dict[str, Tensor]) -> None:
        ranks = self._space.ranks
        if ranks.size == 1:
            path = self._folder / f"{name}.safetensors"
            with atomic_path(path) as temporary:
                save_file({key: vector.contiguous() for key, vector in vectors.items()}, temporary)
            _forget(path)
            return
        target, temporary = self._folder / name, self._folder / f".{name}"
        shards = self._as_shards({key: vector.to(self._device) for key, vector in vectors.items()})

        def replace() -> None:
            if ranks.rank == 0:
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)

        from torch.distributed import checkpoint  # noqa: PLC0415 - slow to import, and needed where there are ranks

        self._checkpointed(
            lambda: checkpoint.state_dict_saver.save(shards, checkpoint_id=temporary, process_group=ranks.group),
            lambda cause: OSError(
                f"A snapshot cannot be written to {str(self._folder)!r}: {cause}. The one before is still there."
            ),
        )
        ranks.together(replace)

    def _checkpointed(self, action: Callable[[], None], failed: Callable[[str], Exception]) -> None:
        """Write or read with PyTorch, whose error of that is no `Exception`, and has tracebacks of all ranks in it."""
        from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415 - as above

        failure: Exception | None = None
        try:
            with _quiet():
                action()
        except CheckpointException as error:
            _, (cause, _) = min(error.failures.items())
            failure = failed(f"{type(cause).__name__} {cause}".strip())

        def outcome() -> None:
            if failure is not None:
                raise failure

        self._space.ranks.together(outcome)

    def _as_shards(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Slices as parts of whole vectors, which share their memory."""
        from torch.distributed.device_mesh import DeviceMesh  # noqa: PLC0415 - slow to import, and needed here only
        from torch.distributed.tensor import DTensor, Shard  # noqa: PLC0415 - as above

        group = self._space.ranks.group
        if group is None:
            raise RuntimeError("A process alone has no shards.")
        mesh, shape = DeviceMesh.from_group(group, self._device.type), torch.Size((self._space.size,))
        return {
            key: DTensor.from_local(vector, mesh, [Shard(0)], run_check=False, shape=shape, stride=(1,))
            for key, vector in vectors.items()
        }

    # Reading ----------------------------------------------------------------------------------------------------------

    def read(self) -> dict[str, Any] | None:
        """The state that the last snapshot holds; None where there is none.

        Raises
        ------
        ValueError
            If it is of another run, or a file is missing or cannot be read.
        """
        path = self._folder / STATE
        ranks = self._space.ranks
        if not any(ranks.gather(path.is_file())):
            return None
        record, arrays = ranks.together(lambda: _read_state(path))
        ranks.together(lambda: self._refuse_another(record["identity"]))
        # Names of files go on beyond those that are there.
        used = [int(found) for path in self._folder.iterdir() for found in re.findall(r"^\.?[a-z]+-(\d+)", path.name)]
        self._numbers = itertools.count(max(used, default=0) + 1)
        state: dict[str, Any] = self._full(record["state"], arrays, record["vectors"])
        logger.info("going on from the snapshot in %s", self._folder)
        return state

    def _refuse_another(self, found: dict[str, str]) -> None:
        for what in {**self._identity, **found}:
            here, there = self._identity.get(what, "none"), found.get(what, "none")
            if here != there:
                raise self.of_another_run(f"its {what} is {there}, and here it is {here}")

    def of_another_run(self, difference: str) -> ValueError:
        """What is raised where a snapshot is of another run, with the difference, a clause."""
        return ValueError(
            f"The snapshot in {str(self._folder)!r} is of another run: {difference}. Name another folder with "
            "snapshot=..., or remove this one."
        )

    def _full(self, value: Any, arrays: dict[str, Tensor], vectors: str) -> Any:
        """Inverse of `_flat`."""
        if isinstance(value, list):
            return [self._full(entry, arrays, vectors) for entry in value]
        if not isinstance(value, dict):
            return value
        if "$array" in value:
            return arrays[value["$array"]].numpy()
        if "$vector" in value:
            vector = torch.empty(self._space.length, dtype=self._dtype, device=self._device)
            self._read_vectors(vectors, {value["$vector"]: vector})
            return vector
        if "$basis" in value:
            return self._basis(value["$basis"])
        return {key: self._full(entry, arrays, vectors) for key, entry in value.items()}

    def _basis(self, record: dict[str, Any]) -> KrylovBasis:
        files: dict[str, tuple[int, int]] = {name: (first, end) for name, (first, end) in record["files"].items()}

        def read(index: int, row: Tensor) -> None:
            name = next(name for name, (first, end) in files.items() if first <= index < end)
            self._read_vectors(name, {f"{index:0{DIGITS}}": row})

        basis = KrylovBasis.restored(record["state"], self._space, read, dtype=self._dtype, device=self._device)
        number = int(next(iter(files)).split("-")[1]) if files else next(self._numbers)
        self._bases[id(basis)] = number, files, basis
        return basis

    def _read_vectors(self, name: str, into: dict[str, Tensor]) -> None:
        """Read this rank's slices of vectors, whoever wrote them."""
        ranks, path = self._space.ranks, self._folder / name
        if path.is_dir():
            self._read_shards(path, into)
            return

        def read() -> None:
            try:
                with safetensors.safe_open(path.with_name(f"{name}.safetensors"), "pt") as file:
                    for key, row in into.items():
                        row.copy_(file.get_slice(key)[self._space.begin : self._space.end])
            except (OSError, safetensors.SafetensorError) as error:
                raise ValueError(
                    f"The snapshot in {str(self._folder)!r} cannot be read: {name}: {error}. Remove the folder to "
                    "begin anew."
                ) from error

        ranks.together(read)

    def _read_shards(self, path: Path, into: dict[str, Tensor]) -> None:
        ranks = self._space.ranks
        buffers = {key: torch.empty(len(row), dtype=row.dtype, device=self._device) for key, row in into.items()}
        from torch.distributed import checkpoint  # noqa: PLC0415 - slow to import, and needed where there were ranks

        def load() -> None:
            if ranks.size == 1:
                checkpoint.state_dict_loader.load(dict(buffers), checkpoint_id=path, no_dist=True)
            else:
                checkpoint.state_dict_loader.load(
                    dict(self._as_shards(buffers)), checkpoint_id=path, process_group=ranks.group
                )

        self._checkpointed(
            load,
            lambda cause: ValueError(
                f"The snapshot in {str(self._folder)!r} cannot be read: {path.name}: {cause}. Remove the folder to "
                "begin anew."
            ),
        )
        for key, row in into.items():
            row.copy_(buffers[key])


def remove_snapshot(folder: str | os.PathLike[str]) -> None:
    """Remove a snapshot, once the result of its run is kept. Other files in the folder stay."""
    path = Path(folder)
    if path.is_dir():
        # The state first: without it there is no snapshot.
        (path / STATE).unlink(missing_ok=True)
        _remove_all_but(path, set())
        if not any(path.iterdir()):
            path.rmdir()


def _remove_all_but(folder: Path, used: set[str]) -> None:
    """Remove files of snapshots that are not used, and temporary ones."""
    for path in folder.iterdir():
        if path.name.removesuffix(".safetensors") in used or not re.match(r"\.?(rows|vectors|state)-", path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _forget(path: Path) -> None:
    """Tell the system that a file, which is on the disk, need not be in its cache."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})["hesspec"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a file is no mapping
    except (OSError, safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"The snapshot {str(path)!r} cannot be read: {error}. Remove its folder to begin anew."
        ) from error
    if record.get("version") != VERSION:
        raise ValueError(
            f"The snapshot {str(path)!r} is of version {record.get('version')} of its format, and this hesspec reads "
            f"version {VERSION}. Remove its folder to begin anew, or go on with the hesspec that wrote it."
        )
    return record, arrays


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's warnings of how it writes, which are nothing that a user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
