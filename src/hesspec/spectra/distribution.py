"""Distribution of the estimated measure: CDF, rigorous bracket, quantiles and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import xarray as xr

from hesspec.spectra.densities import bulk_atoms
from hesspec.spectra.record import Array
from hesspec.spectra.sampling import Estimate, samples, share_limits, standard_error

if TYPE_CHECKING:
    from hesspec.spectra.spectrum import Spectrum

__all__ = ["bulk_edge_estimates", "bulk_range", "cdf", "cdf_bracket", "count_negative"]

# Share of the bulk beyond each of its edges. Networks have about as many outliers as classes, 10 of 4,000 eigenvalues
# or more, so the edges hardly depend on whether these count as bulk.
EDGE_SHARE: Final = 0.005


def cdf(spectrum: Spectrum, x: Array | None) -> xr.Dataset:
    """See `Spectrum.cdf`."""
    nodes, weights = spectrum.nodes, spectrum.weights
    x = nodes if x is None else np.atleast_1d(np.asarray(x, float))
    cumulative = np.concatenate([[0.0], np.cumsum(weights)])
    error = standard_error(samples(spectrum, doubtful=False), lambda nodes: (nodes <= x[:, None]).astype(float))
    return xr.Dataset(
        {
            "cdf": ("eigenvalue", cumulative[np.searchsorted(nodes, x, side="right")]),
            "standard_error": ("eigenvalue", error),
        },
        coords={"eigenvalue": x},
    )


def cdf_bracket(spectrum: Spectrum, x: Array | None) -> xr.Dataset:
    """See `Spectrum.cdf_bracket`."""
    first = spectrum.ritz_probe == 0
    order = np.argsort(spectrum.ritz_values[first], kind="stable")
    nodes, weights = spectrum.ritz_values[first][order], spectrum.ritz_weights[first][order]
    x = nodes if x is None else np.atleast_1d(np.asarray(x, float))
    shift = float(np.sqrt(spectrum.rounding) * np.sqrt(spectrum.norm))
    leak = spectrum.rounding / shift if shift > 0 else 0.0
    slack = 2 * leak + leak**2
    cumulative = np.concatenate([[0.0], np.cumsum(weights), [np.inf]])
    # i Ritz values are certainly <= x: the sum of the weights of all of them but the last is certainly below the CDF.
    # If the Krylov space of the probe is invariant, they make up its whole measure.
    between = 0 if (spectrum.ritz_bounds[first] <= spectrum.rounding).all() else 1
    certain = np.searchsorted(nodes, x - shift, side="right")
    lower = cumulative[np.maximum(certain - between, 0)] - slack
    possible = np.searchsorted(nodes, x + shift, side="right")
    upper = cumulative[np.minimum(possible + between, len(nodes) + 1)] + slack
    lower, upper = np.clip(lower, 0, 1), np.clip(upper, 0, 1)
    limits = share_limits(lower, upper, spectrum.dimension)
    return xr.Dataset(
        {
            "lower": ("eigenvalue", lower),
            "upper": ("eigenvalue", upper),
            "operator_lower": ("eigenvalue", limits[0]),
            "operator_upper": ("eigenvalue", limits[1]),
        },
        coords={"eigenvalue": x},
    )


def bulk_edge_estimates(spectrum: Spectrum) -> tuple[Estimate, Estimate]:
    """See `Spectrum.bulk_edge_estimates`."""
    nodes, weights, bounds = bulk_atoms(spectrum)
    if not nodes.size:
        return (Estimate(np.nan, np.nan, np.nan),) * 2
    total = float(weights.sum())
    beyond = spectrum.outliers < nodes[0]
    below = float(spectrum.eigenvalue_weights[spectrum.is_outlier][beyond].sum())
    bracket = None if spectrum.exact else spectrum.cdf_bracket(nodes)
    found = []
    for share in (EDGE_SHARE, 1 - EDGE_SHARE):
        place = int(np.searchsorted(np.cumsum(weights), share * total * (1 - 1e-12)))
        place = min(place, nodes.size - 1)
        lower = upper = place
        if bracket is not None:
            wanted = below + share * total
            lower = int(np.argmax(bracket.operator_upper.to_numpy() >= wanted))
            enough = bracket.operator_lower.to_numpy() >= wanted
            upper = int(np.argmax(enough)) if enough.any() else nodes.size - 1
        lower, upper = min(lower, place), max(upper, place)
        edge = float(nodes[place]), float(nodes[lower] - bounds[lower]), float(nodes[upper] + bounds[upper])
        # Nodes of a positive semi-definite operator are negative by rounding only.
        found.append(Estimate(*(max(x, 0.0) for x in edge)) if spectrum.is_positive else Estimate(*edge))
    return found[0], found[1]


def bulk_range(spectrum: Spectrum) -> tuple[float, float]:
    """See `Spectrum.bulk_range`."""
    nodes, _, bounds = bulk_atoms(spectrum)
    if not nodes.size:
        return np.nan, np.nan
    low, high = float(nodes[0]), float(nodes[-1])
    if abs(low) <= max(float(bounds[0]), spectrum.rounding):
        low = 0.0
    elif abs(high) <= max(float(bounds[-1]), spectrum.rounding):
        high = 0.0
    return low, high


def count_negative(spectrum: Spectrum) -> Estimate:
    """See `Spectrum.num_negative`."""
    if spectrum.is_positive:
        return Estimate(0.0, 0.0, 0.0)
    value = float(spectrum.weights[spectrum.nodes < -spectrum.rounding].sum()) * spectrum.dimension
    if spectrum.exact:
        lower, upper = _signs(spectrum)
    else:
        bracket = spectrum.cdf_bracket(np.array([-spectrum.rounding, spectrum.rounding]))
        lower, upper = spectrum.dimension * bracket.operator_lower[0], spectrum.dimension * bracket.operator_upper[1]
        # The signs of resolved eigenvalues do not depend on sampling.
        copies = spectrum.eigenvalue_weights * spectrum.dimension
        signs = np.abs(spectrum.eigenvalues) > spectrum.error_bounds
        lower = max(float(lower), float(copies[signs & (spectrum.eigenvalues < 0)].sum()))
        upper = min(float(upper), spectrum.dimension - float(copies[signs & (spectrum.eigenvalues > 0)].sum()))
    return Estimate(value, min(lower, value), max(upper, value))


def _signs(spectrum: Spectrum) -> tuple[float, float]:
    """Least and largest number of negative eigenvalues of an exact spectrum.

    Of eigenvalues with a root-mean-square distance of `rounding` from a common value a, at most the share (rounding /
    a)^2 has the opposite sign.
    """
    copies, sizes = np.rint(spectrum.eigenvalue_weights * spectrum.dimension), np.abs(spectrum.eigenvalues)
    share = np.where(sizes > spectrum.rounding, spectrum.rounding / np.where(sizes > 0, sizes, 1.0), 1.0) ** 2
    unsure = np.floor(copies * share) if spectrum.rounding > 0 else np.zeros(copies.size)
    negative = spectrum.eigenvalues < 0
    return float((copies - unsure)[negative].sum()), float(copies[negative].sum() + unsure[~negative].sum())
