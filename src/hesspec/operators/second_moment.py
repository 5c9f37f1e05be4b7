"""Second moment of the gradients of single samples, or of minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesspec.backend.numbers import is_whole
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.gauss_newton import GaussNewtonForm
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.output_loss import SECOND_MOMENT
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.operators.risk.sample_gradients import check_samples, mean_gradient, sample_count
from hesspec.operators.sum_over_batches import SumOverBatches

__all__ = ["SecondMoment"]


class SecondMoment(SumOverBatches):
    r"""Second moment M of the gradients of single samples, also known as the empirical Fisher matrix.

    .. math:: M = \sum_i a_i\, g_i g_i^\top = \sum_i a_i\, J_i^\top \delta_i \delta_i^\top J_i, \qquad
              g_i = \nabla_\theta \ell_i, \quad \delta_i = \partial \ell_i / \partial f_i

    for the loss :math:`L = \sum_i a_i \ell_i`, with :math:`a_i = 1/N` for a mean over N samples. It is a Gauss-Newton
    matrix with the output curvature :math:`\delta_i \delta_i^\top`, and a product costs as much as one with G. Its rank
    is at most N. With the labels as they are it is not G, which is its expectation over labels drawn from the model.

    *Samples* are the terms of a cross-entropy of classes: one for each row of logits, or each position that is not
    ignored if the logits are (N, C, d1, ...), as for tokens. For other losses they are the rows of the outputs. The
    gradients of sequences, each a sum over tokens, have another second moment.

    Parameters
    ----------
    model : torch.nn.Module
        Model in evaluation mode, with parameters in float32 or float64.
    loss_fn : callable
        `loss_fn(outputs, targets)`: a cross-entropy of classes, or any other mean or sum over samples.
    data : iterable
        Batches (inputs, targets), which can be iterated repeatedly and are the same in each pass.
    params, terms, memory, precision, mode, verify, batch_statistics, graphs, group : optional
        See `CurvatureOperator`, which also describes errors and conventions.
    centred : bool, optional
        Subtract the outer product of the mean gradient, :math:`M - \bar g \bar g^\top`: the covariance.
    batch_size : int, optional
        The second moment of the mean gradient of b samples, drawn without replacement, or its covariance if `centred`:
        :math:`\bar g \bar g^\top + c (M - \bar g \bar g^\top)` with c = (N - b) / (b (N - 1)).

    Raises
    ------
    ValueError
        If the loss is a closure, a mean over anything else than samples, depends on the parameters directly, or couples
        samples; if `centred` or `batch_size` are used with a sum, or `batch_size` with samples of different weights; if
        `batch_size` is not between 1 and N.

    Notes
    -----
    The products themselves are verified as those of all matrices. The rank-one part of `centred` and `batch_size` is
    computed from one gradient by plain reverse mode.

    Examples
    --------
    >>> import torch, hesspec
    >>> from torch import nn
    >>> x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    >>> model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    >>> moment = hesspec.SecondMoment(model, nn.MSELoss(), [(x[:2], y[:2]), (x[2:], y[2:])])
    >>> g = 2 * (model(x) - y).detach() * x
    >>> v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    >>> torch.allclose(moment @ v, g.T @ (g @ v) / 6)
    True
    """

    _form = GaussNewtonForm(SECOND_MOMENT)

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Iterable[Any],
        params: ParameterSpec = None,
        *,
        centred: bool = False,
        batch_size: int | None = None,
        terms: Callable[[Any], float] | None = None,
        memory: str | int | None = None,
        precision: str = "full",
        mode: str = "auto",
        verify: bool = True,
        batch_statistics: bool = False,
        graphs: GraphCache | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if batch_size is not None and not is_whole(batch_size, 1):
            raise ValueError(f"batch_size is {batch_size!r}; it must be a positive integer, or None for one sample.")
        super().__init__(
            model,
            loss_fn,
            data,
            params,
            terms=terms,
            memory=memory,
            precision=precision,
            mode=mode,
            verify=verify,
            batch_statistics=batch_statistics,
            graphs=graphs,
            group=group,
        )
        self._centred, self._batch_size = bool(centred), batch_size
        self._gradient: Tensor | None = None
        # Factor of M; the rest of a second moment is that of the mean gradient.
        self._share = 1.0
        self._check_moment()

    def _check_loss(self) -> None:
        check_samples(self._risk, "SecondMoment")

    def _check_moment(self) -> None:
        """Check what `centred` and `batch_size` need, and set the factor of M."""
        if self._risk.loss.reduction == "sum" and (self._centred or self._batch_size):
            raise ValueError(
                "The loss is a sum over samples, and centred= and batch_size= are for gradients of a mean; use "
                "reduction='mean'."
            )
        if self._batch_size is None:
            return
        count = sample_count(self._risk)
        if self._batch_size > count:
            raise ValueError(f"batch_size is {self._batch_size}, but there are {count:,} samples to draw from.")
        self._share = (count - self._batch_size) / (self._batch_size * (count - 1)) if count > 1 else 0.0

    @property
    def mean_gradient(self) -> Tensor:
        """Gradient of the loss on all data, (p,)."""
        if self._gradient is None:
            self._gradient = mean_gradient(self._risk)
        return self._gradient

    def partial_products(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """Compute this rank's part of M v for each flat vector (p,); see `CurvatureOperator`."""
        products = super().partial_products(columns)
        of_mean = -self._share if self._centred else 1 - self._share
        if self._share == 1 and not of_mean:
            return products
        mean = self.mean_gradient
        for product, column in zip(products, columns, strict=True):
            product.mul_(self._share)
            if self.ranks.rank == 0:
                product.add_(mean, alpha=of_mean * float((mean * column).sum(dtype=torch.float64)))
        return products

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """Attributes for the record of a measurement, with "centred" and "batch_size" if they are used."""
        centred = {"centred": True} if self._centred else {}
        size = {} if self._batch_size is None else {"batch_size": self._batch_size}
        return {**super().attributes, **centred, **size, "positive_semidefinite": True}

    def identity(self) -> dict[str, str]:
        """Content hashes that identify this operator; see `CurvatureOperator`."""
        return {**super().identity(), "centred": str(self._centred), "batch size": str(self._batch_size)}
