r"""Products of curvature matrices from first derivatives alone, by central differences.

With theta displaced by s = h ||theta|| / ||v|| along v,

.. math::
    \mathrm{Hess}\, v \approx \frac{\nabla L(\theta + s v) - \nabla L(\theta - s v)}{2 s}, \qquad
    J v \approx \frac{f(\theta + s v) - f(\theta - s v)}{2 s}, \qquad
    G v = J^\top \frac{\nabla_f \ell(f + t J v) - \nabla_f \ell(f - t J v)}{2 t},

and H v is the difference of the first and the last. The truncation error is of order h^2, the rounding error of order
eps / h. Of several relative displacements h, the one at which products change least to the next is used, and that
change is the stated error. A kink (of a ReLU or max-pooling) makes a difference wrong if a unit switches between the
two points, which smaller displacements avoid.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from hesspec.operators.data.structures import tensors_of
from hesspec.operators.model.constants import Constants
from hesspec.operators.model.plain import PlainModel
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.output_loss import OutputLoss, Predict
from hesspec.operators.risk.outputs import differentiable_outputs

__all__ = ["DISPLACEMENTS", "Differences", "Settled", "length", "settled"]

# Relative displacements h that are tried in turn. Rounding and truncation balance near eps^(1/3) = 6e-6 in float64 for
# gradients of ordinary size, and near 5e-3 in float32; smaller ones avoid kinks.
DISPLACEMENTS = {
    torch.float64: tuple(10.0**-k for k in range(4, 10)),
    torch.float32: tuple(0.1 * 4.0**-k for k in range(8)),
}
# If the relative change from one displacement to the next is this small, no further ones are tried.
ENOUGH = {torch.float64: 1e-8, torch.float32: 1e-4}

Tensors = Sequence[Tensor]


class Settled(NamedTuple):
    """Product at the displacement at which it changes least, that displacement, and the change."""

    product: list[Tensor]
    displacement: float
    changes: list[Tensor]


class Differences:
    """Products with the curvature matrices of one batch.

    Parameters
    ----------
    plain : PlainModel
    values : dict of str to Tensor
        The point theta by name, at which `plain` is.
    evaluate : callable
        `evaluate() -> (outputs, loss of outputs)` of the batch, by plain PyTorch; the second maps outputs to a scalar.
    predict, loss : callable
        The outputs for the Gauss-Newton matrix, and the loss as a function of them; see
        `hesspec.operators.risk.empirical_risk.EmpiricalRisk.in_place`.
    """

    @classmethod
    def of(cls, risk: EmpiricalRisk, plain: PlainModel, batch: Batch) -> Self:
        """Create the products of one batch of a risk, whose module is in `plain`."""
        inputs, targets = plain.converted((batch.inputs, batch.targets))
        predict, loss = risk.in_place(plain, inputs, targets)
        values = dict(zip(risk.parameters.names, risk.parameters.natural(risk.parameters.values), strict=True))
        return cls(plain, values, risk.plainly(plain, batch), predict, loss)

    def __init__(
        self,
        plain: PlainModel,
        values: dict[str, Tensor],
        evaluate: Callable[[], tuple[Any, Callable[[Any], Tensor]]],
        predict: Predict,
        loss: OutputLoss,
    ) -> None:
        self._plain, self._evaluate, self._predict, self._loss = plain, evaluate, predict, loss
        # In the precision that they have: they are converted one by one, as all in float64 are twice as large.
        self._given, self._values = values, list(values.values())
        # Parameters that are zero have no scale of their own.
        self._length = length(self._values) or 1.0
        # Detached values in gradients, outputs and losses.
        self._constants = {name: Constants() for name in ("gradient", "outputs", "loss")}
        # Slopes of the loss at each displacement along the direction of the last product with the Hessian, which has
        # evaluated all that they are made of.
        self._tangents: Tensors = ()
        self._slopes: dict[float, tuple[float, float, float]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the arithmetic."""
        double = self._plain.double or self._values[0].dtype in (torch.float64, torch.complex128)
        return torch.float64 if double else torch.float32

    @functools.cached_property
    def _named(self) -> dict[str, Tensor]:
        """The point by name, for functions of the outputs."""
        converted: dict[str, Tensor] = self._plain.converted(dict(self._given))
        return converted

    def outputs(self) -> Any:
        """Compute the outputs for the Gauss-Newton matrix, at the module's current parameters."""
        with self._holding("outputs"):
            return self._predict(self._named)

    def _holding(self, what: str) -> AbstractContextManager[Any]:
        """Hold detached values constant, from the first evaluation on."""
        return self._constants[what] if self._plain.detaches else nullcontext()

    def _loss_at(self, outputs: Any) -> Tensor:
        """Evaluate the loss as a function of the outputs for the Gauss-Newton matrix."""
        with self._holding("loss"):
            return self._loss(outputs, self._named)

    def gradient(self) -> list[Tensor]:
        """Compute the gradient of the loss at the module's current parameters."""
        return self._value_and_gradient()[2]

    def _value_and_gradient(self) -> tuple[float, float, list[Tensor]]:
        """Value and gradient of the loss, and the size of the numbers that the value is made of."""
        with torch.enable_grad():
            with self._holding("gradient"):
                outputs, loss = self._evaluate()
                value = loss(outputs)
            found = float(value.detach())
            # The loss of a sample that is fitted is a small difference of large logits.
            parts = [
                part for part in tensors_of(outputs) if part.numel() and (part.is_floating_point() or part.is_complex())
            ]
            size = max([abs(found), *(float(part.detach().abs().max()) for part in parts)])
            return found, size, self._pulled([value], None)

    def size_of_loss(self) -> float:
        """Compute the size of the largest number that the loss is made of: its value, or an output."""
        return self._value_and_gradient()[1]

    def slopes(self, tangents: Tensors, displacement: float) -> tuple[float, float, float]:
        """Compute the slope of the loss along a vector, by a difference of losses and by gradients.

        Parameters
        ----------
        tangents : sequence of Tensor
            Direction, in the shapes of the parameters.
        displacement : float
            Displacement relative to the parameters.

        Returns
        -------
        by_loss, by_gradient : float
            The second is the mean of the slopes at the two points.
        rounding : float
            Rounding unit of the first.
        """
        if tangents is not self._tangents or displacement not in self._slopes:
            self.hessian(tangents, displacement)
        return self._slopes[displacement]

    def hessian(self, tangents: Tensors, displacement: float) -> list[Tensor]:
        """Compute the product of the Hessian with a vector; both have the shapes of the parameters."""
        if tangents is not self._tangents:
            self._tangents, self._slopes = tangents, {}
        given = self._directed(tangents)
        size = length(given)
        values: list[float] = []
        sizes: list[float] = []
        slopes: list[float] = []

        def gradient() -> list[Tensor]:
            value, size_of_parts, gradient = self._value_and_gradient()
            values.append(value)
            sizes.append(size_of_parts)
            with _arithmetic():
                inner = torch.stack([_inner(a, b) for a, b in zip(gradient, given, strict=True)])
            slopes.append(sum(inner.tolist()))
            return gradient

        product = self._difference(gradient, given, displacement)
        self._slopes[displacement] = (0.0, 0.0, 0.0)
        if size:
            step = displacement * self._length / size
            ahead, behind = values[-2:]
            rounding = torch.finfo(self.dtype).eps * sum(sizes[-2:]) / (2 * step)
            self._slopes[displacement] = (ahead - behind) / (2 * step), sum(slopes[-2:]) / 2, rounding
        return product

    def one_sided(self, tangents: Tensors, displacements: Sequence[float]) -> float:
        """Compute the distance between the differences of the gradient to both sides, relative to their mean.

        Where there is a second derivative, truncation makes it proportional to the displacement, and rounding inversely
        so; at a kink it does not depend on it. The inputs of a ReLU that are zero are kinks, such as those of a network
        whose weights are zero.

        Parameters
        ----------
        tangents : sequence of Tensor
            Direction, in the shapes of the parameters.
        displacements : sequence of float
            Displacements relative to the parameters.

        Returns
        -------
        float
            The smallest distance of all displacements; 0 if the direction is zero.
        """
        given = self._directed(tangents)
        if not length(given):
            return 0.0
        seen: list[list[Tensor]] = []

        def gradient() -> list[Tensor]:
            seen.append(self.gradient())
            return seen[-1]

        here, least = self.gradient(), math.inf
        for displacement in displacements:
            self._difference(gradient, given, displacement)
            ahead, behind = seen[-2:]
            bent = length([a + b - 2 * c for a, b, c in zip(ahead, behind, here, strict=True)])
            size = length([a - b for a, b in zip(ahead, behind, strict=True)])
            least = min(least, 2 * bent / size if size else math.inf if bent else 0.0)
            seen.clear()
        return least

    def pushed(self, tangents: Tensors, displacement: float) -> list[Tensor]:
        """Compute J v for each differentiable tensor of the outputs."""

        def heads() -> list[Tensor]:
            # Under no_grad all results would be constants, and models that differentiate would fail.
            with torch.enable_grad():
                return [tensor.detach().clone() for tensor in differentiable_outputs(self.outputs())[0]]

        return self._difference(heads, self._directed(tangents), displacement)

    def pulled(self, cotangents: Tensors) -> list[Tensor]:
        """Compute J^T u at the point itself, in the shapes of the parameters."""
        with torch.enable_grad():
            heads, _ = differentiable_outputs(self.outputs())
            return self._pulled(heads, cotangents)

    def gauss_newton(self, tangents: Tensors, displacement: float, part: str = "full") -> list[Tensor]:
        """Compute the product of the Gauss-Newton matrix with a vector, in the shapes of the parameters.

        A part of the output curvature (see `hesspec.operators.risk.output_curvature`) is applied in closed form.
        """
        pushed = self.pushed(tangents, displacement)
        with torch.enable_grad():
            structure = self.outputs()
            heads, rebuild = differentiable_outputs(structure)
            if part != "full" and (curve := self._loss.curvature(structure, part)) is not None:
                return self._pulled(heads, curve(pushed))
            at = [head.detach() for head in heads]
            # Outputs of zero have no scale: their displacement follows from that of the parameters.
            own = length(at) / max(length(pushed), 1e-30)
            step = displacement * (own or self._length / (length(tangents) or 1.0))
            if self._plain.detaches:
                self._loss_at(rebuild(tuple(at)))

            def slope(sign: float) -> list[Tensor]:
                moved = [(f + sign * step * u).requires_grad_() for f, u in zip(at, pushed, strict=True)]
                value = self._loss_at(rebuild(tuple(moved)))
                if not value.requires_grad:
                    return [torch.zeros_like(f) for f in moved]
                return list(torch.autograd.grad(value, moved, allow_unused=True, materialize_grads=True))

            curved = [(a - b) / (2 * step) for a, b in zip(slope(1.0), slope(-1.0), strict=True)]
            return self._pulled(heads, curved)

    def residual(self, tangents: Tensors, displacement: float) -> list[Tensor]:
        """Compute the product of H = Hess - G with a vector, in the shapes of the parameters."""
        whole, part = self.hessian(tangents, displacement), self.gauss_newton(tangents, displacement)
        return [a - b for a, b in zip(whole, part, strict=True)]

    def _pulled(self, heads: Tensors, cotangents: Tensors | None) -> list[Tensor]:
        leaves = self._plain.leaves
        live = [i for i, head in enumerate(heads) if head.requires_grad]
        if not live:
            return [torch.zeros_like(leaf) for leaf in leaves]
        found = self._plain.gradients(
            [heads[i] for i in live], None if cotangents is None else [cotangents[i] for i in live]
        )
        return [
            torch.zeros_like(leaf) if part is None else part.to_dense() if part.is_sparse else part
            for leaf, part in zip(leaves, found, strict=True)
        ]

    def _directed(self, tangents: Tensors) -> list[Tensor]:
        """Return a direction without the rows of padding indices, which PyTorch's backward passes hold constant.

        The padding row of an embedding has no gradient although the loss depends on it: the loss is differentiated as a
        function of all other entries. It has a gradient if the weights are also used elsewhere, for example by a tied
        head.
        """
        given = list(tangents)
        padding = self._plain.padding()
        gradient = self.gradient() if padding else []
        for place, row in padding:
            if not gradient[place][row].any():
                given[place] = given[place].clone()
                given[place][row] = 0
        return given

    def _difference(self, function: Callable[[], list[Tensor]], given: Tensors, displacement: float) -> list[Tensor]:
        size = length(given)
        if size == 0:
            return [torch.zeros_like(part) for part in function()]
        step = displacement * self._length / size
        if self._plain.detaches:
            # At the point itself, to which these constants belong.
            function()
        results = []
        wide = self._plain.converted
        try:
            for sign in (step, -step):
                pairs = zip(self._values, given, strict=True)
                with _arithmetic():
                    self._plain.move(wide(value).add(wide(v), alpha=sign) for value, v in pairs)
                results.append(list(reversed(function())))
        finally:
            self._plain.move(self._values)
        # Values at neighbouring points are subtracted exactly (Sterbenz); all error is in the values themselves. Each
        # pair is freed once it is subtracted.
        ahead, behind = results
        with _arithmetic():
            return [(ahead.pop() - behind.pop()) / (2 * step) for _ in range(len(ahead))]


def settled(
    product: Callable[[float], list[Tensor]],
    dtype: torch.dtype,
    displacements: Sequence[float] | None = None,
    enough: float | None = None,
    agrees: Callable[[list[Tensor]], bool] | None = None,
) -> Settled:
    """Find the displacement at which a product changes least from the previous one.

    Parameters
    ----------
    product : callable
        Maps a relative displacement to the product, a list of tensors.
    dtype : torch.dtype
        Dtype of the arithmetic, float32 or float64.
    displacements : sequence of float, optional
        Relative displacements, in the order in which they are tried; by default `DISPLACEMENTS`.
    enough : float, optional
        Relative change at which no further ones are tried; by default `ENOUGH`.
    agrees : callable, optional
        Whether a product agrees with one that was computed in another way: then it is returned, without changes, as it
        needs no second displacement to confirm it.
    """
    displacements = DISPLACEMENTS[dtype] if displacements is None else displacements
    enough = ENOUGH[dtype] if enough is None else enough
    before: list[Tensor] | None = None
    best: Settled | None = None
    least = float("inf")
    for displacement in displacements:
        now = product(displacement)
        if agrees is not None and agrees(now):
            return Settled(now, displacement, [torch.zeros_like(part) for part in now])
        if before is not None:
            with _arithmetic():
                changes = [a - b for a, b in zip(now, before, strict=True)]
            change = length(changes)
            # The change grows while a unit switches between the two points, down to displacements at which none does.
            if change < least:
                least, best = change, Settled(now, displacement, changes)
            if change <= enough * length(now):
                break
        before = now
    if best is None:
        # Not finite at any displacement, which the caller detects.
        best = Settled(now, displacement, [torch.full_like(part, float("inf")) for part in now])
    return best


def length(tensors: Tensors) -> float:
    """2-norm of a list of tensors as one vector, accumulated in float64."""
    if not tensors:
        return 0.0
    # One wait for the device, whatever the number of tensors.
    with _arithmetic():
        norms = torch.stack([torch.linalg.vector_norm(tensor, dtype=_wide(tensor)) for tensor in tensors]).tolist()
    return math.sqrt(sum(norm**2 for norm in norms))


def _arithmetic() -> AbstractContextManager[Any]:
    """Context of arithmetic with vectors in the module's place, such as between two of its evaluations.

    The modes that the module is run in would inspect each operation: with hundreds of parameters, these took more time
    than the gradients of a few samples.
    """
    context: AbstractContextManager[Any] = torch._C.DisableTorchFunction()  # noqa: SLF001 - there is no public way
    return context


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """Inner product of two tensors as vectors of reals, accumulated in float64."""
    return (one.to(_wide(one)) * other.to(_wide(other)).conj()).sum().real


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64
