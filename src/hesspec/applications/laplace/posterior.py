r"""The Laplace posterior of a network: predictive covariances, predictions and samples."""

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
from hesspec.applications.laplace.solve import solve
from hesspec.backend.numbers import check_seed, is_whole
from hesspec.errors import InputError
from hesspec.operators.gauss_newton import GaussNewton
from hesspec.operators.risk.losses import Loss, LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.spectra.spectrum import Estimate

__all__ = ["METHODS", "Covariance", "Laplace", "Prediction"]

METHODS: Final = ("probit", "monte carlo", "network samples")
"""How class probabilities are computed."""

# Right-hand sides that are solved together.
BLOCK = 32


class Covariance(NamedTuple):
    """Posterior covariance of a model's outputs, for each of m inputs.

    Attributes
    ----------
    mean : Tensor (m, C)
        Outputs at the maximum of the posterior.
    values : Tensor (m, C, C)
        J Psi J^T, in squared units of the outputs.
    error : Tensor (m,)
        Bound of ||values - J Psi J^T||_2. That of the low rank holds with a probability of 99.9%; its values are then
        too large, by no more than this. Rounding is not in it.
    iterations : int
        Of block conjugate gradients, over all blocks of right-hand sides; 0 without.
    condition, condition_without : float
        Bounds of the condition number that they had, and that they would have had without the preconditioner: the
        number of iterations grows with its square root.
    """

    mean: Tensor
    values: Tensor
    error: Tensor
    iterations: int
    condition: float
    condition_without: float


class Prediction(NamedTuple):
    """Predictive distribution of each of m inputs.

    Attributes
    ----------
    mean : Tensor (m, C)
        Class probabilities of a classifier; the mean of the targets for a regression.
    variance : Tensor (m, C)
        Of the targets, for a regression: posterior variance of the outputs plus noise^2. Of a classifier's outputs
        (logits), by which they are uncertain.
    error : Tensor (m,)
        Bound of the error of `variance`; see `Covariance`. Zero where samples of the network are averaged.
    """

    mean: Tensor
    variance: Tensor
    error: Tensor


class Laplace:
    r"""Laplace approximation N(theta, Psi) of the posterior, with the Gauss-Newton matrix of low rank or exact.

    .. math:: \Psi^{-1} = c G + t I ,

    where t is the precision of the prior N(0, I/t) on the selected parameters and c makes the loss a negative
    log-likelihood: the number of terms N for a mean cross-entropy, T/(2 s^2) for a mean squared error over T numbers
    with noise s. All other parameters are held constant.

    Parameters
    ----------
    model, loss_fn, data, params
        As for `hesspec.GaussNewton`, at the maximum of the posterior. The loss is `torch.nn.CrossEntropyLoss`,
        `torch.nn.BCEWithLogitsLoss` or `torch.nn.MSELoss`, the latter a Gaussian of standard deviation `noise`.
        `params` selects the last layer, or any other subset.
    prior_precision : float
        t, in units of 1/parameter^2. It may be set later: nothing is measured again.
    noise : float
        Standard deviation of each output, in units of the targets.
    rank : int
        Eigenpairs that are kept at most; p numbers each.
    steps : int
        Lanczos steps of the run that resolves them, and that the evidence comes from.
    seed : int
        Of the probes.
    memory, verify, group
        As for `hesspec.GaussNewton`.

    Attributes
    ----------
    operator : GaussNewton
    pairs : LowRank
        Eigenpairs of G with the bound of all others.
    marginal : MarginalLikelihood
    theta : Tensor (p,)
        The selected parameters, the posterior's mean.

    Raises
    ------
    ValueError
        If an argument is out of range, the loss is not a likelihood, or as `hesspec.GaussNewton`.
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
            raise InputError(f"rank is {rank!r}; it must be a positive whole number.")
        self.prior_precision = prior_precision
        self.operator = GaussNewton(model, loss_fn, data, params, memory=memory, verify=verify, group=group)
        risk = self.operator._risk  # noqa: SLF001 - the risk is the operator's, and is shared as in class_structure
        self._network = Network(risk)
        self.theta = torch.cat([value.reshape(-1) for value in risk.parameters.values])
        norm = float(self.theta.double().square().sum())
        _refuse_weighted(risk.loss)
        # Before a long run, of which a wrong loss or noise would only tell afterwards.
        likelihood_of(self.operator.attributes, noise)
        self.pairs = low_rank(self.operator, rank=int(rank), steps=steps, seed=seed)
        self.marginal = MarginalLikelihood(self.pairs.spectrum, squared_norm=norm, noise=noise)

    @property
    def prior_precision(self) -> float:
        """Precision t of the prior."""
        return self._prior

    @prior_precision.setter
    def prior_precision(self, value: float) -> None:
        self._prior = positive("prior_precision", value)

    @property
    def _scale(self) -> float:
        return self.marginal.likelihood.scale

    # Evidence ---------------------------------------------------------------------------------------------------------

    def log_evidence(self, prior: float | None = None) -> Estimate:
        """log p(data | prior precision); see `MarginalLikelihood.log_evidence`. By default at `prior_precision`."""
        return self.marginal.log_evidence(self._prior if prior is None else prior)

    def effective_parameters(self, prior: float | None = None) -> Estimate:
        """Effective number of parameters; see `MarginalLikelihood`. By default at `prior_precision`."""
        return self.marginal.effective_parameters(self._prior if prior is None else prior)

    def optimise_prior(self) -> Estimate:
        """Set `prior_precision` to that of largest evidence, and return it; see `MarginalLikelihood.optimise_prior`."""
        found = self.marginal.optimise_prior()
        self.prior_precision = found.value
        return found

    def evidence(self, priors: Any = None) -> Evidence:
        """Evidence and effective parameters for several priors, to plot and to save."""
        return self.marginal.table(priors)

    @property
    def error(self) -> float:
        """Bound of ||Psi_k - Psi||_2 for the low-rank posterior covariance; ||Psi|| is at most 1/prior_precision.

        It holds with a probability of 99.9%; rounding is not in it. See `hesspec.applications.laplace.low_rank`.
        """
        scale, prior = self._scale, self._prior
        return self.pairs.rest_error(scale, prior) + self.pairs.residual_error(scale, prior)

    # Predictions ------------------------------------------------------------------------------------------------------

    def jacobians(self, inputs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs (C,) and their Jacobian (C, p) of each input; C backward passes and C p numbers at a time."""
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
        """Posterior covariance J Psi J^T of the outputs, for each input.

        Parameters
        ----------
        inputs : Tensor (m, ...), or a structure of tensors
            As the model takes them.
        exact : bool
            Whether Psi J^T is computed by block conjugate gradients, in place of the low rank. Then the values X^T B +
            X^T R (B = J^T, X the solution, R its residual) are below the true ones, by R^T Psi R, at most ||R||^2/t.
        preconditioned : bool
            Whether the low-rank posterior covariance preconditions them.
        tolerance : float
            Of the residuals, relative to J^T; their square is the relative error.
        max_iterations : int
            Of each block of right-hand sides; a warning says where they were not enough.

        Returns
        -------
        Covariance

        Raises
        ------
        ValueError
            If the inputs are not what the model takes.
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
                # Trace of what is outside of the span, which bounds its norm, and of all.
                outside = (gram.trace() - seen.square().sum()).clamp(min=0)
                errors.append(outside * in_rest + gram.trace() * anywhere)
                means.append(mean)
            return self._covariance(means, values, errors, 0, condition, without)
        for block in _blocks(self.jacobians(inputs)):
            rhs = torch.cat([rows for _, rows in block]).T
            found = solve(
                self.operator,
                rhs,
                scale=scale,
                prior=prior,
                pairs=pairs if preconditioned else None,
                tolerance=tolerance,
                max_iterations=max_iterations,
            )
            iterations += found.iterations
            left = float((found.residual.norm(dim=0) / rhs.norm(dim=0).clamp(min=torch.finfo(rhs.dtype).tiny)).max())
            if found.iterations >= max_iterations and not left <= tolerance:
                warnings.warn(
                    f"Block conjugate gradients reached a relative residual of {left:.2g} in {max_iterations} "
                    "iterations; the error bounds say what that leaves. Give them more with max_iterations.",
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
        r"""Predictive distribution of each input.

        Of a regression N(f, J Psi J^T + noise^2), with the linearised model. Of a classifier, class probabilities:

        - "probit": softmax(f_c / sqrt(1 + pi/8 Sigma_cc)), with the diagonal of the covariance Sigma of the logits (for
          two classes, MacKay 1992; applied to each logit as in Faller and Martin, arXiv 2502.02345); sigmoid alike;
        - "monte carlo": the mean over samples of N(f, Sigma), of the linearised model;
        - "network samples": the mean over samples of the parameters, of the network itself. The mean and the variance
          of the network's own outputs for a regression, where the other two are the same.

        Parameters
        ----------
        inputs
            As in `covariance`.
        method : {"probit", "monte carlo", "network samples"}
        samples, seed : int
            Number of samples, and seed of their generator.
        exact : bool
            As in `covariance`.

        Raises
        ------
        ValueError
            If the method is unknown, `samples` is not positive, or as `covariance`.
        """
        if method not in METHODS:
            raise InputError(f"method={method!r} is unknown; it is one of {', '.join(map(repr, METHODS))}.")
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
        """Samples (n, p) of the parameters from N(theta, Psi_k); `operator.to_named` names one."""
        normal = self._normal((self.theta.numel(), _count(count)), seed)
        return self.theta + self.pairs.root(normal, self._scale, self._prior).T

    def functional_samples(self, inputs: Any, count: int, *, seed: int = 0) -> Tensor:
        """Samples (n, m, C) of the linearised model's outputs, joint over inputs: f + J (theta' - theta)."""
        moved = (self.sample(count, seed=seed) - self.theta).T
        return torch.stack([mean + (rows @ moved).T for mean, rows in self.jacobians(inputs)], dim=1)

    def _normal(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Standard normal numbers, the same on every device."""
        generator = torch.Generator().manual_seed(check_seed(seed))
        return torch.randn(shape, dtype=self.operator.dtype, generator=generator).to(self.operator.device)


def _refuse_weighted(loss: Loss) -> None:
    """Raise ValueError for a loss whose options make it another function than minus a log-likelihood."""
    for name in ("weight", "pos_weight", "label_smoothing"):
        value = getattr(loss.function, name, None)
        if value is not None and not (isinstance(value, float | int) and value == 0):
            raise InputError(
                f"{loss.name} with {name} is not a negative log-likelihood, and has no evidence or posterior: leave "
                f"{name} out."
            )


def _count(samples: Any) -> int:
    if not is_whole(samples, 1):
        raise InputError(f"The number of samples is {samples!r}; it must be a positive whole number.")
    return int(samples)


def _blocks(rows: Iterator[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inputs in groups of about `BLOCK` outputs."""
    block: list[tuple[Tensor, Tensor]] = []
    for one in rows:
        block.append(one)
        if sum(len(mean) for mean, _ in block) >= BLOCK:
            yield block
            block = []
    if block:
        yield block
