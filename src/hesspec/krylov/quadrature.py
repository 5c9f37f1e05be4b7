"""Spectral measure from a Lanczos run: resolved eigenvalues, and quadrature of the bulk."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.lanczos_state import rounding_unit
from hesspec.krylov.multiplicity import outgrown_by_rounding, outgrown_by_start
from hesspec.krylov.ritz import Array, RitzPairs, clustered_bounds, outermost, resolve, ritz_pairs

__all__ = [
    "SpectralMeasure",
    "divided",
    "first_block",
    "further_copies",
    "movement",
    "spectral_measure",
    "wasserstein_distance",
]


@dataclass(frozen=True)
class SpectralMeasure:
    """Spectral measure from the first probe; fields as in `Spectrum`, and the Ritz vectors in the Lanczos basis.

    Attributes
    ----------
    complete : bool array (k,)
        Resolved eigenvalues without further, unseen copies.
    again : bool array (k,)
        Resolved eigenvalues of which other probes have found further copies.
    """

    eigenvalues: Array
    error_bounds: Array
    eigenvalue_weights: Array
    eigenvalue_sampled: Array
    bulk_nodes: Array
    bulk_weights: Array
    norm: float
    rounding: float
    resolved_vectors: Array
    complete: npt.NDArray[np.bool_]
    again: npt.NDArray[np.bool_]


def spectral_measure(lanczos: Lanczos, p: int, steps: int) -> SpectralMeasure:
    """Compute resolved eigenvalues and bulk from the first `steps` steps of a run on R^p."""
    alpha, beta = (entries[:steps] for entries in lanczos.tridiagonal())
    starts = [start for start in lanczos.starts if start < steps]
    exact = lanczos.exhausted and steps == len(lanczos)
    if len(starts) > 1 and not exact and steps not in lanczos.starts:
        # The blocks before an unfinished one are invariant and contain all distinct eigenvalues, so it would add less.
        steps = starts.pop()
    blocks = [ritz_pairs(alpha[a:b], beta[a:b]) for a, b in zip(starts, [*starts[1:], steps], strict=True)]
    norm = max(float(np.abs(pairs.values).max()) for pairs in blocks)
    # Rounding of a step is known relative to ||A||, for which the norm found here is a better estimate.
    rounding = max(float(np.sqrt(steps)) * rounding_unit(lanczos.dtype) * norm, lanczos.backward_error(steps))
    # Blocks before the last one are invariant: each of their Ritz values is an eigenvalue. The last one is the
    # quadrature of the complement of the others.
    last, begin = blocks[-1], starts[-1]
    chosen = np.arange(last.values.size) if exact else outermost(last, rounding)
    known = np.concatenate([np.empty(0), *(pairs.values for pairs in blocks[:-1])])
    eigenvalues = np.concatenate([known, last.values[chosen]])
    bounds = clustered_bounds(eigenvalues, np.concatenate([np.zeros(begin), last.residuals[chosen]]), rounding)
    weights, complete, again = np.full(eigenvalues.size, 1 / p), np.ones(eigenvalues.size, bool), np.zeros(begin, bool)
    if exact:
        # Restarts that broke down immediately found random eigenvectors: their eigenvalue is that of the whole rest. A
        # random vector has 1/q of its squared length along each of q eigenvectors, so its residual bounds the
        # root-mean-square distance of their eigenvalues, and each distance up to a factor sqrt(q).
        weights[-1] += lanczos.rest / p
        bounds[-1] *= np.sqrt(1 + lanczos.rest)
        again = np.zeros(eigenvalues.size, bool)
        nodes, bulk_weights, sampled = np.empty(0), np.empty(0), np.zeros(eigenvalues.size)
    else:
        error = float(torch.finfo(lanczos.dtype).eps) * norm / np.sqrt(p)
        single = _near(last.values[chosen], last.values, 2 * rounding) == 1
        grown = outgrown_by_rounding(last.values[chosen], alpha[begin:steps], beta[begin:steps], error)
        complete[begin:] = single & grown
        # An eigenvalue that also occurs in an earlier invariant block is multiple.
        again = np.append(again, _near(last.values[chosen], known, 2 * rounding) > 0)
        nodes, bulk_weights, drawn = divided(last, p, rounding, complete[begin:], again[begin:], before=begin)
        sampled = np.append(np.zeros(begin), drawn)
    vectors = np.zeros((len(lanczos), eigenvalues.size))
    for pairs, start in zip(blocks[:-1], starts, strict=False):
        vectors[start : start + pairs.values.size, start : start + pairs.values.size] = pairs.vectors
    vectors[begin:steps, begin:] = last.vectors[:, chosen]
    return SpectralMeasure(
        eigenvalues, bounds, weights, sampled, nodes, bulk_weights, norm, rounding, vectors, complete, again
    )


def divided(
    pairs: RitzPairs,
    p: int,
    rounding: float,
    complete: npt.NDArray[np.bool_],
    again: npt.NDArray[np.bool_],
    *,
    before: int = 0,
) -> tuple[Array, Array, Array]:
    """Split the measure of a probe into the bulk and the weights of resolved eigenvalues.

    Parameters
    ----------
    pairs : RitzPairs
        Ritz pairs of its last block.
    p : int
        Dimension of the space.
    rounding : float
        Rounding floor, absolute.
    complete, again : bool array (k,)
        Flags of the resolved pairs, in the order of `outermost`: see `SpectralMeasure`.
    before : int
        Number of eigenvalues in earlier blocks.

    Returns
    -------
    nodes, weights : array (b,)
        Quadrature of the bulk.
    sampled : array (k,)
        Measured weights of the resolved eigenvalues that are not complete, normalised to the weight of everything that
        is not complete; 0 for complete ones.
    """
    chosen = outermost(pairs, rounding)
    flags = np.zeros((2, pairs.values.size), bool)
    flags[:, chosen] = complete, again
    _, share = resolve(pairs, p - before, rounding, complete=flags[0], multiple=flags[1])
    bulk = np.flatnonzero(share)
    weights = share[bulk] / share.sum() * (1 - (before + chosen.size) / p)
    # Zero means that an eigenvalue is complete. The weight of a second copy is only rounding, and may also be zero.
    sampled = np.where(complete, 0.0, np.maximum(pairs.weights[chosen], np.finfo(np.float64).tiny))
    if not complete.all():
        sampled *= (1 - (before + complete.sum()) / p) / (1 - pairs.weights[chosen[complete]].sum())
    return pairs.values[bulk], weights, sampled


def _near(values: Array, others: Array, distance: float) -> npt.NDArray[np.intp]:
    """Number of the other values that are at most this close to each value."""
    return np.asarray((np.abs(others - values[:, None]) <= distance).sum(axis=1), dtype=np.intp)


def further_copies(found: SpectralMeasure, lanczos: Lanczos, pairs: RitzPairs) -> SpectralMeasure:
    """Update the measure by a run in the complement of its resolved eigenvalues, which shows further copies.

    Parameters
    ----------
    found : SpectralMeasure
    lanczos : Lanczos
        A run from a random vector in the complement.
    pairs : RitzPairs
        Its Ritz pairs.
    """
    alpha, beta = (entries[: pairs.values.size] for entries in lanczos.tridiagonal())
    rest = lanczos.space.size - found.eigenvalues.size
    missing = outgrown_by_start(found.eigenvalues, alpha, beta, rest)
    resolved = outermost(pairs, found.rounding)
    reach = found.error_bounds[:, None] + pairs.residuals[resolved] + found.rounding
    seen = (np.abs(pairs.values[resolved] - found.eigenvalues[:, None]) <= reach).any(axis=1)
    # Where the run has found an eigenvalue again, its component has died away, and what grows is rounding.
    return replace(found, complete=found.complete | (missing & ~seen), again=found.again | seen)


def first_block(lanczos: Lanczos) -> RitzPairs:
    """Return the Ritz pairs of a probe that belong to its start vector."""
    end = lanczos.starts[1] if len(lanczos.starts) > 1 else len(lanczos)
    alpha, beta = lanczos.tridiagonal()
    return ritz_pairs(alpha[:end], beta[:end])


def wasserstein_distance(nodes: Array, others: Array, weights: Array, other_weights: Array) -> float:
    """Compute the W1 distance between two discrete measures of equal mass, the integral of |F - G| of their CDFs.

    Parameters
    ----------
    nodes, others : array (m,), (n,)
    weights, other_weights : array (m,), (n,)
    """
    points = np.concatenate([nodes, others])
    order = np.argsort(points)
    apart = np.cumsum(np.concatenate([weights, -other_weights])[order])[:-1]
    return float(np.abs(apart) @ np.diff(points[order]))


def movement(lanczos: Lanczos, p: int) -> float:
    """W1 distance between the measures of all steps and of the first half, relative to the mean |eigenvalue|."""
    now, before = spectral_measure(lanczos, p, len(lanczos)), spectral_measure(lanczos, p, len(lanczos) // 2)
    points = [np.concatenate([m.eigenvalues, m.bulk_nodes]) for m in (now, before)]
    masses = [np.concatenate([m.eigenvalue_weights, m.bulk_weights]) for m in (now, before)]
    size = float(masses[0] @ np.abs(points[0]))
    distance = wasserstein_distance(*points, *masses)
    return distance / size if size > 0 else 0.0
