"""NetCDF files that keep results: written whole, and read without trust in what is in them.

A file of somebody else can name other files to read (external storage, virtual datasets, links), run filters that the
HDF5 library loads as plug-ins, and ask for any amount of memory. So nothing of a file is read before its structure is
known to be that of a plain table of numbers and texts.
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

# Attribute of a dataset: SHA-256 of everything else in it. All formats from SEALED on have it.
DIGEST: Final = "hesspec_digest"
SEALED: Final = 2

# Files are not compressed by hesspec, but may have been by other programs. Spectra become some ten times smaller at
# most; a file of zeros that asks for all memory becomes a thousand times smaller.
RATIO: Final = 64
SMALL: Final = 1 << 24
LARGEST: Final = 1 << 33
MOST_OBJECTS: Final = 1000
MOST_TEXT: Final = 1 << 24
FILTERS: Final = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
# By these, other programs keep numbers in fewer bits.
# How an HDF5 file begins, and a collection of texts in it.
MAGIC: Final = b"\x89HDF\r\n\x1a\n"
HEAP: Final = b"GCOL\x01\0\0\0"
PACKED: Final = (b"scale_factor", b"add_offset")


class NewerFormatError(ValueError):
    """A file was written by a later version of hesspec, in a format that this one does not read."""


class OtherKindError(ValueError):
    """A file holds something else than it was read for."""


class _RefusedError(ValueError):
    """What is in a file is not what results are made of."""


def format_of(dataset: xr.Dataset, attribute: str, latest: int, what: str) -> int:
    """Number of the format of a dataset.

    Parameters
    ----------
    dataset : xarray.Dataset
    attribute : str
        Name of the attribute that gives it.
    latest : int
        The last format that this version of hesspec reads.
    what : str
        What the dataset should hold.

    Raises
    ------
    NewerFormatError
        If it is a later one.
    OtherKindError
        If there is no such attribute.
    ValueError
        If it is not the number of a format.
    """
    version = _plain(dataset.attrs.get(attribute))
    if version is None:
        raise OtherKindError(f"It has no attribute {attribute!r}.")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"Its attribute {attribute!r} is {version!r}, which is not the number of a format.")
    if version > latest:
        raise NewerFormatError(
            f"This {what} has format {version}; this version of hesspec reads up to {latest}. Update hesspec."
        )
    return version


# Writing --------------------------------------------------------------------------------------------------------------


def sealed(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with a digest of its content as an attribute, by which `read_dataset` finds what has changed."""
    return dataset.assign_attrs({DIGEST: _digest(dataset)})


def _digest(dataset: xr.Dataset) -> str:
    """SHA-256 of names, shapes, types and values; the same before a dataset is written and after it is read."""
    found = hashlib.sha256()
    for name in sorted(map(str, dataset.data_vars)):
        values = np.asarray(dataset[name].to_numpy())
        found.update(repr((name, values.shape)).encode())
        if not values.size:
            continue  # xarray writes an empty list of texts as one of numbers
        if values.dtype.kind in "OSU":
            found.update(repr([str(value) for value in values.flat]).encode())
        else:
            plain = values.astype(values.dtype.newbyteorder("<"))
            found.update(plain.dtype.str.encode() + np.ascontiguousarray(plain).tobytes())
    for name, value in sorted((str(name), value) for name, value in dataset.attrs.items() if name != DIGEST):
        found.update(repr((name, _plain(value))).encode())
    return found.hexdigest()


def _plain(value: object) -> object:
    """Python's number of a NumPy scalar, as the two are written alike."""
    return value.item() if isinstance(value, np.generic) else value


def write_dataset(dataset: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Write a NetCDF file, whole or not at all.

    The file is made in memory: where a disk is full, the HDF5 library does not report an error but crashes.

    Parameters
    ----------
    dataset : xarray.Dataset
    path : path
    overwrite : bool
        Whether a file that is there is replaced.

    Raises
    ------
    FileExistsError
        If there is such a file, and it is not to be replaced.
    OSError
        If the folder cannot be made or written to; it says how much room the file needs.
    """
    write_bytes(path, memoryview(dataset.to_netcdf(engine="h5netcdf")), overwrite=overwrite)


# Reading --------------------------------------------------------------------------------------------------------------


class Kind(NamedTuple, Generic[T]):
    """A kind of dataset: what it is called, the attribute with its format's number, the last one, and how it is read.

    `build` raises ValueError or KeyError where the dataset holds something else.
    """

    name: str
    attribute: str
    latest: int
    build: Callable[[xr.Dataset], T]


def read_dataset(path: str | os.PathLike[str], what: str, kind_of: Callable[[xr.Dataset], Kind[T]]) -> T:
    """Read a NetCDF file, and make of it what it should hold.

    Parameters
    ----------
    path : path
    what : str
        What it should hold.
    kind_of : callable
        Kind of a dataset, whose dimensions have names of their own; OtherKindError where it is of none.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    NewerFormatError
        If it was written by a later version of hesspec.
    ValueError
        If the file is not a NetCDF file, is damaged, holds something else, refers to other files, or asks for more
        memory than a result takes.
    OSError
        If the system does not let the file be read.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} to load a {what} from.")
    with file.open("rb"):  # for the error of the system, which that of the HDF5 library hides
        pass
    try:
        dataset = _read(file)
    except _RefusedError as error:
        raise ValueError(f"{str(path)!r} was not read: {error}") from error
    except Exception as error:  # on damaged bytes the HDF5 library fails with errors of any type
        raise ValueError(
            f"{str(path)!r} is not a NetCDF file that hesspec can read, or it is damaged: {_first_line(error)}"
        ) from error
    try:
        kind = kind_of(dataset)
        what = kind.name
        version = format_of(dataset, kind.attribute, kind.latest, kind.name)
        if version >= SEALED and dataset.attrs.get(DIGEST) != _digest(dataset):
            raise ValueError(
                "It is damaged, or was changed by another program: its content is not what its digest was made of."
            )
        return kind.build(dataset)
    except NewerFormatError as error:
        raise NewerFormatError(f"{str(path)!r} cannot be read: {error}") from error
    except OtherKindError as error:
        raise OtherKindError(f"{str(path)!r} does not hold a {what}: {error}") from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"{str(path)!r} does not hold a {what}: {error}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _read(file: Path) -> xr.Dataset:
    """Variables and attributes of a file, whose structure is checked before any value is read.

    Raises
    ------
    _RefusedError
        If it has what a result does not have.
    Exception
        Of any type, if it is damaged.
    """
    bound = min(max(SMALL, RATIO * file.stat().st_size), LARGEST)
    with h5py.File(file, "r") as content:
        root = h5g.open(content.id, b"/")
        found = {name: _variable(root, name) for name in _names(root)}
        variables = {name: variable for name, variable in found.items() if variable is not None}
        memory = sum(map(_memory_of, variables.values()))
        if memory > bound:
            raise _RefusedError(
                f"it asks for {in_words(memory)} of memory, and a file of its size may ask for {in_words(bound)}."
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
    """Names of all that is in a group, of which nothing is a link to somewhere else."""
    names: list[bytes] = []

    def note(name: bytes) -> bool | None:
        names.append(name)
        return True if len(names) > MOST_OBJECTS else None  # which ends the iteration

    root.links.iterate(note)
    if len(names) > MOST_OBJECTS:
        raise _RefusedError(f"it has more than {MOST_OBJECTS} variables.")
    for name in names:
        if root.links.get_info(name).type != h5l.TYPE_HARD:
            raise _RefusedError(f"{_shown(name)} is a link to another place or another file.")
    return [name.decode() for name in names]


def _shown(name: bytes | str) -> str:
    return repr(name.decode("utf-8", "replace") if isinstance(name, bytes) else name)


def _variable(root: h5g.GroupID, name: str) -> h5d.DatasetID | None:
    """A variable that can be read; None for a dimension, whose values are not read."""
    if h5o.get_info(root, name.encode()).type != h5o.TYPE_DATASET:
        raise _RefusedError(f"{name!r} is not a variable, and results have nothing else.")
    variable = h5d.open(root, name.encode())
    layout = variable.get_create_plist()
    if layout.get_external_count():
        raise _RefusedError(f"the values of {name!r} are in another file (external storage).")
    if layout.get_layout() not in {h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED}:
        raise _RefusedError(f"the values of {name!r} are in other places or other files (a virtual dataset).")
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
    """Refuse all types but numbers and texts."""
    if of.committed():
        raise _RefusedError(f"{name!r} has a type that is defined in another place of the file.")
    number = of.get_class() in {h5t.INTEGER, h5t.FLOAT} and of.get_size() in {1, 2, 4, 8}
    if not number and of.get_class() != h5t.STRING:
        raise _RefusedError(f"{name!r} holds neither numbers nor texts.")


def _check_stored(name: str, variable: h5d.DatasetID, layout: h5p.PropDCID) -> None:
    """Refuse a variable that announces more values than the file has of it: the others would be made up."""
    announced, stored = _bytes_of(variable), int(variable.get_storage_size())
    if stored < (min(announced, 1) if layout.get_nfilters() else announced):
        raise _RefusedError(f"{name!r} announces {in_words(announced)} of values, and has {in_words(stored)}.")


def _bytes_of(variable: h5d.DatasetID) -> int:
    """Size of the values of a variable; of texts of variable length, that of what refers to them."""
    return int(variable.get_space().get_simple_extent_npoints()) * int(variable.get_type().get_size())


def _memory_of(variable: h5d.DatasetID) -> int:
    """What reading a variable takes: its values, and one of the chunks that they are stored in."""
    layout = variable.get_create_plist()
    chunked = layout.get_layout() == h5d.CHUNKED
    return _bytes_of(variable) + (math.prod(layout.get_chunk()) * int(variable.get_type().get_size()) if chunked else 0)


def _check_heaps(file: Path) -> None:
    """Refuse a file whose heaps of texts are damaged: the HDF5 library may search them for ever.

    A collection begins with its signature, version and size; each object in it has an index, a count of references and
    a size of its own; index 0 is of what is free (HDF5 File Format Specification, III.E).
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Sizes of addresses and of lengths are eight bytes.
        first = 13 if content[8] < 2 else 9
        if content[:8] != MAGIC or content[first : first + 2] != b"\x08\x08":
            raise _RefusedError("its addresses are not of eight bytes.")
        start = content.find(HEAP)
        while start >= 0:
            place, end = start + 16, start + int.from_bytes(content[start + 8 : start + 16], "little")
            while place + 16 <= end <= len(content):
                index = int.from_bytes(content[place : place + 2], "little")
                length = int.from_bytes(content[place + 8 : place + 16], "little")
                # The size of what is free has its own 16 bytes in it, that of a text has not.
                place += 16 + -(-length // 8) * 8 if index else length if length >= 16 else len(content)
            if not start + 16 <= place <= end <= len(content):
                raise _RefusedError("it is damaged: its texts are longer than the list that they are in.")
            start = content.find(HEAP, start + 1)


class _Texts:
    """Makes texts of what h5py gives, up to a length in all: many may be one and the same text in the file."""

    def __init__(self) -> None:
        self._left = MOST_TEXT

    def __call__(self, value: object) -> str:
        text = value.decode() if isinstance(value, bytes) else str(value)
        self._left -= len(text)
        if self._left < 0:
            raise _RefusedError(f"its texts have more than {MOST_TEXT:,} characters.")
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
    """Attributes of a file that hesspec gave it; names that begin with an underscore are of the NetCDF library."""
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
            raise _RefusedError(f"its attribute {name!r} is not one number or text.")
        value = np.asarray(content.attrs[name]).reshape(-1)[0]
        yield name, texts(value) if attribute.get_type().get_class() == h5t.STRING else value.item()
