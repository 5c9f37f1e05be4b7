"""Gradient noise of minibatches along eigenvectors of the Hessian and along random directions of the bulk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hesspec.applications.noise.tail_record import GradientNoise
from hesspec.backend.bars import steps_of
from hesspec.backend.numbers import check_seed, is_whole
from hesspec.backend.text import kind_of
from hesspec.errors import NonFiniteError
from hesspec.measure.eigenpairs import Eigenpairs
from hesspec.operators.model.ambient import neutral_modes
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec

__all__ = ["gradient_noise"]


def gradient_noise(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    directions: Eigenpairs | None = None,
    *,
    batch_size: int,
    count: int,
    bulk: int = 10,
    params: ParameterSpec = None,
    seed: int = 0,
    progress: bool = True,
) -> GradientNoise:
    """Draw minibatches and project their gradients, minus the gradient of all data, on directions in parameter space.

    Parameters
    ----------
    model, loss_fn, data, params
        See `hesspec.Hessian`. All batches are kept on the model's device. How data is batched does not matter for the
        result, but one large batch is fastest: the gradient of a minibatch takes a pass for each batch that its samples
        are from.
    directions : Eigenpairs, optional
        Eigenvectors of a matrix of the same model and parameters, as `hesspec.eigenpairs` returns them.
    batch_size : int
        Number of samples in a minibatch.
    count : int
        Number of minibatches. Each is drawn without replacement from all samples, independently of the others, so that
        the noise of different minibatches is independent.
    bulk : int
        Number of random directions of the bulk: orthonormal, uniformly distributed in the complement of the
        eigenvectors.
    seed : int
        Seed of minibatches and directions.
    progress : bool
        Whether to show a bar after two seconds, in a terminal or a notebook.

    Returns
    -------
    GradientNoise
        Projections in float64 of gradients in the dtype of the model. The cost is that of `count` gradients of
        minibatches and one of all data.

    Raises
    ------
    ValueError
        If a number is out of range, there are no directions, they belong to another number of parameters, or the loss
        of a batch cannot be split into those of its samples; or for the reasons of `hesspec.Hessian`.
    NonFiniteError
        If a gradient contains NaN or infinity.

    Examples
    --------
    >>> import torch, hesspec
    >>> _ = torch.manual_seed(0)
    >>> model, loss_fn = torch.nn.Linear(5, 1), torch.nn.MSELoss()
    >>> data = [(torch.randn(200, 5), torch.randn(200, 1))]
    >>> pairs = hesspec.eigenpairs(hesspec.Hessian(model, loss_fn, data), count=2, steps=6)
    >>> noise = hesspec.noise.gradient_noise(model, loss_fn, data, pairs, batch_size=10, count=50, bulk=3)
    >>> noise.along_eigenvectors.shape, noise.in_bulk.shape
    ((50, 2), (50, 3))
    """
    for name, number, least in (("batch_size", batch_size, 1), ("count", count, 1), ("bulk", bulk, 0)):
        if not is_whole(number, least):
            raise ValueError(f"{name} is {number!r}; it must be an integer of at least {least}.")
    seed = check_seed(seed)
    risk = EmpiricalRisk(model, loss_fn, data, params)
    if batch_size > risk.batches.samples:
        raise ValueError(f"batch_size is {batch_size}, but there are {risk.batches.samples:,} samples.")
    basis = _directions(risk, directions, int(bulk), seed)
    minibatches = _Minibatches(risk, int(batch_size))
    draws = np.random.default_rng(seed % (1 << 64))
    mean = minibatches.full_gradient()
    projections = np.empty((int(count), basis.shape[1]))
    with steps_of("gradient noise", None, wanted=progress) as shown:
        for place in range(int(count)):
            chosen = np.sort(draws.choice(risk.batches.samples, int(batch_size), replace=False, shuffle=False))
            found = basis.T @ (minibatches.gradient(chosen) - mean)
            projections[place] = found.double().cpu().numpy()
            if not np.isfinite(projections[place]).all():
                raise NonFiniteError(f"The gradient of minibatch {place} contains NaN or infinity.")
            if shown is not None:
                shown(place + 1, int(count))
    k = basis.shape[1] - int(bulk)
    values = np.full(basis.shape[1], np.nan)
    if directions is not None:
        values[:k] = directions.values
    return GradientNoise(
        projections=projections,
        gradient=(basis.T @ mean).double().cpu().numpy(),
        eigenvalues=values,
        is_eigenvector=(np.arange(basis.shape[1]) < k).astype(np.int64),
        batch_size=int(batch_size),
        samples=risk.batches.samples,
        parameters=risk.parameters.count,
        attributes={"seed": seed},
    )


def _directions(risk: EmpiricalRisk, pairs: Eigenpairs | None, bulk: int, seed: int) -> Tensor:
    """Return eigenvectors and random directions orthogonal to them, as columns (p, k)."""
    p = risk.parameters.count
    if pairs is not None and not isinstance(pairs, Eigenpairs):
        raise ValueError(f"directions is {kind_of(pairs)}; pass the result of hesspec.eigenpairs(...).")
    known = torch.empty(p, 0) if pairs is None else pairs.vectors
    if len(known) != p:
        raise ValueError(
            f"The eigenvectors have {len(known):,} entries, but {p:,} parameters are selected; pass the params= with "
            "which the matrix was created."
        )
    k = known.shape[1]
    if k + bulk == 0:
        raise ValueError("There are no directions: pass directions=hesspec.eigenpairs(...), or bulk= of at least 1.")
    if k + bulk > p:
        raise ValueError(f"There are {k} eigenvectors and bulk is {bulk}, but only {p} parameters; reduce bulk=.")
    random = torch.randn(p, bulk, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    # The factor Q of eigenvectors, which are orthonormal up to their errors, and random vectors.
    whole = torch.linalg.qr(torch.cat([known.detach().cpu().double(), random], dim=1)).Q
    both = torch.cat([known.detach().cpu().double(), whole[:, k:]], dim=1)
    return both.to(device=risk.parameters.device, dtype=risk.parameters.dtype)


class _Minibatches:
    """Gradients of samples that are chosen from all batches."""

    def __init__(self, risk: EmpiricalRisk, size: int) -> None:
        self._risk, self._size = risk, size
        self._batches = list(risk.batches)
        self._ends = np.cumsum([batch.samples for batch in self._batches])
        for batch in self._batches:
            if batch.indivisible and batch.samples > 1:
                raise ValueError(
                    f"Batch {batch.index} cannot be split into samples: {batch.indivisible}. Noise of minibatches "
                    "needs a loss that is a mean or a sum over samples."
                )

    def full_gradient(self) -> Tensor:
        """Return the gradient of all data (p,)."""
        total = torch.zeros(
            self._risk.parameters.count, dtype=self._risk.parameters.dtype, device=self._risk.parameters.device
        )
        for batch in self._batches:
            fault = self._risk.fault(batch)
            if fault is not None:
                raise fault
            total += batch.share * self._gradient(batch)
        return total

    def gradient(self, chosen: np.ndarray[Any, Any]) -> Tensor:
        """Return the gradient of the samples with these indices, ascending, as one batch."""
        parts = np.searchsorted(self._ends, chosen, side="right")
        total, terms = torch.zeros((), device=self._risk.parameters.device), 0.0
        for part in np.unique(parts):
            batch = self._batches[part]
            inside = torch.from_numpy(chosen[parts == part] - (self._ends[part] - batch.samples))
            small = batch if batch.samples == 1 else self._risk.batches.chosen(batch, inside.to(total.device))
            counted = 1.0 if self._risk.batches.summed else self._risk.batches.terms_of(small)
            if counted:
                total = total + counted * self._gradient(small)
            terms += counted
        if self._risk.batches.summed:
            # The sum over all samples, as it is estimated from these.
            return total * (self._risk.batches.samples / self._size)
        if not terms:
            raise ValueError("A minibatch has no loss terms: all of its targets are ignored. Increase batch_size=.")
        return total / terms

    def _gradient(self, batch: Batch) -> Tensor:
        with neutral_modes():
            entries = self._risk.gradient(batch)[1]
        return torch.cat([entry.reshape(-1) for entry in entries])
