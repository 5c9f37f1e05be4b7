"""The differentiable tensors among a model's outputs, which may be any structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from hesspec.errors import InputError
from hesspec.operators.data.structures import describe, flatten

__all__ = ["Captured", "differentiable_outputs"]


@dataclass(frozen=True)
class Captured:
    """Tensors that stand for a model's outputs; see `hesspec.operators.risk.captured`.

    Attributes
    ----------
    tensors : tuple of Tensor
    constants : dict
        The parameters at which they were found, as constants.
    """

    tensors: tuple[Tensor, ...]
    constants: dict[str, Tensor]


def differentiable_outputs(
    outputs: Any,
) -> tuple[tuple[Tensor, ...], Callable[[tuple[Tensor, ...]], Any]]:
    """Floating-point tensors of an output structure, and how to put others in their place.

    Parameters
    ----------
    outputs
        A tensor, or a structure of tensors and anything else (tuples, dicts, the output classes of transformers).

    Returns
    -------
    tensors : tuple of Tensor
    rebuild : callable
        From a tuple of tensors of the same shapes to the structure.

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
            "it return tensors, in a tuple or dict if there are several, and build other objects, such as "
            "distributions, from them in loss_fn."
        )

    def rebuild(tensors: tuple[Tensor, ...]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return rebuild_all(filled)

    return tuple(leaves[i] for i in places), rebuild


def _flatten(outputs: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Leaves of a structure, and how to build it of others: what PyTorch's pytrees know, and dataclasses."""
    leaves: list[Any] = []
    builds: list[tuple[int, Callable[[list[Any]], Any]]] = []
    members, structure = pytree.tree_flatten(outputs)
    for member in members:
        tensors, rest = flatten(member)
        if isinstance(member, Tensor) or rest.opaque or not tensors:
            leaves.append(member)
            builds.append((1, lambda given: given[0]))
        else:
            leaves += tensors
            builds.append((len(tensors), rest.fill))

    def build(given: list[Any]) -> Any:
        filled, start = [], 0
        for count, make in builds:
            filled.append(make(given[start : start + count]))
            start += count
        return pytree.tree_unflatten(filled, structure)

    return leaves, build
