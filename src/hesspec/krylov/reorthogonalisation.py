"""Reorthogonalisation of Lanczos residuals: in full in every step, or partial when it is needed."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.errors import NotSymmetricError
from hesspec.krylov.lanczos_state import LanczosState
from hesspec.krylov.orthogonality import OrthogonalityEstimate
from hesspec.krylov.vectors import Space, norm

__all__ = ["SEMI", "Reorthogonalisation", "Residual"]

# Asymmetry beyond ||A|| times this power of eps, half of the digits, cannot be rounding, whose share is near eps.
ASYMMETRY = 0.5
# Semi-orthogonality: inner products of at most eps to this power leave eps in T (Simon 1984).
SEMI = 0.5
# Reorthogonalisation includes the vectors whose inner products exceed eps to this power (Larsen 1998).
APART = 0.75
# Most further passes of a step: each gains half of the digits at least, as long as the basis is semi-orthogonal.
FURTHER = 3
# The first steps are always reorthogonalised: they cost little, and reveal an asymmetric operator.
WATCHED = 8


class Residual(NamedTuple):
    """Result of reorthogonalising a residual w in place.

    Attributes
    ----------
    share : float
        Inner product q·w, which remains to be removed.
    length : float
        Norm of the residual after its removal.
    lost : bool
        Whether semi-orthogonality is lost because the basis is not stored.
    """

    share: float
    length: float
    lost: bool


class Reorthogonalisation:
    """Keeps a Lanczos process semi-orthogonal; see the notes of `Lanczos`.

    Parameters
    ----------
    space : Space
    state : LanczosState
        State of the process: T, basis and errors are read, `errors.defect` and `orthogonality` are updated.
    partial : bool
        Reorthogonalise only when the omega recurrence requires it, each time the last two vectors; otherwise always.

    Notes
    -----
    The next vectors stay orthogonal to the basis only if the last two are. Simon (1984) therefore orthogonalises q_j,
    which was multiplied already, together with the residual that becomes q_{j+1}: the basis is read once for both,
    where reorthogonalisation in two consecutive steps (Larsen 1998) reads it in both. T is not affected: q_j changes by
    a combination of earlier vectors, so the spaces spanned by the first 1, 2, ... vectors, which determine N in the
    notes of `Lanczos`, stay the same. A Q = Q T + ... changes by ||A|| times the size of what is removed, up to
    sqrt(eps), as it does where something is removed from a residual.
    """

    def __init__(self, space: Space, state: LanczosState, *, partial: bool) -> None:
        self._space, self._state, self._partial = space, state, partial
        self._eps = torch.finfo(state.basis.dtype).eps
        self._level = self._eps**SEMI
        self.estimate = OrthogonalityEstimate(space.size)

    def apply(self, w: Tensor, q: Tensor, along: float, length: float) -> Residual:
        """Orthogonalise the residual w (p,) in place as far as necessary, except for its share of q, and store q.

        Parameters
        ----------
        w : Tensor (p,)
        q : Tensor (p,)
            The last vector. Where reorthogonalisation is partial, it is orthogonalised in place together with w.
        along, length : float
            Inner product q·w, and the norm of w.
        """
        state, eps = self._state, self._eps
        known, errors, t = state.orthogonality, state.errors, state.tridiagonal
        basis, index = state.basis, state.steps - 1
        residual = errors.divisor(length, eps)
        products = self.estimate.predicted(t.alpha, t.beta, (eps + errors.noise) * errors.scale)
        each = np.abs(products).max(axis=0)
        predicted = float(each.max(initial=0.0))
        whole = not self._partial or index < WATCHED
        over = predicted > self._level * residual
        due, lost = (whole or over) and state.keeps, over and not state.keeps
        accepted, level = np.hstack([products / residual, self.estimate.random(1, eps)]), predicted / residual
        # Two consecutive vectors must be orthogonal for the next ones to be.
        both = due and not whole and not known.streak
        if state.keeps and not both:
            basis.append(q)
        kept = basis.kept_error(w, residual) if due else 0.0
        if due:
            needed = np.maximum(each / residual, self.estimate.last if both else 0.0) > eps**APART
            chosen = basis.around(None if whole else np.flatnonzero(needed))
            removed = self._both(w, q, chosen, length) if both else basis.orthogonalise(w, chosen, length).numpy()
            self._learn(removed, predicted, kept * residual, whole=whole)
            along, length = self._space.inner_and_norm(q, w)
            residual = errors.divisor(length, eps)
            # A pass leaves the removed component times the basis's own deviation from orthogonality; if it removes
            # much, there were two passes.
            left = min(norm(torch.from_numpy(removed)) / residual, 1.0) * known.largest
            # A residual that is small compared with what was removed, as where the outliers are exhausted, is left with
            # more than semi-orthogonality allows; each further pass divides it by the basis's deviation.
            for _ in range(FURTHER):
                if not self._partial or left <= self._level:
                    break
                chosen = basis.around(None)
                removed = basis.orthogonalise(w, chosen, length).numpy()
                along, length = self._space.inner_and_norm(q, w)
                residual = errors.divisor(length, eps)
                left = min(norm(torch.from_numpy(removed)) / residual, 1.0) * known.largest
            accepted[:, chosen] = self.estimate.random(len(chosen), eps + left + kept)
            level = float(np.abs(accepted).max())
            known.passes += len(chosen) / (index + 1)
        known.streak = known.streak + 1 if due else 0
        if not lost:
            self.estimate.accept(accepted)
            known.worst, known.kept = level, kept
            known.largest = max(known.largest, min(1.0, level))
        return Residual(*self._against_last(w, q, along, length), lost)

    def _both(self, w: Tensor, q: Tensor, chosen: npt.NDArray[np.intp], length: float) -> npt.NDArray[np.float64]:
        """Orthogonalise the residual w and the last vector q in place, store q, and return what was removed from w."""
        known, basis = self._state.orthogonality, self._state.basis
        kept = basis.kept_error(q, 1.0)
        own, removed = basis.orthogonalise_two(q, w, chosen, (1.0, length)).numpy()
        known.largest = max(known.largest, min(1.0, float(np.abs(own).max(initial=0.0))))
        share = norm(torch.from_numpy(own))
        q.div_(self._space.norm(q))
        self.estimate.improve(chosen, self._eps + share * known.largest + kept)
        basis.append(q)
        return np.asarray(removed)

    def _learn(self, removed: npt.NDArray[np.float64], predicted: float, kept: float, *, whole: bool) -> None:
        """Compare the component that a pass removed with the prediction."""
        known, errors, index = self._state.orthogonality, self._state.errors, self._state.steps - 1
        # After two reorthogonalised steps, a third could only find errors.
        if whole and (known.streak >= 2 or known.streak == index):
            allowance = 2 * predicted + kept + errors.noise * (errors.lengths[-1] + errors.scale)
            self._check_symmetry(removed, index, allowance)
            excess = np.maximum(np.abs(removed) - allowance, 0)
            errors.defect = max(errors.defect, norm(torch.from_numpy(excess)))
        elif not known.streak:
            found = float(np.abs(removed[:index]).max(initial=0.0))
            known.largest = max(known.largest, min(1.0, self.estimate.learn(predicted, found) * known.worst))

    def _against_last(self, w: Tensor, q: Tensor, along: float, length: float) -> tuple[float, float]:
        """Orthogonalise neighbours to working precision: share of q that is still in w, and norm of w without it."""
        if not (self._partial or self._state.basis.rounded):
            return 0.0, length
        # q is a unit vector up to rounding, so the remaining norm follows from Pythagoras, unless most of w is removed.
        if abs(along) < length / 2:
            return along, length * math.sqrt(1 - (along / length) ** 2)
        w.add_(q, alpha=-along)
        return 0.0, self._space.norm(w)

    def _check_symmetry(self, removed: npt.NDArray[np.float64], index: int, allowance: float) -> None:
        """Check symmetry, which determines products with earlier vectors, against what reorthogonalisation found."""
        earlier = np.abs(removed[:index])
        if not earlier.size:
            return
        worst, t, errors = int(earlier.argmax()), self._state.tridiagonal, self._state.errors
        tolerance = max(self._eps**ASYMMETRY * errors.scale, errors.underflow) + allowance
        if float(earlier[worst]) > tolerance:
            expected = t.beta[index - 1] if worst == index - 1 and index != t.starts[-1] else 0.0
            measured = expected + float(removed[worst])
            raise NotSymmetricError(
                f"The operator is not symmetric: with Lanczos vectors u = q_{worst + 1} and v = q_{index + 1} (unit), "
                f"u·Av = {measured:.6g} but v·Au = {expected:.6g}, a difference of {abs(measured - expected):.1e}. "
                "Spectra are measured of symmetric operators only."
            )
