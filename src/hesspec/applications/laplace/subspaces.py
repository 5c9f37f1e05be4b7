r"""Parameter subspaces for Laplace approximations: the optimal one for given inputs, and comparisons.

With J the stacked Jacobian of the outputs of m inputs (n = m C rows), Psi the posterior covariance, and P (p, s),

.. math:: \Sigma = J \Psi J^\top, \qquad \Sigma_P = J P (P^\top \Psi^{-1} P)^{-1} P^\top J^\top .

P* = Psi J^T U_s, with U_s the top eigenvectors of Sigma, has Sigma_P* = U_s Lambda_s U_s^T (official code of Faller and
Martin, "Low Rank Based Subspace Inference for the Laplace Approximation", arXiv 2502.02345). As Sigma_P is at most
Sigma and has rank s for every P, this is optimal in every unitarily invariant norm (Eckart and Young), and a larger
trace is better, which justifies their metric log Tr Sigma_P.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from hesspec.applications.laplace.likelihood import likelihood_of, positive
from hesspec.applications.laplace.posterior import Laplace
from hesspec.backend.numbers import check_seed, is_whole
from hesspec.errors import InputError
from hesspec.krylov.conjugate_gradients import conjugate_gradients
from hesspec.spectra.spectrum import Spectrum

__all__ = [
    "Subspace",
    "compare_subspaces",
    "largest_diagonal_variance",
    "largest_magnitude",
    "last_layer",
    "optimal_subspace",
    "random_subspace",
    "required_dimension",
    "top_eigenvectors",
]

METRICS = ("relative_error", "trace", "log_trace", "kl", "w2")


class Subspace(NamedTuple):
    """Optimal subspace for given inputs.

    Attributes
    ----------
    vectors : Tensor (p, s)
        Orthonormal columns; the first r span the optimal subspace of dimension r.
    eigenvalues : float64 Tensor (n,)
        Eigenvalues of Sigma, descending.
    relative_error : float
        Error ||Sigma - Sigma_P||_F / ||Sigma||_F.
    """

    vectors: Tensor
    eigenvalues: Tensor
    relative_error: float


def optimal_subspace(laplace: Laplace, inputs: Any, dimension: int, *, tolerance: float = 1e-8) -> Subspace:
    """Compute the subspace whose Laplace approximation has the smallest error at given inputs.

    It depends on the inputs at which it is evaluated, so it is a benchmark for other subspaces, not a method. It needs
    n backward passes, n solves with the precision matrix, and 2 n p numbers of memory.

    Parameters
    ----------
    laplace : Laplace
        Laplace approximation.
    inputs
        See `Laplace.covariance`.
    dimension : int
        Dimension s, at most the number n of outputs of all inputs.
    tolerance : float
        Relative tolerance of the solves.

    Raises
    ------
    ValueError
        If the dimension is not from 1 to n, or all outputs have no variance.
    """
    _, solved, sigma = _predictive(laplace, inputs, tolerance)
    n = len(sigma)
    if not is_whole(dimension) or not 1 <= dimension <= min(n, solved.shape[0]):
        raise InputError(
            f"dimension is {dimension!r}; it must be an integer from 1 to {min(n, solved.shape[0])}, the number of "
            "outputs of all inputs or of parameters."
        )
    values, vectors = torch.linalg.eigh(sigma)
    values, vectors = values.flip(0), vectors.flip(1)
    best = solved @ vectors[:, : int(dimension)].to(solved.dtype)
    error = float(values[int(dimension) :].norm() / values.norm())
    return Subspace(torch.linalg.qr(best)[0], values, error)


def compare_subspaces(
    laplace: Laplace,
    inputs: Any,
    subspaces: Mapping[str, Tensor],
    sizes: Sequence[int],
    *,
    ridge: float = 0.1,
    tolerance: float = 1e-8,
) -> xr.Dataset:
    """Compare Laplace approximations in subspaces with the full one, by the dimension of the subspace.

    Parameters
    ----------
    laplace : Laplace
        Laplace approximation.
    inputs
        See `Laplace.covariance`.
    subspaces : mapping of str to Tensor
        Floating-point P (p, s), whose first r columns span the subspace of dimension r; or indices (s,) of parameters.
        Each subspace needs s products.
    sizes : sequence of int
        Dimensions r. Results are NaN for a subspace with fewer columns.
    ridge : float
        Multiple of the identity that is added to both covariances for the Kullback-Leibler divergence, in squared units
        of the outputs.
    tolerance : float
        Relative tolerance of the solves for Sigma.

    Returns
    -------
    xarray.Dataset
        Over `subspace` and `size`: `relative_error` in the Frobenius norm; `trace` and `log_trace` of Sigma_P (-inf
        where it is zero); `kl`, the divergence of N(0, Sigma_P + ridge) from N(0, Sigma + ridge), in nats; `w2`, the
        2-Wasserstein distance of N(0, Sigma_P) and N(0, Sigma), in units of the outputs. Attribute `trace` is that of
        Sigma.

    Raises
    ------
    ValueError
        If a subspace is not of these parameters, a size is not positive, or all outputs have no variance.
    """
    positive("ridge", ridge)
    if not sizes or any(not is_whole(size, 1) for size in sizes):
        raise InputError(f"sizes is {sizes!r}; it must contain positive integers.")
    rows, _, sigma = _predictive(laplace, inputs, tolerance)
    found = np.full((len(METRICS), len(subspaces), len(sizes)), np.nan)
    for i, (name, given) in enumerate(subspaces.items()):
        basis = torch.linalg.qr(_columns(laplace, name, given)[:, : max(sizes)])[0]
        scale = laplace.marginal.likelihood.scale
        precision = scale * (basis.T @ (laplace.operator @ basis)).double()
        precision = (precision + precision.T) / 2 + laplace.one_prior_precision * torch.eye(
            basis.shape[1], dtype=torch.float64, device=basis.device
        )
        pushed = (rows @ basis).double()
        for j, size in enumerate(sizes):
            if size <= basis.shape[1]:
                half = pushed[:, :size]
                approximate = half @ torch.linalg.solve(precision[:size, :size], half.T)
                found[:, i, j] = _metrics(sigma, (approximate + approximate.T) / 2, ridge)
    return xr.Dataset(
        {name: (("subspace", "size"), found[k]) for k, name in enumerate(METRICS)},
        coords={"subspace": list(subspaces), "size": list(sizes)},
        attrs={"trace": float(sigma.trace()), "ridge": ridge},
    )


def _metrics(sigma: Tensor, approximate: Tensor, ridge: float) -> tuple[float, ...]:
    trace = float(approximate.trace())
    shift = ridge * torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device)
    full, part = torch.linalg.cholesky(sigma + shift), torch.linalg.cholesky(approximate + shift)
    ratio = float(torch.linalg.solve_triangular(full, part, upper=False).square().sum())
    logarithms = 2 * float(full.diagonal().log().sum() - part.diagonal().log().sum())
    values, vectors = torch.linalg.eigh(sigma)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # Tr (S^1/2 T S^1/2)^1/2 is the nuclear norm of S^1/2 T^1/2.
    values, vectors = torch.linalg.eigh(approximate)
    fidelity = float(torch.linalg.matrix_norm(root @ (vectors * values.clamp(min=0).sqrt()), "nuc"))
    return (
        float((sigma - approximate).norm() / sigma.norm()),
        trace,
        math.log(trace) if trace > 0 else -math.inf,
        max((ratio - len(sigma) + logarithms) / 2, 0.0),
        math.sqrt(max(float(sigma.trace()) + trace - 2 * fidelity, 0.0)),
    )


def _predictive(laplace: Laplace, inputs: Any, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return J (n, p), Psi J^T (p, n) and Sigma (n, n) in float64."""
    rows = torch.cat([rows for _, rows in laplace.jacobians(inputs)])
    found = conjugate_gradients(
        laplace.multiply_precision,
        rows.T,
        preconditioner=laplace.pairs.inverse(laplace.marginal.likelihood.scale, laplace.one_prior_precision),
        tolerance=positive("tolerance", tolerance),
        max_iterations=rows.shape[1],
    )
    sigma = rows.double() @ found.x.double() + found.x.T.double() @ found.residual.double()
    sigma = (sigma + sigma.T) / 2
    if not float(sigma.norm()) > 0:
        raise InputError("No output varies with the selected parameters at these inputs: Sigma is zero.")
    return rows, found.x, sigma


def _columns(laplace: Laplace, name: str, given: Tensor) -> Tensor:
    """Return P (p, s) for a subspace given by vectors or indices."""
    p = laplace.theta.numel()
    if given.is_floating_point():
        if given.dim() != 2 or given.shape[0] != p:
            raise InputError(f"The subspace {name!r} has shape {tuple(given.shape)}; vectors must have shape ({p}, s).")
        return given.to(laplace.theta)
    if given.dim() != 1 or not bool(((given >= 0) & (given < p)).all()) or len(set(given.tolist())) != len(given):
        raise InputError(f"The subspace {name!r} must contain distinct indices of parameters, from 0 to {p - 1}.")
    chosen = torch.zeros(p, len(given), dtype=laplace.theta.dtype, device=laplace.theta.device)
    chosen[given, torch.arange(len(given))] = 1.0
    return chosen


# Subspaces to compare with --------------------------------------------------------------------------------------------


def top_eigenvectors(laplace: Laplace, size: int) -> Tensor:
    """Top eigenvectors (p, s) of G: the directions of least posterior variance, for comparison only."""
    return laplace.pairs.vectors[:, :size]


def largest_magnitude(laplace: Laplace, size: int) -> Tensor:
    """Indices (s,) of the parameters with the largest absolute value."""
    return laplace.theta.abs().topk(min(size, laplace.theta.numel())).indices


def largest_diagonal_variance(laplace: Laplace, size: int) -> Tensor:
    """Indices (s,) of the parameters with the largest variance in the low-rank posterior."""
    scale, prior = laplace.marginal.likelihood.scale, laplace.one_prior_precision
    a = scale * laplace.pairs.values
    seen = laplace.pairs.vectors.double().square() @ (a / (a + prior))
    found: Tensor = (-seen).topk(min(size, seen.numel())).indices
    return found


def last_layer(laplace: Laplace) -> Tensor:
    """Indices of the parameters of the module that contains the last selected parameter."""
    names = laplace.operator.names
    module = names[-1].rpartition(".")[0]
    marks = laplace.operator.to_named(torch.arange(laplace.theta.numel(), device=laplace.theta.device))
    return torch.cat([marks[name].reshape(-1) for name in names if name.rpartition(".")[0] == module])


def random_subspace(laplace: Laplace, size: int, *, seed: int = 0) -> Tensor:
    """Random orthonormal vectors (p, s)."""
    generator = torch.Generator().manual_seed(check_seed(seed))
    normal = torch.randn(laplace.theta.numel(), size, dtype=laplace.theta.dtype, generator=generator, device="cpu")
    orthonormal: Tensor = torch.linalg.qr(normal)[0]
    return orthonormal.to(laplace.theta.device)


def required_dimension(spectrum: Spectrum, *, prior_precision: float, noise: float = 1.0, error: float = 0.05) -> int:
    r"""Estimate the dimension that the optimal subspace needs for a relative error on the training inputs.

    At the training inputs the eigenvalues of Sigma, in the metric of the likelihood's curvature, are L_i = a_i/(a_i +
    t) with a_i those of the data precision, so the error is sqrt(sum_{i > s} L_i^2 / sum L_i^2), L_i descending (our
    derivation). It is estimated from the spectral measure, without any product.

    Parameters
    ----------
    spectrum : Spectrum
        Spectrum of `hesspec.GaussNewton`.
    prior_precision, noise : float
        See `Laplace`.
    error : float
        Relative error in the Frobenius norm, between 0 and 1.

    Raises
    ------
    ValueError
        If an argument is out of range, or the loss is not a negative log-likelihood.
    """
    if not 0 < error < 1:
        raise InputError(f"error is {error!r}; it must be between 0 and 1.")
    prior = positive("prior_precision", prior_precision)
    a = likelihood_of(spectrum.attributes, noise).scale * np.maximum(spectrum.nodes[::-1], 0.0)
    squares, counts = (a / (a + prior)) ** 2, spectrum.weights[::-1] * spectrum.dimension
    total = float(squares @ counts)
    if not total > 0:
        return 0
    left = total - np.concatenate([[0.0], np.cumsum(squares * counts)])
    place = int(np.argmax(left[1:] <= error**2 * total + np.finfo(float).eps * total))
    within = (left[place] - error**2 * total) / squares[place]
    return math.ceil(float(counts[:place].sum() + max(within, 0.0)) - 1e-9 * spectrum.dimension)
