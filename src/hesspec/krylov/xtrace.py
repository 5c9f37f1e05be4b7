"""Trace of an operator from few products, with an error estimate: XTrace."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.special
import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator, check_operator
from hesspec.backend.arithmetic import full_float32
from hesspec.backend.numbers import check_seed, is_whole
from hesspec.backend.progress import OnStep
from hesspec.errors import NonFiniteError
from hesspec.krylov.lanczos_state import rounding_unit
from hesspec.krylov.scaling import Scaled
from hesspec.krylov.vectors import CHUNK, norm, random_vector

__all__ = ["FEWEST", "LAST", "TraceEstimate", "xtrace", "xtrace_to"]

# An error estimate needs two test vectors, each with a product and a second product with the result.
FEWEST = 4
# Products of the first attempt of `xtrace_to`, and by default of the last.
FIRST, LAST = 16, 512
# Largest number of groups of test vectors that the jackknife leaves out in turn: more than enough for a variance.
GROUPS = 32


class TraceEstimate(NamedTuple):
    """Estimate of tr(A).

    Attributes
    ----------
    value : float
        Estimate of the trace.
    standard_error : float
        Standard error such that the 95% interval is `value` plus or minus two of it. It is that of a mean of k numbers,
        corrected for Student's t and for their correlation, and of the size of rounding if the value is exact.
    matvecs : int
        Number of products with vectors.
    """

    value: float
    standard_error: float
    matvecs: int


@full_float32()
def xtrace(operator: SymmetricOperator, matvecs: int = 32, seed: int = 0) -> TraceEstimate:
    r"""Estimate the trace of a symmetric matrix without bias, by XTrace.

    Parameters
    ----------
    operator : SymmetricOperator
        Symmetric operator A (p, p), float32 or float64; symmetry is not checked. It must also support products with
        matrices (p, k).
    matvecs : int, optional
        Largest number of products with vectors, at least 4: k = matvecs // 2 test vectors take one each, and one more
        for each dimension of the span of those products. If `matvecs` >= p, the diagonal is computed by p products with
        unit vectors instead.
    seed : int, optional
        Seed of the test vectors.

    Returns
    -------
    TraceEstimate
        The estimate. It is exact up to rounding, with a matching standard error, if the diagonal is computed or A has
        rank at most k - 1. For larger ranks the error decreases as fast as the spectrum: it is about that of the
        Girard-Hutchinson estimator for A without its k/2 largest eigenvalues.

    Raises
    ------
    ValueError
        If the operator is invalid, `matvecs` is not an integer of at least 4, or `seed` is not an integer.
    NonFiniteError
        If a product contains NaN or infinity.

    Notes
    -----
    Epperly, Tropp and Webber, "XTrace: making the most of every sample in stochastic trace estimation", SIAM J. Matrix
    Anal. Appl. 45(1), 2024 (arXiv 2301.07825), with test vectors on the sphere and the normalisation of section 2.3.
    Let Y = A Omega = Q R, and let P_i be the orthogonal projection onto the columns of Y without the i-th, d_i their
    rank, and mu_i = (I - P_i) omega_i. As omega_i does not depend on P_i, each

    .. math:: t_i = \mathrm{tr}(P_i A P_i) + \frac{p - d_i}{\|\mu_i\|^2}\, \mu_i^\top A \mu_i

    is unbiased; the value is their mean. The error of a mean of k independent numbers would be their spread over
    sqrt(k), but these share test vectors and are correlated if A has more than k large eigenvalues. The jackknife shows
    how much this adds: the variance (k - 1)/k sum_i (x_i - x)^2, with x_i the value without the i-th test vector, is
    above the true one on average (Efron and Stein 1981), and the spread within each x_i is below it. The stated
    variance is that of the spread times the square root of their ratio. Student's t has (k + 2)/7 degrees of freedom:
    if one eigenvalue dominates, as next to a multiple of the identity, which cannot be projected out, the t_i are
    shifted squares of normal variables, with excess kurtosis 12, and their sample variance is as uncertain as one of
    k/7 degrees of freedom. With two sevenths more, an interval holds in 94% to 98% of cases for k = 2 to 128.

    P_i = Q (I - s_i s_i^T) Q^T with s_i orthogonal to all columns of R but the i-th, which is R^{-T} e_i, normalised.
    With H = Q^T A Q, w_i = Q^T omega_i, y_i = Q r_i and c_i = (I - s_i s_i^T) w_i, so that P_i omega_i = Q c_i,

    .. math:: \mathrm{tr}(P_i A P_i) = \mathrm{tr}\, H - s_i^\top H s_i, \qquad \|\mu_i\|^2 = p - \|c_i\|^2, \qquad
              \mu_i^\top A \mu_i = \omega_i^\top y_i - 2\, c_i^\top r_i + c_i^\top H c_i,

    by A = A^T: everything is computed from k x k matrices, whose entries are accumulated in float64. Columns of Y that
    are combinations of others up to rounding add nothing to Q. Where there are some, Y without its i-th column spans
    the same space, which is the range of A, and P_i = Q Q^T (s_i = 0).

    At most 3 k vectors are in memory at once, those that the operator returns included (and what it needs itself).
    """
    p, operator, seed = check_operator(operator), Scaled(operator), check_seed(seed)
    if not is_whole(matvecs, FEWEST):
        raise ValueError(
            f"matvecs is {matvecs!r}; it must be an integer of at least {FEWEST}: an error estimate takes two "
            "test vectors, with two products each."
        )
    k = int(matvecs) // 2
    if matvecs >= p:
        return _diagonal(operator, p, k)
    omega = _test_vectors(operator, p, k, seed)
    q = _product(operator, omega).T.contiguous()
    own = torch.stack([_gram(omega[i : i + 1], q[i : i + 1].T)[0, 0] for i in range(k)])
    r = _orthonormalise(q)
    rank = len(r)
    q = q[:rank]
    w = _gram(q, omega.T)
    del omega
    h = _gram(q, _product(operator, q)) if rank else torch.zeros(0, 0, dtype=torch.float64, device="cpu")
    h = (h + h.T) / 2
    estimates, rest = _left_out(own, r, w, h, p)
    variance = float(estimates.var()) / k
    if rank == k and variance > 0:
        variance *= math.sqrt(max(1.0, _jackknife(own, r, w, h, p, variance)))
    # Each of the eigenvalues that add up to tr(H) has the backward error of a step, independent of the others'. That of
    # the rest is one of lengths and products, relative to it and perhaps the same for all test vectors.
    largest = float(torch.linalg.eigvalsh(h).abs().max()) if rank else 0.0
    rounding = rounding_unit(operator.dtype) * (math.sqrt(rank) * largest + float(rest.abs().mean()))
    student = float(scipy.special.stdtrit(_freedom(k), 0.975)) / 2
    return _restored(operator, float(estimates.mean()), math.hypot(student * math.sqrt(variance), rounding), k + rank)


def xtrace_to(
    operator: SymmetricOperator,
    relative: float,
    *,
    most: int = LAST,
    seed: int = 0,
    least: float = 0.0,
    on_product: OnStep | None = None,
) -> TraceEstimate:
    """Estimate the trace to a relative error, by `xtrace` with 16, 32, 64, ... products.

    Parameters
    ----------
    operator, seed
        See `xtrace`.
    relative : float
        Wanted half-width of the 95% interval, relative to the trace, in (0, 1).
    most : int, optional
        Largest number of products of one attempt, at least 4; all attempts together take at most twice as many.
    least : float, optional
        Absolute half-width that is enough in any case, such as that of rounding.
    on_product : callable, optional
        Called after each pass over the data with the number of products so far, and with the number after this attempt.

    Returns
    -------
    TraceEstimate
        The estimate of the last attempt, with the number of products of all. The error is as wanted, or that of `most`
        products: a trace near zero, whose eigenvalues cancel, cannot be known to a relative error.

    Raises
    ------
    ValueError, NonFiniteError
        See `xtrace`; ValueError also if `relative` is out of range.
    """
    if not 0 < relative < 1:
        raise ValueError(f"The relative error of a trace is {relative!r}; it must be between 0 and 1, such as 0.02.")
    spent, size = 0, min(FIRST, most)
    while True:
        counted = operator if on_product is None else _Counted(operator, on_product, spent, spent + size)
        found = xtrace(counted, size, seed)
        spent += found.matvecs
        exact = size >= operator.shape[0]
        if size >= most or exact or 2 * found.standard_error <= max(relative * abs(found.value), least):
            return found._replace(matvecs=spent)
        size = min(2 * size, most)


class _Counted:
    """Operator that tells how many products there have been."""

    def __init__(self, operator: SymmetricOperator, on_product: OnStep, done: int, total: int) -> None:
        self._operator, self._on_product, self._done, self._total = operator, on_product, done, total
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        found: Tensor = self._operator @ vectors
        self._done += vectors.shape[1] if vectors.dim() == 2 else 1
        self._on_product(self._done, self._total)
        return found


def _freedom(k: int) -> float:
    """Degrees of freedom of Student's t for the mean of k squares of normal numbers, see the notes of `xtrace`."""
    return (k + 2) / 7


def _left_out(own: Tensor, r: Tensor, w: Tensor, h: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Estimates t_i, each with the projection that leaves its test vector out, and the parts that are inferred.

    Parameters
    ----------
    own : Tensor (k,)
        Omega_i^T A Omega_i.
    r, w : Tensor (d, k)
        Components of Y and of Omega along d orthonormal vectors that span Y.
    h : Tensor (d, d)
        A between them.
    p : int
    """
    rank, k = r.shape
    s, dimension = torch.zeros_like(w), rank
    if rank == k:
        # Scaled, so that neither the inverse of a tiny R nor the squares of its entries overflow.
        s, dimension = (
            torch.linalg.solve_triangular(r.T / r.abs().max(), torch.eye(k, device="cpu").double(), upper=False),
            k - 1,
        )
        s /= s.norm(dim=0)
    c = w - s * (s * w).sum(0)
    rest = (own - 2 * (c * r).sum(0) + (c * (h @ c)).sum(0)) * (p - dimension) / (p - (c * c).sum(0))
    return h.trace() - (s * (h @ s)).sum(0) + rest, rest


def _jackknife(own: Tensor, r: Tensor, w: Tensor, h: Tensor, p: int, variance: float) -> float:
    """Jackknife variance of the value, divided by that of the mean of independent numbers."""
    k = len(own)
    groups = np.array_split(np.arange(k), min(k, GROUPS))
    values, spreads = [], []
    for group in groups:
        kept = torch.from_numpy(np.delete(np.arange(k), group))
        q, inner = torch.linalg.qr(r[:, kept])
        estimates, _ = _left_out(own[kept], inner, q.T @ w[:, kept], q.T @ h @ q, p)
        values.append(float(estimates.mean()))
        # A single remaining vector has no spread: that of both is used.
        spreads.append(float(estimates.var()) / len(kept) if len(kept) > 1 else variance)
    jackknife = (len(groups) - 1) ** 2 / len(groups) * float(np.var(values, ddof=1))
    spread = float(np.mean(spreads))
    return jackknife / spread if spread > 0 else 1.0


def _restored(operator: Scaled, value: float, standard_error: float, matvecs: int) -> TraceEstimate:
    """Convert the estimate to the scale of the operator."""
    numbers = operator.restore(np.array([value, standard_error]))
    if not np.isfinite(numbers).all():
        raise NonFiniteError(
            f"The trace of the operator exceeds the largest float64, {np.finfo(float).max:.2g}; measure the operator "
            "divided by 1024 or more."
        )
    return TraceEstimate(float(numbers[0]), float(numbers[1]), matvecs)


def _diagonal(operator: Scaled, p: int, size: int) -> TraceEstimate:
    """Sum of all e_j^T A e_j, with `size` products at a time."""
    total, largest = 0.0, 0.0
    for start in range(0, p, size):
        stop = min(start + size, p)
        rows = torch.zeros(stop - start, p, dtype=operator.dtype, device=operator.device)
        rows[:, start:stop].diagonal().fill_(1)
        columns = _product(operator, rows)
        total += float(columns[start:stop].diagonal().sum(dtype=torch.float64))
        largest = max(largest, *(norm(column) for column in columns.T))
    return _restored(operator, total, rounding_unit(operator.dtype) * math.sqrt(p) * largest, p)


def _test_vectors(operator: SymmetricOperator | Scaled, p: int, count: int, seed: int) -> Tensor:
    """Draw rows (count, p), independent and uniform on the sphere of radius sqrt(p)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(count, p, dtype=operator.dtype, device=operator.device)
    for row in rows:
        row.copy_(random_vector(p, generator, dtype=operator.dtype, device=operator.device))
        row.mul_(math.sqrt(p) / norm(row))
    return rows


def _product(operator: Scaled, rows: Tensor) -> Tensor:
    """Product of A with the rows (k, p), as columns (p, k)."""
    columns: Tensor = operator @ rows.T
    # A sum is finite only if every entry is; the second check rules out that the sum itself overflows.
    if not columns.sum().isfinite() and not columns.isfinite().all():
        raise NonFiniteError("A product of the operator contains NaN or infinity; its trace cannot be estimated.")
    return columns


def _orthonormalise(rows: Tensor) -> Tensor:
    """Replace the first rows by orthonormal vectors q_1..q_r that span all rows.

    Gram-Schmidt, always twice: the first pass may remove all of the row except rounding.

    Parameters
    ----------
    rows : Tensor (k, p)
        Rows; the first r are overwritten, and the others are undefined afterwards.

    Returns
    -------
    Tensor (r, k)
        Components of the original rows as columns, float64 on the CPU; upper triangular if r = k.
    """
    count, rank = len(rows), 0
    lengths = [norm(row) for row in rows]
    negligible = rounding_unit(rows.dtype) * max(lengths)
    components = torch.zeros(count, count, dtype=torch.float64, device="cpu")
    for i, row in enumerate(rows):
        for _ in range(2):
            components[:rank, i] += _project_out(row, rows[:rank])
        length = norm(row)
        if length > negligible:
            components[rank, i] = length
            rows[rank].copy_(row.mul_(1 / length))
            rank += 1
    return components[:rank]


def _project_out(vector: Tensor, basis: Tensor) -> Tensor:
    """Remove from `vector` (p,), in place, its components along the rows of `basis`, and return them."""
    components = _gram(basis, vector[:, None])[:, 0]
    coefficients = components.to(vector.device)
    for part, columns in zip(torch.split(vector, CHUNK), torch.split(basis, CHUNK, dim=1), strict=True):
        part.sub_((coefficients @ columns.to(torch.float64)).to(vector.dtype))
    return components


def _gram(rows: Tensor, columns: Tensor) -> Tensor:
    """Compute inner products (k, l) of rows (k, p) and columns (p, l), in float64, on the CPU."""
    total = torch.zeros(len(rows), columns.shape[1], dtype=torch.float64, device=rows.device)
    for a, b in zip(torch.split(rows, CHUNK, dim=1), torch.split(columns, CHUNK), strict=True):
        total += a.to(torch.float64) @ b.to(torch.float64)
    return total.cpu()
