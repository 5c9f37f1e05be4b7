"""Files that are there whole or not at all, and the NetCDF files that keep results."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import xarray as xr

T = TypeVar("T")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`, and rename it to `path` when the block ends without an error.

    The folder is made if it is missing. After an error or Ctrl-C in the block the temporary file is removed and an
    earlier file at `path` is as it was. The temporary name keeps the suffix of `path`, as writers choose formats by it.

    Raises
    ------
    OSError
        If the folder cannot be made or written to.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; a result is as readable as any other file that the user makes.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_dataset(dataset: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write a NetCDF file, whole or not at all.

    Raises
    ------
    OSError
        If the folder cannot be made or written to.
    """
    with atomic_path(path) as temporary:
        dataset.to_netcdf(temporary, engine="h5netcdf")


def read_dataset(path: str | os.PathLike[str], what: str, build: Callable[[xr.Dataset], T]) -> T:
    """Read a NetCDF file, and make of it what it is to hold.

    Parameters
    ----------
    path : path
    what : str
        What it is to hold, in words.
    build : callable
        From the dataset to that; ValueError or KeyError where it holds something else.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no NetCDF file or holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} to load a {what} from.")
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no NetCDF file that hesspec can read: {error}") from error
    try:
        return build(dataset)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{str(path)!r} holds no {what}: {error}") from error
