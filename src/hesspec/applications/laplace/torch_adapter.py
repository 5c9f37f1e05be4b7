r"""The Laplace approximation of hesspec as a class of laplace-torch, for `Laplace(..., hessian_structure="hesspec")`.

laplace-torch looks up the subclass of its `BaseLaplace` whose `_key` is (subset_of_weights, hessian_structure), so that
a class becomes available by being defined. Its conventions: with the loss that it sums over samples, half of the
squared error or the cross-entropy, H is the Gauss-Newton matrix of the sum, and

.. math:: P = f H + D, \qquad f = \frac{1}{\sigma^2 T}, \qquad
          \log Z = -f \cdot \mathrm{loss} - c(\sigma) - \tfrac12 \bigl(\log\det D^{-1} P + \theta^\top D \theta\bigr)

with noise sigma (1 for a classifier), temperature T, prior precision D (one number, one for each parameter tensor or
one for each parameter), and c the constant of the Gaussian.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from hesspec.applications.laplace.evidence import MarginalLikelihood
from hesspec.applications.laplace.low_rank import LowRank, low_rank
from hesspec.backend.extras import require
from hesspec.backend.numbers import check_counts
from hesspec.errors import InputError
from hesspec.operators.gauss_newton import GaussNewton
from hesspec.spectra.sampling import Estimate

require("KrylovLaplace", "hesspec[laplace]", "laplace")
with warnings.catch_warnings():
    # Of a library that it imports, which uses functions of PyTorch that are deprecated.
    warnings.simplefilter("ignore")
    from laplace.baselaplace import ParametricLaplace

__all__ = ["KrylovLaplace"]


class KrylovLaplace(ParametricLaplace):
    """Laplace approximation of laplace-torch with the eigenpairs and the spectrum of one Krylov run.

    `hesspec.laplace.KrylovLaplace(model, likelihood)` replaces `Laplace(model, likelihood, "all", ...)`; once the name
    has been used, `Laplace(model, likelihood, "all", "hesspec")` of laplace-torch finds the class too.

    Eigenvalues that are not resolved count in the evidence, by the measured spectrum, if the prior has one precision;
    with several precisions only the resolved ones count, so that the evidence is an upper bound. In the posterior
    covariance the other directions keep the variance of the prior, which overestimates it by at most `error`.

    Parameters
    ----------
    model, likelihood, **options
        See `laplace.ParametricLaplace`. The likelihood is "classification" or "regression"; parameters that do not
        require a gradient are constants.
    rank, steps, seed, memory
        See `hesspec.laplace.Laplace`.

    Attributes
    ----------
    pairs : LowRank
        Eigenpairs and spectrum of the Gauss-Newton matrix of the summed loss: that of squared errors is 2 H. After
        `fit` only, not after `load_state_dict`.

    Raises
    ------
    ValueError
        If the likelihood is "reward_modeling", or an argument is out of range.

    Examples
    --------
    >>> import hesspec, torch
    >>> model = torch.nn.Linear(3, 2)
    >>> data = torch.utils.data.TensorDataset(torch.randn(8, 3), torch.arange(8) % 2)
    >>> fitted = hesspec.laplace.KrylovLaplace(model, "classification")
    >>> fitted.fit(torch.utils.data.DataLoader(data, batch_size=4))
    >>> fitted.functional_variance(torch.randn(5, 2, 8)).shape, bool(fitted.log_marginal_likelihood() < 0)
    (torch.Size([5, 2, 2]), True)
    """

    _key = ("all", "hesspec")

    def __init__(
        self,
        model: nn.Module,
        likelihood: str,
        *args: Any,
        rank: int = 64,
        steps: int = 64,
        seed: int = 0,
        memory: str | int | None = None,
        **options: Any,
    ) -> None:
        if likelihood == "reward_modeling":
            raise InputError(
                "likelihood is 'reward_modeling', whose loss is not that of the model's outputs; the structure "
                "'hesspec' is for 'classification' and 'regression'."
            )
        check_counts(rank=rank)
        super().__init__(model, likelihood, *args, **options)
        self._rank, self._steps, self._seed, self._memory = int(rank), steps, seed, memory
        self.pairs: LowRank

    def _init_H(self) -> None:  # noqa: N802 - a name of laplace-torch
        self.H: dict[str, Tensor] | None = None

    def fit(self, train_loader: Any, override: bool = True, progress_bar: bool = False) -> None:  # noqa: ARG002
        """Measure the Gauss-Newton matrix at the parameters of the model by one Krylov run.

        Parameters
        ----------
        train_loader : iterable of tuple of Tensor
            Batches of inputs and targets. It is read once, and may be shuffled.
        override : bool
            Must be True: a spectrum cannot be updated by more data.
        progress_bar : bool
            Has no effect: hesspec shows a progress bar of its own in long runs.

        Raises
        ------
        ValueError
            If `override` is False, batches are not pairs, or for the reasons of `hesspec.GaussNewton`.
        """
        if not override:
            raise InputError("override is False, but a spectrum cannot be updated: fit once, with all of the data.")
        self.model.eval()
        # Kept, as every product needs the same data, and a shuffled loader would divide it differently each time.
        batches = [self._pair(batch) for batch in train_loader]
        regression = self.likelihood == "regression"
        loss = nn.MSELoss(reduction="sum") if regression else nn.CrossEntropyLoss(reduction="sum")
        operator = GaussNewton(self.model, loss, batches, memory=self._memory)
        self.mean = parameters_to_vector(self.params)
        if not self.enable_backprop:
            self.mean = self.mean.detach()
        self.pairs = low_rank(operator, rank=self._rank, steps=self._steps, seed=self._seed)
        spectrum = self.pairs.spectrum
        self._halved = 0.5 if regression else 1.0
        self.H = {
            "vectors": self.pairs.vectors,
            "values": self._halved * self.pairs.values.to(self.mean.dtype),
            "nodes": self._halved * torch.as_tensor(spectrum.nodes).clamp(min=0).to(self.mean),
            "counts": spectrum.dimension * torch.as_tensor(spectrum.weights).to(self.mean),
        }
        self.loss = self._halved * float(operator.attributes["risk"])
        with torch.no_grad():
            self.n_outputs = int(self.model(batches[0][0][:1]).shape[-1])
        setattr(self.model, "output_size", self.n_outputs)  # noqa: B010 - laplace-torch's name for a module's attribute
        self.n_data = sum(len(targets) for _, targets in batches)

    def _pair(self, batch: Any) -> tuple[Tensor, Tensor]:
        if (
            not isinstance(batch, list | tuple)
            or len(batch) != 2
            or not all(isinstance(part, Tensor) for part in batch)
        ):
            raise InputError(
                f"A batch of the loader is of type {type(batch).__name__}; the structure 'hesspec' needs pairs of "
                "tensors (inputs, targets)."
            )
        return batch[0].to(self._device), batch[1].to(self._device)

    # Evidence ---------------------------------------------------------------------------------------------------------

    @property
    def log_det_ratio(self) -> Tensor:
        """log det(D^-1 P), from the whole spectrum for one prior precision, else from the resolved eigenpairs."""
        self._check_H_init()
        if len(self.prior_precision) == 1:
            return self._kept("counts") @ torch.log1p(self._H_factor * self._kept("nodes") / self.prior_precision)
        return torch.logdet(self._small())

    @property
    def log_det_posterior_precision(self) -> Tensor:
        """log det P."""
        return self.log_det_ratio + self.log_det_prior_precision

    def log_evidence(self) -> Estimate:
        """Return the log marginal likelihood with its interval of 95%; after `fit` only.

        Raises
        ------
        ValueError
            If the prior has several precisions or a mean, or the temperature is not 1.
        """
        if len(self.prior_precision) != 1 or self.temperature != 1 or bool((self.prior_mean != 0).any()):
            raise InputError("The interval is for one prior precision, a prior mean of zero and a temperature of 1.")
        found = MarginalLikelihood(
            self.pairs.spectrum,
            squared_norm=float(torch.as_tensor(self.mean).detach().double().square().sum()),
            noise=float(self.sigma_noise),
        )
        return found.log_evidence(float(self.prior_precision))

    # Posterior --------------------------------------------------------------------------------------------------------

    def _kept(self, name: str) -> Tensor:
        self._check_H_init()
        assert self.H is not None  # noqa: S101 - checked by the line before
        return self.H[name]

    def _scaled(self) -> Tensor:
        """W (p, k) with D^-1/2 (P - D) D^-1/2 = W W^T."""
        values = (self._H_factor * self._kept("values")).sqrt()
        return self._kept("vectors") * values / self.prior_precision_diag.sqrt()[:, None]

    def _small(self) -> Tensor:
        """I + W^T W (k, k)."""
        scaled = self._scaled()
        return scaled.T @ scaled + torch.eye(scaled.shape[1], dtype=scaled.dtype, device=scaled.device)

    @property
    def error(self) -> float:
        """Bound on the norm of the error of the posterior covariance, without rounding, with a probability of 99.9%.

        The prior has one precision; for several, the smallest one is used in its place (after `fit` only).
        """
        smallest = float(self.prior_precision.min())
        scale = self._halved * float(self._H_factor)
        if len(self.prior_precision) == 1:
            return self.pairs.rest_error(scale, smallest) + self.pairs.residual_error(scale, smallest)
        residuals = 2 * scale * self.pairs.residual_norm / smallest**2
        return self.pairs.rest_error(scale, smallest) + residuals

    @property
    def posterior_precision(self) -> tuple[tuple[Tensor, Tensor], Tensor]:  # type: ignore[override]  # as of lowrank
        """Eigenvectors (p, k), eigenvalues (k,) and D (p,), with P = V diag(values) V^T + diag(D)."""
        return (self._kept("vectors"), self._H_factor * self._kept("values")), self.prior_precision_diag

    def square_norm(self, value: Tensor) -> Tensor:
        """Squared norm (value - mean)^T P (value - mean)."""
        (vectors, values), prior = self.posterior_precision
        moved = value - self.mean
        return (prior * moved) @ moved + values @ (vectors.T @ moved).square()

    def _halves(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows D^-1/2 J and L^-1 W^T of them, with L L^T = I + W^T W: covariances are the differences of products."""
        scaled = rows / self.prior_precision_diag.sqrt()
        root = torch.linalg.cholesky(self._small())
        inner = scaled @ self._scaled()
        return scaled, torch.linalg.solve_triangular(root, inner.mT, upper=False).mT

    def functional_variance(self, Js: Tensor) -> Tensor:  # noqa: N803 - a name of laplace-torch
        """Covariance (m, C, C) of the outputs of each input, from Jacobians (m, C, p)."""
        rows, inner = self._halves(Js)
        return rows @ rows.mT - inner @ inner.mT

    def functional_covariance(self, Js: Tensor) -> Tensor:  # noqa: N803 - a name of laplace-torch
        """Joint covariance (m C, m C) of the outputs of all inputs, from Jacobians (m, C, p)."""
        rows, inner = self._halves(Js.reshape(-1, self.n_params))
        return rows @ rows.T - inner @ inner.T

    def sample(self, n_samples: int = 100, generator: torch.Generator | None = None) -> Tensor:
        """Samples (n, p) of the posterior."""
        normal = torch.randn(n_samples, self.n_params, device=self._device, dtype=self._dtype, generator=generator).T
        scaled = self._scaled()
        squares, turn = torch.linalg.eigh(scaled.T @ scaled)
        squares = squares.clamp(min=0)
        # (I + W W^T)^-1/2 - I = W Q diag(((1 + s)^-1/2 - 1)/s) Q^T W^T, in a form without cancellation.
        change = -1 / (torch.sqrt(1 + squares) * (1 + torch.sqrt(1 + squares)))
        moved = normal + scaled @ (turn @ (change[:, None] * (turn.T @ (scaled.T @ normal))))
        found: Tensor = self.mean + (moved / self.prior_precision_diag.sqrt()[:, None]).T
        return found
