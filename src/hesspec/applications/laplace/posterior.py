r"""Laplace posterior of a network: predictive covariances, predictions and samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesspec.applications.laplace.evidence import MarginalLikelihood
from hesspec.applications.laplace.jacobian import Network
from hesspec.applications.laplace.likelihood import likelihood_of, positive
from hesspec.applications.laplace.low_rank import low_rank
from hesspec.applications.laplace.record import Evidence
from hesspec.backend.numbers import check_seed, is_whole
from hesspec.backend.shown import Shown
from hesspec.errors import InputError
from hesspec.krylov.conjugate_gradients import conjugate_gradients
from hesspec.operators.gauss_newton import GaussNewton
from hesspec.operators.risk.losses import Loss, LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.spectra.sampling import Estimate

__all__ = ["METHODS", "Covariance", "Laplace", "Prediction"]

METHODS: Final = ("probit", "monte carlo", "network samples")
"""Methods to compute class probabilities."""

# Number of right-hand sides that are solved together.
BLOCK = 32


class Covariance(NamedTuple):
    """Posterior covariance of a model's outputs at m inputs.

    Attributes
    ----------
    mean : Tensor (m, C)
        Outputs of the model at the maximum of the posterior.
    values : Tensor (m, C, C)
        Covariance J Psi J^T of the outputs of each input, in squared units of the outputs.
    error : Tensor (m,)
        Bound on ||values - J Psi J^T||_2, without rounding. For the low-rank covariance it holds with a probability of
        99.9%; its values are too large by at most this.
    iterations : int
        Number of block conjugate-gradient iterations, over all blocks of right-hand sides; 0 if they were not used.
    condition, condition_without : float
        Bounds on the condition number of the solves with and without the preconditioner; the number of iterations grows
        with its square root.
    """

    mean: Tensor
    values: Tensor
    error: Tensor
    iterations: int
    condition: float
    condition_without: float


class Prediction(NamedTuple):
    """Predictive distribution at m inputs.

    Attributes
    ----------
    mean : Tensor (m, C)
        Class probabilities for a classifier; mean of the targets for a regression.
    variance : Tensor (m, C)
        For a regression, variance of the targets: posterior variance of the outputs plus noise^2. For a classifier,
        posterior variance of the outputs (logits).
    error : Tensor (m,)
        Bound on the error of `variance`; see `Covariance`. Zero for "network samples".
    """

    mean: Tensor
    variance: Tensor
    error: Tensor


class Laplace(Shown):
    r"""Laplace approximation N(theta, Psi) of the posterior, with a low-rank or exact Gauss-Newton matrix.

    .. math:: \Psi^{-1} = c G + t I ,

    where t is the precision of the prior N(0, I/t) on the selected parameters, and c turns the loss into a negative
    log-likelihood: the number of terms N for a mean cross-entropy, T/(2 s^2) for a mean squared error over T numbers
    with noise s. All other parameters are held constant.

    Parameters
    ----------
    model, loss_fn, data, params
        See `hesspec.GaussNewton`; the model is at the maximum of the posterior. The loss is
        `torch.nn.CrossEntropyLoss`, `torch.nn.BCEWithLogitsLoss` or `torch.nn.MSELoss`, the last being a Gaussian of
        standard deviation `noise`. `params` selects the last layer or any other subset.
    prior_precision : float
        Prior precision t, in units of 1/parameter^2. It can be changed later without new measurements.
    noise : float
        Standard deviation of each output, in units of the targets.
    rank : int
        Largest number of eigenpairs to store; each takes p numbers.
    steps : int
        Lanczos steps of the run that resolves the eigenpairs and gives the evidence.
    seed : int
        Seed of the probes.
    memory, verify, group
        See `hesspec.GaussNewton`.

    Attributes
    ----------
    operator : GaussNewton
        The Gauss-Newton matrix G.
    pairs : LowRank
        Eigenpairs of G, with a bound on all other eigenvalues.
    marginal : MarginalLikelihood
        Evidence and effective number of parameters for any prior precision.
    theta : Tensor (p,)
        The selected parameters, which are the mean of the posterior.

    Raises
    ------
    ValueError
        If an argument is out of range, the loss is not a negative log-likelihood, or for the reasons of
        `hesspec.GaussNewton`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Iterable[Any],
        params: ParameterSpec = None,
        *,
        prior_precision: float = 1.0,
        noise: float = 1.0,
        rank: int = 64,
        steps: int = 64,
        seed: int = 0,
        memory: str | int | None = None,
        verify: bool = True,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if not is_whole(rank, 1):
            raise InputError(f"rank is {rank!r}; it must be a positive integer.")
        self.prior_precision = prior_precision
        self.operator = GaussNewton(model, loss_fn, data, params, memory=memory, verify=verify, group=group)
        risk = self.operator._risk  # noqa: SLF001 - shares the operator's risk, as in class_structure
        self._network = Network(risk)
        self.theta = torch.cat([value.reshape(-1) for value in risk.parameters.values])
        norm = float(self.theta.double().square().sum())
        _refuse_weighted(risk.loss)
        # Checked before the long run, so that a wrong loss or noise is reported at once.
        likelihood_of(self.operator.attributes, noise)
        self.pairs = low_rank(self.operator, rank=int(rank), steps=steps, seed=seed)
        self.marginal = MarginalLikelihood(self.pairs.spectrum, squared_norm=norm, noise=noise)

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "parameters": f"{self.theta.numel():,}",
            "prior precision": f"{self.prior_precision:.4g}",
            "noise": f"{self.marginal.likelihood.noise:.4g}",
            "eigenpairs": f"{self.pairs.values.numel()}, others at most {self.pairs.rest:.3g}",
            "log evidence": f"{self.log_evidence()} nats",
            "effective parameters": str(self.effective_parameters()),
        }

    @property
    def prior_precision(self) -> float:
        """Precision t of the prior, in units of 1/parameter^2."""
        return self._prior

    @prior_precision.setter
    def prior_precision(self, value: float) -> None:
        self._prior = positive("prior_precision", value)

    @property
    def _scale(self) -> float:
        return self.marginal.likelihood.scale

    # Evidence ---------------------------------------------------------------------------------------------------------

    def log_evidence(self, prior: float | None = None) -> Estimate:
        """Return log p(data | prior), by default at `prior_precision`; see `MarginalLikelihood.log_evidence`."""
        return self.marginal.log_evidence(self._prior if prior is None else prior)

    def effective_parameters(self, prior: float | None = None) -> Estimate:
        """Return the effective number of parameters, at `prior_precision` by default; see `MarginalLikelihood`."""
        return self.marginal.effective_parameters(self._prior if prior is None else prior)

    def optimise_prior(self) -> Estimate:
        """Set `prior_precision` to maximise the evidence, and return it; see `MarginalLikelihood.optimise_prior`."""
        found = self.marginal.optimise_prior()
        self.prior_precision = found.value
        return found

    def evidence(self, priors: Any = None) -> Evidence:
        """Return evidence and effective parameters for several priors, to plot and to save."""
        return self.marginal.table(priors)

    @property
    def error(self) -> float:
        """Bound on the error ||Psi_k - Psi||_2 of the low-rank covariance; ||Psi|| is at most 1/prior_precision.

        It holds with a probability of 99.9%, without rounding. See `hesspec.applications.laplace.low_rank`.
        """
        scale, prior = self._scale, self._prior
        return self.pairs.rest_error(scale, prior) + self.pairs.residual_error(scale, prior)

    def multiply_precision(self, columns: Tensor) -> Tensor:
        """Product of the posterior precision matrix A + t I with columns (p, n)."""
        product: Tensor = self._scale * (self.operator @ columns)
        return product + self._prior * columns

    # Predictions ------------------------------------------------------------------------------------------------------

    def jacobians(self, inputs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the outputs (C,) of each input and their Jacobian (C, p), by C backward passes."""
        return self._network.rows(inputs)

    def covariance(
        self,
        inputs: Any,
        *,
        exact: bool = False,
        preconditioned: bool = True,
        tolerance: float = 1e-6,
        max_iterations: int = 1000,
    ) -> Covariance:
        """Compute the posterior covariance J Psi J^T of the outputs at each input.

        Parameters
        ----------
        inputs : Tensor (m, ...), or a structure of tensors
            Inputs of the model.
        exact : bool
            Whether to compute Psi J^T by block conjugate gradients instead of the low-rank approximation. The values
            X^T B + X^T R (B = J^T, X the solution, R its residual) are then below the true ones by R^T Psi R, at most
            ||R||^2/t.
        preconditioned : bool
            Whether to precondition with the low-rank posterior covariance.
        tolerance : float
            Tolerance of the residuals relative to J^T; the relative error of the values is about its square.
        max_iterations : int
            Largest number of iterations for each block of right-hand sides. A warning is issued if they are not enough.

        Returns
        -------
        Covariance

        Raises
        ------
        ValueError
            If the model does not accept the inputs.
        """
        scale, prior, pairs = self._scale, self._prior, self.pairs
        largest = scale * pairs.spectrum.norm
        without = (largest + prior) / prior
        condition = (min(scale * pairs.rest, largest) + prior) / prior if preconditioned else without
        means, values, errors, iterations = [], [], [], 0
        if not exact:
            a = scale * pairs.values
            weights, in_rest = a / (a + prior), pairs.rest_error(scale, prior)
            anywhere = pairs.residual_error(scale, prior)
            for mean, rows in self.jacobians(inputs):
                gram = (rows @ rows.T).double()
                seen = (rows @ pairs.vectors).double()
                values.append((gram - (seen * weights) @ seen.T) / prior)
                # Trace of the part outside the span, which bounds its norm, and trace of all.
                outside = (gram.trace() - seen.square().sum()).clamp(min=0)
                errors.append(outside * in_rest + gram.trace() * anywhere)
                means.append(mean)
            return self._covariance(means, values, errors, 0, condition, without)
        for block in _blocks(self.jacobians(inputs)):
            rhs = torch.cat([rows for _, rows in block]).T
            found = conjugate_gradients(
                self.multiply_precision,
                rhs,
                preconditioner=pairs.inverse(scale, prior) if preconditioned else None,
                tolerance=tolerance,
                max_iterations=max_iterations,
            )
            iterations += found.iterations
            left = float((found.residual.norm(dim=0) / rhs.norm(dim=0).clamp(min=torch.finfo(rhs.dtype).tiny)).max())
            if not found.converged:
                warnings.warn(
                    f"Block conjugate gradients reached a relative residual of {left:.2g} in {max_iterations} "
                    "iterations; the error bounds include this. Increase max_iterations to reduce it.",
                    stacklevel=2,
                )
            place = 0
            for mean, rows in block:
                mine = slice(place, place + len(rows))
                x, r = found.x[:, mine].double(), found.residual[:, mine].double()
                product = rows.double() @ x + x.T @ r
                values.append((product + product.T) / 2)
                errors.append(r.square().sum() / prior)
                means.append(mean)
                place += len(rows)
        return self._covariance(means, values, errors, iterations, condition, without)

    def _covariance(
        self,
        means: list[Tensor],
        values: list[Tensor],
        errors: list[Tensor],
        iterations: int,
        condition: float,
        without: float,
    ) -> Covariance:
        dtype = self.operator.dtype
        return Covariance(
            torch.stack(means),
            torch.stack(values).to(dtype),
            torch.stack(errors).to(dtype),
            iterations,
            condition,
            without,
        )

    def predict(
        self, inputs: Any, *, method: str = "probit", samples: int = 1000, seed: int = 0, exact: bool = False
    ) -> Prediction:
        r"""Compute the predictive distribution at each input.

        For a regression this is N(f, J Psi J^T + noise^2) of the linearised model. For a classifier the class
        probabilities are, by method:

        - "probit": softmax(f_c / sqrt(1 + pi/8 Sigma_cc)), with the diagonal of the covariance Sigma of the logits (for
          two classes, MacKay 1992; applied to each logit as in Faller and Martin, arXiv 2502.02345); likewise for the
          sigmoid;
        - "monte carlo": mean over samples of N(f, Sigma), that is of the linearised model;
        - "network samples": mean over samples of the parameters, with the network itself. For a regression, this is the
          mean and the variance of the network's own outputs, while the other two methods are the same.

        Parameters
        ----------
        inputs
            See `covariance`.
        method : {"probit", "monte carlo", "network samples"}
            How the distribution is computed.
        samples, seed : int
            Number of samples, and seed of their generator.
        exact : bool
            See `covariance`.

        Raises
        ------
        ValueError
            If the method is unknown, `samples` is not positive, or for the reasons of `covariance`.
        """
        if method not in METHODS:
            raise InputError(f"method={method!r} is unknown; use one of {', '.join(map(repr, METHODS))}.")
        kind, noise = self.marginal.likelihood.kind, self.marginal.likelihood.noise
        if method == "network samples":
            given, count = self._network.inputs(inputs)
            drawn = self.sample(samples, seed=seed)
            outputs = torch.stack([self._network.outputs(given, theta) for theta in drawn])
            variance = outputs.var(0, correction=0)
            mean = outputs.mean(0) if kind == "gaussian" else self._probabilities(outputs).mean(0)
            variance = variance + noise**2 if kind == "gaussian" else variance
            return Prediction(mean, variance, torch.zeros(count, dtype=mean.dtype, device=mean.device))
        found = self.covariance(inputs, exact=exact)
        variance = found.values.diagonal(dim1=1, dim2=2).clamp(min=0)
        if kind == "gaussian":
            return Prediction(found.mean, variance + noise**2, found.error)
        if method == "probit":
            mean = self._probabilities(found.mean / torch.sqrt(1 + math.pi / 8 * variance))
            return Prediction(mean, variance, found.error)
        values, vectors = torch.linalg.eigh(found.values)
        root = vectors * values.clamp(min=0).sqrt()[:, None]
        normal = self._normal((_count(samples), *found.mean.shape), seed)
        outputs = found.mean + torch.einsum("mcd,smd->smc", root, normal)
        return Prediction(self._probabilities(outputs).mean(0), variance, found.error)

    def _probabilities(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs) if self.marginal.likelihood.kind == "bernoulli" else torch.softmax(outputs, -1)

    # Samples ----------------------------------------------------------------------------------------------------------

    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        """Draw samples (n, p) of the parameters from N(theta, Psi_k); `operator.to_named` splits one by parameter."""
        normal = self._normal((self.theta.numel(), _count(count)), seed)
        return self.theta + self.pairs.root(normal, self._scale, self._prior).T

    def functional_samples(self, inputs: Any, count: int, *, seed: int = 0) -> Tensor:
        """Draw samples (n, m, C) of the linearised model's outputs, joint over inputs: f + J (theta' - theta)."""
        moved = (self.sample(count, seed=seed) - self.theta).T
        return torch.stack([mean + (rows @ moved).T for mean, rows in self.jacobians(inputs)], dim=1)

    def _normal(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Draw standard normal numbers, the same on every device."""
        generator = torch.Generator().manual_seed(check_seed(seed))
        return torch.randn(shape, dtype=self.operator.dtype, generator=generator).to(self.operator.device)


def _refuse_weighted(loss: Loss) -> None:
    """Raise ValueError for a loss whose options make it something other than a negative log-likelihood."""
    for name in ("weight", "pos_weight", "label_smoothing"):
        value = getattr(loss.function, name, None)
        if value is not None and not (isinstance(value, float | int) and value == 0):
            raise InputError(
                f"{loss.name} with {name} is not a negative log-likelihood, so it has no evidence or posterior: leave "
                f"{name} out."
            )


def _count(samples: Any) -> int:
    if not is_whole(samples, 1):
        raise InputError(f"The number of samples is {samples!r}; it must be a positive integer.")
    return int(samples)


def _blocks(rows: Iterator[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Group inputs to about `BLOCK` outputs each."""
    block: list[tuple[Tensor, Tensor]] = []
    for one in rows:
        block.append(one)
        if sum(len(mean) for mean, _ in block) >= BLOCK:
            yield block
            block = []
    if block:
        yield block
