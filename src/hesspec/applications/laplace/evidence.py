r"""Evidence and effective number of parameters for all prior precisions, from one spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.optimize

from hesspec.applications.laplace.likelihood import Likelihood, likelihood_of, positive
from hesspec.applications.laplace.record import Evidence
from hesspec.applications.laplace.sums import sum_over_eigenvalues
from hesspec.errors import InputError
from hesspec.spectra.record import Array
from hesspec.spectra.sampling import Estimate
from hesspec.spectra.spectrum import Spectrum

__all__ = ["MarginalLikelihood"]


class MarginalLikelihood:
    r"""Marginal likelihood p(data | prior precision) in the Laplace approximation, from a spectrum of G.

    With the prior N(0, I/t) on p parameters, and A the Gauss-Newton approximation of the Hessian of the negative
    log-likelihood (its eigenvalues a_i are those of G times the factor that turns the loss into one),

    .. math:: \log Z(t) = \log p(D | \theta) - \tfrac{t}{2} \|\theta\|^2 - \tfrac12 \sum_i \log(1 + a_i / t), \qquad
              \gamma(t) = \sum_i \frac{a_i}{a_i + t},

    where gamma is the effective number of parameters (MacKay 1992). Both sums are means over the spectral measure, so
    one spectrum gives them for every t.

    Parameters
    ----------
    spectrum : Spectrum
        Spectrum of `hesspec.GaussNewton` at the maximum of the posterior, measured or loaded.
    squared_norm : float
        Squared norm ||theta||^2 of the parameters at which the spectrum was measured.
    noise : float
        Standard deviation of the Gaussian likelihood of `torch.nn.MSELoss`, in units of the targets.

    Raises
    ------
    ValueError
        If the spectrum is that of another matrix, its loss is not a negative log-likelihood, or a number is out of
        range.
    """

    def __init__(self, spectrum: Spectrum, *, squared_norm: float, noise: float = 1.0) -> None:
        if not 0 <= squared_norm < np.inf:
            raise InputError(f"squared_norm is {squared_norm!r}; it must be a finite nonnegative number.")
        self.spectrum, self.squared_norm = spectrum, float(squared_norm)
        self.likelihood: Likelihood = likelihood_of(spectrum.attributes, noise)

    def effective_parameters(self, prior: float) -> Estimate:
        """Return the effective number of parameters gamma at a prior precision, with a 95% interval.

        Raises
        ------
        ValueError
            If the precision is not positive.
        """
        prior = positive("prior precision", prior)
        scale = self.likelihood.scale
        found = sum_over_eigenvalues(self.spectrum, lambda values: scale * values / (scale * values + prior))
        return Estimate(found.value, found.lower, min(found.upper, float(self.spectrum.dimension)))

    def log_evidence(self, prior: float) -> Estimate:
        """Return log p(data | prior precision) in nats, including all constants, with a 95% interval.

        Raises
        ------
        ValueError
            If the precision is not positive.
        """
        prior = positive("prior precision", prior)
        scale = self.likelihood.scale
        volume = sum_over_eigenvalues(self.spectrum, lambda values: np.log1p(scale * values / prior))
        joint = self.likelihood.log_likelihood - prior / 2 * self.squared_norm
        return Estimate(joint - volume.value / 2, joint - volume.upper / 2, joint - volume.lower / 2)

    def optimise_prior(self) -> Estimate:
        """Return the prior precision that maximises the evidence, with the interval that follows from that of gamma.

        Since d log Z / d log t = (gamma(t) - t ||theta||^2)/2 and gamma decreases with t, there is one maximum, the
        fixed point t = gamma(t)/||theta||^2 of MacKay (1992). No products are computed.

        Raises
        ------
        ValueError
            If the parameters or all eigenvalues are zero: the evidence then has no maximum.
        """
        largest = self.likelihood.scale * self.spectrum.norm
        if not largest > 0 or not self.squared_norm > 0:
            zero = "all eigenvalues are" if self.squared_norm > 0 else "the parameters are"
            raise InputError(f"The evidence has no maximum: {zero} zero, so it is monotone in the prior precision.")
        value, lower, upper = (self._fixed_point(field) for field in ("value", "lower", "upper"))
        return Estimate(value, min(lower, value), max(upper, value))

    def _fixed_point(self, field: str) -> float:
        """Root of gamma(t) = t ||theta||^2, for the value of gamma or an end of its interval; 0 if there is none."""

        def excess(logarithm: float) -> float:
            prior = float(np.exp(logarithm))
            return float(getattr(self.effective_parameters(prior), field)) - prior * self.squared_norm

        # Beyond p/||theta||^2, gamma <= p is too small.
        high = float(np.log(self.spectrum.dimension / self.squared_norm)) + 1.0
        low = high
        # No root is sought below the smallest precision in float64.
        while excess(low) <= 0:
            low -= 5.0
            if low < np.log(np.finfo(float).tiny) / 2:
                return 0.0
        if low == high:
            return float(np.exp(high))
        return float(np.exp(scipy.optimize.brentq(excess, low, high, xtol=1e-12, rtol=8.9e-16)))

    def table(self, priors: Sequence[float] | npt.NDArray[np.float64] | None = None) -> Evidence:
        """Return evidence and effective parameters for several prior precisions.

        Parameters
        ----------
        priors : array (n,), optional
            Prior precisions. By default the best one, and 25 on both sides of it, over three decades each.

        Raises
        ------
        ValueError
            If a precision is not positive, or for the reasons of `optimise_prior`.
        """
        best = self.optimise_prior()
        chosen: Array = np.unique(
            best.value * np.logspace(-3, 3, 51)
            if priors is None
            else [positive("prior precision", prior) for prior in np.atleast_1d(np.asarray(priors, dtype=float))]
        )
        evidence = np.array([self.log_evidence(prior) for prior in chosen]).reshape(-1, 3)
        number = np.array([self.effective_parameters(prior) for prior in chosen]).reshape(-1, 3)
        return Evidence(
            dimension=self.spectrum.dimension,
            squared_norm=self.squared_norm,
            log_likelihood=self.likelihood.log_likelihood,
            scale=self.likelihood.scale,
            noise=self.likelihood.noise,
            prior_precision=chosen,
            **{f"log_evidence{end}": evidence[:, i] for i, end in enumerate(("", "_lower", "_upper"))},
            **{f"effective_parameters{end}": number[:, i] for i, end in enumerate(("", "_lower", "_upper"))},
            best=best.value,
            best_lower=best.lower,
            best_upper=best.upper,
            attributes=dict(self.spectrum.attributes),
        )
