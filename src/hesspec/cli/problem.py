"""The network and the data set that a command measures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from hesspec.backend.files import digest_of, safe_name
from hesspec.cli.console import say
from hesspec.cli.devices import device_of, dtype_of
from hesspec.spectra.record import load
from hesspec.study import Dataset, build_network, load_dataset, load_weights, read_metadata
from hesspec.study.checkpoints import has_tensors
from hesspec.study.digests import data_digest
from hesspec.study.measuring import Attribute, named, spectrum_file
from hesspec.study.networks import network_digest
from hesspec.study.networks.transformers_models import has_weights

__all__ = ["Problem", "check_folder", "check_same"]

COMMAND: Final = "command"
"""Attribute of a result that holds the options of its command, as JSON."""


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
    tokenizer: Path | None
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
            tokenizer=self.tokenizer,
        )
        torch.manual_seed(self.seed)
        network = build_network(self.network, channels=dataset.channels, classes=dataset.classes, size=dataset.size)
        if self.weights is None:
            if not has_weights(self.network):
                say(f"No --weights: measuring {self.network} at initialisation (seed {self.seed}).")
        else:
            load_weights(network, self.weights)
        return network.to(device, dtype), dataset

    @cached_property
    def attributes(self) -> dict[str, Attribute]:
        """Attributes of the results: network, checkpoint, epoch and parameters."""
        attributes: dict[str, Attribute] = {"network": self.network}
        if self.weights is None:
            trained = has_weights(self.network)
            attributes |= {"checkpoint": "pretrained"} if trained else {"checkpoint": "initialisation", "epoch": 0}
        else:
            metadata = read_metadata(self.weights) if self.weights.suffix == ".safetensors" else {}
            attributes |= {"checkpoint": self.weights.stem, "weights": str(self.weights)}
            if (epoch := metadata.get("epoch", "")).isdecimal():
                attributes["epoch"] = int(epoch)
        if self.params:
            attributes["params"] = " ".join(self.params)
        return attributes

    def options(self, own: Mapping[str, str]) -> dict[str, str]:
        """Values of all options that a result depends on, by the names of the options.

        Those of the user's own code, texts and weights have a digest of their content.

        Parameters
        ----------
        own : mapping of str to str
            Those of the command, beyond those that determine what is measured.
        """
        return {
            "NETWORK": f"{self.network} {network_digest(self.network)}".rstrip(),
            "--data": f"{self.data} {data_digest(self.data, self.tokenizer)}".rstrip(),
            "--data-folder": str(self.data_folder),
            "--weights": "none" if self.weights is None else _content(self.weights),
            "--split": self.split,
            "--samples-per-class": str(self.samples_per_class),
            "--size": str(self.size),
            **({} if self.tokenizer is None else {"--tokenizer": str(self.tokenizer)}),
            "--params": " ".join(self.params or ["all"]),
            **own,
            "--seed": str(self.seed),
            "--dtype": self.dtype,
        }

    def attributes_with(self, options: Mapping[str, str]) -> dict[str, Attribute]:
        """Attributes of the results, with the options that they depend on."""
        return {**self.attributes, COMMAND: json.dumps(options)}

    def prefix(self, folder: Path, results: Iterable[str]) -> str:
        """First part of the names of files: empty unless the folder has results of another network, data or parameters.

        Parameters
        ----------
        folder : Path
            Output folder; it need not exist.
        results : iterable of str
            Names of matrices, or of other results, such as "ClassStructure".
        """
        mine = (self.network, self.data, " ".join(self.params or ()))
        for result in results:
            file = self.file(folder, result, "")
            if file.exists():
                attributes = _attributes_of(file)
                if tuple(str(attributes.get(name, "")) for name in ("network", "dataset", "params")) != mine:
                    return safe_name("-".join(part for part in mine if part))
        return ""

    def file(self, folder: Path, result: str, prefix: str) -> Path:
        """Path of a result: the name of a matrix, or of another result, such as "ClassStructure"."""
        return folder / spectrum_file(result, self.split, named(prefix, self.attributes))

    def prepare(self, folder: Path, results: Sequence[str], options: Mapping[str, str]) -> tuple[str, list[str]]:
        """Prepare the output folder; return the prefix of files, and the results that it has already.

        Raises
        ------
        OSError
            If a file exists that was measured with other options, or the folder is not writable.
        """
        prefix = self.prefix(folder, results)
        files = {result: self.file(folder, result, prefix) for result in results}
        measured = [result for result, file in files.items() if file.exists()]
        for result in measured:
            check_same(files[result], options)
        check_folder(folder, [file for result, file in files.items() if result not in measured])
        if measured:
            say(f"Already measured: {', '.join(str(files[result]) for result in measured)}")
        return prefix, measured


def _content(path: Path) -> str:
    """Name of a file, or of a folder with files of weights, and a digest of its content."""
    files = filter(has_tensors, path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return f"{path.name} {digest_of({file.name: file for file in files})}"


def _attributes_of(file: Path) -> Mapping[str, Any]:
    """Attributes of a result of a former command."""
    try:
        attributes: Mapping[str, Any] = load(file).attributes
    except ValueError as error:
        raise FileExistsError(
            f"The file {str(file)!r} already exists, and cannot be read; delete it, or choose another folder with "
            f"--out. {error}"
        ) from error
    return attributes


def check_same(file: Path, command: Mapping[str, str]) -> None:
    """Raise FileExistsError unless a file was written by a command with the same options.

    Parameters
    ----------
    file : Path
        Existing result.
    command : mapping of str to str
        Options that the result depends on.
    """
    advice = "delete it, or choose another folder with --out."
    text = _attributes_of(file).get(COMMAND)
    if not isinstance(text, str):
        raise FileExistsError(f"The file {str(file)!r} already exists, and does not say how it was measured; {advice}")
    before = {str(option): str(value) for option, value in dict(json.loads(text)).items()}
    for option in {**command, **before}:
        here, there = command.get(option, "not given"), before.get(option, "not given")
        if here != there:
            raise FileExistsError(
                f"The file {str(file)!r} already exists, and its {option} was {there}, where it is {here} now; {advice}"
            )


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
