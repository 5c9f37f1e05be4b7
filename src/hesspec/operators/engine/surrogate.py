"""Gradients that are not those of the loss: the choice between double backward and differences.

A straight-through estimator, gradient reversal and a surrogate for a spike's derivative are backward passes that are
not the derivatives of their forward passes. The gradient is then not that of the loss, and in general not of any
function: its Jacobian, which differences compute, is not symmetric, and a spectrum is meaningless. Double backward
differentiates the backward passes by their own rules, with the same derivative for each part, so that its matrix is
symmetric and agrees with that of a model written with `detach()`, as in x + (round(x) - x).detach(). That matrix is
chosen. It is also chosen if the gradient is piecewise constant, as for a network with rounded weights, and differences
are zero.

If both are symmetric, the choice is ambiguous, unless the gradient is nearly that of the loss: then the backward pass
is inexact, and its double backward may be anything. With a hook on a tensor, double backward depends on which tensors
PyTorch saves: a hook that halves the gradient halves the derivative of tanh twice, since that is computed from the
tensor with the hook, and the derivative of the sine once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesspec.errors import InputError
from hesspec.operators.engine.differences import Differences, Settled, length
from hesspec.operators.model.function_mode import FunctionMode

__all__ = ["HOOKED", "NOT_OF_THE_LOSS", "TensorHooks", "double_backward_meant", "mismatch"]

NOT_OF_THE_LOSS = (
    "the gradient is not the derivative of the loss, as with a straight-through estimator or gradient reversal"
)

HOOKED = (
    "A hook on a tensor changes gradients (Tensor.register_hook in the forward pass), so that they are not the "
    "derivative of the loss, and the second derivative depends on which tensors PyTorch saves. Remove the hook, or "
    "implement it in the model, as 0.5 * x + (0.5 * x).detach() for a hook that halves the gradient of x."
)

# Relative tolerance, in addition to rounding, between the slope of the loss and that from the gradient: the error that
# three first-order differences leave.
SAME_SLOPE = {torch.float64: 1e-6, torch.float32: 1e-3}
# Relative rounding error of a loss.
ROUNDINGS = 64
# A matrix is symmetric if u'Mv and v'Mu differ by at most this share of the difference between the two matrices, plus
# the errors of products: relative rounding, and a multiple of the uncertainty of differences.
SYMMETRY = 0.01
ROUNDED = {torch.float64: 1e-10, torch.float32: 1e-5}
CLEARLY = 10.0
# If differences are this small relative to double backward, the gradient is piecewise constant; if double backward is
# this small relative to differences, the backward pass has no graph, as that of adjoint methods with large steps.
CONSTANT = 1e-6
# Above this mismatch of slopes the gradient is not that of the loss, rather than just inexact.
OTHER = 0.01
# Number of vectors u for the symmetry test; for a single one, two parts of a matrix may cancel.
TRIALS = 4

Product = Callable[[Sequence[Tensor]], Sequence[Tensor] | None]


class TensorHooks(FunctionMode):
    """Detects hooks on tensors that are computed within this context.

    Attributes
    ----------
    found : bool
        Whether a hook was registered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call a function, and record whether it registers a hook."""
        self.found |= func is Tensor.register_hook and not args[0].is_leaf
        return func(*args, **kwargs)


def mismatch(differences: Differences, tangents: Sequence[Tensor], displacement: float) -> float:
    """Relative difference between the slope of the loss along a vector and that from its gradient; 0 if it is rounding.

    Parameters
    ----------
    differences : Differences
    tangents : sequence of Tensor
        Direction, in the shapes of the parameters.
    displacement : float
        Displacement relative to the parameters.
    """
    by_loss, by_gradient, rounding = differences.slopes(tangents, displacement)
    apart, sizes = abs(by_loss - by_gradient), abs(by_loss) + abs(by_gradient)
    return 0.0 if apart <= SAME_SLOPE[differences.dtype] * sizes + ROUNDINGS * rounding else apart / sizes


def double_backward_meant(
    by_differences: Product,
    by_double_backward: Product,
    direction: Sequence[Tensor],
    settled: Settled,
    *,
    slopes: float,
    mode: str,
) -> Sequence[Tensor] | None:
    """Return the product by double backward if that is the right matrix for a gradient that is not that of the loss.

    Parameters
    ----------
    by_differences, by_double_backward : callable
        Products with the matrix of a few samples, at the same point; None where there is no double backward.
    direction : sequence of Tensor
        Vector v with which a product has been computed.
    settled : Settled
        That product, by differences.
    slopes : float
        Difference of slopes; see `mismatch`.
    mode : str
        Mode that the user requested.

    Returns
    -------
    sequence of Tensor or None
        The product; None if differences are the right matrix.

    Raises
    ------
    InputError
        If neither matrix is symmetric, or the choice between two symmetric ones is ambiguous.
    """
    one, other = settled.product, by_double_backward(direction)
    if other is not None and not all(bool(part.isfinite().all()) for part in other):
        other = None
    rounded = ROUNDED[one[0].dtype]
    error = CLEARLY * length(settled.changes) + rounded * length(one)
    apart = one if other is None else [a.double() - b.double() for a, b in zip(one, other, strict=True)]
    if length(apart) <= error:
        # They are one matrix.
        other, apart = None, one
    if not length(apart):
        # Both are zero, like the Gauss-Newton matrix of a loss that is linear in the outputs.
        return None
    tried = _directions(apart, direction)
    first = _Trial(by_differences, one, tried, direction, error)
    second = None if other is None else _Trial(by_double_backward, other, tried, direction, rounded * length(other))
    scales = first.sizes if second is None else first.apart(second)
    constant = other is not None and length(one) <= CONSTANT * length(other)
    right = first.is_symmetric(scales) and not constant
    lost = other is not None and length(other) <= CONSTANT * length(one)
    right_too = second is not None and not lost and second.is_symmetric(scales)
    if right and right_too and slopes > OTHER and mode != "differences":
        if "double backward" in mode:
            return other
        raise InputError(
            f"The matrix is ambiguous: {NOT_OF_THE_LOSS}, and both its own derivative and its double backward are "
            "symmetric. Pass mode='differences' for the first or mode='double backward' for the second, which is also "
            "that of the same model written with detach(), as in x + (torch.round(x) - x).detach()."
        )
    if right and lost and slopes > OTHER and mode != "differences":
        raise InputError(
            f"The gradient is not the derivative of the loss: slopes of the loss differ from it by {slopes:.0%}, and "
            "its backward pass has no graph. Make it accurate (smaller steps of an adjoint method) or differentiable, "
            "or pass mode='differences' for the derivative of this gradient."
        )
    if right:
        return None
    if right_too:
        return other
    words = f"{first.example} by differences of gradients"
    words += "" if second is None else f", {second.example} by double backward"
    raise InputError(
        f"There is no matrix of second derivatives: {NOT_OF_THE_LOSS}, and its own derivative M is not symmetric: u·Mv "
        f"and v·Mu are {words}. Make the backward passes of custom autograd Functions differentiable (use "
        "PyTorch functions, without once_differentiable) or accurate (smaller steps of an adjoint method), or mark "
        "constants with detach(), as in x + (torch.round(x) - x).detach()."
    )


class _Trial:
    """Values u'Mv and v'Mu of one matrix for several u.

    Parameters
    ----------
    product : callable
    of_v : sequence of Tensor
        M v.
    tried : sequence of sequences of Tensor
        The vectors u.
    v : sequence of Tensor
    error : float
        Error of the norm of a product with a vector of the size of v.
    """

    def __init__(
        self,
        product: Product,
        of_v: Sequence[Tensor],
        tried: Sequence[Sequence[Tensor]],
        v: Sequence[Tensor],
        error: float,
    ) -> None:
        products = map(product, tried)
        self._numbers = [
            (_inner(u, of_v), math.nan if of_u is None else _inner(v, of_u))
            for u, of_u in zip(tried, products, strict=True)
        ]
        # All u are as long as v.
        self._error = error * length(v)

    @property
    def sizes(self) -> list[float]:
        """The larger of the two numbers of each u."""
        return [max(map(abs, pair)) for pair in self._numbers]

    def apart(self, other: _Trial) -> list[float]:
        """Differences from the values of another matrix, for each u."""
        pairs = zip(self._numbers, other._numbers, strict=True)
        return [max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in pairs]

    def is_symmetric(self, scales: Sequence[float]) -> bool:
        """Whether the two values agree for all u, on these scales."""
        return all(
            abs(a - b) <= SYMMETRY * scale + self._error for (a, b), scale in zip(self._numbers, scales, strict=True)
        )

    @property
    def example(self) -> str:
        """The values that differ most, as text."""
        forth, back = max(self._numbers, key=lambda pair: abs(pair[0] - pair[1]))
        return f"{forth:.3g} and {back:.3g}"


def _directions(apart: Sequence[Tensor], v: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return vectors u of the size of v along which two matrices differ, given the difference of their products with v.

    They are that difference, with random signs of the parameters, and one random vector.
    """
    generator, size = torch.Generator().manual_seed(1), length(v)
    found = [list(apart)]
    for _ in range(TRIALS - 2):
        signs = (2 * torch.randint(2, (len(v),), generator=generator, device="cpu") - 1).tolist()
        found.append([sign * part for sign, part in zip(signs, apart, strict=True)])
    found.append([torch.randn(part.shape, generator=generator, device="cpu").to(part) for part in v])
    return [[(part * (size / length(u))).to(like.dtype) for part, like in zip(u, v, strict=True)] for u in found]


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
