"""The loss of one batch as a function of what the model returns, and its curvature there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hesspec.errors import InputError
from hesspec.operators.risk.losses import Loss
from hesspec.operators.risk.output_curvature import output_curvature
from hesspec.operators.risk.outputs import differentiable_outputs

__all__ = ["Named", "OutputLoss", "Predict"]

Named = dict[str, Tensor]
Predict = Callable[[Named], Any]


class OutputLoss:
    """The loss of one batch as a function of the model's outputs.

    Parameters
    ----------
    loss : Loss
    targets
    around : callable, optional
        From named parameters to a context within which the loss sees these in the model: for a loss that reaches the
        parameters on another way than through the outputs, as a penalty on the weights does.
    reaches : bool, optional
        Whether it does.
    """

    def __init__(
        self,
        loss: Loss,
        targets: Any,
        around: Callable[[Named], AbstractContextManager[None]] | None = None,
        *,
        reaches: bool = False,
    ) -> None:
        self._loss, self._targets, self._around, self.reaches = loss, targets, around, reaches

    def __call__(self, outputs: Any, named: Named) -> Tensor:
        """Loss at these outputs, and at these parameters where the loss reaches them itself; a scalar."""
        with nullcontext() if self._around is None else self._around(named):
            return self._loss(outputs, self._targets)

    def taken(self, outputs: Any) -> Any:
        """What of the model's outputs the loss function is given."""
        return self._loss.taken(outputs)

    def curvature(self, outputs: Any, part: str = "full") -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]] | None:
        """Products with d^2 l / d f^2 in closed form, where there is one.

        Parameters
        ----------
        outputs
            What the model returned, any structure. It enters as a constant.
        part : {"full", "true-vs-rest", "within-competitor"}, optional
            See `hesspec.operators.risk.output_curvature.output_curvature`.

        Returns
        -------
        callable or None
            From tangents of the differentiable tensors of `outputs` (see `differentiable_outputs`) to the products, one
            for each; None where the curvature of this loss has to be had by automatic differentiation.

        Raises
        ------
        ValueError
            If the loss does not have this part, or a part is asked for and the logits are not among the outputs.
        """
        taken = self._loss.taken(outputs)
        places = [i for i, tensor in enumerate(differentiable_outputs(outputs)[0]) if tensor is taken]
        curve = output_curvature(self._loss.function, taken, self._targets, part) if places else None
        if curve is None:
            if part != "full":
                raise InputError(
                    f"output_curvature={part!r} needs the logits that the loss is given among the tensors that the "
                    f"model returns, and this {type(outputs).__name__} does not hold them; let the model return them."
                )
            return None
        return lambda tangents: tuple(
            curve(tangent) if i == places[0] else torch.zeros_like(tangent) for i, tangent in enumerate(tangents)
        )
