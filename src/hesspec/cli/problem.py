"""What a command measures: a network at its weights, and a data set, by the options that name them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from hesspec.cli.console import say
from hesspec.cli.options import device_of, dtype_of
from hesspec.study import Dataset, build_network, load_dataset, load_weights, read_metadata
from hesspec.study.measuring import Attribute, spectrum_file

__all__ = ["Problem", "check_folder"]


@dataclass(frozen=True)
class Problem:
    """The options that say what is measured, by their names on the command line."""

    network: str
    data: str
    weights: Path | None
    split: str
    samples_per_class: int | None
    data_folder: Path | None
    size: int | None
    params: list[str] | None
    seed: int
    device: str
    dtype: str

    def load(self) -> tuple[nn.Module, Dataset]:
        """The network with its weights, on its device, and the data set."""
        device, dtype = device_of(self.device), dtype_of(self.dtype)
        dataset = load_dataset(
            self.data,
            self.split,
            samples_per_class=self.samples_per_class,
            folder=self.data_folder,
            size=self.size,
            seed=self.seed,
        )
        torch.manual_seed(self.seed)
        network = build_network(self.network, channels=dataset.channels, classes=dataset.classes, size=dataset.size)
        if self.weights is None:
            say(f"No --weights: the spectra are those of {self.network} as it is initialised from seed {self.seed}.")
        else:
            load_weights(network, self.weights)
        return network.to(device, dtype), dataset

    @cached_property
    def attributes(self) -> dict[str, Attribute]:
        """What results keep of the network and of the point at which it is measured."""
        attributes: dict[str, Attribute] = {"network": self.network}
        if self.weights is None:
            attributes |= {"checkpoint": "initialisation", "epoch": 0}
        else:
            metadata = read_metadata(self.weights) if self.weights.suffix == ".safetensors" else {}
            attributes |= {"checkpoint": self.weights.stem, "weights": str(self.weights)}
            if (epoch := metadata.get("epoch", "")).isdecimal():
                attributes["epoch"] = int(epoch)
        if self.params:
            attributes["params"] = " ".join(self.params)
        return attributes

    def file(self, folder: Path, result: str) -> Path:
        """Where a result is written: the spectrum of a matrix, or "ClassStructure"."""
        return folder / spectrum_file(result, self.split, str(self.attributes["checkpoint"]))


def check_folder(folder: Path, files: Sequence[Path]) -> None:
    """Say now, and not after hours of measuring, that a file cannot be written."""
    for file in files:
        if file.exists():
            raise FileExistsError(
                f"There is a file {str(file)!r} already; remove it, or name another folder with --out."
            )
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder {str(folder)!r} cannot be written to; name another one with --out.")
