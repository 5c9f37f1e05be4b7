"""Rules for outliers that are compared: what each calls an outlier of a spectrum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hesspec.spectra.outliers import LEVEL
from hesspec.spectra.spectrum import Spectrum

Array = np.ndarray
Rule = Callable[[Spectrum], Array]


def gap(spectrum: Spectrum) -> Array:
    """Each side by itself: everything beyond the first factor of 1.25."""
    values, bounds = spectrum.eigenvalues, spectrum.error_bounds
    mask = np.zeros(values.size, bool)
    for sign in (1.0, -1.0):
        side = np.flatnonzero(sign * values > 0)
        sizes = np.abs(values[side])
        edge = max(float((sign * spectrum.bulk_nodes).max(initial=0.0)), 0.0)
        gaps = np.flatnonzero(sizes - bounds[side] >= 1.25 * np.append((sizes + bounds[side])[1:], edge))
        gaps = gaps[gaps < spectrum.dimension / 2]
        if gaps.size:
            mask[side[: gaps[-1] + 1]] = True
    return mask


def lanczos_edge(spectrum: Spectrum) -> Array:
    """Beyond a -+ 2b by a tenth, a and b the limits of the Lanczos coefficients: medians of their last quarter."""
    first = spectrum.ritz_probe == 0
    alpha, beta = coefficients(spectrum.ritz_values[first], spectrum.ritz_weights[first])
    last = max(alpha.size // 4, 1)
    middle, half = float(np.median(alpha[-last:])), 2 * float(np.median(beta[-last:]))
    return np.abs(spectrum.eigenvalues - middle) > 1.1 * half + spectrum.error_bounds


def coefficients(nodes: Array, weights: Array) -> tuple[Array, Array]:
    """Of the three-term recurrence of a discrete measure: Lanczos on its nodes, with full reorthogonalisation."""
    basis = [np.sqrt(weights / weights.sum())]
    alpha, beta = [], []
    for _ in range(nodes.size - 1):
        alpha.append(float(basis[-1] @ (nodes * basis[-1])))
        rest = nodes * basis[-1]
        for _ in range(2):
            rest = rest - np.array(basis).T @ (np.array(basis) @ rest)
        beta.append(float(np.linalg.norm(rest)))
        if beta[-1] <= 1e-10 * np.abs(nodes).max():
            break
        basis.append(rest / beta[-1])
    return np.array(alpha), np.array(beta)


def fence(spectrum: Spectrum) -> Array:
    """Beyond the quantiles of 1 and 99% by as much as these are apart (Tukey's fences)."""
    nodes, cumulative = spectrum.nodes, np.cumsum(spectrum.weights)
    low, high = nodes[np.searchsorted(cumulative, 0.01)], nodes[min(np.searchsorted(cumulative, 0.99), nodes.size - 1)]
    return (spectrum.eigenvalues > high + (high - low)) | (spectrum.eigenvalues < low - (high - low))


def repulsion(spectrum: Spectrum) -> Array:
    """Log-spacings as `hesspec`, judged by Wigner's surmise for eigenvalues that repel one another."""
    sizes = np.sort(np.abs(spectrum.nodes))[::-1]
    sizes = sizes[sizes > spectrum.rounding]
    count = spectrum.eigenvalues.size
    spacings = np.arange(1, sizes.size) * np.log(sizes[:-1] / sizes[1:])
    mask = np.zeros(count, bool)
    for i in range(min(count, spacings.size - 10)):
        ratio = spacings[i] / spacings[i + 1 : i + 31].mean()
        if np.exp(-np.pi * ratio**2 / 4) * (i + 1) * (i + 2) <= LEVEL:
            mask[: i + 1] = True
    return mask


RULES: dict[str, Rule] = {
    "gap of 1.25": gap,
    "a ± 2b": lanczos_edge,
    "fences": fence,
    "Wigner's surmise": repulsion,
    "hesspec": lambda spectrum: spectrum.is_outlier,
    "hesspec, 10 classes": lambda spectrum: (
        replace(spectrum, attributes={"matrix": "Hessian", "classes": 10}).is_outlier
    ),
}
