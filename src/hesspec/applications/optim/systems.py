r"""Damped systems of second-order steps, from products with the Jacobian of the logits.

A softmax cross-entropy with true class y has, for each sample, the curvature

.. math:: \mathrm{diag}(p) - p p^\top = p_y (1 - p_y) (e_y - q)(e_y - q)^\top + (1 - p_y) (\mathrm{diag}(q) - q q^\top)

in the logits (arXiv 2605.06081), with q the softmax of all classes but y. The first term gives the true-vs-rest part of
the Gauss-Newton matrix, G_1 = S^T S, whose factor S has one row for each sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hesspec.krylov.conjugate_gradients import Multiply, Solved, conjugate_gradients
from hesspec.operators.engine.jacobian import LinearisedModel
from hesspec.operators.risk.logits import LogitRows

__all__ = [
    "CURVATURES",
    "Damped",
    "FullSystem",
    "RowSpace",
    "TrueVsRestSystem",
    "damped_rows",
    "loss_of",
    "split_of",
    "warm",
]

# Smallest probability of the true class for which a row enters the gradient by z = -sqrt((1 - p)/(p N)), which is then
# at most 100 times that of p = 1/2. Other rows, whose curvature is negligible, enter by their gradients.
WRONG = 1e-4


class Damped(NamedTuple):
    """Solution of (A + damping I) x = g, with g the gradient and A the curvature.

    Attributes
    ----------
    x : Tensor (p,)
        The solution; the step is -x.
    unknown : Tensor
        What was solved for, from which the next solve may start: (N,) for true-vs-rest, x for the full curvature.
    slope, curvature : float
        g·x and x·Ax.
    iterations : int
        Number of conjugate-gradient iterations.
    residual : float
        Residual of the system that was solved, relative to its right-hand side.
    converged : bool
        Whether the tolerance was reached.
    """

    x: Tensor
    unknown: Tensor
    slope: float
    curvature: float
    iterations: int
    residual: float
    converged: bool


class Split(NamedTuple):
    """True class against all others: p_y (R,), 1 - p_y without cancellation, and q (R, C), zero for the true class."""

    p: Tensor
    rest: Tensor
    q: Tensor


def split_of(row: LogitRows) -> Split:
    """Return the probabilities of a batch, split into those of the true class and of its competitors."""
    index = row.targets[:, None]
    p = row.probabilities.gather(1, index).squeeze(1)
    others = row.probabilities.scatter(1, index, 0.0)
    rest = others.sum(1)
    # Where the rest underflows, so does the weight of the row.
    return Split(p, rest, others / torch.where(rest > 0, rest, 1)[:, None])


def loss_of(rows: Sequence[LogitRows]) -> float:
    """Compute the cross-entropy of all rows in float64, accurately where samples are fitted well.

    Probabilities of the true class that underflow count as 2e-308.
    """
    total = 0.0
    for row in rows:
        p, rest, _ = split_of(row)
        logarithm = torch.where(rest < 0.5, torch.log1p(-rest), torch.log(p.clamp(min=torch.finfo(p.dtype).tiny)))
        total -= float(row.scale @ logarithm)
    return total


def direction(row: LogitRows) -> Tensor:
    """Vectors sqrt(p_y (1 - p_y) scale) (e_y - q) of the rows, (R, C)."""
    p, rest, q = split_of(row)
    return torch.sqrt(row.scale * p * rest)[:, None] * (-q).scatter(1, row.targets[:, None], 1.0)


class RowSpace:
    """Products S v and S^T w, with w (N,) in float64 and rows in the order of the data."""

    def __init__(self, model: LinearisedModel) -> None:
        self.model = model
        self._known: dict[int, tuple[LogitRows, Tensor]] = {}

    def push(self, vector: Tensor) -> Tensor:
        """Product S v."""
        rows, (pushed,) = self.model.pushed([vector])
        parts = [(d * u).sum(1) for d, u in zip(self._directions(rows), pushed, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def pull(self, w: Tensor) -> Tensor:
        """Product S^T w."""

        def cotangents(rows: Sequence[LogitRows]) -> list[list[Tensor]]:
            pieces = torch.split(w, [len(row.targets) for row in rows])
            return [[piece[:, None] * d for piece, d in zip(pieces, self._directions(rows), strict=True)]]

        return self.model.pulled(cotangents)[0]

    def _directions(self, rows: Sequence[LogitRows]) -> list[Tensor]:
        """Directions of the rows, computed once for those whose primal passes are cached."""
        found = []
        for place, row in enumerate(rows):
            if place not in self._known or self._known[place][0] is not row:
                self._known[place] = row, direction(row)
            found.append(self._known[place][1])
        return found


def damped_rows(space: RowSpace, damping: float) -> Multiply:
    """Products of S S^T + damping I with one column (N, 1)."""
    return lambda columns: (space.push(space.pull(columns[:, 0])) + damping * columns[:, 0])[:, None]


class TrueVsRestSystem:
    """Systems with G_1, solved for a vector y in the space of rows R^N: x = S^T y with (S S^T + damping I) y = z.

    S^T z is the gradient. Rows with a tiny p_y, for which z is huge, are taken out of z; their gradient g' is added
    instead: (S S^T + damping I) y = z - S g'/damping and x = S^T y + g'/damping.
    """

    def __init__(self, model: LinearisedModel) -> None:
        self.space = RowSpace(model)
        self.rows, _ = model.pushed([])
        self._z, self._rest = self._gradient(model)

    def _gradient(self, model: LinearisedModel) -> tuple[Tensor, Tensor | None]:
        parts, wrong = [], []
        for row in self.rows:
            p, rest, _ = split_of(row)
            wrong.append((p < WRONG) & (row.scale > 0))
            z = -torch.sqrt(row.scale * rest / torch.where(wrong[-1], 1, p.clamp(min=torch.finfo(p.dtype).tiny)))
            parts.append(torch.where(wrong[-1], 0, z))
        if not any(bool(each.any()) for each in wrong):
            return torch.cat(parts), None
        chosen = [each[:, None] * gradient_rows(row) for each, row in zip(wrong, self.rows, strict=True)]
        return torch.cat(parts), model.pulled(lambda _: [chosen])[0]

    def gradient(self) -> Tensor:
        """Gradient of the loss, (p,)."""
        found = self.space.pull(self._z)
        return found if self._rest is None else found + self._rest

    def solve(self, damping: float, tolerance: float, max_iterations: int, start: Tensor | None = None) -> Damped:
        """Solve (G_1 + damping I) x = g.

        Parameters
        ----------
        damping : float
        tolerance : float
            Tolerance of the residual, relative to the right-hand side.
        max_iterations : int
        start : Tensor, optional
            `Damped.unknown` of another solve, which is used if its residual is smaller than that of zero.
        """
        rest, z = self._rest, self._z
        rhs = z if rest is None else z - self.space.push(rest) / damping
        y, residual, found = warm(damped_rows(self.space, damping), rhs, tolerance, max_iterations, start)
        x = self.space.pull(y)
        x = x if rest is None else x + rest / damping
        # S x follows from the residual.
        pushed = z - residual - damping * y
        slope = float(z @ pushed) + (0.0 if rest is None else float((rest * x).sum(dtype=torch.float64)))
        return Damped(
            x,
            y,
            slope,
            float(pushed @ pushed),
            found.iterations,
            relative(residual, rhs),
            found.converged,
        )


class FullSystem:
    """Systems with the whole Gauss-Newton matrix, solved in the space of parameters R^p."""

    def __init__(self, model: LinearisedModel) -> None:
        self._model = model
        self.rows, _ = model.pushed([])

    def gradient(self) -> Tensor:
        """Gradient of the loss, (p,)."""
        return self._model.pulled(lambda rows: [[gradient_rows(row) for row in rows]])[0]

    def multiply(self, vector: Tensor) -> Tensor:
        """Product with the Gauss-Newton matrix."""
        rows, (pushed,) = self._model.pushed([vector])
        curved = [row.cotangent(row.centred(u)) for row, u in zip(rows, pushed, strict=True)]
        return self._model.pulled(lambda _: [curved])[0]

    def multiply_within(self, vector: Tensor) -> Tensor:
        """Product with the within-competitor part G_2 = G - G_1."""
        rows, (pushed,) = self._model.pushed([vector])
        curved = []
        for row, u in zip(rows, pushed, strict=True):
            _, rest, q = split_of(row)
            curved.append((row.scale * rest)[:, None] * q * (u - (q * u).sum(1, keepdim=True)))
        return self._model.pulled(lambda _: [curved])[0]

    def solve(self, damping: float, tolerance: float, max_iterations: int, start: Tensor | None = None) -> Damped:
        """Solve (G + damping I) x = g; see `TrueVsRestSystem.solve`."""
        g = self.gradient()

        def multiply(columns: Tensor) -> Tensor:
            return (self.multiply(columns[:, 0]) + damping * columns[:, 0])[:, None]

        x, residual, found = warm(multiply, g, tolerance, max_iterations, start)
        curved = (g - residual - damping * x).double()
        return Damped(
            x,
            x,
            float(g.double() @ x.double()),
            float(x.double() @ curved),
            found.iterations,
            relative(residual, g),
            found.converged,
        )


CURVATURES: dict[str, type[TrueVsRestSystem | FullSystem]] = {"true-vs-rest": TrueVsRestSystem, "full": FullSystem}
"""Systems by the name of their curvature."""


def gradient_rows(row: LogitRows) -> Tensor:
    """Gradient of the loss in the logits, scale (p - e_y), without cancellation in p_y - 1: (R, C)."""
    _, rest, _ = split_of(row)
    return row.scale[:, None] * row.probabilities.scatter(1, row.targets[:, None], -rest[:, None])


def warm(
    multiply: Multiply, rhs: Tensor, tolerance: float, max_iterations: int, start: Tensor | None
) -> tuple[Tensor, Tensor, Solved]:
    """Solve for one right-hand side by conjugate gradients, from a start if that helps.

    Returns
    -------
    Tensor, Tensor
        Solution and residual.
    Solved
        The solution minus the start.
    """
    left, size = rhs, float(rhs.norm())
    if start is not None and start.shape == rhs.shape:
        there = rhs - multiply(start[:, None])[:, 0]
        left = there if float(there.norm()) < size else rhs
    length = float(left.norm())
    share = min(1.0, tolerance * size / length) if length > 0 else 1.0
    found = conjugate_gradients(multiply, left[:, None], tolerance=share, max_iterations=max_iterations)
    x = found.x[:, 0]
    return x if left is rhs or start is None else start + x, found.residual[:, 0], found


def relative(residual: Tensor, rhs: Tensor) -> float:
    """Norm of a residual relative to that of its right-hand side; 0 if that is zero."""
    size = float(rhs.norm())
    return float(residual.norm()) / size if size > 0 else 0.0
