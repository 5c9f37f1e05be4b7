"""The sharpness dimension of gradient descent, from measured spectra or exact eigenvalues."""

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
from hesspec.spectra.spectrum import Spectrum

__all__ = ["exponent_density", "sharpness_dimension"]

Array = npt.NDArray[np.float64]

COMBINATIONS = {"ordered": ordered, "pooled": pooled}
# Points of the density, as of `Spectrum.density`.
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
    r"""Sharpness dimension of gradient descent at a point, from the spectrum of the Hessian there.

    With the exponents z_i = ln|1 - eta lambda_i| in decreasing order it is j + (z_1 + ... + z_j) / |z_{j+1}| with the
    largest j for which the sum is not negative; p if that is p, and 0 if z_1 < 0. In terms of their decreasing quantile
    function, which is how it is computed of a measure,

    .. math:: p \sup \{ s \in [0, 1] : \int_0^s z(u) \, du \ge 0 \}.

    It increases with every exponent. A bracket of the exponents is therefore one of the dimension.

    Parameters
    ----------
    spectra : Spectrum, array (p,), or a sequence of them
        Of the Hessian of the loss: measured spectra, or all eigenvalues, exact. Several of one network are those of
        minibatches (see `minibatch_spectra`). A sequence of numbers is one array.
    learning_rate : float
        eta.
    momentum : float
        mu of heavy-ball momentum. The exponents are then those of the linear map of (w_t, w_{t-1}), ln of the moduli of
        its eigenvalues, of which there are 2p. Unlike its singular values, these do not depend on the units of the
        velocity.
    weight_decay : float
        Added to all eigenvalues; with momentum and `decoupled`, as that step has it.
    decoupled : bool
        Whether weight decay shrinks the weights, w <- (1 - eta decay) w, instead of being part of the gradient. It
        makes a difference only with momentum.
    combine : {"ordered", "pooled"}
        Of several spectra: "ordered" takes the mean of the k-th largest exponents for each k, "pooled" the mean of the
        measures. The pooled dimension is never below the ordered one.

    Returns
    -------
    SharpnessDimension

    Raises
    ------
    ValueError
        If a number is out of range, or the spectra are of different dimensions or none.

    Notes
    -----
    Tuci, Korkmaz, Simsekli and Birdal, "Generalization at the Edge of Stability" (arXiv 2604.19740): definition 4.2,
    "ordered" as definition 4.1 has it with the minibatches of a point in place of its supremum over the attractor,
    "pooled" as its appendix C. The bracket, and the form with momentum, are ours.

    Bounds are those of a probability of 95% that `Spectrum.cdf_bracket` has at each point, with all resolved
    eigenvalues counted, under the condition of `Spectrum.wasserstein_bound` that no eigenvalue lies beyond the
    outermost node by more than that node's bound.

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
    """Density of ln|1 - eta lambda| of the bulk: that of the eigenvalues, `Spectrum.density`, carried over.

    Parameters
    ----------
    spectrum : Spectrum
        Of the Hessian.
    learning_rate : float
        eta.
    weight_decay : float
        Added to all eigenvalues.

    Returns
    -------
    xarray.Dataset
        `density`, in shares of all eigenvalues per unit, over `exponent` (1,024 points). It integrates to the bulk's
        share, but for what lies below the first point, which is as far from the strongest contraction as the density of
        eigenvalues is wide. `exponent_of_resolved` has the exponents of `Spectrum.eigenvalues`.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    The sum, over the two eigenvalues lambda = (1 -+ exp(z)) / eta, of their density times exp(z) / eta. The pair of
    densities is that of arXiv 2604.19740, figure 8.
    """
    step = LinearStep(learning_rate, weight_decay=weight_decay)
    drawn = spectrum.density()
    grid, width = drawn["eigenvalue"].to_numpy(), float(drawn.attrs["width"])
    levels = step.leading(grid)
    lowest = np.log(learning_rate * width)
    exponents = np.linspace(min(max(levels.min(), lowest), levels.max()), levels.max(), POINTS)
    # ln|1 - eta lambda| is exp(z) / eta away from the centre in both directions.
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
    """How many eigenvalues are chosen, and the sum of their exponents; means over measures."""
    counts = [weights[chosen(nodes)].sum() for nodes, weights in measures]
    sums = [step.leading(nodes[chosen(nodes)]) @ weights[chosen(nodes)] for nodes, weights in measures]
    return float(np.mean(counts)), float(np.mean(sums))


def _several(spectra: Any) -> list[Spectrum | Array]:
    """The spectra and arrays of eigenvalues that are meant."""
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
            f"A {type(given).__name__} is neither a Spectrum nor an array of eigenvalues (p,): {error}"
        ) from error
    if found.ndim != 1 or not found.size:
        raise ValueError(f"Exact eigenvalues must be an array of shape (p,), p > 0, not {found.shape}.")
    if not np.isfinite(found).all():
        raise ValueError(f"The eigenvalues are not all finite: {found[~np.isfinite(found)][0]} is among them.")
    return found


def _atoms(each: Spectrum | Array) -> tuple[Array, Array]:
    """Eigenvalues, and how many there are of each."""
    if isinstance(each, Spectrum):
        return each.nodes, each.weights * each.dimension
    return each, np.ones(each.size)
