"""The four parts of the Gauss-Newton matrix that its class structure splits it into."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from hesspec.backend.ranks import ALONE, Ranks
from hesspec.operators.base import CurvatureOperator
from hesspec.operators.engine.jacobian import Couple, CoupledPasses, CoupledRisk
from hesspec.operators.risk.logits import LogitRows, check_softmax_loss

__all__ = [
    "GaussNewtonClass",
    "GaussNewtonCross",
    "GaussNewtonSame",
    "GaussNewtonWithin",
    "Projections",
    "class_weights",
]


class Projections:
    """Inner products of one vector v with everything that G is made of, from u = J v alone.

    Parameters
    ----------
    rows : sequence of LogitRows
        Of all batches.
    pushed : sequence of Tensor (R, C)
        J v in each of them.
    ranks : Ranks, optional
        Processes whose batches are other ones of the same data: means are those of all.

    Attributes
    ----------
    weights : Tensor (C, C)
        w_{c,c'}, float64.
    single : list of Tensor (R, C)
        <g_{i,c'}, v> for each batch.
    pair : Tensor (C, C)
        <g_{c,c'}, v>; 0 where the weight is 0.
    mean : Tensor (C,)
        <g_c, v>.
    off : Tensor (C, C)
        1 where c' != c, else 0.

    Raises
    ------
    ValueError
        If a class has no samples.
    """

    def __init__(self, rows: Sequence[LogitRows], pushed: Sequence[Tensor], ranks: Ranks = ALONE) -> None:
        self.rows, self.ranks = rows, ranks
        self.weights = class_weights(rows, ranks)
        self.single = [row.centred(u) for row, u in zip(rows, pushed, strict=True)]
        own = torch.stack([row.by_class(row.weights * t) for row, t in zip(rows, self.single, strict=True)]).sum(0)
        sums = ranks.sum_(own)
        self.off = 1 - torch.eye(len(sums), dtype=torch.float64, device=sums.device)
        self.pair = _ratio(sums, self.weights)
        self.mean = _ratio((self.off * sums).sum(1), (self.off * self.weights).sum(1))


def class_weights(rows: Sequence[LogitRows], ranks: Ranks = ALONE) -> Tensor:
    """w_{c,c'} (C, C), float64: over the samples of class c, the weighted sum of their probabilities of class c'.

    Raises
    ------
    ValueError
        If a class has no samples, which leaves it without means.
    """
    own = torch.stack([torch.bincount(row.targets[row.scale > 0], minlength=row.classes) for row in rows]).sum(0)
    counts = ranks.sum_(own)
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        raise ValueError(
            f"{len(missing)} of {len(counts)} classes have no samples in the data ({shown}): the class structure needs "
            "samples of every class that the model has a logit for."
        )
    return ranks.sum_(torch.stack([row.by_class(row.weights) for row in rows]).sum(0))


def _ratio(sums: Tensor, weights: Tensor) -> Tensor:
    # Probabilities can underflow; what weighs nothing has no part in any matrix.
    return torch.where(weights > 0, sums / torch.where(weights > 0, weights, 1), 0)


class _ClassPart(CurvatureOperator):
    r"""A part of G = sum_{i,c'} w_{i,c'} g_{i,c'} g_{i,c'}^T, with g_{i,c'} = J_i^T (e_{c'} - p_i).

    A product is J^T k with coefficients k_{i,c'} that are had from J v: it costs as much as one with G where primal
    passes are kept, and a second primal pass where data is streamed. No mean is ever formed.
    """

    def _check_loss(self) -> None:
        check_softmax_loss(self._risk.loss)

    @staticmethod
    @abstractmethod
    def coefficients(found: Projections) -> Sequence[Tensor]:
        """k (R, C) for each batch."""

    def _couple(self) -> Couple:
        # Not a method's reference: what products keep must not keep the operator alive.
        coefficients, ranks = self.coefficients, self.ranks

        def couple(rows: Sequence[LogitRows], pushed: Sequence[Tensor]) -> Sequence[Tensor]:
            chosen = coefficients(Projections(rows, pushed, ranks))
            return [row.cotangent(k) for row, k in zip(rows, chosen, strict=True)]

        return couple

    def _passes(self) -> CoupledPasses:
        return CoupledPasses(self._risk, self._couple(), self._precision, self._cached_graphs)

    def _linearise(self) -> CoupledRisk:
        return CoupledRisk(self._risk, self._couple(), self._budget, self._precision, self._cached_graphs)


def _by_class(found: Projections, k: Tensor) -> list[Tensor]:
    return [k[row.targets] for row in found.rows]


class GaussNewtonClass(_ClassPart):
    r"""Part of the Gauss-Newton matrix that comes from the class means of the logit gradients.

    .. math:: G_{class} = \sum_c w_c\, g_c g_c^\top, \qquad
              g_c = \frac1{w_c} \sum_{i \in c,\, c' \ne c} w_{i,c'}\, J_i^\top (e_{c'} - p_i)

    with w_{i,c'} = p_{i,c'}/N and w_c their sum (arXiv 2008.11865): rank C at most.

    See `CurvatureOperator` for parameters, errors and conventions. The loss is `torch.nn.CrossEntropyLoss` with classes
    as targets, and every class has samples (ValueError).
    """

    @staticmethod
    def coefficients(found: Projections) -> Sequence[Tensor]:
        """<g_c, v> for c' != c."""
        return _by_class(found, found.off * found.mean[:, None])


class GaussNewtonCross(_ClassPart):
    r"""Part of the Gauss-Newton matrix that comes from the cross-class means around the class means.

    .. math:: G_{cross} = \sum_{c' \ne c} w_{c,c'} (g_{c,c'} - g_c)(g_{c,c'} - g_c)^\top, \qquad
              g_{c,c'} = \frac1{w_{c,c'}} \sum_{i \in c} w_{i,c'}\, J_i^\top (e_{c'} - p_i)

    (arXiv 2008.11865): rank C (C - 2) at most, as the differences of a class have the weighted mean 0.

    See `GaussNewtonClass` for conditions.
    """

    @staticmethod
    def coefficients(found: Projections) -> Sequence[Tensor]:
        """<g_{c,c'} - g_c, v> for c' != c."""
        return _by_class(found, found.off * (found.pair - found.mean[:, None]))


class GaussNewtonSame(_ClassPart):
    r"""Part of the Gauss-Newton matrix that comes from the gradients of the true class's logit.

    .. math:: G_{c=c'} = \sum_c w_{c,c}\, g_{c,c} g_{c,c}^\top

    (arXiv 2008.11865): rank C at most, and small where the network fits its data: e_c - p_i is then nearly 0.

    See `GaussNewtonClass` for conditions.
    """

    @staticmethod
    def coefficients(found: Projections) -> Sequence[Tensor]:
        """<g_{c,c}, v> for c' = c."""
        return _by_class(found, torch.diag(found.pair.diagonal()))


class GaussNewtonWithin(_ClassPart):
    r"""Part of the Gauss-Newton matrix that comes from the samples around their means.

    .. math:: G_{within} = \sum_{i,c'} w_{i,c'} (g_{i,c'} - g_{c,c'})(g_{i,c'} - g_{c,c'})^\top, \qquad c = y_i

    (arXiv 2008.11865), the rest of G = G_class + G_cross + G_within + G_{c=c'}.

    See `GaussNewtonClass` for conditions.
    """

    @staticmethod
    def coefficients(found: Projections) -> Sequence[Tensor]:
        """<g_{i,c'} - g_{c,c'}, v>."""
        return [t - k for t, k in zip(found.single, _by_class(found, found.pair), strict=True)]
