"""NetCDF files of results: written atomically, and validated before they are read.

A file from elsewhere can refer to other files (external storage, virtual datasets, links), run filters that the HDF5
library loads as plug-ins, and request any amount of memory. So no values are read before the structure of the file is
known to be that of plain arrays of numbers and strings.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr
from h5py import h5a, h5d, h5ds, h5g, h5l, h5o, h5p, h5t, h5z

from hesspec.backend.files import write_bytes
from hesspec.backend.text import in_words

__all__ = ["Kind", "NewerFormatError", "OtherKindError", "format_of", "read_dataset", "sealed", "write_dataset"]

T = TypeVar("T")

# Attribute of a dataset: SHA-256 of everything else in it. Present in all formats from SEALED on.
DIGEST: Final = "hesspec_digest"
SEALED: Final = 2

# hesspec does not compress files, but other programs may have. Spectra are compressed by a factor of about ten at most;
# a file of zeros that would fill all memory is compressed by a factor of a thousand.
RATIO: Final = 64
SMALL: Final = 1 << 24
LARGEST: Final = 1 << 33
MOST_OBJECTS: Final = 1000
MOST_TEXT: Final = 1 << 24
FILTERS: Final = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
# Signatures of an HDF5 file and of a collection of strings in it.
MAGIC: Final = b"\x89HDF\r\n\x1a\n"
HEAP: Final = b"GCOL\x01\0\0\0"
# Attributes by which other programs store numbers in fewer bits.
PACKED: Final = (b"scale_factor", b"add_offset")


class NewerFormatError(ValueError):
    """The file was written by a later version of hesspec, in a format that this one does not read."""


class OtherKindError(ValueError):
    """The file contains something other than expected."""


class _RefusedError(ValueError):
    """The content of a file is not that of a result."""


def format_of(dataset: xr.Dataset, attribute: str, latest: int, what: str) -> int:
    """Return the format number of a dataset.

    Parameters
    ----------
    dataset : xarray.Dataset
    attribute : str
        Name of the attribute that contains it.
    latest : int
        Latest format that this version of hesspec reads.
    what : str
        Expected content of the dataset.

    Raises
    ------
    NewerFormatError
        If the format is later.
    OtherKindError
        If the attribute does not exist.
    ValueError
        If it is not a format number.
    """
    version = _plain(dataset.attrs.get(attribute))
    if version is None:
        raise OtherKindError(f"It has no attribute {attribute!r}.")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"Its attribute {attribute!r} is {version!r}, which is not a format number.")
    if version > latest:
        raise NewerFormatError(
            f"This {what} has format {version}; this version of hesspec reads up to {latest}. Update hesspec."
        )
    return version


# Writing --------------------------------------------------------------------------------------------------------------


def sealed(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with a digest of its content as an attribute, by which `read_dataset` detects changes."""
    return dataset.assign_attrs({DIGEST: _digest(dataset)})


def _digest(dataset: xr.Dataset) -> str:
    """Compute SHA-256 of names, shapes, types and values; the same before writing a dataset and after reading it."""
    found = hashlib.sha256()
    for name in sorted(map(str, dataset.data_vars)):
        values = np.asarray(dataset[name].to_numpy())
        found.update(repr((name, values.shape)).encode())
        if not values.size:
            continue  # xarray writes an empty list of strings as one of numbers
        if values.dtype.kind in "OSU":
            found.update(repr([str(value) for value in values.flat]).encode())
        else:
            # NetCDF has no booleans: xarray writes them as bytes.
            values = values.view(np.int8) if values.dtype == np.bool_ else values
            plain = values.astype(values.dtype.newbyteorder("<"))
            found.update(plain.dtype.str.encode() + np.ascontiguousarray(plain).tobytes())
    for name, value in sorted((str(name), value) for name, value in dataset.attrs.items() if name != DIGEST):
        found.update(repr((name, _plain(value))).encode())
    return found.hexdigest()


def _plain(value: object) -> object:
    """Convert a NumPy scalar to a Python number, as both are written in the same way."""
    return value.item() if isinstance(value, np.generic) else value


def write_dataset(dataset: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Write a NetCDF file atomically.

    The file is created in memory, because the HDF5 library crashes if a disk is full.

    Parameters
    ----------
    dataset : xarray.Dataset
        Content of the file.
    path : path
        Name of the file.
    overwrite : bool
        Whether to replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is False.
    OSError
        If the folder cannot be created or written to; the message says how much space the file needs.
    """
    write_bytes(path, memoryview(dataset.to_netcdf(engine="h5netcdf")), overwrite=overwrite)


# Reading --------------------------------------------------------------------------------------------------------------


class Kind(NamedTuple, Generic[T]):
    """Kind of dataset: its name, the attribute with the format number, the latest format, and the function to read it.

    `build` raises ValueError or KeyError if the dataset contains something else.
    """

    name: str
    attribute: str
    latest: int
    build: Callable[[xr.Dataset], T]


def read_dataset(path: str | os.PathLike[str], what: str, kind_of: Callable[[xr.Dataset], Kind[T]]) -> T:
    """Read a NetCDF file, and convert it to the expected kind of object.

    Parameters
    ----------
    path : path
        Name of the file.
    what : str
        Expected content.
    kind_of : callable
        Returns the kind of a dataset, whose dimensions may have any names; raises OtherKindError if it is unknown.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    NewerFormatError
        If it was written by a later version of hesspec.
    ValueError
        If the file is not a NetCDF file, is damaged, contains something else, refers to other files, or declares more
        data than a result needs.
    OSError
        If the system does not allow reading the file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} to load a {what} from.")
    with file.open("rb"):  # raises the system's error, which the HDF5 library would hide
        pass
    try:
        dataset = _read(file)
    except _RefusedError as error:
        raise ValueError(f"{str(path)!r} was not read: {error}") from error
    except Exception as error:  # on damaged files, the HDF5 library raises errors of any type
        raise ValueError(
            f"{str(path)!r} is not a NetCDF file that hesspec can read, or it is damaged: {_first_line(error)}"
        ) from error
    try:
        kind = kind_of(dataset)
        what = kind.name
        version = format_of(dataset, kind.attribute, kind.latest, kind.name)
        if version >= SEALED and dataset.attrs.get(DIGEST) != _digest(dataset):
            raise ValueError("It is damaged, or was changed by another program: its content does not match its digest.")
        return kind.build(dataset)
    except NewerFormatError as error:
        raise NewerFormatError(f"{str(path)!r} cannot be read: {error}") from error
    except OtherKindError as error:
        raise OtherKindError(f"{str(path)!r} has no valid {what}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r} has no valid {what}: {error}") from error
    except Exception as error:  # of values that contradict one another, as those of foreign files may
        raise ValueError(
            f"{str(path)!r} has no valid {what}: its values contradict one another ({type(error).__name__}: "
            f"{_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _read(file: Path) -> xr.Dataset:
    """Read variables and attributes of a file, after checking its structure.

    Raises
    ------
    _RefusedError
        If it contains something that a result does not have.
    Exception
        Any type, if it is damaged.
    """
    bound = min(max(SMALL, RATIO * file.stat().st_size), LARGEST)
    with h5py.File(file, "r") as content:
        root = h5g.open(content.id, b"/")
        found = {name: _variable(root, name) for name in _names(root)}
        variables = {name: variable for name, variable in found.items() if variable is not None}
        memory = sum(map(_memory_of, variables.values()))
        if memory > bound:
            raise _RefusedError(
                f"it requires {in_words(memory)} of memory, but a file of its size may require at most "
                f"{in_words(bound)}."
            )
        _check_heaps(file)
        texts = _Texts()
        arrays = {name: _values(variable, texts) for name, variable in variables.items()}
        attributes = dict(_attributes(content, texts))
    return xr.Dataset(
        {name: ([f"{name}_{axis}" for axis in range(array.ndim)], array) for name, array in arrays.items()},
        attrs=attributes,
    )


def _names(root: h5g.GroupID) -> list[str]:
    """Names of all members of a group, none of which may be a link."""
    names: list[bytes] = []

    def note(name: bytes) -> bool | None:
        names.append(name)
        return True if len(names) > MOST_OBJECTS else None  # ends the iteration

    root.links.iterate(note)
    if len(names) > MOST_OBJECTS:
        raise _RefusedError(f"it has more than {MOST_OBJECTS} variables.")
    for name in names:
        if root.links.get_info(name).type != h5l.TYPE_HARD:
            raise _RefusedError(f"{_shown(name)} is a link to another location or another file.")
    return [name.decode() for name in names]


def _shown(name: bytes | str) -> str:
    return repr(name.decode("utf-8", "replace") if isinstance(name, bytes) else name)


def _variable(root: h5g.GroupID, name: str) -> h5d.DatasetID | None:
    """Return a variable that can be read; None for a dimension, whose values are not read."""
    if h5o.get_info(root, name.encode()).type != h5o.TYPE_DATASET:
        raise _RefusedError(f"{name!r} is not a variable, but results contain only variables.")
    variable = h5d.open(root, name.encode())
    layout = variable.get_create_plist()
    if layout.get_external_count():
        raise _RefusedError(f"the values of {name!r} are in another file (external storage).")
    if layout.get_layout() not in {h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED}:
        raise _RefusedError(f"the values of {name!r} are in other locations or other files (a virtual dataset).")
    filters = {layout.get_filter(index)[0] for index in range(layout.get_nfilters())}
    if not filters <= FILTERS:
        raise _RefusedError(
            f"{name!r} needs the HDF5 filters {sorted(filters - FILTERS)}; only deflate, shuffle and Fletcher's "
            "checksum are used."
        )
    if any(h5a.exists(variable, attribute) for attribute in PACKED):
        raise _RefusedError(f"{name!r} was packed into fewer bits by another program.")
    if h5ds.is_scale(variable):
        return None
    _check_type(name, variable.get_type())
    _check_stored(name, variable, layout)
    return variable


def _check_type(name: str, of: h5t.TypeID) -> None:
    """Reject all types except numbers and strings."""
    if of.committed():
        raise _RefusedError(f"{name!r} has a type that is defined elsewhere in the file.")
    number = of.get_class() in {h5t.INTEGER, h5t.FLOAT} and of.get_size() in {1, 2, 4, 8}
    if not number and of.get_class() != h5t.STRING:
        raise _RefusedError(f"{name!r} contains neither numbers nor strings.")


def _check_stored(name: str, variable: h5d.DatasetID, layout: h5p.PropDCID) -> None:
    """Reject a variable that declares more values than the file contains: the others would be filled in."""
    announced, stored = _bytes_of(variable), int(variable.get_storage_size())
    if stored < (min(announced, 1) if layout.get_nfilters() else announced):
        raise _RefusedError(f"{name!r} declares {in_words(announced)} of values, but has {in_words(stored)}.")


def _bytes_of(variable: h5d.DatasetID) -> int:
    """Size of the values of a variable; for strings of variable length, that of the references to them."""
    return int(variable.get_space().get_simple_extent_npoints()) * int(variable.get_type().get_size())


def _memory_of(variable: h5d.DatasetID) -> int:
    """Memory for reading a variable: its values, and one of the chunks in which they are stored."""
    layout = variable.get_create_plist()
    chunked = layout.get_layout() == h5d.CHUNKED
    return _bytes_of(variable) + (math.prod(layout.get_chunk()) * int(variable.get_type().get_size()) if chunked else 0)


def _check_heaps(file: Path) -> None:
    """Reject a file with damaged heaps of strings, which the HDF5 library may search forever.

    A collection starts with its signature, version and size; each object in it has an index, a reference count and a
    size; index 0 denotes free space (HDF5 File Format Specification, III.E).
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Addresses and lengths have eight bytes.
        first = 13 if content[8] < 2 else 9
        if content[:8] != MAGIC or content[first : first + 2] != b"\x08\x08":
            raise _RefusedError("its addresses do not have eight bytes.")
        start = content.find(HEAP)
        while start >= 0:
            place, end = start + 16, start + int.from_bytes(content[start + 8 : start + 16], "little")
            while place + 16 <= end <= len(content):
                index = int.from_bytes(content[place : place + 2], "little")
                length = int.from_bytes(content[place + 8 : place + 16], "little")
                # The size of free space includes its 16-byte header; that of a string does not.
                place += 16 + -(-length // 8) * 8 if index else length if length >= 16 else len(content)
            if not start + 16 <= place <= end <= len(content):
                raise _RefusedError("it is damaged: its strings are longer than the list that contains them.")
            start = content.find(HEAP, start + 1)


class _Texts:
    """Converts values from h5py to strings, up to a total length: the file may refer to one string many times."""

    def __init__(self) -> None:
        self._left = MOST_TEXT

    def __call__(self, value: object) -> str:
        text = value.decode() if isinstance(value, bytes) else str(value)
        self._left -= len(text)
        if self._left < 0:
            raise _RefusedError(f"its strings have more than {MOST_TEXT:,} characters.")
        return text


def _values(variable: h5d.DatasetID, texts: _Texts) -> npt.NDArray[Any]:
    of = h5py.Dataset(variable)
    if variable.get_type().get_class() != h5t.STRING:
        return np.asarray(of[()])
    values = np.empty(of.shape, dtype=object)
    for place in np.ndindex(of.shape):
        values[place] = texts(of[place])
    return values


def _attributes(content: h5py.File, texts: _Texts) -> Iterator[tuple[str, int | float | str]]:
    """Attributes written by hesspec; names that start with an underscore belong to the NetCDF library."""
    count = h5a.get_num_attrs(content.id)
    if count > MOST_OBJECTS:
        raise _RefusedError(f"it has more than {MOST_OBJECTS} attributes.")
    for index in range(count):
        attribute = h5a.open(content.id, index=index)
        name = attribute.name.decode()
        if name.startswith("_"):
            continue
        _check_type(name, attribute.get_type())
        if attribute.get_space().get_simple_extent_npoints() != 1 or attribute.get_type().get_size() > MOST_TEXT:
            raise _RefusedError(f"its attribute {name!r} is not a single number or string.")
        value = np.asarray(content.attrs[name]).reshape(-1)[0]
        yield name, texts(value) if attribute.get_type().get_class() == h5t.STRING else value.item()
