"""The files of a snapshot: vectors in safetensors files, a part of each for every rank, and the state that lists them.

`state.safetensors` has all that is not of length p: arrays, and in its metadata a record in JSON, of which the manifest
of the other files is a part. Each of these is listed with its size, its digest, and what it holds; the record and the
arrays have a digest in the metadata. A file is not opened as safetensors before it has been found to be as it is
listed.
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
# Digits of a number in a name.
DIGITS: Final = 6
# Bytes of the state's header, at most: it has 100 for each part of a file that it lists, and a week of snapshots every
# ten minutes on 64 ranks would have 6.5 MB.
HEADER_BYTES: Final = 1 << 23
# Those of the header of a part, and of each of its vectors.
PART_BYTES: Final = 1 << 10
VECTOR_BYTES: Final = 150
# A run, one process or group of processes that works on it, and the number of a file.
NAME: Final = "(?:rows|vectors)-{run}-{session}-[0-9]{{6,}}"
TOKEN: Final = re.compile("[0-9a-f]{12}")


class VersionError(ValueError):
    """A snapshot is of another version of the format."""


class ForeignError(ValueError):
    """A file that has the name of a snapshot's state is not one."""


@dataclass(frozen=True)
class Part:
    """A rank's slices of the vectors of a file.

    Attributes
    ----------
    begin, end : int
        Of its slice of each vector.
    size : int
        Bytes of its file.
    digest : str
        Of its file.
    """

    begin: int
    end: int
    size: int
    digest: str


@dataclass(frozen=True)
class Listed:
    """Vectors that were written together, as the manifest lists them.

    Attributes
    ----------
    name : str
        Of the files, without the number of the part and the suffix.
    first, last : int
        Of the vectors in it, by their numbers, `last` excluded.
    dtype : str
        As safetensors names it.
    parts : tuple of Part
        One of each rank that wrote it; together they have the whole vectors.
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
        """What the manifest says of it."""
        parts = [[part.begin, part.end, part.size, part.digest] for part in self.parts]
        return {"first": self.first, "last": self.last, "dtype": self.dtype, "parts": parts}

    @classmethod
    def from_entry(cls, name: str, entry: Any, run: str) -> Listed:
        """Of what the manifest says of it.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is not what `entry` gives.
        """
        listed = cls(name, entry["first"], entry["last"], entry["dtype"], tuple(Part(*part) for part in entry["parts"]))
        sizes = {DTYPES[dtype]: dtype.itemsize for dtype in (torch.float64, torch.float32, torch.float16)}
        numbers = [listed.first, listed.last, *(n for part in listed.parts for n in (part.begin, part.end, part.size))]
        if any(type(number) is not int for number in numbers) or not 0 <= listed.first < listed.last:
            raise ValueError(f"{name} is listed with numbers that make no sense")
        if re.fullmatch(NAME.format(run=run, session=TOKEN.pattern), name) is None or listed.dtype not in sizes:
            raise ValueError(f"{name!r} with numbers of the dtype {listed.dtype!r} is not a file of a snapshot")
        ends = [0, *(part.end for part in listed.parts)]
        if [part.begin for part in listed.parts] != ends[:-1] or ends != sorted(ends):
            raise ValueError(f"the parts of {name} do not make up vectors")
        for part in listed.parts:
            content = (listed.last - listed.first) * (part.end - part.begin) * sizes[listed.dtype]
            if not content < part.size <= content + HEADER_BYTES:
                raise ValueError(f"{name} is listed with a size that is not that of its vectors")
        return listed


@dataclass(frozen=True)
class Record:
    """What the state of a snapshot says.

    Attributes
    ----------
    run : str
        Token of the run.
    identity : dict of str to str
        What the run is of.
    listed : dict of str to Listed
        The manifest, by the names of the files.
    state : Any
        What JSON holds of the state.
    arrays : dict of str to array
        What else it has that is not of length p.
    """

    run: str
    identity: dict[str, str]
    listed: dict[str, Listed]
    state: Any
    arrays: dict[str, np.ndarray[Any, Any]]

    @property
    def files(self) -> set[str]:
        """Names of all files that it lists."""
        return {listed.file(part) for listed in self.listed.values() for part in range(len(listed.parts))}


def new_token() -> str:
    """A token of a run, or of a process that works on it, that nothing else has."""
    return secrets.token_hex(6)


def is_token(text: object) -> bool:
    """Whether it can be a token."""
    return isinstance(text, str) and TOKEN.fullmatch(text) is not None


def part_file(name: str, part: int) -> str:
    """Name of the file of a part of vectors."""
    return f"{name}.{part}.safetensors"


def key(number: int) -> str:
    """Name of a vector in its file."""
    return f"{number:0{DIGITS}}"


# Writing --------------------------------------------------------------------------------------------------------------


def write_part(path: Path, vectors: Mapping[str, Tensor], begin: int, end: int) -> Part:
    """Write a rank's slices of vectors, onto the disk.

    Raises
    ------
    OSError
        If they cannot be written; no file is left then.
    """
    size, digest = _write_new(path, vectors, {})
    return Part(begin, end, size, digest)


def write_record(folder: Path, record: Record, session: str) -> None:
    """Write the state, onto the disk, in the place of the one before.

    Raises
    ------
    OSError
        If it cannot be written; the one before is unchanged then.
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
        # The names of what the state lists are on the disk before it is, and it before anything is removed.
        _sync(folder)
        temporary.replace(folder / STATE)
        _sync(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _write_new(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[int, str]:
    """Size and digest of a new file, which is removed where it cannot be written whole."""
    with path.open("xb") as file:
        try:
            digest = tensor_files.write(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
            # The next file is written into the memory of the system's cache that this one leaves: a row of 113 MB
            # took 0.10 s instead of 0.22, in a virtual machine whose memory had not been touched before.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return file.tell(), digest


def _sync(folder: Path) -> None:
    """Put the names in a folder onto the disk."""
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
    """Remove files of a run that are not listed: what killed processes, or one session, have left.

    Files of other sessions only where the lock of the folder is held.
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
        If it is of another version.
    ForeignError
        If it is something else.
    """
    path = folder / STATE
    with open_regular(path) as file:
        size, header = os.fstat(file.fileno()).st_size, _header_bytes(file)
    if not 2 <= header <= HEADER_BYTES:
        raise ForeignError("its header is not that of a snapshot")
    # The arrays are read into memory, and copied.
    if 2 * size > (free := free_memory(torch.device("cpu"))):
        raise ValueError(f"{STATE} has {in_words(size)}, and {in_words(free)} of memory are free")
    with safetensors.safe_open(path, "pt") as opened:
        metadata = opened.metadata() or {}
        if "hesspec" not in metadata:
            raise ForeignError("nothing in it is of hesspec")
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
    """Refuse files that are not as they are listed, without opening them as more than bytes.

    Raises
    ------
    OSError, ValueError
        If one is another one, or cannot be read.
    """
    for part in parts:
        name, expected = listed.file(part), listed.parts[part]
        with open_regular(folder / name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected.size:
                raise ValueError(f"{name} has {size:,} bytes, and it was written with {expected.size:,}")
            if digest_of(file) != expected.digest:
                raise ValueError(f"{name} is damaged, as its digest is another one")
            file.seek(0)
            if _header_bytes(file) > PART_BYTES + VECTOR_BYTES * (listed.last - listed.first):
                raise ValueError(f"{name} has more in its header than the vectors that it is to hold")


def read_vector(folder: Path, listed: Listed, number: int, begin: int, into: Tensor) -> None:
    """Read a slice of a vector from all parts that have some of it.

    Parameters
    ----------
    folder : Path
    listed : Listed
        Whose parts have been checked.
    number : int
        Of the vector.
    begin : int
        Of the slice.
    into : Tensor
        Where it goes, as long as the slice and of the dtype that was written.

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
                raise ValueError(f"vector {number} in {listed.file(index)} is not as it is listed")
            into[first - begin : last - begin].copy_(there[first - part.begin : last - part.begin])


def _header_bytes(file: BinaryIO) -> int:
    """Length of the header of a safetensors file, as its first eight bytes say."""
    (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
    return int(length)


def open_regular(path: Path) -> BufferedReader:
    """A file to read from, which is neither a folder nor a link nor a pipe, whose reader would wait for ever.

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
