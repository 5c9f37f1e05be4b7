"""Shares of an optimiser's steps in the top eigenspace of the Hessian, followed through a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesspec.applications.optim.share_record import DominantShare
from hesspec.applications.optim.share_run import DominantShareRun
from hesspec.applications.optim.subspace_shares import dominant_share
from hesspec.backend.numbers import check_counts, check_seed
from hesspec.measure.eigenpairs import eigenpairs
from hesspec.operators import GraphCache, Hessian
from hesspec.operators.model.ambient import preserved_randomness
from hesspec.operators.model.module import evaluation_mode
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec, select_parameters

__all__ = ["ShareMonitor", "monitor_shares"]

Source = Optimizer | Sequence[Optimizer] | Callable[[], Mapping[str, Tensor]]
NAMES = ("gradient", "momentum", "update", "update of z")


class ShareMonitor:
    """Measures dominant shares during a training loop; created by `monitor_shares`, which documents it."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Iterable[Any],
        optimizer: Source,
        *,
        every: int,
        k: int,
        params: ParameterSpec,
        steps: int,
        seed: int,
    ) -> None:
        check_counts(every=every, k=k, steps=steps)
        self._dimension = sum(value.numel() for value in select_parameters(model, params).values())
        self._problem, self._optimizer, self._params = (model, loss_fn, data), optimizer, params
        self._every, self._k, self._steps, self._seed = int(every), int(k), int(steps), check_seed(seed)
        self._hessian: Hessian | None = None
        # Of each measurement: step, number of eigenvectors, and values and bounds by vector.
        self._rows: list[Tensor] = []
        self._optimizer_name = ""

    def __call__(self, step: int) -> DominantShare | None:
        """Measure if the step is due: after `backward()`, before the optimiser's step.

        Parameters
        ----------
        step : int
            Number of the step that is about to be taken.

        Raises
        ------
        ValueError, NonFiniteError, MemoryError
            See `dominant_share`, `hesspec.Hessian` and `hesspec.eigenpairs`. Model and optimiser are left unchanged.
        """
        if step % self._every:
            return None
        model = self._problem[0]
        with evaluation_mode(model), preserved_randomness():
            self._hessian = (
                Hessian(*self._problem, self._params, graphs=GraphCache(points=1_000))
                if self._hessian is None
                else self._hessian.at_current_weights()
            )
            pairs = eigenpairs(self._hessian, count=self._k, steps=self._steps, seed=self._seed, progress=False)
            source = self._optimizer() if callable(self._optimizer) else self._optimizer
            found = dominant_share(source, pairs, model, self._params)
        self._optimizer_name = found.optimizer
        shares = found.dominant()
        row = torch.full((len(NAMES), 3), torch.nan, dtype=torch.float64)
        for index, name in enumerate(found.names):
            row[NAMES.index(str(name))] = torch.tensor([float(part[index]) for part in shares])
        self._rows.append(torch.cat([torch.tensor([step, found.k], dtype=torch.float64), row.reshape(-1)]))
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name from which `load_state_dict` restores the measurements."""
        empty = torch.zeros(0, 2 + 3 * len(NAMES), dtype=torch.float64)
        return {"rows": torch.stack(self._rows) if self._rows else empty}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._rows = list(state["rows"])

    def result(self) -> DominantShareRun:
        """Return all measurements so far as a result to save and to plot."""
        table = self.state_dict()["rows"].numpy()
        shares = table[:, 2:].reshape(-1, len(NAMES), 3)
        kept = [place for place in range(len(NAMES)) if np.isfinite(shares[:, place, 0]).any()]
        return DominantShareRun(
            steps=table[:, 0].astype(np.int64),
            names=np.array([NAMES[place] for place in kept], dtype=str),
            values=shares[:, kept, 0],
            low=shares[:, kept, 1],
            high=shares[:, kept, 2],
            eigenvectors=table[:, 1].astype(np.int64),
            dimension=self._dimension,
            optimizer=self._optimizer_name,
            attributes={"every": self._every, "k": self._k, "products": self._steps, "seed": self._seed},
        )


def monitor_shares(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    optimizer: Source,
    *,
    every: int = 1,
    k: int = 10,
    params: ParameterSpec = None,
    steps: int = 64,
    seed: int = 0,
) -> ShareMonitor:
    """Follow the shares of gradient, momentum and update in the top eigenspace of the Hessian through a training.

    Call the result with the number of the step after `backward()` and before `optimizer.step()`. A measurement takes
    `steps` products with the Hessian. Model, gradients, optimiser and random generators are left unchanged.

    Parameters
    ----------
    model, loss_fn, data, params
        Of the Hessian, see `hesspec.Hessian`; it is measured in evaluation mode.
    optimizer : torch.optim.Optimizer, a sequence of them, or callable
        See `dominant_share`. For other methods, a function without arguments that returns vectors (p,) of the step that
        is about to be taken: "gradient", "momentum" or "update".
    every : int
        Interval of measurements: steps whose number is a multiple of it are measured.
    k : int
        Number of eigenvectors, those of the largest absolute eigenvalues.
    steps, seed : int
        See `hesspec.eigenpairs`.

    Returns
    -------
    ShareMonitor
        `monitor(step)` measures and returns a `DominantShare` (None if the step is not due); `result()` gives all
        measurements as a `DominantShareRun`.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import torch, hesspec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    >>> inputs, targets, loss_fn = torch.randn(30, 4), torch.arange(30) % 3, torch.nn.CrossEntropyLoss()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> monitor = hesspec.optim.monitor_shares(model, loss_fn, [(inputs, targets)], optimizer, every=2, k=3, steps=20)
    >>> for step in range(5):
    ...     optimizer.zero_grad()
    ...     loss_fn(model(inputs), targets).backward()
    ...     found = monitor(step)
    ...     optimizer.step()
    >>> monitor.result().steps, monitor.result().names.tolist()
    (array([0, 2, 4]), ['gradient', 'momentum', 'update'])
    """
    return ShareMonitor(model, loss_fn, data, optimizer, every=every, k=k, params=params, steps=steps, seed=seed)
