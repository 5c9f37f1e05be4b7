"""Start of a training from given weights, with a new head where the number of classes differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hesspec.study.checkpoints import load_weights, tensor_shapes
from hesspec.study.start_config import StartConfig

if TYPE_CHECKING:
    from hesspec.study.store import TrainingRun

__all__ = ["Start", "head_of", "start_key", "start_of"]


@dataclass(frozen=True)
class Start:
    """Start of one training that is not from scratch.

    Parameters
    ----------
    name : str
        Its name in the study.
    file : Path or None
        File of weights; None for those of a pre-training.
    digest : str
        Digest of the file; empty if there is none.
    pretraining : TrainingRun or None
        Training on other data, whose last weights are the start.
    new_head : bool
        Whether the last layer keeps its random initialisation in any case.
    """

    name: str
    file: Path | None
    digest: str
    pretraining: TrainingRun | None
    new_head: bool

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the weights; neither the name nor the place of a file."""
        of_weights = {"file": self.digest} if self.pretraining is None else {"pretraining": self.pretraining.identity}
        return {**of_weights, **({"new_head": True} if self.new_head else {})}

    @property
    def weights(self) -> Path:
        """File of the weights."""
        if self.pretraining is not None:
            return self.pretraining.weights(self.pretraining.settings.epochs)
        assert self.file is not None  # noqa: S101 - a start has one of the two
        return self.file

    def load_into(self, network: nn.Module) -> list[str]:
        """Load the weights into an initialised network.

        The last layer keeps its initialisation if the file has another number of classes, or with `new_head`.

        Returns
        -------
        list of str
            Names of the tensors that keep their initialisation.

        Raises
        ------
        FileNotFoundError, ValueError
            See `load_weights`.
        """
        head = head_of(network)
        if self.new_head:
            new = list(head)
        else:
            own, given = network.state_dict(), tensor_shapes(self.weights)
            # Rows of the last layer belong to classes; anything else that differs is a fault, which loading reports.
            fit = all(given.get(name, tuple(own[name].shape))[1:] == tuple(own[name].shape)[1:] for name in head)
            other = any(given.get(name, tuple(own[name].shape)) != tuple(own[name].shape) for name in head)
            new = list(head) if fit and other else []
        load_weights(network, self.weights, keep=new)
        return new


def head_of(network: nn.Module) -> list[str]:
    """Names of the parameters of the last module that has any, in the order of registration: the layer of the classes.

    Examples
    --------
    >>> head_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(1)))
    ['2.weight', '2.bias']
    """
    found: list[str] = []
    for name, module in network.named_modules():
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)]
        found = own or found
    return found


def start_of(
    start: StartConfig, code: Mapping[str, str], place: tuple[str, int], pretraining: TrainingRun | None
) -> Start | None:
    """Return the start of trainings of a network with a seed; None for scratch.

    Parameters
    ----------
    start : StartConfig
    code : mapping
        Digests of the study, with those of files under `start_key`.
    place : tuple of str and int
        Network and seed.
    pretraining : TrainingRun or None
        The training on other data that it asks for.
    """
    if start.is_scratch:
        return None
    digest = code.get(start_key(start.name, *place), "")
    return Start(start.name, start.file(*place), digest, pretraining, start.new_head)


def start_key(name: str, network: str, seed: int) -> str:
    """Name under which a study notes the digest of a file of weights."""
    return f"start {name}, {network}, seed {seed}"
