"""Monitoring of the sharpness and its threshold during training, with a few warm-started products."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesspec.applications.stability.record import StabilityRun
from hesspec.applications.stability.thresholds import ADAPTIVE, threshold
from hesspec.backend.algebra import Identity, SymmetricOperator
from hesspec.backend.numbers import check_counts, check_fractions, check_seed
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.ritz import ritz_pairs
from hesspec.krylov.storage import Storage
from hesspec.krylov.vectors import random_vector
from hesspec.operators import GraphCache, Hessian, Preconditioned, preconditioner
from hesspec.operators.model.ambient import preserved_randomness
from hesspec.operators.model.module import evaluation_mode
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec, select_parameters
from hesspec.spectra.record import Array

__all__ = ["Monitor", "Reading", "TopEigenvalue", "monitor"]

# Ritz vectors that a measurement starts from; several, as the largest eigenvalues swap order during training.
KEPT = 3
# Norms of the two other parts of a start vector, relative to that of the Ritz vectors: the last residual, in which the
# Lanczos process has amplified what its Ritz vectors miss, and a random vector. With these values, an eigenvalue of 3.5
# or 4, above a known one of 3, whose eigenvector was orthogonal to all known ones was found by the fourth measurement
# (p = 400 and 30,000), without further products when nothing was missed; with 0.1 and 0.1, sometimes not in 29.
RESIDUAL = 0.5
RANDOM = 0.1


class Reading(NamedTuple):
    """One measurement of a `Monitor`.

    Attributes
    ----------
    step : int
        Number of the training step.
    risk : float
        Loss on all data.
    sharpness, sharpness_bound : float
        Largest Ritz value of the Hessian, and a bound on its distance to the nearest eigenvalue.
    preconditioned, preconditioned_bound : float
        The same for the preconditioned Hessian; nan if there is no preconditioner.
    threshold : float
        Stability threshold of the sharpness, or of the preconditioned one if there is a preconditioner.
    learning_rate : float
        Learning rate of the optimiser.
    products : int
        Number of products with the Hessian.
    """

    step: int
    risk: float
    sharpness: float
    sharpness_bound: float
    preconditioned: float
    preconditioned_bound: float
    threshold: float
    learning_rate: float
    products: int

    @property
    def ratio(self) -> float:
        """Sharpness over threshold; 1 at the edge of stability."""
        sharpness = self.sharpness if np.isnan(self.preconditioned) else self.preconditioned
        return sharpness / self.threshold


FIELDS = Reading._fields


class TopEigenvalue:
    """Largest eigenvalue of an operator that changes slowly from one measurement to the next.

    A Lanczos process starts from the Ritz vectors of the largest Ritz values of the last measurement, its residual and
    a random vector, and stops when the residual of the largest Ritz value is small enough. An eigenvector that none of
    the Ritz vectors contains is present in the random part; each measurement amplifies it in the residual, from which
    the next one starts, until it is found.

    Parameters
    ----------
    tolerance : float
        Relative residual at which a measurement stops. The relative error of the eigenvalue is about its square,
        divided by the relative gap to the next one.
    most : int
        Largest number of products in a measurement.
    seed : int
    """

    def __init__(self, *, tolerance: float, most: int, seed: int) -> None:
        self._tolerance, self._most = tolerance, most
        self._generator = torch.Generator().manual_seed(check_seed(seed))
        self._known: Tensor | None = None

    def __call__(self, operator: SymmetricOperator) -> tuple[float, float, int]:
        """Return the largest Ritz value, a bound on its distance to an eigenvalue, and the number of products."""
        size, dtype, device = int(operator.shape[0]), operator.dtype, torch.device(operator.device)
        start = random_vector(size, self._generator, dtype=dtype, device=device)
        if self._known is not None:
            start = self._known + start * (RANDOM / float(start.norm()))
        process = Lanczos(start, self._generator, storage=Storage())
        while True:
            process.step(operator @ process.vector)
            pairs = ritz_pairs(*process.tridiagonal())
            value = float(pairs.values[-1])
            bound = float(pairs.residuals[-1]) + process.backward_error(len(process))
            if bound <= self._tolerance * abs(value) or len(process) >= self._most or process.finished:
                break
        top = torch.zeros(size, dtype=dtype, device=device)
        for rank in range(1, min(KEPT, len(process)) + 1):
            # The first Ritz vector has the largest weight; the others follow with a half, a third, ...
            for index, coefficient in enumerate(pairs.vectors[:, -rank]):
                top.add_(process.basis[index], alpha=float(coefficient) / rank)
        self._known = top / top.norm()
        if not process.finished:
            self._known = self._known + RESIDUAL * process.vector
        return value, bound, len(process)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors from which `load_state_dict` restores this object to the bit."""
        known = {} if self._known is None else {"known": self._known}
        return {"generator": self._generator.get_state(), **known}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._generator.set_state(state["generator"])
        self._known = state.get("known")


class Monitor:
    """Measures the sharpness of a model during a training loop; created by `monitor`, which documents it."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Iterable[Any],
        optimizer: Optimizer,
        *,
        every: int,
        params: ParameterSpec,
        tolerance: float,
        most: int,
        seed: int,
    ) -> None:
        check_counts(every=every, most=most)
        check_fractions(tolerance=tolerance)
        self._parameters = select_parameters(model, params)
        # Rejected here rather than after the first step, if no threshold is known for the optimiser.
        threshold(optimizer, self._parameters.values())
        self._problem = model, loss_fn, data
        self._params, self._optimizer, self._every = params, optimizer, int(every)
        self._hessian: Hessian | None = None
        how: dict[str, Any] = {"tolerance": tolerance, "most": int(most), "seed": seed}
        self._plain, self._scaled = TopEigenvalue(**how), TopEigenvalue(**how)
        self._how: dict[str, Any] = {"every": int(every), **how}
        self._readings: list[Reading] = []

    def __call__(self, step: int) -> Reading | None:
        """Measure if the step is due.

        Parameters
        ----------
        step : int
            Number of the last training step.

        Raises
        ------
        ValueError, NonFiniteError, MemoryError
            See `hesspec.Hessian` and its products, `hesspec.Preconditioned` and `threshold`. The model is left
            unchanged.
        """
        if step % self._every:
            return None
        with evaluation_mode(self._problem[0]), preserved_randomness():
            reading = self._measured(step)
        self._readings.append(reading)
        return reading

    def _measured(self, step: int) -> Reading:
        limit = threshold(self._optimizer, self._parameters.values())
        # Only the first operator examines and verifies; its cached passes are freed before those of the next one run.
        hessian = (
            Hessian(*self._problem, self._params, graphs=GraphCache(points=1_000))
            if self._hessian is None
            else self._hessian.at_current_weights()
        )
        self._hessian = hessian
        value, bound, products = self._plain(hessian)
        scaled, scaled_bound, at = np.nan, np.nan, limit.value - limit.decay
        if isinstance(self._optimizer, ADAPTIVE):
            diagonal = preconditioner(self._optimizer, self._parameters.items())
            whole = hessian + limit.decay * Identity.like(hessian) if limit.decay else hessian
            operator = Preconditioned(whole, diagonal)
            scaled, scaled_bound, more = self._scaled(operator)
            products, at = products + more, limit.value
        return Reading(step, hessian.risk, value, bound, scaled, scaled_bound, at, limit.learning_rate, products)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name from which `load_state_dict` restores the monitor to the bit."""
        parts = {"plain": self._plain, "preconditioned": self._scaled}
        tensors = {f"{part}.{name}": value for part, top in parts.items() for name, value in top.state_dict().items()}
        return {**tensors, "readings": torch.tensor(self._readings, dtype=torch.float64).reshape(-1, len(FIELDS))}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in a monitor of the same model and settings.

        Raises
        ------
        ValueError
            If a part is missing, or belongs to a model of another size.
        """
        size = sum(value.numel() * (2 if value.is_complex() else 1) for value in self._parameters.values())
        for part, top in (("plain", self._plain), ("preconditioned", self._scaled)):
            mine = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(part)}
            if "generator" not in mine or "readings" not in state:
                raise ValueError(f"This is not the state of a monitor: it has only {', '.join(state) or 'nothing'}.")
            if "known" in mine and mine["known"].shape != (size,):
                raise ValueError(
                    f"The state of the monitor is of {mine['known'].numel():,} parameters, but the model has {size:,}."
                )
            top.load_state_dict(mine)
        kinds = Reading.__annotations__
        self._readings = [
            Reading(*(int(value) if kinds[name] == "int" else value for name, value in zip(FIELDS, row, strict=True)))
            for row in state["readings"].tolist()
        ]

    @property
    def readings(self) -> tuple[Reading, ...]:
        """All measurements so far."""
        return tuple(self._readings)

    def result(self) -> StabilityRun:
        """Return all measurements so far as a result to save and to plot."""
        readings = self._readings

        def real(name: str) -> Array:
            return np.array([getattr(reading, name) for reading in readings], dtype=np.float64)

        return StabilityRun(
            steps=np.array([reading.step for reading in readings], dtype=np.int64),
            risk=real("risk"),
            sharpness=real("sharpness"),
            sharpness_bounds=real("sharpness_bound"),
            preconditioned=real("preconditioned"),
            preconditioned_bounds=real("preconditioned_bound"),
            thresholds=real("threshold"),
            learning_rates=real("learning_rate"),
            products=np.array([reading.products for reading in readings], dtype=np.int64),
            optimizer=type(self._optimizer).__name__,
            attributes=self._how,
        )

    def plot(self) -> Any:
        """Plot sharpness and threshold against the step; see `StabilityRun.plot`."""
        return self.result().plot()


def monitor(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    optimizer: Optimizer,
    *,
    every: int = 1,
    params: ParameterSpec = None,
    tolerance: float = 0.02,
    most: int = 30,
    seed: int = 0,
) -> Monitor:
    """Monitor the sharpness of a model, the largest eigenvalue of its Hessian, during a training loop.

    Call the result after each step with the number of the step. For adaptive optimisers it also measures the largest
    eigenvalue of the preconditioned Hessian, with the preconditioner of the last step; a step is unstable beyond
    `threshold`. The model is measured in evaluation mode. Its weights, modes and gradients, the optimiser, and all
    global random generators are left unchanged.

    Parameters
    ----------
    model, loss_fn, data, params
        See `hesspec.Hessian`. The data must be the same in each pass.
    optimizer : torch.optim.SGD, Adam, AdamW, RMSprop or Adagrad
        Optimiser. All groups with these parameters must have the same settings.
    every : int
        Interval of measurements: steps whose number is a multiple of it are measured.
    tolerance : float
        Residual, relative to the eigenvalue, at which a measurement stops.
    most : int
        Largest number of products for each of the two eigenvalues of a measurement. The first measurement needs most;
        later ones start from the eigenvectors found before. `Reading.products` has the number used.
    seed : int
        Seed of the random part of start vectors.

    Returns
    -------
    Monitor
        `monitor(step)` measures and returns a `Reading` (None if the step is not due); `readings`, `result()` (a
        `StabilityRun`) and `plot()` give all measurements.

    Raises
    ------
    ValueError
        If a number is out of range, or `threshold` does not support the optimiser.

    Notes
    -----
    Up to rounding, a Ritz value never exceeds the largest eigenvalue. A larger eigenvalue is unlikely to be missed, as
    start vectors have a random part, but this is not guaranteed.

    Examples
    --------
    >>> import torch, hesspec
    >>> model = torch.nn.Linear(3, 1)
    >>> inputs, targets = torch.randn(20, 3), torch.randn(20, 1)
    >>> loss_fn, optimizer = torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1)
    >>> monitor = hesspec.stability.monitor(model, loss_fn, [(inputs, targets)], optimizer, every=5)
    >>> for step in range(11):
    ...     loss_fn(model(inputs), targets).backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     reading = monitor(step)
    >>> monitor.result().steps, monitor.result().thresholds
    (array([ 0,  5, 10]), array([20., 20., 20.]))
    """
    return Monitor(
        model,
        loss_fn,
        data,
        optimizer,
        every=every,
        params=params,
        tolerance=tolerance,
        most=most,
        seed=seed,
    )
