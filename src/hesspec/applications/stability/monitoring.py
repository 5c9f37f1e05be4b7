"""Sharpness against its threshold during a training loop, by a few warm-started products."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesspec.algebra import Identity, SymmetricOperator
from hesspec.applications.stability.record import StabilityRun
from hesspec.applications.stability.thresholds import ADAPTIVE, threshold
from hesspec.backend.numbers import check_seed, is_whole
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.ritz import ritz_pairs
from hesspec.krylov.storage import Storage
from hesspec.krylov.vectors import random_vector
from hesspec.operators import Hessian, Preconditioned, Traces, preconditioner
from hesspec.operators.model.ambient import preserved_randomness
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec, select_parameters
from hesspec.spectra.record import Array

__all__ = ["Monitor", "Reading", "TopEigenvalue", "monitor"]

# Ritz vectors that a measurement starts from: the largest eigenvalues change their order during training.
KEPT = 3
# Norms of the two other parts of a start vector, relative to that of the known ones: the last residual, in which a
# Lanczos process has amplified what its Ritz vectors do not hold, and a random vector. With these, an eigenvalue above
# the known one, 4 or 3.5 to 3, whose eigenvector was orthogonal to all that was known was found in the fourth
# measurement at the latest (p = 400 and 30,000), without further products where nothing was overlooked; with 0.1 and
# 0.1, at times not in 29.
RESIDUAL = 0.5
RANDOM = 0.1


class Reading(NamedTuple):
    """One measurement.

    Attributes
    ----------
    step : int
    risk : float
        The loss of all data.
    sharpness, sharpness_bound : float
        Largest Ritz value of the Hessian, and how far the nearest eigenvalue is from it at most.
    preconditioned, preconditioned_bound : float
        The same of the preconditioned Hessian; nan where there is no preconditioner.
    threshold : float
        Of the sharpness, or of the preconditioned one where there is a preconditioner.
    learning_rate : float
    products : int
        Products with the Hessian that it took.
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


class TopEigenvalue:
    """The largest eigenvalue of an operator that changes a little from one measurement to the next.

    A Lanczos process starts from the Ritz vectors of the largest Ritz values of the last measurement, its residual, and
    a random vector, and ends when the residual of the largest Ritz value is small enough. An eigenvector that none of
    the Ritz vectors holds is in the random part; each measurement amplifies it in the residual, from which the next one
    starts, until it is found.

    Parameters
    ----------
    tolerance : float
        Residual, relative to the Ritz value, at which it ends. The eigenvalue is off by about its square, over the
        relative gap to the next one.
    most : int
        Products that one measurement may take.
    seed : int
    """

    def __init__(self, *, tolerance: float, most: int, seed: int) -> None:
        self._tolerance, self._most = tolerance, most
        self._generator = torch.Generator().manual_seed(check_seed(seed))
        self._known: Tensor | None = None

    def __call__(self, operator: SymmetricOperator) -> tuple[float, float, int]:
        """Largest Ritz value, a bound of its distance to the nearest eigenvalue, and the number of products."""
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
            # The first counts most; half of it and a third keep the others in sight.
            for index, coefficient in enumerate(pairs.vectors[:, -rank]):
                top.add_(process.basis[index], alpha=float(coefficient) / rank)
        self._known = top / top.norm()
        if not process.finished:
            self._known = self._known + RESIDUAL * process.vector
        return value, bound, len(process)


class Monitor:
    """Measures the sharpness of a model during a training loop; made by `monitor`, which describes it."""

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
        for name, number in (("every", every), ("most", most)):
            if not is_whole(number, 1):
                raise ValueError(f"{name} is {number!r}; it must be a positive whole number.")
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance is {tolerance!r}; it must be above 0 and below 1.")
        self._parameters = select_parameters(model, params)
        # It is refused here, rather than after the first step, where nothing will ever be known of it.
        threshold(optimizer, self._parameters.values())
        self._problem = model, loss_fn, data
        self._params, self._optimizer, self._every = params, optimizer, int(every)
        self._traces = Traces(points=1_000)
        how: dict[str, Any] = {"tolerance": tolerance, "most": int(most), "seed": seed}
        self._plain, self._scaled = TopEigenvalue(**how), TopEigenvalue(**how)
        self._how: dict[str, Any] = {"every": int(every), **how}
        self._readings: list[Reading] = []

    def __call__(self, step: int) -> Reading | None:
        """Measure, if the step is one of those that are to be measured.

        Parameters
        ----------
        step : int
            Number of the step that was made last.

        Raises
        ------
        ValueError, NonFiniteError, MemoryError
            As `hesspec.Hessian` and its products, `hesspec.Preconditioned` and `threshold`. The model is as it was.
        """
        if step % self._every:
            return None
        model = self._problem[0]
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with preserved_randomness():
                reading = self._measured(step)
        finally:
            for module, mode in modes:
                module.training = mode
        self._readings.append(reading)
        return reading

    def _measured(self, step: int) -> Reading:
        limit = threshold(self._optimizer, self._parameters.values())
        # The first product is verified; later ones are those of the same model and loss at other weights.
        verify = not self._readings
        hessian = Hessian(*self._problem, self._params, traces=self._traces, verify=verify)
        value, bound, products = self._plain(hessian)
        scaled, scaled_bound, at = np.nan, np.nan, limit.value - limit.decay
        if isinstance(self._optimizer, ADAPTIVE):
            diagonal = preconditioner(self._optimizer, self._parameters.items())
            whole = hessian + limit.decay * Identity.like(hessian) if limit.decay else hessian
            operator = Preconditioned(whole, diagonal)
            scaled, scaled_bound, more = self._scaled(operator)
            products, at = products + more, limit.value
        return Reading(step, hessian.risk, value, bound, scaled, scaled_bound, at, limit.learning_rate, products)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """All measurements so far."""
        return tuple(self._readings)

    def result(self) -> StabilityRun:
        """All measurements so far, to save and to plot."""
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
        """Figure of sharpness and threshold against the step, as of `result`."""
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
    """Follow the sharpness of a model, the largest eigenvalue of its Hessian, through a training loop.

    The result is called with the number of each step, after it. Of adaptive optimisers it also measures the largest
    eigenvalue of the preconditioned Hessian, with the preconditioner of the last step; `threshold` says beyond which a
    step is unstable. The model is measured in evaluation mode. Its weights, modes and gradients, the optimiser, and all
    global random generators are as before.

    Parameters
    ----------
    model, loss_fn, data, params
        As in `hesspec.Hessian`; data that is the same in each pass.
    optimizer : torch.optim.SGD, Adam, AdamW, RMSprop or Adagrad
        Whose groups with these parameters have the same settings.
    every : int
        Steps whose number is a multiple of it are measured.
    tolerance : float
        Residual of the eigenvalue, relative to it, at which a measurement ends.
    most : int
        Products that a measurement may take for each of the two eigenvalues. The first takes most; later ones start
        from the eigenvectors that the last one found. How many each took is in its `products`.
    seed : int
        Of the random part of start vectors.

    Returns
    -------
    Monitor
        `monitor(step)` measures and gives a `Reading` (None at other steps); `readings`, `result()` (a `StabilityRun`)
        and `plot()` give all of them.

    Raises
    ------
    ValueError
        If a number is out of range, or `threshold` does not know the optimiser.

    Notes
    -----
    A Ritz value is never above the largest eigenvalue, but for rounding. That none larger was overlooked is likely, as
    start vectors have a random part, but not proved.

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
