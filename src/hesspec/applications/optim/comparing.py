"""Fast Gauss-Newton steps compared with full Gauss-Newton steps over dampings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from hesspec.applications.optim.competitors import share_of
from hesspec.applications.optim.fast_gauss_newton import softmax_risk
from hesspec.applications.optim.record import StepComparison
from hesspec.applications.optim.systems import CURVATURES, FullSystem, TrueVsRestSystem
from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import free_shares
from hesspec.backend.numbers import check_counts, check_fractions
from hesspec.backend.user_warnings import warn
from hesspec.krylov.vectors import inner, norm
from hesspec.measure.spectrum import spectrum
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.engine.jacobian import LinearisedModel
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSelection, ParameterSpec

__all__ = ["compare_steps"]

# Dampings by default, in units of the largest eigenvalue of G.
FACTORS = np.logspace(-4, 2, 7)
# Lanczos steps for the two largest eigenvalues.
LANCZOS = 24


def compare_steps(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    params: ParameterSpec = None,
    *,
    dampings: Sequence[float] | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    memory: str | int | None = None,
    graphs: GraphCache | None = None,
) -> StepComparison:
    """Compare the steps of Fast Gauss-Newton and of full Gauss-Newton at one point, for several dampings.

    Parameters
    ----------
    model, loss_fn, data, params, memory, graphs
        See `hesspec.GaussNewton`. The loss must be `torch.nn.CrossEntropyLoss` without label smoothing, with class
        indices as targets.
    dampings : sequence of float, optional
        Positive dampings, in units of eigenvalues of G. By default 1e-4, 1e-3, ..., 100 times the largest eigenvalue.
    tolerance : float
        Tolerance of the residuals of both systems, relative to their right-hand sides. A warning is issued if one is
        not reached.
    max_iterations : int
        Largest number of iterations of each solve.

    Returns
    -------
    StepComparison

    Raises
    ------
    ValueError
        If an argument is out of range, the loss is a different one, or for the reasons of `hesspec.GaussNewton`.

    Notes
    -----
    With G = G_1 + G_2, x_fast - x_full = (G_1 + mu)^{-1} G_2 x_full (ours), so that the error relative to x_full is at
    most ||G_2||/mu.
    """
    check_fractions(tolerance=tolerance)
    check_counts(max_iterations=max_iterations)
    given = None if dampings is None else np.unique(np.asarray(dampings, dtype=float))
    if given is not None and not (given.size and given.ndim == 1 and given[0] > 0 and np.isfinite(given).all()):
        raise ValueError(f"dampings is {dampings!r}; it must be a sequence of positive numbers.")
    risk = softmax_risk(model, loss_fn, data, params)
    budget = free_shares(risk.parameters.device).products if memory is None else parse_memory(memory)
    linearised = LinearisedModel(risk, budget, graphs=graphs)
    fast, full = TrueVsRestSystem(linearised), FullSystem(linearised)
    largest = spectrum(_Operator(risk.parameters, full.multiply), steps=LANCZOS, progress=False).norm
    within = spectrum(_Operator(risk.parameters, full.multiply_within), steps=LANCZOS, progress=False).norm
    used = FACTORS * largest if given is None else given
    cosines, errors, counts = [], [], []
    for damping in used:
        solved = [system.solve(float(damping), tolerance, max_iterations) for system in (fast, full)]
        for name, found in zip(CURVATURES, solved, strict=True):
            if not found.converged:
                warn(
                    f"The {name} step with damping {damping:.3g} has a relative residual of {found.residual:.2g} after "
                    f"{found.iterations} iterations, not {tolerance:g}: increase max_iterations or the dampings."
                )
        x, y = (found.x for found in solved)
        lengths = norm(x), norm(y)
        cosines.append(inner(x, y) / (lengths[0] * lengths[1]) if min(lengths) > 0 else math.nan)
        errors.append(norm(x - y) / lengths[1] if lengths[1] > 0 else math.nan)
        counts.append([found.iterations for found in solved])
    if not np.isfinite(cosines).all():
        raise ValueError("The gradient is zero at this point: there are no steps to compare.")
    share = share_of(full.rows)
    return StepComparison(
        dampings=used,
        cosines=np.array(cosines),
        relative_errors=np.array(errors),
        bounds=within / used,
        fast_iterations=np.array(counts, dtype=np.int64)[:, 0],
        full_iterations=np.array(counts, dtype=np.int64)[:, 1],
        norm=largest,
        within_norm=within,
        share=share.share,
        participation=share.participation,
        loss=share.loss,
        dimension=risk.parameters.count,
        samples=share.samples,
        attributes={"tolerance": float(tolerance), "loss": risk.loss.name},
    )


class _Operator:
    """Products with a curvature matrix as an operator."""

    def __init__(self, parameters: ParameterSelection, multiply: Callable[[Tensor], Tensor]) -> None:
        self.shape = (parameters.count, parameters.count)
        self.dtype, self.device = parameters.dtype, parameters.device
        self._multiply = multiply

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Product with a vector (p,)."""
        return self._multiply(vector)
