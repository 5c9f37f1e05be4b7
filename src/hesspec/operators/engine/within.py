"""Products restricted to a block of parameters: the vector is zero elsewhere, and the product is wanted only there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesspec.operators.engine.differences import length
from hesspec.operators.risk.parameters import ParameterSelection

__all__ = ["BlockEntries", "discrepancy", "product_within"]


@dataclass(frozen=True)
class BlockEntries:
    """Entries of the flat vectors of a selection of parameters that make up a block.

    Parameters
    ----------
    places : tuple of int
        Places of the parameters that the block takes part of, ascending.
    inside : int64 Tensor (q,) or None
        Entries of the block, ascending, in the concatenation of these parameters; None if it is all of them.
    size : int
        Number q of entries of the block.
    """

    places: tuple[int, ...]
    inside: Tensor | None
    size: int

    def tangents(self, parameters: ParameterSelection, vector: Tensor) -> list[Tensor]:
        """Return the tangents of the block's parameters for a vector (q,) of its entries."""
        sizes = [parameters.sizes[place] for place in self.places]
        flat = vector
        if self.inside is not None:
            flat = vector.new_zeros(sum(sizes))
            flat[self.inside] = vector
        shapes = [parameters.shapes[place] for place in self.places]
        return [part.view(shape) for part, shape in zip(torch.split(flat, sizes), shapes, strict=True)]

    def collected(self, products: Sequence[Tensor]) -> Tensor:
        """Return the entries (q,) of the block of the products of its parameters, in memory of their own."""
        flat = torch.cat([product.reshape(-1) for product in products])
        return flat if self.inside is None else flat[self.inside]

    def entries(self, parameters: ParameterSelection) -> Tensor:
        """Return the indices (q,) of its entries in flat vectors of all parameters."""
        begins = torch.tensor([0, *parameters.sizes], device="cpu").cumsum(0)
        flat = torch.cat(
            [torch.arange(int(begins[place]), int(begins[place + 1]), device="cpu") for place in self.places]
        )
        return flat if self.inside is None else flat[self.inside.cpu()]


def product_within(
    apply: Any, parameters: ParameterSelection, places: tuple[int, ...], tangents: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Product with a vector that is zero outside of these parameters, of which only their part is wanted.

    Parameters
    ----------
    apply : callable
        `apply(tangents) -> products` of all parameters. If it has `within(places, tangents)`, that computes only what
        the product needs.
    parameters : ParameterSelection
    places : tuple of int
        Places of the parameters, ascending.
    tangents : sequence of Tensor
        Tangents of these parameters.
    """
    within = getattr(apply, "within", None)
    if within is not None:
        found: Sequence[Tensor] = within(places, tangents)
        return found
    given = dict(zip(places, tangents, strict=True))
    example = tangents[0]
    every = [
        given[place] if place in given else example.new_zeros(shape) for place, shape in enumerate(parameters.shapes)
    ]
    products = apply(every)
    return [products[place] for place in places]


def discrepancy(apply: Any, parameters: ParameterSelection, places: tuple[int, ...]) -> float:
    """Difference of a product within a block from that part of the whole product, relative to its norm.

    It is that of one random vector, the same in every run.
    """
    generator = torch.Generator().manual_seed(len(places))
    tangents = [
        torch.randn(parameters.shapes[place], generator=generator, dtype=parameters.dtype, device="cpu").to(
            parameters.device
        )
        for place in places
    ]
    given = dict(zip(places, tangents, strict=True))
    every = [given.get(place, torch.zeros_like(value)) for place, value in enumerate(parameters.values)]
    whole = apply(every)
    expected = [whole[place] for place in places]
    apart = length([a - b for a, b in zip(product_within(apply, parameters, places, tangents), expected, strict=True)])
    return apart / max(length(expected), 1e-300)
