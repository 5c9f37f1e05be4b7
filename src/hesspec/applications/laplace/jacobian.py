"""Jacobian of a model's outputs, one input at a time, and outputs at other parameters."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hesspec.errors import InputError
from hesspec.operators.data.structures import describe, map_tensors, tensors_of
from hesspec.operators.model.ambient import differentiable_kernels, preserved_randomness
from hesspec.operators.risk.empirical_risk import EmpiricalRisk

__all__ = ["Network", "blocks_of"]

# Number of right-hand sides that are solved together.
BLOCK = 32


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

    def _outputs(self, inputs: Any, named: dict[str, Tensor] | None) -> Tensor:
        risk = self._risk
        fixed = {name: value.clone() for name, value in risk.fixed.items()}
        try:
            with preserved_randomness(), differentiable_kernels():
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
            one = map_tensors(functools.partial(_row, i), given)
            with torch.inference_mode(mode=False), torch.enable_grad():
                outputs = self._outputs(one, named)[0]
                if found is None or not overwritten:
                    size = sum(leaf.numel() for leaf in named.values())
                    found = torch.empty(len(outputs), size, dtype=outputs.dtype, device=outputs.device)
                for row, output in zip(found, outputs, strict=True):
                    _fill(row, output, list(named.values()))
            yield outputs.detach(), found


def _fill(row: Tensor, output: Tensor, leaves: list[Tensor]) -> None:
    """Write the gradient of an output into a row (p,)."""
    if not output.requires_grad:
        row.zero_()
        return
    parts = torch.autograd.grad(output, leaves, retain_graph=True, materialize_grads=True)
    for place, part in zip(torch.split(row, [leaf.numel() for leaf in leaves]), parts, strict=True):
        place.copy_(part.reshape(-1))


def _row(place: int, tensor: Tensor) -> Tensor:
    return tensor[place : place + 1]


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
