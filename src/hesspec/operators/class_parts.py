"""The four parts into which class structure splits the Gauss-Newton matrix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from hesspec.backend.ranks import ALONE, Ranks
from hesspec.operators.base import CurvatureOperator
from hesspec.operators.engine.jacobian import Couple, CoupledPasses, CoupledRisk
from hesspec.operators.risk.logits import LogitRows, check_softmax_loss
from hesspec.operators.risk.output_curvature import is_convex

__all__ = [
    "GaussNewtonClass",
    "GaussNewtonCross",
    "GaussNewtonSame",
    "GaussNewtonWithin",
    "Projections",
    "class_weights",
]


class Projections:
    """Inner products of a vector v with all logit gradients and their means, computed from u = J v.

    Parameters
    ----------
    rows : sequence of LogitRows
        Rows of all batches.
    pushed : sequence of Tensor (R, C)
        J v for each batch.
    ranks : Ranks, optional
        Processes that hold other batches of the same data; means are taken over all of them.
    groups : Tensor (C,), optional
        Group of each class, int64 from 0 to K - 1, which takes the place of the class everywhere below.

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

    def __init__(
        self,
        rows: Sequence[LogitRows],
        pushed: Sequence[Tensor],
        ranks: Ranks = ALONE,
        groups: Tensor | None = None,
    ) -> None:
        self.rows, self.ranks, self.groups = rows, ranks, groups
        self.weights = class_weights(rows, ranks, groups)
        self.single = [row.centred(u) for row, u in zip(rows, pushed, strict=True)]
        own = torch.stack(
            [row.by_class(row.weights * t, groups) for row, t in zip(rows, self.single, strict=True)]
        ).sum(0)
        sums = ranks.sum_(own)
        self.off = 1 - torch.eye(len(sums), dtype=torch.float64, device=sums.device)
        self.pair = _ratio(sums, self.weights)
        self.mean = _ratio((self.off * sums).sum(1), (self.off * self.weights).sum(1))


def class_weights(rows: Sequence[LogitRows], ranks: Ranks = ALONE, groups: Tensor | None = None) -> Tensor:
    """Weights w_{c,c'} (C, C), float64: weighted sum of the probabilities of class c' over the samples of class c.

    With `groups` (C,), of K groups of classes: (K, K).

    Raises
    ------
    ValueError
        If a class has no samples, so that its means are undefined.
    """
    kinds = rows[0].classes if groups is None else int(groups.max()) + 1
    # Not `bincount`, and no mask as an index: both wait for the device.
    own = torch.zeros(kinds, dtype=torch.int64, device=rows[0].scale.device)
    for row in rows:
        own.index_add_(0, row.true(groups), (row.scale > 0).long())
    counts = ranks.sum_(own)
    missing = [place for place, count in enumerate(counts.tolist()) if not count]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        raise ValueError(
            f"{len(missing)} of {len(counts)} classes have no samples in the data ({shown}): the class structure needs "
            "samples of every class for which the model has a logit. Classes can be put together with classes=, of "
            "hesspec.class_structure; hesspec.frequent_classes puts rare ones together."
        )
    return ranks.sum_(torch.stack([row.by_class(row.weights, groups) for row in rows]).sum(0))


def _ratio(sums: Tensor, weights: Tensor) -> Tensor:
    # Probabilities can underflow; terms of zero weight do not contribute to any matrix.
    return torch.where(weights > 0, sums / torch.where(weights > 0, weights, 1), 0)


class _ClassPart(CurvatureOperator):
    r"""Part of G = sum_{i,c'} w_{i,c'} g_{i,c'} g_{i,c'}^T, with g_{i,c'} = J_i^T (e_{c'} - p_i).

    A product is J^T k with coefficients k_{i,c'} computed from J v. It costs as much as one with G if primal passes are
    cached, and one more primal pass if they are recomputed. The means are never formed.
    """

    def _check_loss(self) -> None:
        check_softmax_loss(self._risk.loss)

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """Attributes for the record of a measurement; "positive_semidefinite" unless classes have negative weights."""
        positive = {"positive_semidefinite": True} if is_convex(self._risk.loss.function) else {}
        return {**super().attributes, **positive}

    @staticmethod
    @abstractmethod
    def coefficients(found: Projections) -> Sequence[Tensor]:
        """Coefficients k (R, C) for each batch."""

    def _couple(self) -> Couple:
        # Not a bound method: cached passes must not keep the operator alive.
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
    return [row.spread(k, found.groups) for row in found.rows]


class GaussNewtonClass(_ClassPart):
    r"""Part of the Gauss-Newton matrix due to the class means of the logit gradients.

    .. math:: G_{class} = \sum_c w_c\, g_c g_c^\top, \qquad
              g_c = \frac1{w_c} \sum_{i \in c,\, c' \ne c} w_{i,c'}\, J_i^\top (e_{c'} - p_i)

    with w_{i,c'} = p_{i,c'}/N and w_c their sum (arXiv 2008.11865). Its rank is at most C.

    Parameters
    ----------
    model : torch.nn.Module
        Model in evaluation mode, with parameters in float32 or float64, that returns logits.
    loss_fn : torch.nn.CrossEntropyLoss
        Loss, with class indices as targets.
    data : iterable
        Batches (inputs, targets), which can be iterated repeatedly and are the same in each pass.
    params, memory, precision, mode, verify, graphs, group : optional
        See `CurvatureOperator`, which also describes errors and conventions.

    Raises
    ------
    ValueError
        In the first product, if a class has no samples; if the loss is a different one.
    """

    @staticmethod
    def coefficients(found: Projections) -> Sequence[Tensor]:
        """<g_c, v> for c' != c."""
        return _by_class(found, found.off * found.mean[:, None])


class GaussNewtonCross(_ClassPart):
    r"""Part of the Gauss-Newton matrix due to the deviations of cross-class means from the class means.

    .. math:: G_{cross} = \sum_{c' \ne c} w_{c,c'} (g_{c,c'} - g_c)(g_{c,c'} - g_c)^\top, \qquad
              g_{c,c'} = \frac1{w_{c,c'}} \sum_{i \in c} w_{i,c'}\, J_i^\top (e_{c'} - p_i)

    (arXiv 2008.11865). Its rank is at most C (C - 2), as the differences of a class have weighted mean 0.

    See `GaussNewtonClass` for conditions.
    """

    @staticmethod
    def coefficients(found: Projections) -> Sequence[Tensor]:
        """<g_{c,c'} - g_c, v> for c' != c."""
        return _by_class(found, found.off * (found.pair - found.mean[:, None]))


class GaussNewtonSame(_ClassPart):
    r"""Part of the Gauss-Newton matrix due to the gradients of the true class's logit.

    .. math:: G_{c=c'} = \sum_c w_{c,c}\, g_{c,c} g_{c,c}^\top

    (arXiv 2008.11865). Its rank is at most C, and it is small if the network fits its data, as e_c - p_i is then nearly
    0.

    See `GaussNewtonClass` for conditions.
    """

    @staticmethod
    def coefficients(found: Projections) -> Sequence[Tensor]:
        """<g_{c,c}, v> for c' = c."""
        return _by_class(found, torch.diag(found.pair.diagonal()))


class GaussNewtonWithin(_ClassPart):
    r"""Part of the Gauss-Newton matrix due to the spread of samples around their means.

    .. math:: G_{within} = \sum_{i,c'} w_{i,c'} (g_{i,c'} - g_{c,c'})(g_{i,c'} - g_{c,c'})^\top, \qquad c = y_i

    (arXiv 2008.11865), the rest of G = G_class + G_cross + G_within + G_{c=c'}.

    See `GaussNewtonClass` for conditions.
    """

    @staticmethod
    def coefficients(found: Projections) -> Sequence[Tensor]:
        """<g_{i,c'} - g_{c,c'}, v>."""
        return [t - k for t, k in zip(found.single, _by_class(found, found.pair), strict=True)]
