"""The network and the data set that a command measures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from hesspec.cli.console import say
from hesspec.cli.devices import device_of, dtype_of
from hesspec.study import Dataset, build_network, load_dataset, load_weights, read_metadata
from hesspec.study.measuring import Attribute, spectrum_file

__all__ = ["Problem", "check_folder"]


@dataclass(frozen=True)
class Problem:
    """Options that determine what is measured, named as on the command line."""

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
        """Load the data set, and the network with its weights on its device."""
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
            say(f"No --weights: measuring {self.network} at initialisation (seed {self.seed}).")
        else:
            load_weights(network, self.weights)
        return network.to(device, dtype), dataset

    @cached_property
    def attributes(self) -> dict[str, Attribute]:
        """Attributes of the results: network, checkpoint, epoch and parameters."""
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
        """Path of a result: the name of a matrix, or "ClassStructure"."""
        return folder / spectrum_file(result, self.split, str(self.attributes["checkpoint"]))


def check_folder(folder: Path, files: Sequence[Path]) -> None:
    """Raise OSError before hours of measuring if a file cannot be written."""
    for file in files:
        if file.exists():
            raise FileExistsError(
                f"The file {str(file)!r} already exists; delete it, or choose another folder with --out."
            )
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder {str(folder)!r} is not writable; choose another one with --out.")
