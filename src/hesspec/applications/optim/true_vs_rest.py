"""Solver for the damped true-vs-rest system of second-order optimisers, in the space of samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import free_shares
from hesspec.krylov.vectors import norm
from hesspec.operators.engine.jacobian import LinearisedModel
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.logits import LogitRows, check_softmax_loss
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec

__all__ = ["TrueVsRestSolution", "solve_true_vs_rest"]


class TrueVsRestSolution(NamedTuple):
    """Solution of the system (A + damping I) x = b.

    Attributes
    ----------
    x : Tensor (p,)
        Solution, in the dtype of the parameters and on their device.
    iterations : int
        Number of conjugate-gradient iterations; each cost as much as a Gauss-Newton product.
    residual : float
        Relative residual ||(A + damping I) x - b|| / ||b||, computed from x.
    """

    x: Tensor
    iterations: int
    residual: float


def solve_true_vs_rest(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    params: ParameterSpec = None,
    *,
    damping: float,
    rhs: Tensor | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
    memory: str | int | None = None,
) -> TrueVsRestSolution:
    r"""Solve (G_1 + damping I) x = b for the true-vs-rest part G_1 of the Gauss-Newton matrix.

    .. math:: G_1 = S^\top S, \qquad S_i = \sqrt{p_{i,y} (1 - p_{i,y}) / N}\; (e_y - q_i)^\top J_i

    has one row for each sample (arXiv 2605.06081; q_i is p_i without the true class y, renormalised). With (S S^T +
    damping I) y = S b the solution is x = (b - S^T y)/damping, so conjugate gradients run in R^N. For the gradient of
    the loss, b = S^T z, the solution is computed as x = S^T (S S^T + damping I)^{-1} z, which avoids cancellation. The
    step of a second-order method is -x.

    Parameters
    ----------
    model, loss_fn, data, params, memory
        See `hesspec.GaussNewton`. The loss must be `torch.nn.CrossEntropyLoss` with class indices as targets.
    damping : float
        Positive damping, in units of eigenvalues of G_1.
    rhs : Tensor (p,), optional
        Right-hand side b, with the dtype and device of the parameters. By default the gradient of the loss.
    tolerance : float
        Tolerance of the residual in R^N, relative to the right-hand side there.
    max_iterations : int
        Largest number of iterations. A warning is issued if the tolerance is not reached within them.

    Returns
    -------
    TrueVsRestSolution

    Raises
    ------
    ValueError
        If an argument is out of range; if the loss is a different one; if it smooths labels and no `rhs` is given, as
        its gradient is then outside the span of the rows; or for the reasons of `hesspec.GaussNewton`.
    """
    for name, value in (("damping", damping), ("tolerance", tolerance), ("max_iterations", max_iterations)):
        if not value > 0:
            raise ValueError(f"{name} is {value!r}; it must be positive.")
    risk = EmpiricalRisk(model, loss_fn, data, params)
    check_softmax_loss(risk.loss)
    parameters = risk.parameters
    if rhs is None and getattr(risk.loss.function, "label_smoothing", False):
        raise ValueError("The gradient of a loss with label smoothing is outside the span of the rows; pass it as rhs.")
    if rhs is not None and (
        rhs.shape != (parameters.count,) or rhs.dtype != parameters.dtype or rhs.device != parameters.device
    ):
        raise ValueError(
            f"rhs has shape {tuple(rhs.shape)}, {rhs.dtype} on {rhs.device}; it must be ({parameters.count},), "
            f"{parameters.dtype} on {parameters.device}."
        )
    budget = free_shares(parameters.device).products if memory is None else parse_memory(memory)
    system = _RowSpace(LinearisedModel(risk, budget))
    b = system.residuals() if rhs is None else system.push(rhs)
    y, iterations, reached = _conjugate_gradients(system, b, damping, tolerance, max_iterations)
    if not reached <= tolerance:
        warnings.warn(
            f"Conjugate gradients reached a relative residual of {reached:.2g} in {iterations} iterations, not "
            f"{tolerance:g}; increase max_iterations or the damping.",
            stacklevel=2,
        )
    if rhs is None:
        x, target = system.pull(y), system.pull(b)
    else:
        x, target = (rhs - system.pull(y)) / damping, rhs
    left = system.pull(system.push(x)) + damping * x - target
    scale = norm(target)
    return TrueVsRestSolution(x, iterations, norm(left) / scale if scale > 0 else 0.0)


class _RowSpace:
    """Products S v and S^T w, with w (N,) in float64 and rows in the order of the data."""

    def __init__(self, model: LinearisedModel) -> None:
        self._model = model

    def push(self, vector: Tensor) -> Tensor:
        """Product S v."""
        rows, (pushed,) = self._model.pushed([vector])
        return torch.cat([(direction(row) * u).sum(1) for row, u in zip(rows, pushed, strict=True)])

    def pull(self, w: Tensor) -> Tensor:
        """Product S^T w."""

        def cotangents(rows: Sequence[LogitRows]) -> list[list[Tensor]]:
            pieces = torch.split(w, [len(row.targets) for row in rows])
            return [[piece[:, None] * direction(row) for piece, row in zip(pieces, rows, strict=True)]]

        return self._model.pulled(cotangents)[0]

    def residuals(self) -> Tensor:
        """Vector z (N,) such that S^T z is the gradient: -sqrt((1 - p_y)/(p_y N))."""
        rows, _ = self._model.pushed([])
        parts = []
        for row in rows:
            p, rest, _ = _split(row)
            parts.append(-torch.sqrt(row.scale * rest / p))
        return torch.cat(parts)


def direction(row: LogitRows) -> Tensor:
    """Vectors sqrt(p_y (1 - p_y) scale) (e_y - q) of the rows, (R, C)."""
    p, rest, q = _split(row)
    e = torch.zeros_like(q).scatter_(1, row.targets[:, None], 1.0)
    return torch.sqrt(row.scale * p * rest)[:, None] * (e - q)


def _split(row: LogitRows) -> tuple[Tensor, Tensor, Tensor]:
    """Return p_y (R,), 1 - p_y (R,) without cancellation, and q (R, C), which is 0 for the true class."""
    index = row.targets[:, None]
    p = row.probabilities.gather(1, index).squeeze(1)
    others = row.probabilities.scatter(1, index, 0.0)
    rest = others.sum(1)
    # Where the rest underflows, so does the weight of the row.
    return p, rest, others / torch.where(rest > 0, rest, 1)[:, None]


def _conjugate_gradients(
    system: _RowSpace, b: Tensor, damping: float, tolerance: float, max_iterations: int
) -> tuple[Tensor, int, float]:
    """Solve (S S^T + damping I) y = b (Hestenes and Stiefel 1952); returns y, iterations and relative residual."""
    y, residual = torch.zeros_like(b), b.clone()
    search, square, scale = residual.clone(), float(residual @ residual), float(b.norm())
    if scale == 0:
        return y, 0, 0.0
    iterations = 0
    while iterations < max_iterations and math.sqrt(square) > tolerance * scale:
        image = system.push(system.pull(search)) + damping * search
        step = square / float(search @ image)
        y += step * search
        residual -= step * image
        before, square = square, float(residual @ residual)
        search = residual + square / before * search
        iterations += 1
    return y, iterations, math.sqrt(square) / scale
