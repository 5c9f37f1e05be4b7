"""Conversion of items of data to inputs and targets, and of inputs to arguments of a model."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from hesspec.backend.text import kind_of, with_article
from hesspec.operators.data.structures import describe

__all__ = ["arguments", "as_pair", "check_data"]

TARGETS = ("labels", "label", "targets", "target", "y")
"""Names of the targets in a batch that is a mapping or an object; the first that is present is used."""


def as_pair(index: int, item: Any, model: nn.Module | None = None) -> tuple[Any, Any]:
    """Return inputs and targets of an item of the data.

    A tuple or list of two is a pair. A mapping contains keyword arguments of the model, with the targets under one of
    the names `TARGETS`, which are removed if the model's `forward` has no argument of this name. If there are none, the
    targets are None: the model then computes its loss itself. Any other object with an attribute of one of these names
    (a graph, a dataclass) is the model's input, and the attribute contains the targets.

    Parameters
    ----------
    index : int
        Index of the item in the data.
    item
        Item of the data.
    model : torch.nn.Module, optional
        Model. By default every argument is assumed to be one of the model's.

    Raises
    ------
    ValueError
        If the item is none of these.
    """
    if type(item) in (list, tuple) or (isinstance(item, tuple) and hasattr(item, "_fields")):
        if len(item) == 2:
            return _inputs(item[0]), item[1]
    elif isinstance(item, Mapping):
        return _of_mapping(dict(item), model)
    elif not isinstance(item, Tensor | str | bytes | int | float | None):
        name = next((name for name in TARGETS if hasattr(item, name)), None)
        if name is not None:
            return item, getattr(item, name)
    if isinstance(item, Tensor | np.ndarray):
        raise ValueError(
            f"Batch {index} of data is {_seen(item)}; a batch must be a pair. If data is a single batch, pass a list "
            "of it, [(inputs, targets)]; for a loss without targets pass [(inputs, None), ...]; for anything else, "
            "hesspec.closure(function) as the loss."
        )
    raise ValueError(
        f"Batch {index} of data is {_seen(item)}; a batch must be a pair (inputs, targets), a mapping of "
        f"the model's arguments, or an object with its targets in an attribute ({', '.join(TARGETS)}). Several inputs "
        "or targets go into a tuple of their own, as in ((x1, x2), y); for a loss without targets pass "
        "[(inputs, None), ...]; for anything else, hesspec.closure(function) as the loss."
    )


def _of_mapping(mapping: dict[Any, Any], model: nn.Module | None) -> tuple[Any, Any]:
    name = next((name for name in TARGETS if name in mapping), None)
    if name is None:
        return mapping, None
    targets = mapping[name]
    if not _takes(model, name):
        del mapping[name]
    return mapping, targets


def _takes(model: nn.Module | None, name: str) -> bool:
    """Whether a model's forward pass has an argument of this name."""
    if model is None:
        return True
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _inputs(inputs: Any) -> Any:
    """Convert any mapping of keyword arguments (BatchEncoding, UserDict) to a dict; return anything else unchanged."""
    return dict(inputs) if isinstance(inputs, Mapping) and type(inputs) is not OrderedDict else inputs


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of a model: the members of a tuple or list, or of a mapping.

    Subclasses of tuple, such as named tuples and packed sequences, are a single argument.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if type(inputs) in (tuple, list):
        return tuple(inputs), {}
    return (inputs,), {}


def check_data(data: Any) -> None:
    """Raise ValueError unless data is an iterable of batches that can be iterated repeatedly."""
    if isinstance(data, Dataset):
        raise ValueError(
            f"data is {kind_of(data)}, which yields samples rather than batches; pass "
            "torch.utils.data.DataLoader(data, batch_size=...), with batch_size=None if its items are batches already."
        )
    if isinstance(data, Tensor | Mapping | str):
        raise ValueError(
            f"data is {kind_of(data)}; it must be an iterable of batches. For one batch pass a list of it, "
            "[(inputs, targets)]."
        )
    if not isinstance(data, Iterable):
        raise ValueError(f"data is {kind_of(data)}, which is not an iterable of (inputs, targets) batches.")
    if isinstance(data, Iterator):
        raise ValueError(
            f"data is {kind_of(data)}, which can be iterated only once, but every product reads all of it; "
            "pass a DataLoader or a list of batches, list(data) for example."
        )


def _seen(item: Any) -> str:
    if type(item) in (list, tuple):
        return f"{kind_of(item)} of {len(item)} items, {describe(item).partition(' ')[2]}"
    return with_article(describe(item))
