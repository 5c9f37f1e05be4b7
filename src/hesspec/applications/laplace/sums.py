r"""Sums of operator-monotone concave functions over all eigenvalues, with intervals.

The derivatives of log(1 + x/t) and x/(x + t) on x > -t alternate in sign, so that for the measure of a probe

.. math:: R \le v^\top f(A) v \le Q

with Q the Gauss quadrature of the Krylov run and R its Gauss-Radau quadrature with a node at the left end of the
spectrum (Golub and Meurant 1994). The nodes of R are the eigenvalues of the tridiagonal matrix extended by a row whose
diagonal entry places an eigenvalue at that end. In the basis of Ritz vectors this matrix is an arrow matrix: Ritz
values on the diagonal and, in the last row, beta times the last components of the Ritz vectors, which are the residual
bounds. The product of first and last component alternates in sign from one Ritz value to the next.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hesspec.spectra.record import Array
from hesspec.spectra.sampling import Estimate, interval, samples
from hesspec.spectra.spectrum import Spectrum

__all__ = ["quadrature_gap", "sum_over_eigenvalues"]

Function = Callable[[Array], Array]


def sum_over_eigenvalues(spectrum: Spectrum, function: Function) -> Estimate:
    """Estimate sum_i f(lambda_i) over all p eigenvalues of a positive semi-definite matrix, with an interval of 95%.

    Parameters
    ----------
    spectrum : Spectrum
        Spectrum of the matrix.
    function : callable
        Function f of arrays of nonnegative numbers: increasing, f(0) = 0, with derivatives of alternating signs. Ritz
        values below zero, which are due to rounding, are set to zero.

    Returns
    -------
    Estimate
        The interval includes the error bounds of resolved eigenvalues, the bracket of the quadrature, and sampling by
        the probes; resolved eigenvalues may have copies that a probe does not see. Rounding of the bulk, at most p
        f(`spectrum.rounding`), is not included.
    """
    p = spectrum.dimension

    def clipped(values: Array) -> Array:
        return function(np.maximum(values, 0.0))

    copies, bounds = spectrum.eigenvalue_weights * p, spectrum.error_bounds
    resolved = copies @ clipped(spectrum.eigenvalues)
    value = float(resolved + p * (spectrum.bulk_weights @ clipped(spectrum.bulk_nodes)))
    down = float(resolved - copies @ clipped(spectrum.eigenvalues - bounds))
    up = float(copies @ clipped(spectrum.eigenvalues + bounds) - resolved)
    if spectrum.exact:
        return Estimate(value, value - down, value + up)
    lower, upper = interval(samples(spectrum, doubtful=True), clipped)
    lower = p * lower - down - p * quadrature_gap(spectrum, clipped)
    # Resolved eigenvalues exist, whatever weight a probe has measured for them.
    least = float(resolved) - down
    return Estimate(value, min(max(lower, least), value), max(p * upper + up, value))


def quadrature_gap(spectrum: Spectrum, function: Function) -> float:
    """Mean over probes of Q - R, the largest amount by which v^T f(A) v can be below its Gauss quadrature."""
    unit = spectrum.norm if spectrum.norm > 0 else 1.0
    gaps = []
    for probe in range(spectrum.probes):
        mine = spectrum.ritz_probe == probe
        order = np.argsort(spectrum.ritz_values[mine], kind="stable")
        nodes, weights = spectrum.ritz_values[mine][order] / unit, spectrum.ritz_weights[mine][order]
        floor = spectrum.rounding / unit
        residuals = np.maximum(spectrum.ritz_bounds[mine][order] / unit - floor, 0.0)
        end = min(float(nodes[0]), 0.0) - max(floor, np.finfo(float).eps)
        arrow = np.diag(np.append(nodes, end + float(np.sum(residuals**2 / (nodes - end)))))
        signs = np.where(np.arange(nodes.size) % 2 == 0, 1.0, -1.0)
        arrow[-1, :-1] = arrow[:-1, -1] = signs * residuals
        values, vectors = np.linalg.eigh(arrow)
        radau = (vectors[:-1].T @ np.sqrt(weights)) ** 2
        gaps.append(float(weights @ function(nodes * unit) - radau @ function(values * unit)))
    return max(float(np.mean(gaps)), 0.0)
