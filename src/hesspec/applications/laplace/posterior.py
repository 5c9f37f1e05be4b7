r"""Laplace posterior of a network: predictive covariances, predictions and samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesspec.applications.laplace.evidence import MarginalLikelihood
from hesspec.applications.laplace.gaussian import GaussianLikelihood, noise_per_output
from hesspec.applications.laplace.groups import GroupedEvidence, Groups, groups_of, precisions
from hesspec.applications.laplace.jacobian import Network, blocks_of
from hesspec.applications.laplace.likelihood import likelihood_of, positive, refuse_weighted
from hesspec.applications.laplace.low_rank import low_rank
from hesspec.applications.laplace.predictions import Covariance, Prediction
from hesspec.applications.laplace.record import Evidence
from hesspec.applications.laplace.scaled import ScaledPairs
from hesspec.backend.numbers import check_counts, check_seed, is_whole
from hesspec.backend.shown import Shown
from hesspec.backend.user_warnings import warn
from hesspec.errors import InputError
from hesspec.krylov.conjugate_gradients import conjugate_gradients
from hesspec.operators.gauss_newton import GaussNewton
from hesspec.operators.risk.losses import LossFunction, as_module
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.spectra.sampling import Estimate

__all__ = ["METHODS", "Laplace"]

METHODS: Final = ("probit", "monte carlo", "network samples")
"""Methods to compute class probabilities."""

Prior = float | Mapping[str, float]


class Laplace(Shown):
    r"""Laplace approximation N(theta, Psi) of the posterior, with a low-rank or exact Gauss-Newton matrix.

    .. math:: \Psi^{-1} = c G + D ,

    where D is the precision of the prior N(0, D^{-1}) on the selected parameters, t I or t_g in each group, and c turns
    the loss into a negative log-likelihood: it is the number of terms N for a mean cross-entropy, and T/(2 s^2) for a
    mean squared error over T numbers with noise s. All other parameters are held constant.

    Parameters
    ----------
    model, loss_fn, data, params
        See `hesspec.GaussNewton`; the model is at the maximum of the posterior. The loss is
        `torch.nn.CrossEntropyLoss`, `torch.nn.BCEWithLogitsLoss` or `torch.nn.MSELoss`, the last being a Gaussian of
        standard deviation `noise`. `params` selects the last layer or any other subset.
    prior_precision : float, or mapping of str to float
        Prior precision t, in units of 1/parameter^2, of all parameters; or of groups, by names of modules or patterns
        of parameter names, each parameter in one group. It can be changed later without new measurements.
    noise : float or Tensor (C,)
        Standard deviation of all outputs, or of each, in units of the targets.
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
    noise : Tensor () or (C,)
        Standard deviation of the outputs.
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
        prior_precision: Prior = 1.0,
        noise: float | Tensor = 1.0,
        rank: int = 64,
        steps: int = 64,
        seed: int = 0,
        memory: str | int | None = None,
        verify: bool = True,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        check_counts(rank=rank)
        _checked(prior_precision)
        own = noise_per_output(noise)
        common: Any = noise if own is None else 1.0
        if own is not None:
            if not isinstance(as_module(loss_fn), nn.MSELoss):
                raise InputError(
                    f"noise has {len(own)} numbers, one for each output of a regression, but the loss is "
                    f"{type(as_module(loss_fn)).__name__}: use torch.nn.MSELoss, or leave it out."
                )
            loss_fn = GaussianLikelihood(own)
        self.operator = GaussNewton(model, loss_fn, data, params, memory=memory, verify=verify, group=group)
        risk = self.operator._risk  # noqa: SLF001 - shares the operator's risk, as in class_structure
        self._network = Network(risk)
        self._grouped: dict[tuple[str, ...], GroupedEvidence] = {}
        self._groups: dict[tuple[str, ...], Groups] = {}
        self.prior_precision = prior_precision
        self.theta = torch.cat([value.reshape(-1) for value in risk.parameters.values])
        norm = float(self.theta.double().square().sum())
        refuse_weighted(risk.loss.function, risk.loss.name)
        # Checked before the long run, so that a wrong loss or noise is reported at once.
        likelihood = likelihood_of(self.operator.attributes, common)
        self.noise = torch.as_tensor(likelihood.noise if own is None else own, dtype=self.theta.dtype).to(
            self.theta.device
        )
        self.pairs = low_rank(self.operator, rank=int(rank), steps=steps, seed=seed)
        self.marginal = MarginalLikelihood(self.pairs.spectrum, squared_norm=norm, noise=common)

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "parameters": f"{self.theta.numel():,}",
            "prior precision": ", ".join(f"{name} {value:.4g}" for name, value in self._prior.items())
            if isinstance(self._prior, dict)
            else f"{self._prior:.4g}",
            "noise": ", ".join(f"{value:.4g}" for value in self.noise.reshape(-1).tolist()),
            "eigenpairs": f"{self.pairs.values.numel()}, others at most {self.pairs.rest:.3g}",
            "log evidence": f"{self.log_evidence()} nats",
            "effective parameters": str(self.effective_parameters()),
        }

    @property
    def prior_precision(self) -> float | dict[str, float]:
        """Precision t of the prior, in units of 1/parameter^2, or that of each group."""
        return dict(self._prior) if isinstance(self._prior, dict) else self._prior

    @prior_precision.setter
    def prior_precision(self, value: Prior) -> None:
        found = _checked(value)
        if isinstance(found, dict):
            self._groups_of(tuple(found))
        self._prior = found
        self._scaled: ScaledPairs | None = None

    @property
    def one_prior_precision(self) -> float:
        """Precision of the prior; raises ValueError if groups have their own."""
        if isinstance(self._prior, dict):
            raise InputError(
                f"prior_precision has {len(self._prior)} groups, but subspaces are compared with one prior precision: "
                "set a number."
            )
        return self._prior

    def _groups_of(self, names: tuple[str, ...]) -> Groups:
        if names not in self._groups:
            self._groups[names] = groups_of(self.operator, names)
        return self._groups[names]

    def _evidence_of(self, groups: Groups) -> GroupedEvidence:
        if groups.names not in self._grouped:
            likelihood = self.marginal.likelihood
            self._grouped[groups.names] = GroupedEvidence(
                self.pairs, groups, self.theta, scale=likelihood.scale, log_likelihood=likelihood.log_likelihood
            )
        return self._grouped[groups.names]

    @property
    def _pairs(self) -> ScaledPairs:
        """Eigenpairs in the coordinates of the prior."""
        if self._scaled is None:
            prior = self._prior
            if isinstance(prior, dict):
                each = self._groups_of(tuple(prior)).spread(precisions(prior), self.theta)
                self._scaled = ScaledPairs(self.pairs, self._scale, each)
            else:
                self._scaled = ScaledPairs(self.pairs, self._scale, prior)
        return self._scaled

    @property
    def _scale(self) -> float:
        return self.marginal.likelihood.scale

    # Evidence ---------------------------------------------------------------------------------------------------------

    def log_evidence(self, prior: Prior | None = None) -> Estimate:
        """Return log p(data | prior), at `prior_precision` by default.

        See `MarginalLikelihood.log_evidence`; for groups, `hesspec.applications.laplace.groups`.
        """
        chosen = self._prior if prior is None else _checked(prior)
        if isinstance(chosen, dict):
            return self._evidence_of(self._groups_of(tuple(chosen))).log_evidence(precisions(chosen))
        return self.marginal.log_evidence(chosen)

    def effective_parameters(self, prior: Prior | None = None) -> Estimate:
        """Return the effective number of parameters, at `prior_precision` by default; see `log_evidence`."""
        chosen = self._prior if prior is None else _checked(prior)
        if isinstance(chosen, dict):
            found = self.effective_parameters_by_group(chosen).values()
            return Estimate(*(sum(getattr(each, field) for each in found) for field in Estimate._fields))
        return self.marginal.effective_parameters(chosen)

    def effective_parameters_by_group(self, prior: Mapping[str, float] | None = None) -> dict[str, Estimate]:
        """Return the effective number of parameters of each group, at `prior_precision` by default.

        Raises
        ------
        ValueError
            If the prior has no groups.
        """
        chosen = self._prior if prior is None else _checked(prior)
        if not isinstance(chosen, dict):
            raise InputError("The prior has no groups: give the precisions of groups by name.")
        return self._evidence_of(self._groups_of(tuple(chosen))).effective_parameters(precisions(chosen))

    @overload
    def optimise_prior(self, groups: None = None) -> Estimate: ...
    @overload
    def optimise_prior(self, groups: str | Iterable[str]) -> dict[str, Estimate]: ...
    def optimise_prior(self, groups: str | Iterable[str] | None = None) -> Estimate | dict[str, Estimate]:
        """Set `prior_precision` to maximise the evidence, without further products, and return it.

        Parameters
        ----------
        groups : "layers" or iterable of str, optional
            Groups with a precision of their own: those of each module, or names of modules and patterns of parameter
            names. By default all parameters have the same. For groups it is a local maximum of the estimated evidence;
            see `hesspec.applications.laplace.groups`.

        Returns
        -------
        Estimate, or dict of str to Estimate

        Raises
        ------
        ValueError
            If groups do not divide the parameters, or for the reasons of `MarginalLikelihood.optimise_prior`.
        """
        common = self.marginal.optimise_prior()
        if groups is None:
            self.prior_precision = common.value
            return common
        divided = groups_of(self.operator, groups)
        self._groups[divided.names] = divided
        found = self._evidence_of(divided).optimise(common.value)
        self.prior_precision = {name: each.value for name, each in found.items()}
        return found

    def evidence(self, priors: Any = None) -> Evidence:
        """Return evidence and effective parameters for several priors, to plot and to save."""
        return self.marginal.table(priors)

    @property
    def error(self) -> float:
        """Bound on the error ||Psi_k - Psi||_2 of the low-rank covariance; ||Psi|| is at most 1/prior_precision.

        It holds with a probability of 99.9%, apart from rounding. See `hesspec.applications.laplace.scaled`.
        """
        return self._pairs.error

    def multiply_precision(self, columns: Tensor) -> Tensor:
        """Product of the posterior precision matrix A + D with columns (p, n)."""
        product: Tensor = self._scale * (self.operator @ columns)
        return product + self._times_root(self._times_root(columns))

    def _times_root(self, columns: Tensor) -> Tensor:
        root = self._pairs.root
        return columns * (root[:, None] if isinstance(root, Tensor) else root)

    def _multiply_scaled(self, columns: Tensor) -> Tensor:
        """Product of I + D^-1/2 A D^-1/2 with columns (p, n)."""
        root = self._pairs.root
        inverse = 1 / (root[:, None] if isinstance(root, Tensor) else root)
        product: Tensor = self._scale * (self.operator @ (columns * inverse))
        return product * inverse + columns

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
            X^T B + X^T R (B = D^-1/2 J^T, X the solution, R its residual) are then below the true ones by at most
            ||R||^2.
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
        scale, pairs = self._scale, self._pairs
        smallest = pairs.smallest
        largest = scale * self.pairs.spectrum.norm
        without = (largest + smallest) / smallest
        condition = (min(scale * self.pairs.rest, largest) + smallest) / smallest if preconditioned else without
        if not exact:
            outputs, covariances, bounds = zip(*pairs.covariances(self._network, inputs), strict=True)
            return self._covariance(
                torch.cat(outputs), torch.cat(covariances), torch.cat(bounds), 0, condition, without
            )
        means, values, errors, iterations = [], [], [], 0
        for block in blocks_of(self.jacobians(inputs)):
            rhs = torch.cat([pairs.scaled(rows) for _, rows in block]).T
            found = conjugate_gradients(
                self._multiply_scaled,
                rhs,
                preconditioner=pairs.inverse() if preconditioned else None,
                tolerance=tolerance,
                max_iterations=max_iterations,
            )
            iterations += found.iterations
            left = float((found.residual.norm(dim=0) / rhs.norm(dim=0).clamp(min=torch.finfo(rhs.dtype).tiny)).max())
            if not found.converged:
                warn(
                    f"Block conjugate gradients reached a relative residual of {left:.2g} in {max_iterations} "
                    "iterations; the error bounds include this. Increase max_iterations to reduce it."
                )
            place = 0
            for mean, rows in block:
                mine = slice(place, place + len(rows))
                x, r = found.x[:, mine].double(), found.residual[:, mine].double()
                product = rhs[:, mine].T.double() @ x + x.T @ r
                values.append((product + product.T) / 2)
                errors.append(r.square().sum())
                means.append(mean)
                place += len(rows)
        return self._covariance(
            torch.stack(means), torch.stack(values), torch.stack(errors), iterations, condition, without
        )

    def _covariance(
        self,
        means: Tensor,
        values: Tensor,
        errors: Tensor,
        iterations: int,
        condition: float,
        without: float,
    ) -> Covariance:
        dtype = self.operator.dtype
        return Covariance(means, values.to(dtype), errors.to(dtype), iterations, condition, without)

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
        kind, noise = self.marginal.likelihood.kind, self.noise
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
        return self.theta + self._pairs.sampled(normal).T

    def functional_samples(self, inputs: Any, count: int, *, seed: int = 0) -> Tensor:
        """Draw samples (n, m, C) of the linearised model's outputs, joint over inputs: f + J (theta' - theta)."""
        moved = (self.sample(count, seed=seed) - self.theta).T
        rows = self._network.rows(inputs, overwritten=True)
        return torch.stack([mean + (each @ moved).T for mean, each in rows], dim=1)

    def _normal(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Draw standard normal numbers, the same on every device."""
        generator = torch.Generator().manual_seed(check_seed(seed))
        return torch.randn(shape, dtype=self.operator.dtype, generator=generator, device="cpu").to(self.operator.device)


def _checked(prior: Prior) -> float | dict[str, float]:
    """Return a prior precision, or those of groups.

    Raises
    ------
    ValueError
        If one is not a positive finite number, or there is no group.
    """
    if not isinstance(prior, Mapping):
        return positive("prior_precision", prior)
    if not prior:
        raise InputError("prior_precision has no groups; it must be a number, or a mapping of groups to numbers.")
    return dict(zip(prior, precisions(prior).tolist(), strict=True))


def _count(samples: Any) -> int:
    if not is_whole(samples, 1):
        raise InputError(f"The number of samples is {samples!r}; it must be a positive integer.")
    return int(samples)
