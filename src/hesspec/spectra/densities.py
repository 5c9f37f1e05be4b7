"""Densities of the bulk of a spectrum, smoothed over its quadrature nodes, on NumPy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from hesspec.spectra.sampling import mean_bounds, node_bounds, samples, standard_error

if TYPE_CHECKING:
    from hesspec.spectra.spectrum import Spectrum

__all__ = ["bulk_atoms", "density", "log_density"]

Array = npt.NDArray[np.float64]

GRID_POINTS: Final = 1024
MARGIN: Final = 0.05
# Half-way between two nodes of equal weight the kernels of width `spacing / sqrt(8 ln KAPPA)` have fallen to 1 / KAPPA
# of their peak; 1.25 is the value of the code released with arXiv 1811.07062 (its text has 3, which leaves ripples).
KAPPA: Final = 1.25
# On the logarithmic axis: points, narrowest kernel relative to |lambda|, and spacing relative to ||A|| below which
# nodes are taken for one.
LOG_POINTS: Final = 512
RELATIVE_WIDTH: Final = 0.05
LOG_FLOOR: Final = 1e-8


def bulk_atoms(spectrum: Spectrum) -> tuple[Array, Array, Array]:
    """Points of the measure without outliers, ascending, their weights, and bounds of their errors."""
    inside = ~spectrum.is_outlier
    nodes = np.concatenate([spectrum.eigenvalues[inside], spectrum.bulk_nodes])
    weights = np.concatenate([spectrum.eigenvalue_weights[inside], spectrum.bulk_weights])
    bounds = np.concatenate([mean_bounds(spectrum)[inside], node_bounds(spectrum)])
    order = np.argsort(nodes, kind="stable")
    return nodes[order], weights[order], bounds[order]


def density(spectrum: Spectrum, grid: Array | None, width: float | None) -> xr.Dataset:
    """As `Spectrum.density`."""
    width = _width(spectrum) if width is None else width
    x = _grid(spectrum, width) if grid is None else np.asarray(grid, float)

    def kernels(nodes: Array) -> Array:
        scaled = (x[:, None] - nodes) / width
        return np.asarray(np.exp(-0.5 * scaled**2) / (width * np.sqrt(2 * np.pi)))

    # Below 1e-305 in units of eigenvalues, densities exceed the largest float64.
    with np.errstate(over="ignore"):
        smoothed = kernels(spectrum.bulk_nodes) @ spectrum.bulk_weights
        error = standard_error(samples(spectrum, doubtful=False), kernels)
    return xr.Dataset(
        {"density": ("eigenvalue", smoothed), "standard_error": ("eigenvalue", error)},
        coords={"eigenvalue": x},
        attrs={"width": width},
    )


def _width(spectrum: Spectrum) -> float:
    nodes = spectrum.bulk_nodes.size / max(spectrum.probes, 1)
    half_range = float(np.ptp(spectrum.bulk_nodes)) / 2 * (1 + MARGIN) if spectrum.bulk_nodes.size else 0.0
    width = half_range * 2 / max(nodes - 1, 1) / np.sqrt(8 * np.log(KAPPA))
    # One node, or nodes that coincide: an atom, drawn as narrow as the picture of the whole spectrum allows.
    return float(width) or (spectrum.norm or 1.0) / GRID_POINTS


def _grid(spectrum: Spectrum, width: float) -> Array:
    nodes = spectrum.bulk_nodes
    low, high = (nodes.min(), nodes.max()) if nodes.size else (0.0, 0.0)
    margin = MARGIN * (high - low) + 4 * width
    return np.linspace(low - margin, high + margin, GRID_POINTS)


def log_density(spectrum: Spectrum) -> xr.Dataset:
    """As `Spectrum.log_density`."""
    nodes, weights = spectrum.bulk_nodes, spectrum.bulk_weights
    if not nodes.size or not spectrum.norm > 0:
        logs, positive, negative, error = (np.empty(0) for _ in range(4))
    else:
        widths = _local_widths(spectrum)
        resolution, top = widths[np.argmin(np.abs(nodes))], (np.abs(nodes) + 4 * widths).max()
        logs = np.linspace(np.log10(min(resolution, top / 10)), np.log10(top), LOG_POINTS)
        magnitude = 10 ** logs[:, None]

        def kernels(where: Array) -> tuple[Array, Array]:
            width = widths[np.abs(nodes - where[:, None]).argmin(axis=1)]
            per_decade = magnitude / width * np.log(10) / np.sqrt(2 * np.pi)
            above, below = ((magnitude + sign * where) / width for sign in (-1.0, 1.0))
            return np.exp(-0.5 * above**2) * per_decade, np.exp(-0.5 * below**2) * per_decade

        positive, negative = (part @ weights for part in kernels(nodes))
        error = standard_error(samples(spectrum, doubtful=False), lambda where: np.add(*kernels(where)))
    return xr.Dataset(
        {
            "density": ("log10_magnitude", positive + negative),
            "positive": ("log10_magnitude", positive),
            "negative": ("log10_magnitude", negative),
            "standard_error": ("log10_magnitude", error),
        },
        coords={"log10_magnitude": logs},
    )


def _local_widths(spectrum: Spectrum) -> Array:
    """Standard deviations of the kernels of `log_density`, one for each bulk node."""
    nodes, floor = spectrum.bulk_nodes, LOG_FLOOR * spectrum.norm
    spacing = np.full(nodes.size, floor)
    for probe in np.unique(spectrum.bulk_probe):
        mine = np.flatnonzero(spectrum.bulk_probe == probe)
        mine = mine[np.argsort(nodes[mine], kind="stable")]
        if mine.size > 1:
            spacing[mine] = np.maximum(np.gradient(nodes[mine]), floor)
    return np.asarray(np.maximum(spacing / np.sqrt(8 * np.log(KAPPA)), RELATIVE_WIDTH * np.abs(nodes)))
