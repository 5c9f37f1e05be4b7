"""Solution of damped systems with any symmetric operator: `hesspec.solve`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator, check_operator, expect_products
from hesspec.backend.arithmetic import full_float32
from hesspec.backend.numbers import check_counts, check_fractions
from hesspec.backend.shown import Shown
from hesspec.backend.text import kind_of
from hesspec.backend.user_warnings import warn
from hesspec.errors import NonFiniteError, NotSymmetricError
from hesspec.krylov.conjugate_gradients import Solved, column_norms, conjugate_gradients
from hesspec.krylov.lanczos_state import rounding_unit
from hesspec.krylov.minres import minres
from hesspec.krylov.preconditioning import SpectralPreconditioner
from hesspec.krylov.vectors import inner, norm
from hesspec.measure.arrays import as_operator
from hesspec.measure.eigenpairs import Eigenpairs

__all__ = ["Solution", "solve"]

METHODS = {"cg": conjugate_gradients, "minres": minres}


@dataclass(frozen=True, repr=False)
class Solution(Shown):
    """Solution x of (A + damping I) x = b, with its error.

    Attributes
    ----------
    solution : Tensor (p,) or (p, n)
        x, with the shape, dtype and device of the right-hand side.
    iterations : int
        Number of iterations; each took one product for each column.
    products : int
        Number of products with vectors, including those for the residual.
    residual : float
        Relative residual ||b - (A + damping I) x|| / ||b||, computed from x; the largest of all columns.
    error_bound : float
        Bound on ||x - x*||, x* the exact solution; the largest of all columns. It is the norm of the residual plus its
        rounding, divided by the damping, and infinite if A is not known to be positive semi-definite: the distance of
        -damping to the nearest eigenvalue is then unknown.
    error_estimate : float
        Estimate of the same error. For MINRES it uses the smallest harmonic Ritz value instead of the smallest absolute
        eigenvalue, and is too small if the Krylov space has not found the corresponding eigenvector. For conjugate
        gradients it is the bound.
    method : str
        "cg" or "minres".
    damping : float
        The damping.
    eigenpairs : int
        Number of eigenpairs of the preconditioner; 0 without one.
    """

    solution: Tensor
    iterations: int
    products: int
    residual: float
    error_bound: float
    error_estimate: float
    method: str
    damping: float
    eigenpairs: int

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        shape = " x ".join(f"{size:,}" for size in self.solution.shape)
        return {
            "solution": f"{shape}, {self.solution.dtype} on {self.solution.device}",
            "damping": f"{self.damping:.4g}",
            "method": f"{self.method}, {self.iterations} iterations, {self.products} products",
            "preconditioner": f"{self.eigenpairs} eigenpairs" if self.eigenpairs else "none",
            "relative residual": f"{self.residual:.3g}",
            "error": f"at most {self.error_bound:.3g}"
            if math.isfinite(self.error_bound)
            else f"about {self.error_estimate:.3g}",
        }


@full_float32()
def solve(
    operator: SymmetricOperator,
    rhs: Tensor,
    *,
    damping: float,
    preconditioner: Eigenpairs | None = None,
    method: str = "auto",
    tolerance: float = 1e-5,
    max_iterations: int = 500,
) -> Solution:
    """Solve (A + damping I) x = b for a symmetric operator A.

    Positive semi-definite operators are solved by conjugate gradients, others by MINRES.

    Parameters
    ----------
    operator : SymmetricOperator
        A (p, p), float32 or float64: an operator of hesspec or any other, or a dense tensor; see `hesspec.spectrum`.
    rhs : Tensor (p,) or (p, n)
        Right-hand side b, or several as columns, with the dtype and device of the operator.
    damping : float
        Damping, in units of eigenvalues of A; at least 0, and positive for conjugate gradients.
    preconditioner : Eigenpairs, optional
        Eigenpairs of A from `hesspec.eigenpairs`, which take their eigenvalues out of the condition number. Those of a
        matrix near A, such as that of the last training step, do as well. It is positive definite whatever their signs:
        it has the eigenvalues |lambda_i + damping|, and the smallest of these in the complement.
    method : {"auto", "cg", "minres"}
        "auto" uses conjugate gradients if the operator states that it is positive semi-definite
        (`attributes["positive_semidefinite"]`, as `GaussNewton` for convex losses), and MINRES otherwise. "cg" asserts
        that A is positive semi-definite, and `error_bound` relies on it.
    tolerance : float
        Tolerance of the residual relative to b. A warning is issued if it is not reached up to rounding.
    max_iterations : int
        Largest number of iterations.

    Returns
    -------
    Solution

    Raises
    ------
    ValueError
        If an argument is out of range; if b has another shape, dtype or device than the operator, or contains NaN or
        infinity; if the operator is not symmetric (`NotSymmetricError`); or if conjugate gradients meet a direction of
        negative curvature.
    NonFiniteError
        If a product contains NaN or infinity.

    Notes
    -----
    Hestenes and Stiefel (1952), in the block form of Dubrulle (2001); Paige and Saunders (1975). If the residual
    computed from x is above the tolerance, because those in the recurrence differ by rounding, the system is solved for
    a correction. With eigenvalues a_1 >= a_2 >= ... >= 0 and k eigenpairs, the condition number is (a_{k+1} +
    damping)/damping instead of (a_1 + damping)/damping. The symmetry is checked with each product u -> A u by
    comparing u_0·A u and u·A u_0, u_0 the first vector.

    Examples
    --------
    >>> import torch, hesspec
    >>> operator = torch.diag(torch.cat([torch.linspace(-0.1, 0.1, 300), torch.tensor([50.0, 90.0])]))
    >>> pairs = hesspec.eigenpairs(operator, count=2, steps=32)
    >>> found = hesspec.solve(operator, torch.ones(302), damping=0.5, preconditioner=pairs)
    >>> found.method, found.solution[-2:]
    ('minres', tensor([0.0198, 0.0110]))
    """
    p = check_operator(operator := as_operator(operator))
    _check(operator, p, rhs, damping, method, tolerance, max_iterations)
    expect_products(operator, None)
    attributes = getattr(operator, "attributes", {})
    semidefinite = method == "cg" or bool(attributes.get("positive_semidefinite", False))
    chosen = ("cg" if semidefinite else "minres") if method == "auto" else method
    if chosen == "cg" and damping == 0:
        raise ValueError(
            "damping is 0; conjugate gradients need a positive damping, as a positive semi-definite matrix may be "
            'singular. Use method="minres" for a solution without damping.'
        )
    prepared = None if preconditioner is None else _prepared(preconditioner, operator, p, damping)
    system, columns = _System(operator, damping), rhs.detach().reshape(p, -1)
    found, norms, sizes = _corrected(system, columns, chosen, prepared, tolerance, max_iterations)
    residual = float((norms / torch.where(sizes > 0, sizes, 1)).max())
    rounding = system.rounding(found.x, sizes)
    if not bool((norms <= tolerance * sizes + rounding).all()):
        _warn(residual, tolerance, found.iterations, max_iterations)
    bound = float((norms + rounding).max()) / damping if semidefinite and damping > 0 else math.inf
    estimate = bound
    if chosen == "minres":
        # The error is M^{-1/2} (M^{-1/2} B M^{-1/2})^{-1} M^{-1/2} times the residual.
        scale = 1.0 if prepared is None else prepared.root_norm
        weighted = norms if prepared is None else column_norms(prepared.root(found.residual))
        size = scale * float((weighted + scale * rounding).max())
        estimate = min(bound, size / found.smallest) if size > 0 and found.smallest > 0 else size and bound
    return Solution(
        solution=found.x.reshape(rhs.shape),
        iterations=found.iterations,
        products=system.products,
        residual=residual,
        error_bound=bound,
        error_estimate=estimate,
        method=chosen,
        damping=float(damping),
        eigenpairs=0 if prepared is None else prepared.rank,
    )


def _corrected(
    system: _System,
    columns: Tensor,
    method: str,
    preconditioner: SpectralPreconditioner | None,
    tolerance: float,
    max_iterations: int,
) -> tuple[Solved, Tensor, Tensor]:
    """Solve, and solve for corrections as long as the residual computed from x is too large and they help.

    Returns
    -------
    Solved
        Of all rounds together.
    Tensor (n,), Tensor (n,)
        Norms of the residuals and of the right-hand sides, float64.
    """
    sizes = column_norms(columns)
    total = Solved(torch.zeros_like(columns), columns, 0, converged=False, smallest=math.inf)
    while True:
        norms = column_norms(total.residual)
        # What a correction may leave, relative to the residual that it removes.
        shares = tolerance * sizes[norms > 0] / norms[norms > 0]
        found: Solved = METHODS[method](
            system.multiply,
            total.residual,
            preconditioner=preconditioner,
            tolerance=min([1.0, *shares.tolist()]),
            max_iterations=max_iterations - total.iterations,
        )
        used = total.iterations + found.iterations
        # nan if there was nothing to do, or the method gives none.
        smallest = min(total.smallest, found.smallest) if found.smallest >= 0 else total.smallest
        x, residual = found.x, found.residual
        if total.iterations:
            # The sum is rounded, so that its residual is not that of the correction.
            x = total.x + found.x
            residual = columns - system.multiply(x)
        after = column_norms(residual)
        if total.iterations and not float(after.max()) < float(norms.max()):
            return total._replace(iterations=used, smallest=smallest), norms, sizes
        total = Solved(x, residual, used, found.converged, smallest)
        done = bool((after <= tolerance * sizes).all()) or not found.converged
        if done or used >= max_iterations or float(after.max()) > float(norms.max()) / 2:
            return total, after, sizes


class _System:
    """Products with A + damping I, checked, and what they show of its norm."""

    def __init__(self, operator: SymmetricOperator, damping: float) -> None:
        self._operator, self._damping = operator, damping
        self._first: tuple[Tensor, Tensor] | None = None
        self._error = 0.0
        self.norm = 0.0
        self.products = 0

    def multiply(self, columns: Tensor) -> Tensor:
        """Product with columns (p, n)."""
        single = columns.shape[1] == 1
        product: Tensor = self._operator @ (columns[:, 0] if single else columns)
        product = product.detach().reshape(columns.shape)
        if not product.sum().isfinite() and not product.isfinite().all():
            raise NonFiniteError("A product of the operator contains NaN or infinity; the system cannot be solved.")
        self.products += columns.shape[1]
        # An operator may state the error of its last product only.
        self._error = max(self._error, float(getattr(self._operator, "product_error", 0.0)))
        image = product + self._damping * columns
        u, w = columns[:, 0], image[:, 0]
        length = norm(u)
        if length > 0:
            self.norm = max(self.norm, norm(w) / length)
            if self._first is None:
                self._first = (u / length, w / length)
            self._check_symmetry(u / length, w / length)
        return image

    def _check_symmetry(self, u: Tensor, w: Tensor) -> None:
        first, image = self._first or (u, w)
        one, other = inner(first, w), inner(u, image)
        allowed = math.sqrt(torch.finfo(u.dtype).eps) + self._error
        if abs(one - other) > allowed * self.norm:
            raise NotSymmetricError(
                f"The operator is not symmetric: for two unit vectors u·Av = {one:.6g} but v·Au = {other:.6g}, a "
                f"difference of {abs(one - other):.1e}. Only symmetric systems are solved."
            )

    def rounding(self, x: Tensor, sizes: Tensor) -> Tensor:
        """Error of the residual of each column, given x and the norms of the right-hand sides: (n,)."""
        unit = rounding_unit(x.dtype)
        return (unit + self._error) * self.norm * column_norms(x) + unit * sizes


def _prepared(pairs: Eigenpairs, operator: SymmetricOperator, p: int, damping: float) -> SpectralPreconditioner | None:
    """Return the preconditioner from eigenpairs; None if there are none, or none that differs from -damping."""
    if not isinstance(pairs, Eigenpairs):
        raise ValueError(
            f"preconditioner is {kind_of(pairs)}; it must be the result of hesspec.eigenpairs(operator, count=...)."
        )
    vectors = pairs.vectors
    if vectors.shape[0] != p or vectors.dtype != operator.dtype or vectors.device != torch.device(operator.device):
        raise ValueError(
            f"The eigenvectors of the preconditioner are of size {vectors.shape[0]}, {vectors.dtype} on "
            f"{vectors.device}; the operator is of size {p}, {operator.dtype} on {operator.device}."
        )
    values = (torch.as_tensor(pairs.values, dtype=torch.float64, device=vectors.device) + damping).abs()
    kept = values > rounding_unit(operator.dtype) * values.max() if len(values) else values > 0
    if not kept.any():
        return None
    return SpectralPreconditioner(torch.linalg.qr(vectors[:, kept])[0], values[kept], float(values[kept].min()))


def _check(
    operator: SymmetricOperator,
    p: int,
    rhs: Any,
    damping: float,
    method: str,
    tolerance: float,
    max_iterations: int,
) -> None:
    """Raise ValueError for arguments that make no system."""
    if not isinstance(rhs, Tensor):
        raise ValueError(f"rhs is {kind_of(rhs)}; it must be a tensor of shape ({p},) or ({p}, n).")
    if rhs.dim() not in (1, 2) or rhs.shape[0] != p or not rhs.numel():
        raise ValueError(f"rhs has shape {tuple(rhs.shape)}; it must be ({p},) or ({p}, n).")
    if rhs.dtype != operator.dtype or rhs.device != torch.device(operator.device):
        raise ValueError(
            f"rhs is {rhs.dtype} on {rhs.device}, but the operator {operator.dtype} on {operator.device}; convert it "
            "with rhs.to(operator.device, operator.dtype)."
        )
    if not rhs.isfinite().all():
        raise ValueError("rhs contains NaN or infinity; check what it was computed from.")
    if not (isinstance(damping, int | float) and 0 <= damping < math.inf):
        raise ValueError(
            f"damping is {damping!r}; it must be a nonnegative number. For A - mu I with a positive mu, pass the "
            "operator A - mu * hesspec.Identity.like(A), with damping=0."
        )
    if method != "auto" and method not in METHODS:
        raise ValueError(f'method={method!r} is unknown; use "auto", "cg" or "minres".')
    check_fractions(tolerance=tolerance)
    check_counts(max_iterations=max_iterations)


def _warn(residual: float, tolerance: float, iterations: int, most: int) -> None:
    advice = "increase max_iterations or the damping, or pass preconditioner=hesspec.eigenpairs(operator, count=...)"
    if iterations < most:
        advice = (
            "corrections do not reduce it; use more damping, float64, or an operator that is always the same matrix"
        )
    warn(f"The relative residual is {residual:.2g} after {iterations} iterations, not {tolerance:g}: {advice}.")
