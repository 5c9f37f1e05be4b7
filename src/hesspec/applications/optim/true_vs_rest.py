"""Solver for the damped true-vs-rest system of second-order optimisers, in the space of samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from hesspec.applications.optim.systems import RowSpace, TrueVsRestSystem, damped_rows, relative, warm
from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import free_shares
from hesspec.backend.user_warnings import warn
from hesspec.krylov.vectors import norm
from hesspec.operators.engine.jacobian import LinearisedModel
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.logits import check_softmax_loss
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
    linearised = LinearisedModel(risk, budget)
    if rhs is None:
        system = TrueVsRestSystem(linearised)
        space, target = system.space, system.gradient()
        solved = system.solve(damping, tolerance, max_iterations)
        x, iterations, reached, converged = solved.x, solved.iterations, solved.residual, solved.converged
    else:
        space, target = RowSpace(linearised), rhs
        # x = (b - S^T y)/damping with (S S^T + damping I) y = S b.
        b = space.push(rhs)
        y, left, found = warm(damped_rows(space, damping), b, tolerance, max_iterations, None)
        x, iterations, converged = (rhs - space.pull(y)) / damping, found.iterations, found.converged
        reached = relative(left, b)
    if not converged:
        warn(
            f"Conjugate gradients reached a relative residual of {reached:.2g} in {iterations} iterations, not "
            f"{tolerance:g}; increase max_iterations or the damping."
        )
    remaining = space.pull(space.push(x)) + damping * x - target
    scale = norm(target)
    return TrueVsRestSolution(x, iterations, norm(remaining) / scale if scale > 0 else 0.0)
