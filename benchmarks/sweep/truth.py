"""Products with Hess, G and H in float64, from plain PyTorch, each had in two ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sweep.plain import PlainLoss
from zoo.case import Batch

__all__ = ["NoTruthError", "Truth", "establish"]

# Displacements of central differences along a vector of norm 1. Truncation falls with their square, rounding grows with
# their inverse, and the smaller a displacement the fewer kinks lie within it. Two neighbours have to agree.
STEPS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
AGREEMENT = 1e-6
ROUNDING = 1e-14
# Of two matrices one is symmetric where u'Mv and v'Mu differ by no more of what the matrices differ by.
SYMMETRY = 0.05

Differences = Callable[[float], Tensor]


class NoTruthError(ArithmeticError):
    """Two ways to a product do not agree, and nothing says which is right."""


@dataclass
class Truth:
    """Products with one vector, (p,) in float64, relative to which errors are measured.

    Attributes
    ----------
    hessian, gauss_newton : Tensor
    way : str
        How the product with the Hessian was had.
    constants : bool
        Whether a part of the loss is held constant where it is differentiated, so that the gradient is not that of a
        function of all parameters: to refuse it is as right as to multiply.
    other : Truth or None
        The derivative of the gradient with nothing held constant, where that is symmetric too and so as right.
    exists : bool
        Whether there is a Hessian: false where the derivative of the gradient is not symmetric in any way.
    notes : list of str
    """

    hessian: Tensor
    gauss_newton: Tensor
    way: str
    constants: bool = False
    exists: bool = True
    notes: list[str] = field(default_factory=list)
    other: Truth | None = None

    @property
    def residual(self) -> Tensor:
        """Product with H = Hess - G."""
        return self.hessian - self.gauss_newton

    def of(self, matrix: str) -> Tensor:
        """Product with a matrix by the name of its operator."""
        return {"Hessian": self.hessian, "GaussNewton": self.gauss_newton, "Residual": self.residual}[matrix]

    @property
    def scale(self) -> float:
        """The largest norm of the three products."""
        return max(float(part.norm()) for part in (self.hessian, self.gauss_newton, self.residual))


@dataclass(frozen=True)
class _Settled:
    value: Tensor
    how: str
    step: float


def _agree(first: Tensor, second: Tensor, size: float, step: float) -> bool:
    allowed = AGREEMENT * max(float(first.norm()), float(second.norm())) + ROUNDING * size / step
    return float((first - second).norm()) <= allowed


def _settle(exact: Tensor | None, differences: Differences, size: float) -> tuple[_Settled | None, _Settled | None]:
    """The exact value if differences confirm it, and the first differences of which two neighbours agree.

    Parameters
    ----------
    exact : Tensor or None
    differences : callable
        `step -> central difference`.
    size : float
        Norm of what differences are taken of, in whose units they round.
    """
    before: Tensor | None = None
    confirmed = 0
    for step in STEPS:
        now = differences(step)
        if exact is not None and _agree(now, exact, size, step):
            confirmed += 1
            if confirmed == 2:
                return _Settled(exact, "double backward, confirmed by differences", step), None
        elif before is not None and _agree(now, before, size, step):
            return None, _Settled(now, "central differences, which agree", step)
        before = now
    return None, None


def _attempt(function: Callable[[], Tensor]) -> tuple[Tensor | None, str]:
    try:
        value = function()
    except Exception as error:  # noqa: BLE001 - whatever PyTorch raises where it has no second derivative
        return None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"
    return (value, "") if value.isfinite().all() else (None, "not finite")


class _Exact:
    """Double backward and central differences of the same loss."""

    def __init__(self, loss: PlainLoss) -> None:
        self._loss = loss
        self._at = [parameter.detach().clone() for parameter in loss.parameters]

    def double_backward(self, vector: Tensor) -> Tensor:
        """Hess v."""
        return self._loss.retained()(vector)

    def _moved(self, vector: Tensor, step: float, function: Callable[[], Any]) -> Any:
        try:
            self._loss.move(vector, step)
            return function()
        finally:
            for parameter, value in zip(self._loss.parameters, self._at, strict=True):
                parameter.data.copy_(value)

    def differences(self, vector: Tensor, step: float) -> Tensor:
        """Hess v by a central difference of the gradient."""
        ahead, behind = (self._moved(vector, sign * step, self._loss.gradient) for sign in (1, -1))
        return (ahead - behind) / (2 * step)

    def gauss_newton(self, vector: Tensor, *, trust: bool, notes: list[str]) -> Tensor:
        """G v = sum over batches of J^T (A (J v)).

        Parameters
        ----------
        vector : Tensor
        trust : bool
            Whether double backward is right where differences disagree.
        notes : list of str
            To write how it was had.
        """
        total = torch.zeros_like(vector)
        for batch, share in zip(self._loss.batches, self._loss.shares, strict=True):
            heads, filled = self._loss.heads(self._loss.outputs(batch))
            if not heads:
                continue
            pushed = self._jacobian(heads, batch, vector, trust=trust, notes=notes)
            curved = self._curvature(heads, filled, batch, pushed, trust=trust, notes=notes)
            pulled = torch.autograd.grad(heads, self._loss.parameters, _like(curved, heads), allow_unused=True)
            total += share * self._loss.flat(pulled)
        return total

    def _jacobian(
        self, heads: Sequence[Tensor], batch: Batch, vector: Tensor, *, trust: bool, notes: list[str]
    ) -> Tensor:
        loss = self._loss

        def by_double_backward() -> Tensor:
            u = [torch.zeros_like(head, requires_grad=True) for head in heads]
            pulled = torch.autograd.grad(heads, loss.parameters, u, create_graph=True, allow_unused=True)
            live = [
                (g, v) for g, v in zip(pulled, loss.split(vector), strict=True) if g is not None and g.requires_grad
            ]
            g, v = zip(*live, strict=True)
            return _cat(torch.autograd.grad(g, u, v, retain_graph=True, materialize_grads=True))

        def by_differences(step: float) -> Tensor:
            ahead, behind = (
                self._moved(vector, sign * step, lambda: _cat(loss.heads(loss.outputs(batch))[0])) for sign in (1, -1)
            )
            return (ahead - behind) / (2 * step)

        return _one_of("J v", by_double_backward, by_differences, float(_cat(heads).norm()), trust, notes)

    def _curvature(
        self,
        heads: Sequence[Tensor],
        filled: Callable[[Sequence[Tensor]], Any],
        batch: Batch,
        pushed: Tensor,
        *,
        trust: bool,
        notes: list[str],
    ) -> Tensor:
        def slope(at: Sequence[Tensor], *, create_graph: bool) -> Sequence[Tensor]:
            value = self._loss.criterion(filled(at), batch)
            if not value.requires_grad:
                return [torch.zeros_like(tensor) for tensor in at]
            return torch.autograd.grad(value, at, create_graph=create_graph, allow_unused=True, materialize_grads=True)

        here = [head.detach().requires_grad_() for head in heads]
        first = _cat(slope(here, create_graph=False)).detach()

        def by_double_backward() -> Tensor:
            live = [
                (g, v)
                for g, v in zip(slope(here, create_graph=True), _like(pushed, heads), strict=True)
                if g.requires_grad
            ]
            if not live:
                return torch.zeros_like(pushed)
            g, v = zip(*live, strict=True)
            return _cat(torch.autograd.grad(g, here, v, allow_unused=True, materialize_grads=True))

        length = float(pushed.norm()) or 1.0
        direction = _like(pushed / length, heads)

        def by_differences(step: float) -> Tensor:
            ahead, behind = (
                _cat(
                    slope(
                        [(t + s * d).detach().requires_grad_() for t, d in zip(here, direction, strict=True)],
                        create_graph=False,
                    )
                ).detach()
                for s in (step, -step)
            )
            return length * (ahead - behind) / (2 * step)

        return _one_of("A J v", by_double_backward, by_differences, length * float(first.norm()), trust, notes)


def _one_of(
    what: str,
    exactly: Callable[[], Tensor],
    differences: Differences,
    size: float,
    trust: bool,
    notes: list[str],
) -> Tensor:
    exact, why = _attempt(exactly)
    confirmed, agreed = _settle(exact, differences, size)
    if confirmed is not None:
        return confirmed.value
    if exact is not None and (trust or agreed is None):
        note = f"{what} by double backward, not confirmed by differences"
        value = exact
    elif agreed is not None:
        note = f"{what} by differences{', as double backward ends with ' + why if why else ''}"
        value = agreed.value
    else:
        raise NoTruthError(f"{what}: no double backward ({why}), and differences do not settle")
    if note not in notes:
        notes.append(note)
    return value


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _like(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(vector, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def establish(loss: PlainLoss, vector: Tensor, other: Tensor) -> Truth:
    """The truth of a loss in float64.

    The product with the Hessian is that of double backward where two central differences of the gradient confirm it.
    Where they do not, but agree with one another, the one is taken that is symmetric: PyTorch has wrong or missing
    second derivatives; and a gradient that does not follow what a model holds constant has differences of no meaning.

    Parameters
    ----------
    loss : PlainLoss
        In float64.
    vector, other : Tensor
        (p,), of norm 1: what is multiplied, and what symmetry is tried with.

    Raises
    ------
    NoTruthError
        If there is no double backward and differences do not settle.
    """
    exact = _Exact(loss)
    by_double_backward, why = _attempt(lambda: exact.double_backward(vector))
    gradient = loss.gradient()
    size = float(gradient.norm())
    along = ""
    if by_double_backward is not None:
        # What gets no gradient where it has influence (a padding row, a backbone under no_grad) is a constant.
        live = (gradient != 0) | (by_double_backward != 0)
        part = vector * live
        if not live.all() and _agree(exact.double_backward(part), by_double_backward, size, 1.0):
            vector, other, along = part, other * live, ", along what has a gradient"
    confirmed, agreed = _settle(by_double_backward, lambda step: exact.differences(vector, step), size)
    trust = False
    if confirmed is not None:
        truth = Truth(confirmed.value, torch.zeros_like(vector), confirmed.how + along)
    elif by_double_backward is None:
        if agreed is None:
            raise NoTruthError(f"no double backward ({why}), and differences do not settle")
        truth = Truth(agreed.value, torch.zeros_like(vector), f"{agreed.how}; double backward: {why}")
    elif agreed is None:
        trust = True
        way = "double backward; differences do not settle (kinks)"
        truth = Truth(by_double_backward, torch.zeros_like(vector), way)
    else:
        truth = _of_two(exact, by_double_backward, agreed, vector, other, constants=loss.constants)
    if truth.exists:
        truth.gauss_newton = exact.gauss_newton(vector, trust=trust or truth.constants, notes=truth.notes)
    if truth.other is not None:
        truth.other.gauss_newton = exact.gauss_newton(vector, trust=False, notes=truth.other.notes)
    return truth


def _of_two(
    exact: _Exact, backward: Tensor, agreed: _Settled, vector: Tensor, other: Tensor, *, constants: bool
) -> Truth:
    """The truth where double backward and differences are two matrices; its G is still to be had."""
    apart = float((backward - agreed.value).norm()) / max(float(agreed.value.norm()), math.ulp(1.0))
    first = exact.double_backward(vector), exact.double_backward(other)
    second = exact.differences(vector, agreed.step), exact.differences(other, agreed.step)
    symmetric = _which_is_symmetric(first, second, vector, other)
    zero = torch.zeros_like(vector)
    if symmetric == (True, True) and constants:
        way = "double backward, with a part held constant; without that symmetric too"
        return Truth(backward, zero, way, constants=True, other=Truth(agreed.value, zero, agreed.how))
    if symmetric[1]:
        return Truth(agreed.value, zero, f"{agreed.how}; double backward is off by {apart:.1e}")
    if symmetric[0]:
        way = "double backward; the gradient does not follow what the model holds constant"
        return Truth(backward, zero, way, constants=True)
    return Truth(backward, zero, "none: neither way is symmetric", exists=False)


def _which_is_symmetric(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], vector: Tensor, other: Tensor
) -> tuple[bool, bool]:
    """Which of two matrices is symmetric, of both of which the products with the same two vectors are given.

    Were neither, u'Mv and v'Mu would differ by as much as the two matrices do.
    """
    apart = max(abs(float(other @ (second[0] - first[0]))), abs(float(vector @ (second[1] - first[1]))))
    skew = [abs(float(other @ one) - float(vector @ two)) for one, two in (first, second)]
    return skew[0] <= SYMMETRY * apart, skew[1] <= SYMMETRY * apart
