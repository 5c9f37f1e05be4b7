"""Files of images that data sets are read from: IDX files, and CIFAR by torchvision."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hesspec.backend.extras import require

__all__ = ["CifarSource", "IdxSource", "Images"]

# Images of the largest data set of this kind take half a gigabyte; of each of them deflate makes 1/1032 at best.
LARGEST_IDX: Final = 1 << 32
DEFLATED: Final = 1032


@dataclass(frozen=True)
class Images:
    """Images as stored, and how they are normalised: (pixel / white - mean) / std per channel."""

    pixels: Tensor  # (N, channels, h, w), uint8
    targets: Tensor  # (N,), int64
    class_names: tuple[str, ...]
    white: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class IdxSource:
    """A data set in the four IDX files of MNIST; calling it reads one split."""

    name: str
    torchvision_name: str
    class_names: tuple[str, ...]
    mean: float
    std: float
    package_folder: Path | None = None
    package_command: str = ""

    def __call__(self, split: str, folder: Path | None) -> Images:
        """Read all images of a split; raises ValueError for damaged files, FileNotFoundError if there are none."""
        prefix = "train" if split == "train" else "t10k"
        image_file = self._find(f"{prefix}-images-idx3-ubyte", folder)
        label_file = self._find(f"{prefix}-labels-idx1-ubyte", folder)
        pixels = _read_idx(image_file, dimensions=3)
        labels = _read_idx(label_file, dimensions=1)
        if len(pixels) != len(labels):
            raise ValueError(
                f"The files of {self.name!r} do not belong together: {str(image_file)!r} has "
                f"{len(pixels)} images and {str(label_file)!r} has {len(labels)} labels."
            )
        if labels.numel() > 0 and labels.max() >= len(self.class_names):
            raise ValueError(
                f"The file {str(label_file)!r} is damaged: it has a label {int(labels.max())}, and "
                f"{self.name!r} has {len(self.class_names)} classes."
            )
        return Images(
            pixels=pixels.unsqueeze(1),
            targets=labels.long(),
            class_names=self.class_names,
            white=255,
            mean=(self.mean,),
            std=(self.std,),
        )

    def _find(self, stem: str, folder: Path | None) -> Path:
        if folder is not None:
            folders = [folder, folder / self.torchvision_name / "raw"]
        else:
            folders = [self.package_folder] if self.package_folder else []
        for candidate in folders:
            for path in (candidate / stem, candidate / f"{stem}.gz"):
                if path.is_file():
                    return path
        raise FileNotFoundError(
            f"The file {stem} or {stem}.gz of {self.name!r} "
            f"{_looked_in(folders)}. Get it with {self.package_command}"
            f"{_torchvision_download(self.torchvision_name)}."
        )


def _looked_in(folders: Sequence[Path]) -> str:
    if not folders:
        return "was looked for nowhere, as no folder was given"
    return f"is not in {' or '.join(repr(str(folder)) for folder in folders)}"


def _torchvision_download(torchvision_name: str) -> str:
    return (
        f'`python -c "from torchvision.datasets import {torchvision_name} as D; '
        f"D('data', download=True)\"` and name its folder: folder='data', --data-folder data on the command line, "
        "folder: data in a study file"
    )


def _read_idx(path: Path, *, dimensions: int) -> Tensor:
    """Read a file of unsigned bytes in the IDX format, compressed by gzip or not.

    The format is described with MNIST (LeCun, Cortes and Burges): two zero bytes, one for the type
    (8, unsigned byte), one for the number of dimensions, their sizes as big-endian uint32, data.
    No more is read, nor decompressed, than the header announces, and no more announced than the file can hold.
    """
    size = path.stat().st_size
    compressed = path.suffix == ".gz"
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            shape = _idx_shape(path, file.read(4 + 4 * dimensions), dimensions)
            announced = math.prod(shape)
            most = min(DEFLATED * size if compressed else size, LARGEST_IDX)
            if announced > most:
                raise ValueError(
                    f"The file {str(path)!r} is damaged: its header announces {announced} bytes of data, and a file of "
                    f"its size has {most} at most."
                )
            content = file.read(announced + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"The file {str(path)!r} is not a whole gzip file: {error}.") from error
    if len(content) != announced:
        beyond = "more" if len(content) > announced else f"{len(content)}"
        raise ValueError(
            f"The file {str(path)!r} is damaged: its header announces {announced} bytes of data, and it has {beyond}."
        )
    # A copy: torch wants memory that it may write to, and bytes are not.
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())


def _idx_shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    """Sizes that the header of an IDX file announces."""
    magic = bytes([0, 0, 8, dimensions])
    if len(header) < 4 + 4 * dimensions or header[:4] != magic:
        raise ValueError(
            f"The file {str(path)!r} is not an IDX file of bytes in {dimensions} dimension(s): "
            f"it must begin with {magic.hex(' ')}, but begins with {header[:4].hex(' ')}."
        )
    return struct.unpack(f">{dimensions}I", header[4:])


@dataclass(frozen=True)
class CifarSource:
    """CIFAR as torchvision stores and reads it; calling it reads one split."""

    name: str
    torchvision_name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, split: str, folder: Path | None) -> Images:
        """Read all images of a split; raises ValueError for damaged files, FileNotFoundError if there are none."""
        require(f"The data set {self.name!r}", "hesspec[vision]", "torchvision")
        from torchvision import datasets  # noqa: PLC0415 - an optional dependency

        reader = getattr(datasets, self.torchvision_name)
        folders = [] if folder is None else [folder / reader.base_folder]
        if not any(candidate.is_dir() for candidate in folders):
            raise FileNotFoundError(
                f"The data set {self.name!r} {_looked_in(folders)}. "
                f"Get it with {_torchvision_download(self.torchvision_name)}."
            )
        try:
            # torchvision checks the files' checksums before it unpickles them.
            stored = reader(folder, train=split == "train")
        except RuntimeError as error:
            raise ValueError(
                f"The files of {self.name!r} in {str(folders[0])!r} are incomplete or damaged; get "
                f"them again with {_torchvision_download(self.torchvision_name)}."
            ) from error
        return Images(
            pixels=torch.from_numpy(stored.data).permute(0, 3, 1, 2),
            targets=torch.tensor(stored.targets, dtype=torch.int64),
            class_names=tuple(stored.classes),
            white=255,
            mean=tuple(value / 255 for value in self.mean),
            std=tuple(value / 255 for value in self.std),
        )
