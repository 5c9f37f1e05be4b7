"""The loss of all data in plain PyTorch, its gradient, and products by retained double-backward graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoo.case import Batch, Example

__all__ = ["PlainLoss"]


class PlainLoss:
    """The loss of all data of an example, as a function of a flat vector of its parameters.

    A complex parameter is counted as pairs of real numbers.

    Parameters
    ----------
    example : Example
        Its model's parameters are moved and put back.
    """

    def __init__(self, example: Example) -> None:
        self._example = example
        self.constants = example.constants
        self.module = example.plain(example.model) if example.plain else example.model
        self.batches: list[Batch] = list(example.data) if example.batches is None else example.batches
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad and example.selected(n)]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        if example.summed:
            self.shares = [1.0] * len(self.batches)
        else:
            weights = [float(example.weight(batch)) for batch in self.batches]
            self.shares = [weight / sum(weights) for weight in weights]

    @property
    def size(self) -> int:
        """Number of real parameters, p."""
        return sum(p.numel() * (2 if p.is_complex() else 1) for p in self.parameters)

    def outputs(self, batch: Batch) -> Any:
        """Logits of a batch."""
        return self._example.outputs(self.module, batch)

    def criterion(self, outputs: Any, batch: Batch) -> Tensor:
        """Loss of logits."""
        example = self._example
        if example.criterion is not None:
            return example.criterion(outputs, batch)
        if isinstance(example.loss, nn.Module) and hasattr(outputs, "logits"):
            outputs = outputs.logits
        return example.loss(outputs, batch[1])

    def terms(self) -> list[Callable[[], Tensor]]:
        """The parts that add up to the loss of all data."""
        parts = [
            lambda batch=batch, share=share: share * self.criterion(self.outputs(batch), batch)
            for batch, share in zip(self.batches, self.shares, strict=True)
        ]
        if self._example.penalty is not None:
            parts.append(lambda: self._example.penalty(self.module))
        return parts

    def split(self, vector: Tensor) -> list[Tensor]:
        """A flat vector (p,) as tensors like the parameters."""
        sizes = [p.numel() * (2 if p.is_complex() else 1) for p in self.parameters]
        parts = zip(torch.split(vector, sizes), self.parameters, strict=True)
        return [torch.view_as_complex(v.view(*p.shape, 2)) if p.is_complex() else v.view(p.shape) for v, p in parts]

    def flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Tensors like the parameters as a flat vector (p,); None is zero."""
        pieces = []
        for part, parameter in zip(parts, self.parameters, strict=True):
            filled = torch.zeros_like(parameter) if part is None else part.detach()
            filled = filled.to_dense() if filled.is_sparse else filled
            pieces.append((torch.view_as_real(filled) if filled.is_complex() else filled).reshape(-1))
        return torch.cat(pieces)

    def move(self, vector: Tensor, step: float) -> None:
        """Add step * vector to the parameters, behind the back of graphs that are at hand."""
        for parameter, part in zip(self.parameters, self.split(vector), strict=True):
            parameter.data.add_(part, alpha=step)

    def gradient(self) -> Tensor:
        """Gradient of the loss of all data by `backward()`, (p,); the parameters' `.grad` is used and left empty."""
        for term in self.terms():
            value = term()
            if value.requires_grad:
                value.backward()
        gradients = [parameter.grad for parameter in self.parameters]
        self.module.zero_grad(set_to_none=True)
        return self.flat(gradients)

    def retained(self) -> Callable[[Tensor], Tensor]:
        """v -> Hess v by double backward; the graphs of all gradients are kept."""
        graphs = []
        for term in self.terms():
            value = term()
            if value.requires_grad:
                graphs.append(torch.autograd.grad(value, self.parameters, create_graph=True, allow_unused=True))

        def product(vector: Tensor) -> Tensor:
            parts, total = self.split(vector), torch.zeros_like(vector)
            for gradient in graphs:
                live = [(g, v) for g, v in zip(gradient, parts, strict=True) if g is not None and g.requires_grad]
                if live:
                    heads, vectors = zip(*live, strict=True)
                    total += self.flat(
                        torch.autograd.grad(heads, self.parameters, vectors, allow_unused=True, retain_graph=True)
                    )
            return total

        return product

    def heads(self, outputs: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
        """Tensors of the logits that depend on the parameters, and what puts others in their places."""
        leaves, structure = pytree.tree_flatten(outputs)
        places = [
            i
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()) and leaf.requires_grad
        ]

        def filled(tensors: Sequence[Tensor]) -> Any:
            others = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            for place, tensor in zip(places, tensors, strict=True):
                others[place] = tensor
            return pytree.tree_unflatten(others, structure)

        return [leaves[place] for place in places], filled
