"""The differentiable tensors among a model's outputs, which may be any structure."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["differentiable_outputs"]


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
    leaves, structure = pytree.tree_flatten(outputs)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not places:
        raise ValueError(
            f"The model returned {type(outputs).__name__} without a floating-point tensor to differentiate."
        )

    def rebuild(tensors: tuple[Tensor, ...]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return pytree.tree_unflatten(filled, structure)

    return tuple(leaves[i] for i in places), rebuild
