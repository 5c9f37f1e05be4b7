"""Loss of one batch as a function of the model's outputs, and its curvature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hesspec.errors import InputError
from hesspec.operators.risk.losses import Loss
from hesspec.operators.risk.output_curvature import output_curvature
from hesspec.operators.risk.output_moment import Moment, output_moment
from hesspec.operators.risk.outputs import differentiable_outputs

__all__ = ["SECOND_MOMENT", "Named", "OutputLoss", "Predict"]

SECOND_MOMENT = "second-moment"
"""Instead of a part of the output curvature, the second moment of the samples' gradients in the outputs."""

Named = dict[str, Tensor]
Predict = Callable[[Named], Any]


class OutputLoss:
    """Loss of one batch as a function of the model's outputs.

    Parameters
    ----------
    loss : Loss
    targets
    around : callable, optional
        From named parameters to a context within which the model has these, for a loss that depends on the parameters
        other than through the outputs, such as a penalty on the weights.
    reaches : bool, optional
        Whether the loss depends on the parameters in this way.
    after : callable, optional
        Called after each evaluation.
    """

    def __init__(
        self,
        loss: Loss,
        targets: Any,
        around: Callable[[Named], AbstractContextManager[None]] | None = None,
        *,
        reaches: bool = False,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._after = after
        self._loss, self._targets, self._around, self.reaches = loss, targets, around, reaches

    def __call__(self, outputs: Any, named: Named) -> Tensor:
        """Evaluate the loss at these outputs, and at these parameters if it depends on them directly; a scalar."""
        try:
            with nullcontext() if self._around is None else self._around(named):
                return self._loss(outputs, self._targets)
        finally:
            self._after()

    def taken(self, outputs: Any) -> Any:
        """Return the part of the model's outputs that the loss function receives."""
        return self._loss.taken(outputs)

    def curvature(self, outputs: Any, part: str = "full") -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]] | None:
        """Return products with d^2 l / d f^2 in closed form, if there is one.

        Parameters
        ----------
        outputs
            Outputs of the model, of any structure, taken as constants.
        part : {"full", "true-vs-rest", "within-competitor", "second-moment"}, optional
            See `hesspec.operators.risk.output_curvature.output_curvature`; the last is a different matrix, with the
            outer products of the samples' gradients (`hesspec.operators.risk.output_moment.output_moment`).

        Returns
        -------
        callable or None
            Maps tangents of the differentiable tensors of `outputs` (see `differentiable_outputs`) to the products, one
            for each; None if the curvature of this loss requires automatic differentiation.

        Raises
        ------
        ValueError
            If the loss does not have this part, or a part is requested and the logits are not among the outputs.
        """
        if part == SECOND_MOMENT:
            return self.moment(outputs)
        taken = self._loss.taken(outputs)
        places = [i for i, tensor in enumerate(differentiable_outputs(outputs)[0]) if tensor is taken]
        curve = output_curvature(self._loss.function, taken, self._targets, part) if places else None
        if curve is None:
            if part != "full":
                raise InputError(
                    f"output_curvature={part!r} requires that the model returns the logits, but this "
                    f"{type(outputs).__name__} does not contain them; let the model return them."
                )
            return None
        return lambda tangents: tuple(
            curve(tangent) if i == places[0] else torch.zeros_like(tangent) for i, tangent in enumerate(tangents)
        )

    def moment(self, outputs: Any) -> Moment:
        """Return products with the second moment of the samples' gradients in the outputs; see `output_moment`.

        Parameters
        ----------
        outputs
            Outputs of the model, of any structure, taken as constants.
        """
        return output_moment(self._loss, outputs, self._targets)
