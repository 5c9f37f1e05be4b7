"""The spectral measure that a Lanczos run gives: resolved eigenvalues, and the quadrature of the bulk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch

from hesspec.krylov.lanczos import Lanczos, rounding_unit
from hesspec.krylov.multiplicity import outgrown_by_rounding
from hesspec.krylov.ritz import Array, RitzPairs, clustered_bounds, outermost, resolve, ritz_pairs

__all__ = ["Measure", "first_block", "measure", "movement"]


@dataclass(frozen=True)
class Measure:
    """The measure that the first probe gives; fields as in `Spectrum`, and the Ritz vectors in the Lanczos basis."""

    eigenvalues: Array
    error_bounds: Array
    eigenvalue_weights: Array
    eigenvalue_sampled: Array
    bulk_nodes: Array
    bulk_weights: Array
    norm: float
    rounding: float
    resolved_vectors: Array


def measure(lanczos: Lanczos, p: int, steps: int) -> Measure:
    """Resolved eigenvalues and bulk from the first `steps` steps of a run on R^p."""
    alpha, beta = (entries[:steps] for entries in lanczos.tridiagonal())
    starts = [start for start in lanczos.starts if start < steps]
    exact = lanczos.exhausted and steps == len(lanczos)
    if len(starts) > 1 and not exact and steps not in lanczos.starts:
        # The blocks before an unfinished one are invariant and hold all distinct eigenvalues: it would tell less.
        steps = starts.pop()
    blocks = [ritz_pairs(alpha[a:b], beta[a:b]) for a, b in zip(starts, [*starts[1:], steps], strict=True)]
    norm = max(float(np.abs(pairs.values).max()) for pairs in blocks)
    # What a step rounds off is known relative to ||A||, of which the norm seen here is the better estimate.
    rounding = max(float(np.sqrt(steps)) * rounding_unit(lanczos.dtype) * norm, lanczos.backward_error(steps))
    # Blocks before the last one are invariant: each of their Ritz values is an eigenvalue. The last one is the
    # quadrature of the complement of the others.
    last, rest = blocks[-1], p - starts[-1]
    known = [pairs.values for pairs in blocks[:-1]]
    count = last.values.size
    chosen, share, open_ = np.arange(count), np.zeros(count), np.zeros(count, bool)
    if not exact:
        resolved = outermost(last, rounding)
        error = float(torch.finfo(lanczos.dtype).eps) * norm / np.sqrt(p)
        own = alpha[starts[-1] : steps], beta[starts[-1] : steps]
        single = _near(last.values[resolved], last.values, 2 * rounding) == 1
        open_[resolved] = ~single | ~outgrown_by_rounding(last.values[resolved], *own, error)
        # An eigenvalue that an invariant block before this one has too is multiple.
        before = _near(last.values, np.concatenate([np.empty(0), *known]), 2 * rounding) > 0
        chosen, share = resolve(last, rest, rounding, complete=~open_, multiple=before)
    eigenvalues = np.concatenate([*known, last.values[chosen]])
    residuals = np.concatenate([np.zeros(starts[-1]), last.residuals[chosen]])
    weights, sampled = np.full(eigenvalues.size, 1 / p), np.zeros(eigenvalues.size)
    bulk = np.flatnonzero(share)
    bulk_weights = share[bulk]
    if exact:
        # Restarts that broke down at once found eigenvectors at random: their eigenvalue is that of the whole rest.
        weights[-1] += lanczos.rest / p
    else:
        bulk_weights = bulk_weights / bulk_weights.sum() * (1 - eigenvalues.size / p)
        # Without what is known of multiplicities, the measure of the probe: it samples all but what is complete.
        sampled[starts[-1] :] = np.where(open_[chosen], last.weights[chosen], 0.0)
        closed = starts[-1] + int((~open_[chosen]).sum())
        if open_.any():
            sampled *= (1 - closed / p) / (1 - last.weights[chosen[~open_[chosen]]].sum())
    vectors = np.zeros((len(lanczos), eigenvalues.size))
    for pairs, start in zip(blocks[:-1], starts, strict=False):
        vectors[start : start + pairs.values.size, start : start + pairs.values.size] = pairs.vectors
    vectors[starts[-1] : steps, starts[-1] :] = last.vectors[:, chosen]
    bounds = clustered_bounds(eigenvalues, residuals, rounding)
    return Measure(eigenvalues, bounds, weights, sampled, last.values[bulk], bulk_weights, norm, rounding, vectors)


def _near(values: Array, others: Array, distance: float) -> npt.NDArray[np.intp]:
    """How many of the others are as near as that to each value."""
    return (np.abs(others - values[:, None]) <= distance).sum(axis=1)


def first_block(lanczos: Lanczos) -> RitzPairs:
    """Ritz pairs of a probe: those of its own start vector."""
    end = lanczos.starts[1] if len(lanczos.starts) > 1 else len(lanczos)
    alpha, beta = lanczos.tridiagonal()
    return ritz_pairs(alpha[:end], beta[:end])


def movement(lanczos: Lanczos, p: int) -> float:
    """W1 distance between the measures of all steps and of the first half, relative to the mean |eigenvalue|."""
    now, before = measure(lanczos, p, len(lanczos)), measure(lanczos, p, len(lanczos) // 2)
    points = [np.concatenate([m.eigenvalues, m.bulk_nodes]) for m in (now, before)]
    masses = [np.concatenate([m.eigenvalue_weights, m.bulk_weights]) for m in (now, before)]
    size = float(masses[0] @ np.abs(points[0]))
    distance = float(scipy.stats.wasserstein_distance(*points, *masses))
    return distance / size if size > 0 else 0.0
