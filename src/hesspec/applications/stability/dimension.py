"""Sharpness dimension of gradient descent, from measured spectra or exact eigenvalues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from hesspec.applications.stability.exponents import LinearStep
from hesspec.applications.stability.rearrangement import (
    Exponents,
    bracket,
    dimension_of,
    ordered,
    pooled,
    with_partners,
)
from hesspec.applications.stability.record import SharpnessDimension
from hesspec.backend.text import kind_of
from hesspec.spectra.spectrum import Spectrum

__all__ = ["exponent_density", "sharpness_dimension"]

Array = npt.NDArray[np.float64]

COMBINATIONS = {"ordered": ordered, "pooled": pooled}
# Number of points of the density, as in `Spectrum.density`.
POINTS = 1_024


def sharpness_dimension(
    spectra: Spectrum | npt.ArrayLike | Sequence[Spectrum | npt.ArrayLike],
    learning_rate: float,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    combine: Literal["ordered", "pooled"] = "ordered",
) -> SharpnessDimension:
    r"""Compute the sharpness dimension of gradient descent at a point from the spectrum of the Hessian.

    With the exponents z_i = ln|1 - eta lambda_i| in decreasing order it is j + (z_1 + ... + z_j) / |z_{j+1}| with the
    largest j for which the sum is nonnegative; p if j = p, and 0 if z_1 < 0. For a spectral measure it is computed from
    the decreasing quantile function z of the exponents,

    .. math:: p \sup \{ s \in [0, 1] : \int_0^s z(u) \, du \ge 0 \}.

    It increases with every exponent, so a bracket of the exponents gives one of the dimension.

    Parameters
    ----------
    spectra : Spectrum, array (p,), or a sequence of them
        Measured spectra of the Hessian of the loss, or all its exact eigenvalues. Give several spectra of one network
        for minibatches (see `minibatch_spectra`). A sequence of numbers counts as one array.
    learning_rate : float
        Learning rate eta.
    momentum : float
        Heavy-ball momentum mu. The exponents are then logarithms of the moduli of the 2p eigenvalues of the linear map
        of (w_t, w_{t-1}). Unlike its singular values, these do not depend on the units of the velocity.
    weight_decay : float
        Weight decay, which is added to all eigenvalues (see `hesspec.applications.stability.exponents` for decoupled
        weight decay with momentum).
    decoupled : bool
        Whether weight decay shrinks the weights, w <- (1 - eta decay) w, instead of being part of the gradient. It
        makes a difference only with momentum.
    combine : {"ordered", "pooled"}
        How to combine several spectra: "ordered" takes the mean of the k-th largest exponents for each k, "pooled" the
        mean of the measures. The pooled dimension is never below the ordered one.

    Returns
    -------
    SharpnessDimension

    Raises
    ------
    ValueError
        If a number is out of range, or the spectra differ in dimension or are missing.

    Notes
    -----
    Tuci, Korkmaz, Simsekli and Birdal, "Generalization at the Edge of Stability" (arXiv 2604.19740): definition 4.2,
    "ordered" follows definition 4.1, with the minibatches at a point instead of the supremum over the attractor, and
    "pooled" follows appendix C. The bracket and the form with momentum are ours.

    Bounds are the pointwise 95% bounds of `Spectrum.cdf_bracket`, with all resolved eigenvalues counted, under the
    condition of `Spectrum.wasserstein_bound` that no eigenvalue lies beyond the outermost node by more than the bound
    of that node.

    Examples
    --------
    >>> import hesspec
    >>> found = hesspec.stability.sharpness_dimension([25.0, 2.0, 5.0, 9.0], learning_rate=0.1)
    >>> round(found.value, 6), found.sharp_directions, found.negative_directions
    (2.263034, 1.0, 0.0)
    """
    step = LinearStep(learning_rate, momentum, weight_decay, decoupled)
    if combine not in COMBINATIONS:
        raise ValueError(f'combine is {combine!r}; it must be "ordered" or "pooled".')
    several = _several(spectra)
    sizes = sorted({each.dimension if isinstance(each, Spectrum) else each.size for each in several})
    if len(sizes) > 1:
        raise ValueError(
            f"The spectra have dimensions {', '.join(f'{size:,}' for size in sizes)}; only spectra of one network, for "
            "the same parameters, can be combined."
        )
    measures = [_atoms(each) for each in several]
    leading = [Exponents.of(step.leading(nodes), counts) for nodes, counts in measures]
    brackets = [
        bracket(each, step) if isinstance(each, Spectrum) else (exact, exact)
        for each, exact in zip(several, leading, strict=True)
    ]
    means = [COMBINATIONS[combine](group) for group in (leading, *map(list, zip(*brackets, strict=True)))]
    middle, low, high = (with_partners(mean, step) for mean in means)
    value = dimension_of(middle)
    sharp = _expansion(step, measures, lambda nodes: nodes > step.threshold)
    negative = _expansion(step, measures, lambda nodes: nodes < step.lower_threshold)
    return SharpnessDimension(
        value=value,
        low=min(dimension_of(low), value),
        high=max(dimension_of(high), value),
        dimension=int(sizes[0]) * (2 if momentum > 0 else 1),
        spectra=len(several),
        sharp_directions=sharp[0],
        negative_directions=negative[0],
        sharp_expansion=sharp[1],
        negative_expansion=negative[1],
        learning_rate=float(learning_rate),
        momentum=float(momentum),
        weight_decay=float(weight_decay),
        decoupled=bool(decoupled),
        combine=combine,
        threshold=step.threshold,
        exponents=middle.levels,
        counts=middle.counts,
        low_exponents=low.levels,
        low_counts=low.counts,
        high_exponents=high.levels,
        high_counts=high.counts,
    )


def exponent_density(spectrum: Spectrum, learning_rate: float, *, weight_decay: float = 0.0) -> xr.Dataset:
    """Compute the density of ln|1 - eta lambda| of the bulk from that of the eigenvalues, `Spectrum.density`.

    Parameters
    ----------
    spectrum : Spectrum
        Spectrum of the Hessian.
    learning_rate : float
        Learning rate eta.
    weight_decay : float
        Weight decay, which is added to all eigenvalues.

    Returns
    -------
    xarray.Dataset
        `density`, in shares of all eigenvalues per unit, over `exponent` (1,024 points). It integrates to the share of
        the bulk, except for the part below the first point, which is about a kernel width away from the strongest
        contraction. `exponent_of_resolved` contains the exponents of `Spectrum.eigenvalues`.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    It is the sum of the density times exp(z) / eta over the two eigenvalues lambda = (1 -+ exp(z)) / eta. Figure 8 of
    arXiv 2604.19740 shows this pair of densities.
    """
    step = LinearStep(learning_rate, weight_decay=weight_decay)
    drawn = spectrum.density()
    grid, width = drawn["eigenvalue"].to_numpy(), float(drawn.attrs["width"])
    levels = step.leading(grid)
    lowest = np.log(learning_rate * width)
    exponents = np.linspace(min(max(levels.min(), lowest), levels.max()), levels.max(), POINTS)
    # Eigenvalues with exponent z are exp(z) / eta away from the centre, on both sides.
    distance = np.exp(exponents) / learning_rate
    sides = [np.interp(step.centre + sign * distance, grid, drawn["density"], left=0, right=0) for sign in (-1, 1)]
    return xr.Dataset(
        {
            "density": ("exponent", sum(sides) * distance),
            "exponent_of_resolved": ("resolved", step.leading(spectrum.eigenvalues)),
        },
        coords={"exponent": exponents},
        attrs={"learning_rate": float(learning_rate), "weight_decay": float(weight_decay)},
    )


def _expansion(
    step: LinearStep, measures: list[tuple[Array, Array]], chosen: Callable[[Array], npt.NDArray[np.bool_]]
) -> tuple[float, float]:
    """Number of selected eigenvalues and sum of their exponents; means over measures."""
    counts = [weights[chosen(nodes)].sum() for nodes, weights in measures]
    sums = [step.leading(nodes[chosen(nodes)]) @ weights[chosen(nodes)] for nodes, weights in measures]
    return float(np.mean(counts)), float(np.mean(sums))


def _several(spectra: Any) -> list[Spectrum | Array]:
    """Return the argument as a list of spectra and arrays of eigenvalues."""
    if isinstance(spectra, Spectrum):
        return [spectra]
    given = list(spectra) if isinstance(spectra, (list, tuple)) else [spectra]
    if given and all(np.ndim(each) == 0 and not isinstance(each, Spectrum) for each in given):
        given = [given]
    if not given:
        raise ValueError("There are no spectra: the sequence is empty.")
    return [each if isinstance(each, Spectrum) else _eigenvalues(each) for each in given]


def _eigenvalues(given: Any) -> Array:
    try:
        found = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{kind_of(given, first=True)} is neither a Spectrum nor an array of eigenvalues (p,): {error}"
        ) from error
    if found.ndim != 1 or not found.size:
        raise ValueError(f"Exact eigenvalues must be an array of shape (p,), p > 0, not {found.shape}.")
    if not np.isfinite(found).all():
        raise ValueError(f"The eigenvalues are not all finite: {found[~np.isfinite(found)][0]} is among them.")
    return found


def _atoms(each: Spectrum | Array) -> tuple[Array, Array]:
    """Return eigenvalues and the number of each."""
    if isinstance(each, Spectrum):
        return each.nodes, each.weights * each.dimension
    return each, np.ones(each.size)
