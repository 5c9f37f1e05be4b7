"""Differentiable tensors in a model's outputs, which may have any structure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import Categorical, Distribution
from torch.distributions.utils import lazy_property
from torch.utils import _pytree as pytree

from hesspec.errors import InputError
from hesspec.operators.data.structures import Structure, describe, flatten

__all__ = ["Captured", "differentiable_outputs"]


@dataclass(frozen=True)
class Captured:
    """Tensors that replace a model's outputs; see `hesspec.operators.risk.captured`.

    Attributes
    ----------
    tensors : tuple of Tensor
    constants : dict
        Parameters at which they were computed, as constants.
    """

    tensors: tuple[Tensor, ...]
    constants: dict[str, Tensor]


def differentiable_outputs(
    outputs: Any,
) -> tuple[tuple[Tensor, ...], Callable[[tuple[Tensor, ...]], Any]]:
    """Find the floating-point tensors of an output structure, and return a function that replaces them.

    Parameters
    ----------
    outputs
        A tensor, or a structure of tensors and anything else (tuples, dicts, the output classes of transformers,
        distributions, other objects with tensors in them).

    Returns
    -------
    tensors : tuple of Tensor
    rebuild : callable
        Builds the structure from a tuple of tensors of the same shapes.

    Raises
    ------
    ValueError
        If there is no floating-point tensor.
    """
    if isinstance(outputs, Captured):
        return outputs.tensors, lambda tensors: Captured(tensors, outputs.constants)
    leaves, rebuild_all = _flatten(outputs)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not places:
        raise InputError(
            f"The model returned {describe(outputs)}, in which there is no floating-point tensor to differentiate. Let "
            "it return tensors, in a tuple or dict if there are several."
        )

    def rebuild(tensors: tuple[Tensor, ...]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return rebuild_all(filled)

    return tuple(leaves[i] for i in places), rebuild


def _flatten(outputs: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Flatten a structure (PyTorch pytrees and objects with tensors); return leaves and a function to rebuild it."""
    leaves: list[Any] = []
    builds: list[tuple[int, Callable[[list[Any]], Any]]] = []
    members, structure = pytree.tree_flatten(outputs)
    for member in map(_as_given, members):
        tensors, rest = flatten(member)
        if isinstance(member, Tensor) or not tensors:
            leaves.append(member)
            builds.append((1, lambda given: given[0]))
        else:
            leaves += tensors
            builds.append((len(tensors), _filled(rest)))

    def build(given: list[Any]) -> Any:
        filled, start = [], 0
        for count, make in builds:
            filled.append(make(given[start : start + count]))
            start += count
        return pytree.tree_unflatten(filled, structure)

    return leaves, build


def _filled(rest: Structure) -> Callable[[list[Any]], Any]:
    return lambda given: _normalised(rest.fill(given))


def _as_given(item: Any) -> Any:
    """Return a distribution with its original parameters, without cached ones that were derived from them."""
    if not isinstance(item, Distribution):
        return item
    kept, own = copy.copy(item), vars(item)
    given = own.get("_param")
    if given is not None or any(name.startswith("_unbroadcasted") for name in own):
        for name, value in own.items():
            if isinstance(getattr(type(item), name, None), lazy_property) and value is not given:
                del vars(kept)[name]
    vars(kept).update({name: _as_given(value) for name, value in vars(kept).items()})
    return kept


def _normalised(item: Any) -> Any:
    """Return an object with the logits of its categorical distributions normalised, as their constructors do.

    Logits in the model's distributions are normalised already, and the logarithm of a probability is linear in them. As
    a function of arbitrary logits it is the cross-entropy, for which these are logits too.
    """
    if isinstance(item, Distribution):
        own = vars(item)
        if isinstance(item, Categorical) and "logits" in own:
            logits = own["logits"].log_softmax(-1)
            item._param = logits if item._param is own["logits"] else item._param  # noqa: SLF001 - no public name
            item.logits = logits
        for member in own.values():
            _normalised(member)
    return item
