"""What a case of the zoo is: a model with its loss and data, as a user gives them, and what is true of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Case", "Example", "Family", "call", "first_tensor", "samples"]

Batch = Any

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def call(model: nn.Module, batch: Batch) -> Any:
    """Outputs of a model for a batch (inputs, targets), called in the way that hesspec promises.

    Inputs are one argument, a tuple or list of positional arguments, or a mapping of keyword arguments.
    """
    inputs = batch[0]
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if type(inputs) in (tuple, list):
        return model(*inputs)
    return model(inputs)


def first_tensor(tree: Any) -> Tensor | None:
    """The first tensor in nested tuples, lists and mappings; None where there is none."""
    if isinstance(tree, Tensor):
        return tree
    children = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (tuple, list)) else ()
    return next((found for found in map(first_tensor, children) if found is not None), None)


def samples(batch: Batch) -> float:
    """Number of samples of a batch: the length of its targets or, without targets, of its inputs."""
    inputs, targets = batch
    tensor = first_tensor(targets)
    tensor = first_tensor(inputs) if tensor is None else tensor
    assert tensor is not None, "say how many terms a batch has: weight="
    return float(len(tensor))


@dataclass
class Example:
    """A model, its loss and its data, and the loss of all data written in plain PyTorch.

    The loss of all data is `sum_b w_b l(f(b), b) / sum_b w_b + penalty`, with f the logits of a batch, l their loss and
    w the number of terms that l is a mean over; or, with `summed`, the sum of l.

    Attributes
    ----------
    model, loss, data
        What hesspec is given.
    options : dict
        Further arguments of hesspec's operators.
    outputs : callable
        f, `(module, batch) -> logits`, by which G and H are defined.
    criterion : callable, optional
        l, `(logits, batch) -> scalar`; by default `loss(logits, targets)`.
    weight : callable
        w, `batch -> number`.
    summed : bool
        Whether the loss of all data is a sum over batches.
    penalty : callable, optional
        `module -> scalar`, a part of the loss that is no function of the logits.
    batches : list, optional
        What f, l and w are given, where these are not the items of `data`.
    plain : callable, optional
        Turns the model into a module that plain PyTorch differentiates, where the model is wrapped.
    selected : callable
        `name -> bool`, which parameters of that module are differentiated by, of those that require a gradient.
    leaves_behind : callable, optional
        Called after hesspec ran; returns sentences on what hesspec left where the user can see it.
    surroundings : callable
        Context manager in which hesspec is called.
    train : bool
        Whether the model stays in training mode.
    constants : bool
        Whether a part that depends on the parameters is meant to be constant (detached, or computed under no_grad).
    """

    model: nn.Module
    loss: Any
    data: Any
    options: dict[str, Any] = field(default_factory=dict)
    outputs: Callable[[nn.Module, Batch], Any] = call
    criterion: Callable[[Any, Batch], Tensor] | None = None
    weight: Callable[[Batch], float] = samples
    summed: bool = False
    penalty: Callable[[nn.Module], Tensor] | None = None
    batches: list[Batch] | None = None
    plain: Callable[[nn.Module], nn.Module] | None = None
    selected: Callable[[str], bool] = lambda _: True
    leaves_behind: Callable[[], list[str]] | None = None
    surroundings: Callable[[], Any] | None = None
    train: bool = False
    constants: bool = False


@dataclass(frozen=True)
class Case:
    """A named example.

    Attributes
    ----------
    name, family : str
    build : callable
        Makes the example; the same one each time, as random numbers are seeded before.
    sentence : str
        Why hesspec can only refuse; empty where it has to multiply.
    unsplit : str
        Why it can only refuse G and H; empty where there are such matrices.
    limit : float
        CPU seconds that the case may take.
    needs : tuple of str
        Modules that must be installed, besides the benchmarks' own.
    """

    name: str
    family: str
    build: Callable[[], Example]
    sentence: str = ""
    unsplit: str = ""
    limit: float = 90.0
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Modules that are needed and not installed."""
        return [module for module in self.needs if importlib.util.find_spec(module) is None]

    def example(self, seed: int = 0) -> Example:
        """The example, in evaluation mode unless it says otherwise; batch norms have statistics of some training."""
        torch.manual_seed(seed)
        made = self.build()
        if not made.train:
            made.model.eval()
        generator = torch.Generator().manual_seed(seed + 1)
        for module in made.model.modules():
            if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
                module.running_mean.uniform_(-0.1, 0.1, generator=generator)
                module.running_var.uniform_(0.7, 1.3, generator=generator)
        return made


class Family:
    """Cases of one kind.

    Parameters
    ----------
    name : str
    needs : str
        Modules that all of them need.
    """

    def __init__(self, name: str, *needs: str) -> None:
        self.name, self._needs = name, needs
        self.cases: list[Case] = []

    def __iter__(self) -> Iterator[Case]:
        """The cases, in order."""
        return iter(self.cases)

    def case(self, **settings: Any) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
        """Decorate a function that makes an example; the first line of its docstring is the name."""

        def register(build: Callable[[], Example]) -> Callable[[], Example]:
            assert build.__doc__, build
            self.add(build.__doc__.strip().partition("\n")[0].removesuffix("."), build, **settings)
            return build

        return register

    def add(self, name: str, build: Callable[[], Example], **settings: Any) -> None:
        """Add a case by name."""
        settings.setdefault("needs", self._needs)
        self.cases.append(Case(name, self.name, build, **settings))
