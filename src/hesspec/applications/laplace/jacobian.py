"""Jacobian of a model's outputs and products with it, and outputs at other parameters."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from hesspec.applications.laplace.layers import PIECE, Taps, products_of
from hesspec.errors import InputError
from hesspec.krylov.vectors import CHUNK
from hesspec.operators.data.structures import describe, map_tensors, tensors_of
from hesspec.operators.model.ambient import differentiable_kernels, preserved_randomness
from hesspec.operators.risk.empirical_risk import EmpiricalRisk

__all__ = ["Network", "blocks_of", "products_of_rows"]

# Number of right-hand sides that are solved together.
BLOCK = 32
# Largest number of inputs in one pass: 64 took longer than 26 for each of them. Up to FEW inputs, the Jacobian itself
# is computed, with which the first input of a pass would be compared.
INPUTS, FEW = 32, 3


class Network:
    """The model of an empirical risk as a function of the selected parameters and the inputs.

    Parameters
    ----------
    risk : EmpiricalRisk
        Model, loss and data.

    Raises
    ------
    ValueError
        If the loss is a closure or is computed in the model, so that the outputs are unknown.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        if risk.loss.closure is not None or risk.capture is not None:
            raise InputError(
                "The loss is computed in the model or in a closure, so its outputs are unknown; predictions "
                "need a model that returns them, and loss_fn(outputs, targets)."
            )
        self._risk = risk

    def inputs(self, inputs: Any) -> tuple[Any, int]:
        """Move inputs to the model's device and dtype, and count them.

        Raises
        ------
        ValueError
            If there is no tensor, or the tensors differ in their first dimension.
        """
        device, dtype = self._risk.parameters.device, self._risk.parameters.dtype

        def placed(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

        given = map_tensors(placed, inputs)
        counts = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors_of(given)}
        if len(counts) != 1 or 0 in counts:
            raise InputError(
                f"inputs is {describe(inputs)}; it must be a tensor (m, ...), or a structure of tensors with the same "
                "first dimension m > 0, in the form that the model accepts."
            )
        return given, counts.pop()

    def outputs(self, inputs: Any, vector: Tensor | None = None) -> Tensor:
        """Compute outputs (m, C) without a graph, at the operator's parameters or at a flat vector (p,)."""
        with torch.no_grad():
            return self._outputs(inputs, None if vector is None else self._risk.parameters.to_named(vector))

    def _outputs(self, inputs: Any, named: dict[str, Tensor] | None, taps: Taps | None = None) -> Tensor:
        risk = self._risk
        fixed = {name: value.clone() for name, value in risk.fixed.items()}
        try:
            with preserved_randomness(), differentiable_kernels(), nullcontext() if taps is None else taps:
                found = risk.loss.taken(risk.outputs(fixed, inputs, named))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(f"The model does not accept inputs that are {describe(inputs)}: {error}") from error
        if not isinstance(found, Tensor) or found.dim() not in (1, 2):
            raise InputError(f"The model returned {describe(found)}; predictions need outputs (m, C) or (m,).")
        return found[:, None] if found.dim() == 1 else found

    def rows(self, inputs: Any, *, overwritten: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the outputs (C,) of each input and their Jacobian (C, p), by C backward passes.

        Parameters
        ----------
        inputs : Tensor (m, ...), or a structure of tensors
        overwritten : bool
            Whether each Jacobian takes the memory of the last one. Fresh memory for the 112 million numbers of ResNet18
            takes longer than to compute them.
        """
        given, count = self.inputs(inputs)
        found: Tensor | None = None
        for i in range(count):
            named = self._risk.leaves()
            one = map_tensors(functools.partial(_rows, slice(i, i + 1)), given)
            with torch.inference_mode(mode=False), torch.enable_grad():
                outputs = self._outputs(one, named)[0]
                if found is None or not overwritten:
                    size = sum(leaf.numel() for leaf in named.values())
                    found = torch.empty(len(outputs), size, dtype=outputs.dtype, device=outputs.device)
                for row, output in zip(found, outputs, strict=True):
                    _fill(row, output, list(named.values()))
            yield outputs.detach(), found

    def products(self, inputs: Any, vectors: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield outputs (b, C), J J^T (b, C, C) and J V (b, C, k) of blocks of b inputs, the products in float64.

        They are computed layer by layer (`hesspec.applications.laplace.layers`), as long as the result for the first
        input is that of its Jacobian, and samples do not interact. Otherwise, and for few inputs, Jacobians are
        computed.

        Parameters
        ----------
        inputs : Tensor (m, ...), or a structure of tensors
        vectors : Tensor (p, k)
        """
        given, count = self.inputs(inputs)
        size = self._block(given, count, vectors) if count > FEW else 0
        start = 0
        while size and start < count:
            part = map_tensors(functools.partial(_rows, slice(start, start + size)), given)
            found = self._layerwise(part, min(size, count - start), vectors, verified=start > 0)
            if found is None:
                break
            yield found
            start += size
        if start < count:
            left = map_tensors(functools.partial(_rows, slice(start, None)), given)
            for mean, rows in self.rows(left, overwritten=True):
                gram, seen = products_of_rows(rows, vectors)
                yield mean[None], gram[None], seen[None]

    def _block(self, given: Any, count: int, vectors: Tensor) -> int:
        """Number of inputs in one pass; 0 if the layers are not known.

        A pass may take the memory of one Jacobian or that of the vectors, whichever is larger.
        """
        named = self._risk.leaves()
        taps = Taps(list(named.values()), 1)
        with torch.no_grad():
            outputs = self._followed(map_tensors(functools.partial(_rows, slice(0, 1)), given), named, taps)
        if outputs is None or not taps.places:
            return 0
        c = outputs.shape[1]
        # Results, activations, zeros and gradients of a pass, and the gradients of all outputs.
        one = 6 * sum(place.numel() for place in taps.places) + c * taps.kept
        return min(max(PIECE, len(vectors) * max(c, vectors.shape[1])) // one, INPUTS, count)

    def _followed(self, part: Any, named: dict[str, Tensor], taps: Taps) -> Tensor | None:
        """Compute outputs with `taps`; None if it cannot follow them."""
        try:
            outputs = self._outputs(part, named, taps)
        except InputError:
            # Of a model that transforms its layers, or of inputs, for which Jacobians have the same error.
            return None
        return outputs if taps.known and len(outputs) == taps.count else None

    def _layerwise(
        self, part: Any, count: int, vectors: Tensor, *, verified: bool
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Compute the result of `products` for a block; None if the layers do not have it."""
        named = self._risk.leaves()
        leaves = list(named.values())
        taps = Taps(leaves, count)
        with torch.inference_mode(mode=False), torch.enable_grad():
            outputs = self._followed(part, named, taps)
            if outputs is None or not outputs.requires_grad:
                return None
            if not verified and not _separate(outputs, taps.places):
                return None
            for c, output in enumerate(outputs.T):
                kept = c + 1 < outputs.shape[1]
                found = torch.autograd.grad(output.sum(), [*taps.places, *leaves], retain_graph=kept, allow_unused=True)
                if any(gradient is not None for gradient in found[len(taps.places) :]):
                    return None
                taps.take(found[: len(taps.places)])
        if any(use.changed for _, use in taps.uses):
            return None
        outputs = outputs.detach()
        with torch.no_grad():
            gram, seen = products_of(taps, self._risk.parameters.sizes, vectors, outputs.shape[1])
        if not verified:
            _, rows = next(self.rows(map_tensors(functools.partial(_rows, slice(0, 1)), part)))
            for mine, true in zip((gram[0], seen[0]), products_of_rows(rows, vectors), strict=True):
                # Terms that are missing are much larger than rounding, which passes amplify.
                if not (mine - true).norm() <= torch.finfo(rows.dtype).eps ** 0.5 * true.norm():
                    return None
        return outputs, gram, seen


def _separate(outputs: Tensor, places: list[Tensor]) -> bool:
    """Whether the first and the last output depend on entries of the same input only."""
    weights = torch.arange(1, outputs.shape[1] + 1, dtype=outputs.dtype, device=outputs.device)
    for own in {0, len(outputs) - 1}:
        found = torch.autograd.grad(outputs[own] @ weights, places, retain_graph=True, materialize_grads=True)
        if any(bool(part[:own].any()) or bool(part[own + 1 :].any()) for part in found):
            return False
    return True


def products_of_rows(rows: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Products rows @ rows.T (n, n) and rows @ vectors (n, k), float64, in one pass over memory."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    seen = torch.zeros(len(rows), vectors.shape[1], dtype=torch.float64, device=rows.device)
    for part, other in zip(torch.split(rows, CHUNK, dim=1), torch.split(vectors, CHUNK), strict=True):
        gram += part @ part.T
        seen += part @ other
    return gram, seen


def _fill(row: Tensor, output: Tensor, leaves: list[Tensor]) -> None:
    """Write the gradient of an output into a row (p,)."""
    if not output.requires_grad:
        row.zero_()
        return
    parts = torch.autograd.grad(output, leaves, retain_graph=True, materialize_grads=True)
    for place, part in zip(torch.split(row, [leaf.numel() for leaf in leaves]), parts, strict=True):
        place.copy_(part.reshape(-1))


def _rows(places: slice, tensor: Tensor) -> Tensor:
    return tensor[places]


def blocks_of(rows: Iterator[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Group inputs to about `BLOCK` outputs each."""
    block: list[tuple[Tensor, Tensor]] = []
    for one in rows:
        block.append(one)
        if sum(len(mean) for mean, _ in block) >= BLOCK:
            yield block
            block = []
    if block:
        yield block
