"""Files of a snapshot: vectors in safetensors files, with one part per rank, and the state that lists them.

`state.safetensors` contains everything that is not of length p: arrays, and in its metadata a JSON record, which
includes the manifest of the other files. Each of these is listed with its size, its digest and its content; the digest
of the record and the arrays is in the metadata. A file is opened as safetensors only after its size and digest have
been checked.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import safetensors
import torch
from torch import Tensor

from hesspec.backend import tensor_files
from hesspec.backend.memory import free_memory, in_words
from hesspec.backend.tensor_files import DTYPES, digest_of

__all__ = [
    "LOCK",
    "STATE",
    "VERSION",
    "ForeignError",
    "Listed",
    "Part",
    "Record",
    "VersionError",
    "check_parts",
    "is_token",
    "key",
    "new_token",
    "open_regular",
    "part_file",
    "read_record",
    "read_vector",
    "remove_unlisted",
    "write_part",
    "write_record",
]

STATE: Final = "state.safetensors"
LOCK: Final = "hesspec.lock"
VERSION: Final = 4
# Number of digits of a number in a file name.
DIGITS: Final = 6
# Largest header of the state in bytes: it has 100 for each part of a listed file, and a week of snapshots every ten
# minutes on 64 ranks would take 6.5 MB.
HEADER_BYTES: Final = 1 << 23
# Largest header of a part, and of each of its vectors, in bytes.
PART_BYTES: Final = 1 << 10
VECTOR_BYTES: Final = 150
# File names: run, process or group of processes that works on it, and number of the file.
NAME: Final = "(?:rows|vectors)-{run}-{session}-[0-9]{{6,}}"
TOKEN: Final = re.compile("[0-9a-f]{12}")


class VersionError(ValueError):
    """The snapshot has a different version of the format."""


class ForeignError(ValueError):
    """A file with the name of a snapshot's state is something else."""


@dataclass(frozen=True)
class Part:
    """A rank's slices of the vectors of a file.

    Attributes
    ----------
    begin, end : int
        Bounds of its slice of each vector.
    size : int
        Size of its file in bytes.
    digest : str
        Digest of its file.
    """

    begin: int
    end: int
    size: int
    digest: str


@dataclass(frozen=True)
class Listed:
    """Entry of the manifest: vectors that were written together.

    Attributes
    ----------
    name : str
        Name of the files, without the number of the part and the suffix.
    first, last : int
        Range of numbers of its vectors, `last` excluded.
    dtype : str
        Name of the dtype in safetensors.
    parts : tuple of Part
        Parts, one per rank that wrote it; together they contain the whole vectors.
    """

    name: str
    first: int
    last: int
    dtype: str
    parts: tuple[Part, ...]

    def file(self, part: int) -> str:
        """Name of the file of a part."""
        return part_file(self.name, part)

    def entry(self) -> dict[str, Any]:
        """JSON form of the entry."""
        parts = [[part.begin, part.end, part.size, part.digest] for part in self.parts]
        return {"first": self.first, "last": self.last, "dtype": self.dtype, "parts": parts}

    @classmethod
    def from_entry(cls, name: str, entry: Any, run: str) -> Listed:
        """Create the entry from its JSON form.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is not a valid entry.
        """
        listed = cls(name, entry["first"], entry["last"], entry["dtype"], tuple(Part(*part) for part in entry["parts"]))
        sizes = {DTYPES[dtype]: dtype.itemsize for dtype in (torch.float64, torch.float32, torch.float16)}
        numbers = [listed.first, listed.last, *(n for part in listed.parts for n in (part.begin, part.end, part.size))]
        if any(type(number) is not int for number in numbers) or not 0 <= listed.first < listed.last:
            raise ValueError(f"{name} is listed with invalid numbers")
        if re.fullmatch(NAME.format(run=run, session=TOKEN.pattern), name) is None or listed.dtype not in sizes:
            raise ValueError(f"{name!r} with the dtype {listed.dtype!r} is not a file of a snapshot")
        ends = [0, *(part.end for part in listed.parts)]
        if [part.begin for part in listed.parts] != ends[:-1] or ends != sorted(ends):
            raise ValueError(f"the parts of {name} do not make up vectors")
        for part in listed.parts:
            content = (listed.last - listed.first) * (part.end - part.begin) * sizes[listed.dtype]
            if not content < part.size <= content + HEADER_BYTES:
                raise ValueError(f"{name} is listed with a size that does not match its vectors")
        return listed


@dataclass(frozen=True)
class Record:
    """Content of the state file of a snapshot.

    Attributes
    ----------
    run : str
        Token of the run.
    identity : dict of str to str
        Identity of the run: matrix, model, data and so on.
    listed : dict of str to Listed
        Manifest, by file name.
    state : Any
        State as JSON.
    arrays : dict of str to array
        Arrays that are not of length p.
    """

    run: str
    identity: dict[str, str]
    listed: dict[str, Listed]
    state: Any
    arrays: dict[str, np.ndarray[Any, Any]]

    @property
    def files(self) -> set[str]:
        """Names of all listed files."""
        return {listed.file(part) for listed in self.listed.values() for part in range(len(listed.parts))}


def new_token() -> str:
    """Create a unique token of a run, or of a process that works on it."""
    return secrets.token_hex(6)


def is_token(text: object) -> bool:
    """Whether a value is a valid token."""
    return isinstance(text, str) and TOKEN.fullmatch(text) is not None


def part_file(name: str, part: int) -> str:
    """Return the file name of a part of vectors."""
    return f"{name}.{part}.safetensors"


def key(number: int) -> str:
    """Return the name of a vector in its file."""
    return f"{number:0{DIGITS}}"


# Writing --------------------------------------------------------------------------------------------------------------


def write_part(path: Path, vectors: Mapping[str, Tensor], begin: int, end: int) -> Part:
    """Write a rank's slices of vectors, synchronised to disk.

    Raises
    ------
    OSError
        If they cannot be written; no file is left behind.
    """
    size, digest = _write_new(path, vectors, {})
    return Part(begin, end, size, digest)


def write_record(folder: Path, record: Record, session: str) -> None:
    """Replace the state, synchronised to disk.

    Raises
    ------
    OSError
        If it cannot be written; the previous one is then unchanged.
    """
    arrays = {name: torch.from_numpy(array) for name, array in record.arrays.items()}
    text = json.dumps(
        {
            "version": VERSION,
            "run": record.run,
            "identity": record.identity,
            "files": {name: listed.entry() for name, listed in record.listed.items()},
            "state": record.state,
        }
    )
    if len(text) > HEADER_BYTES // 2:
        raise OSError(
            f"The snapshot in {str(folder)!r} has {len(record.listed):,} files, which are too many for its manifest: "
            "take snapshots less often, with every=..., in another folder."
        )
    temporary = folder / f".state-{record.run}-{session}.safetensors"
    _write_new(temporary, arrays, {"hesspec": text, "digest": _content_digest(text, arrays)})
    try:
        # The listed files are on disk before the state, and the state before anything is removed.
        _sync(folder)
        temporary.replace(folder / STATE)
        _sync(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _write_new(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[int, str]:
    """Write a new file and return its size and digest; remove it if it cannot be written completely."""
    with path.open("xb") as file:
        try:
            digest = tensor_files.write(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
            # The next file reuses the memory of the system's cache that this one frees: a row of 113 MB took 0.10 s
            # instead of 0.22 s, in a virtual machine whose memory had not been touched before.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return file.tell(), digest


def _sync(folder: Path) -> None:
    """Synchronise the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _content_digest(text: str, arrays: Mapping[str, Tensor]) -> str:
    found = hashlib.new(tensor_files.DIGEST, text.encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {list(array.shape)}".encode())
        found.update(tensor_files.bytes_of(array))
    return found.hexdigest()


def remove_unlisted(folder: Path, run: str, listed: set[str], session: str = TOKEN.pattern) -> None:
    """Remove files of a run that are not listed, which killed processes or one session left behind.

    Files of other sessions are removed only if the lock of the folder is held.
    """
    vectors = NAME.format(run=run, session=session)
    own = re.compile(rf"{vectors}\.[0-9]+\.safetensors|\.state-{run}-{session}\.safetensors")
    for path in folder.iterdir():
        if path.name not in listed and own.fullmatch(path.name):
            path.unlink(missing_ok=True)


# Reading --------------------------------------------------------------------------------------------------------------


def read_record(folder: Path) -> Record:
    """Read the state of a snapshot.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError, RecursionError
        If it is damaged.
    VersionError
        If it has another version.
    ForeignError
        If it is not a snapshot.
    """
    path = folder / STATE
    with open_regular(path) as file:
        size, header = os.fstat(file.fileno()).st_size, _header_bytes(file)
    if not 2 <= header <= HEADER_BYTES:
        raise ForeignError("its header is not that of a snapshot")
    # The arrays are read into memory, and copied.
    if 2 * size > (free := free_memory(torch.device("cpu"))):
        raise ValueError(f"{STATE} has {in_words(size)}, but only {in_words(free)} of memory are free")
    with safetensors.safe_open(path, "pt") as opened:
        metadata = opened.metadata() or {}
        if "hesspec" not in metadata:
            raise ForeignError("it was not written by hesspec")
        text = metadata["hesspec"]
        content = json.loads(text)
        version = content["version"]
        if version != VERSION:
            raise VersionError(version)
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        if metadata.get("digest") != _content_digest(text, arrays):
            raise ValueError(f"{STATE} is damaged, as its digest is another one")
        # Copies, as the file is mapped.
        copies = {name: array.numpy().copy() for name, array in arrays.items()}
    run, identity = content["run"], {str(what): str(value) for what, value in content["identity"].items()}
    if not is_token(run):
        raise ValueError("its run has no token")
    listed = {name: Listed.from_entry(name, entry, run) for name, entry in content["files"].items()}
    return Record(run, identity, listed, content["state"], copies)


def check_parts(folder: Path, listed: Listed, parts: Iterable[int]) -> None:
    """Reject files that differ from the manifest, reading them as bytes only.

    Raises
    ------
    OSError, ValueError
        If one differs or cannot be read.
    """
    for part in parts:
        name, expected = listed.file(part), listed.parts[part]
        with open_regular(folder / name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected.size:
                raise ValueError(f"{name} has {size:,} bytes, but was written with {expected.size:,}")
            if digest_of(file) != expected.digest:
                raise ValueError(f"{name} is damaged, as its digest is another one")
            file.seek(0)
            if _header_bytes(file) > PART_BYTES + VECTOR_BYTES * (listed.last - listed.first):
                raise ValueError(f"{name} has a header that is larger than that of its vectors")


def read_vector(folder: Path, listed: Listed, number: int, begin: int, into: Tensor) -> None:
    """Read a slice of a vector from all parts that contain some of it.

    Parameters
    ----------
    folder : Path
    listed : Listed
        Entry of the manifest, whose parts have been checked.
    number : int
        Number of the vector.
    begin : int
        Start of the slice.
    into : Tensor
        Destination, with the length of the slice and the dtype of the file.

    Raises
    ------
    OSError, ValueError, safetensors.SafetensorError
        If it cannot be read.
    """
    end = begin + len(into)
    for index, part in enumerate(listed.parts):
        first, last = max(begin, part.begin), min(end, part.end)
        if first >= last:
            continue
        with safetensors.safe_open(folder / listed.file(index), "pt") as file:
            there = file.get_slice(key(number))
            if there.get_shape() != [part.end - part.begin] or there.get_dtype() != DTYPES[into.dtype]:
                raise ValueError(f"vector {number} in {listed.file(index)} differs from the manifest")
            into[first - begin : last - begin].copy_(there[first - part.begin : last - part.begin])


def _header_bytes(file: BinaryIO) -> int:
    """Return the length of the header of a safetensors file, from its first eight bytes."""
    (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
    return int(length)


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, unless it is a folder, a link or a pipe, whose reader would wait forever.

    Raises
    ------
    OSError, ValueError
        If it is one of these, or cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path.name} is a link") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path.name} is not a regular file")
    return os.fdopen(handle, "rb")
