"""Densities of the bulk of a spectrum: kernel smoothing of its quadrature nodes, on NumPy arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import scipy.special
import xarray as xr

from hesspec.spectra.sampling import Sample, mean_bounds, node_bounds, samples, standard_error
from hesspec.spectra.scaling import ordinary

if TYPE_CHECKING:
    from hesspec.spectra.spectrum import Spectrum

__all__ = ["bulk_atoms", "density", "log_density", "zero_peak"]

Array = npt.NDArray[np.float64]

GRID_POINTS: Final = 1024
# Halfway between two nodes of equal weight, kernels of width `spacing / sqrt(8 ln KAPPA)` have fallen to 1 / KAPPA of
# their peak; 1.25 is the value in the code released with arXiv 1811.07062 (its text says 3, which leaves ripples).
KAPPA: Final = 1.25
# On the logarithmic axis: number of points, narrowest kernel relative to |lambda|, and spacing relative to ||A|| below
# which nodes are merged.
LOG_POINTS: Final = 512
RELATIVE_WIDTH: Final = 0.05
LOG_FLOOR: Final = 1e-8


def bulk_atoms(spectrum: Spectrum) -> tuple[Array, Array, Array]:
    """Points of the measure without outliers, ascending, their weights, and their error bounds."""
    inside = ~spectrum.is_outlier
    nodes = np.concatenate([spectrum.eigenvalues[inside], spectrum.bulk_nodes])
    weights = np.concatenate([spectrum.eigenvalue_weights[inside], spectrum.bulk_weights])
    bounds = np.concatenate([mean_bounds(spectrum)[inside], node_bounds(spectrum)])
    order = np.argsort(nodes, kind="stable")
    return nodes[order], weights[order], bounds[order]


def density(spectrum: Spectrum, grid: Array | None, width: float | None) -> xr.Dataset:
    """Compute `Spectrum.density`."""
    spectrum, exponent = _ordinary(spectrum)
    if grid is not None:
        grid = np.ldexp(np.asarray(grid, float), -exponent)
    width = None if width is None else float(np.ldexp(width, -exponent))
    nodes, weights, _ = bulk_atoms(spectrum)
    low, high = spectrum.bulk_range if nodes.size else (0.0, 0.0)
    step = (high - low) / (GRID_POINTS - 1) if _is_wide(spectrum) else 0.0
    # A single point, or points that coincide: an atom, drawn as narrow as a plot of the whole spectrum allows.
    floor = step or (spectrum.norm or 1.0) / GRID_POINTS
    widths = np.maximum(bulk_widths(spectrum), floor) if width is None else np.full(nodes.size, width)
    ends = (low, high) if step else (-np.inf, np.inf)
    if grid is None:
        x = np.linspace(low, high, GRID_POINTS) if step else low + 4 * floor * np.linspace(-1, 1, GRID_POINTS)
    else:
        x = grid

    def kernels(where: Array) -> Array:
        at = _nearest(nodes, where)
        return _reflected(x, where, widths[at] if at.size else np.ones(where.size), ends)

    smoothed, error = kernels(nodes) @ weights, standard_error(_without_outliers(spectrum), kernels)
    share, reach = zero_peak(spectrum)
    middle = float(np.median(widths)) if nodes.size else 0.0
    # Of bulks below 1e-300 in units of eigenvalues, densities may exceed the largest float64.
    with np.errstate(over="ignore"):
        smoothed, error = np.ldexp(smoothed, -exponent), np.ldexp(error, -exponent)
    return xr.Dataset(
        {"density": ("eigenvalue", smoothed), "standard_error": ("eigenvalue", error)},
        coords={"eigenvalue": np.ldexp(x, exponent)},
        attrs={
            "width": float(np.ldexp(middle, exponent)),
            "zero_share": share,
            "zero_reach": float(np.ldexp(reach, exponent)),
        },
    )


def _ordinary(spectrum: Spectrum) -> tuple[Spectrum, int]:
    """See `ordinary`; with the p-values of the spectrum, which may be those of a series."""
    scaled, exponent = ordinary(spectrum)
    return (scaled.with_outlier_p_values(spectrum.outlier_p_values) if exponent else spectrum), exponent


def _is_wide(spectrum: Spectrum) -> bool:
    """Whether the bulk is wider than a single point, given rounding."""
    return bool(np.ptp(spectrum.bulk_range) > LOG_FLOOR * spectrum.norm)


def _nearest(nodes: Array, where: Array) -> npt.NDArray[np.intp]:
    """Indices of the nodes, ascending, that are nearest to given points."""
    if not nodes.size:
        return np.zeros(0, np.intp)
    right = np.clip(np.searchsorted(nodes, where), 0, nodes.size - 1)
    left = np.maximum(right - 1, 0)
    return np.where(np.abs(nodes[left] - where) < np.abs(nodes[right] - where), left, right)


def _reflected(x: Array, centres: Array, widths: Array, ends: tuple[float, float], unit: Array | float = 1.0) -> Array:
    """Gaussians reflected at two ends, so that their mass in between is 1, multiplied by a unit; shape (x, centres)."""
    low, high = ends
    found = np.zeros((x.size, centres.size))
    # Points beyond an end that is zero are zero up to rounding.
    mirrors = [np.clip(centres, low, high)]
    if np.isfinite(low):
        centres = mirrors[0]
        # A kernel wider than the whole range is flat; its mass within the range would be dominated by rounding.
        widths = np.minimum(widths, high - low)
        mirrors += [low - (centres - low), high + (high - centres)]
    # So far from its centre that this is infinite in units of its width, a kernel is zero.
    with np.errstate(over="ignore"):
        for mirror in mirrors:
            found += np.exp(-0.5 * ((x[:, None] - mirror) / widths) ** 2) * (unit / widths / np.sqrt(2 * np.pi))
        if not np.isfinite(low):
            return found
        # Second reflections, for kernels as wide as the whole range.
        inside = [(mirror - low) / widths for mirror in mirrors], [(mirror - high) / widths for mirror in mirrors]
    mass = sum(scipy.special.ndtr(a) - scipy.special.ndtr(b) for a, b in zip(*inside, strict=True))
    return np.where(((x >= low) & (x <= high))[:, None], found / mass, 0.0)


def _without_outliers(spectrum: Spectrum) -> list[Sample]:
    """Samples of the probes without the outliers, which are not part of the density of the bulk."""
    outliers = spectrum.outliers
    return [
        replace(
            sample,
            counted=sample.counted[~(inside := np.isin(sample.counted, outliers))],
            counted_weights=sample.counted_weights[~inside],
        )
        for sample in samples(spectrum, doubtful=False)
    ]


def zero_peak(spectrum: Spectrum) -> tuple[float, float]:
    """Share of all eigenvalues in points of the bulk that may be zero within their bounds, and the largest such bound.

    These are zero, or too small to be told from zero: their sign is unknown.
    """
    nodes, weights, bounds = bulk_atoms(spectrum)
    zero = np.abs(nodes) <= np.maximum(bounds, spectrum.rounding)
    return float(weights[zero].sum()), float((np.abs(nodes) + bounds)[zero].max(initial=0.0))


def log_density(spectrum: Spectrum) -> xr.Dataset:
    """Compute `Spectrum.log_density`."""
    spectrum, exponent = _ordinary(spectrum)
    nodes, weights, _ = bulk_atoms(spectrum)
    if not nodes.size or not spectrum.norm > 0:
        logs, positive, negative, error = (np.empty(0) for _ in range(4))
    else:
        widths = np.maximum(bulk_widths(spectrum), RELATIVE_WIDTH * np.abs(nodes))
        ends = max(abs(end) for end in spectrum.bulk_range)
        resolution, top = widths[np.argmin(np.abs(nodes))], ends or float(widths.max())
        logs = np.linspace(np.log10(min(resolution, top / 10)), np.log10(top), LOG_POINTS)
        # Rounding may put the last power of ten beyond the end of the bulk, where the density is zero.
        magnitude = np.minimum(10**logs, top)

        def kernels(where: Array) -> tuple[Array, Array]:
            width = widths[_nearest(nodes, where)]
            scale = (magnitude * np.log(10))[:, None]
            low, high = spectrum.bulk_range if _is_wide(spectrum) else (-np.inf, np.inf)
            return (
                _reflected(magnitude, where, width, (low, high), scale),
                _reflected(-magnitude, where, width, (low, high), scale),
            )

        positive, negative = (part @ weights for part in kernels(nodes))
        error = standard_error(_without_outliers(spectrum), lambda where: np.add(*kernels(where)))
    return xr.Dataset(
        {
            "density": ("log10_magnitude", positive + negative),
            "positive": ("log10_magnitude", positive),
            "negative": ("log10_magnitude", negative),
            "standard_error": ("log10_magnitude", error),
        },
        coords={"log10_magnitude": logs + exponent * np.log10(2)},
    )


def bulk_widths(spectrum: Spectrum) -> Array:
    """Standard deviations of the kernels, one for each of `bulk_atoms`, from the distances to their neighbours.

    The distance is averaged over two neighbours on either side, as distances alternate where Ritz values converge;
    nodes of different probes do not count as neighbours. The kernel of a point that may be zero is at most as wide as
    its residual bound, the standard deviation of the eigenvalues in its Ritz vector, so that a peak at zero stays a
    peak.
    """
    inside = ~spectrum.is_outlier
    resolved, floor = spectrum.eigenvalues[inside], LOG_FLOOR * spectrum.norm
    nodes = np.concatenate([resolved, spectrum.bulk_nodes])
    distances = np.full(nodes.size, np.inf)
    for probe in range(spectrum.probes):
        mine = np.append(np.arange(resolved.size), resolved.size + np.flatnonzero(spectrum.bulk_probe == probe))
        # Copies of a resolved eigenvalue have its position and width.
        places, same = np.unique(nodes[mine], return_inverse=True)
        if places.size > 1:
            index = np.arange(places.size)
            right, left = np.minimum(index + 2, places.size - 1), np.maximum(index - 2, 0)
            distances[mine] = np.minimum(distances[mine], ((places[right] - places[left]) / (right - left))[same])
    widths = np.where(np.isfinite(distances), distances, 0.0) / np.sqrt(8 * np.log(KAPPA))
    order = np.argsort(nodes, kind="stable")
    widths, (ascending, _, bounds) = widths[order], bulk_atoms(spectrum)
    widths = np.where(np.abs(ascending) <= bounds, np.minimum(widths, bounds), widths)
    return np.asarray(np.maximum(widths, floor))
