r"""Evidence with a prior precision for each group of parameters, from the same Krylov run.

With the prior N(0, D^{-1}), D = diag(t_g) constant in each group g, the evidence needs log det(I + D^{-1/2} A D^{-1/2})
of a matrix whose spectrum is not that of A. A run with A gives, with A = V diag(a) V^T + E, k eigenpairs, E the
positive semi-definite rest of rank p - k, and e_g = tr(P_g E), P_g the projection on group g (our derivation):

.. math:: L_k = \log\det\bigl(I + \sum_g K_g / t_g\bigr), \quad K_g = a^{1/2} V^\top P_g V a^{1/2}, \qquad
          L_k \le \log\det(I + D^{-1/2} A D^{-1/2})
          \le L_k + (p - k) \log\Bigl(1 + \frac{1}{p - k} \sum_g \frac{e_g}{t_g}\Bigr),

the upper bound by Jensen's inequality, since tr((D + A_k)^{-1} E) <= tr(D^{-1} E). In the same way the effective
numbers of parameters gamma_g = tr P_g(I - D (D + A)^{-1}) are at least those of A_k, and at most larger by
sum_g e_g / t_g. The e_g are estimated by one product of E with a Gaussian vector z that the posterior has anyway, as
sum_{i in g} z_i (E z)_i, with a variance of at most 2 ||P_g E||_F^2, which is estimated from the same product.

The value between these bounds takes the rest in each group to have the measure that the run has found for all of the
rest, scaled by the group's share of the e_g; it is the value of the run itself if there is one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from hesspec.applications.laplace.likelihood import positive
from hesspec.applications.laplace.low_rank import LowRank
from hesspec.errors import InputError
from hesspec.spectra.record import Array
from hesspec.spectra.sampling import Estimate

__all__ = ["GroupedEvidence", "Groups", "groups_of", "precisions"]

LAYERS = "layers"
# Half the width of an interval of 95%, in standard errors.
DEVIATIONS = 1.96


@dataclass(frozen=True)
class Groups:
    """Groups of parameters.

    Attributes
    ----------
    names : tuple of str
        Patterns of names, or names of modules.
    labels : int64 Tensor (p,)
        Group of each parameter.
    """

    names: tuple[str, ...]
    labels: Tensor

    def sums(self, values: Tensor) -> Array:
        """Sums (g,) of a vector (p,) over each group, float64."""
        zero = torch.zeros(len(self.names), dtype=torch.float64, device=values.device)
        return zero.index_add(0, self.labels, values.double()).cpu().numpy()

    def spread(self, values: Array, like: Tensor) -> Tensor:
        """Vector (p,) of the value (g,) of each parameter's group."""
        return torch.as_tensor(values).to(like)[self.labels]


def groups_of(operator: Any, groups: str | Iterable[str]) -> Groups:
    """Return groups of the parameters of an operator: "layers", one for each module, or one for each name.

    A name is that of a module, whose own parameters are meant, or a pattern of parameter names.

    Raises
    ------
    ValueError
        If a pattern matches nothing, or a parameter does not belong to exactly one group.
    """
    if groups == LAYERS:
        modules = [name.rpartition(".")[0] for name in operator.names]
        chosen = list(dict.fromkeys(modules))
        members = [
            [name for name, module in zip(operator.names, modules, strict=True) if module == each] for each in chosen
        ]
    else:
        if isinstance(groups, str):
            raise InputError(f"groups is {groups!r}; use {LAYERS!r}, or a list of patterns of parameter names.")
        chosen = list(groups)
        members = [[name for name in operator.names if name.rpartition(".")[0] == each] or [each] for each in chosen]
    labels = torch.full((operator.shape[0],), -1, dtype=torch.int64)
    for number, names in enumerate(members):
        entries = operator.entries_of(names)
        if bool((labels[entries] >= 0).any()):
            first = chosen[int(labels[entries].max())]
            raise InputError(
                f"The groups {first!r} and {chosen[number]!r} share parameters; each belongs to one group."
            )
        labels[entries] = number
    if bool((labels < 0).any()):
        marks = operator.to_named((labels < 0).to(torch.float64))
        lost = next(name for name, value in marks.items() if bool(value.any()))
        raise InputError(f"The parameter {lost!r} belongs to no group; each must match one pattern.")
    return Groups(tuple(chosen), labels.to(operator.device))


class GroupedEvidence:
    """Evidence and effective numbers of parameters with a prior precision for each group.

    Parameters
    ----------
    pairs : LowRank
        Eigenpairs of G with a product of its rest.
    groups : Groups
    theta : Tensor (p,)
        The parameters.
    scale, log_likelihood : float
        See `Likelihood`.
    """

    def __init__(self, pairs: LowRank, groups: Groups, theta: Tensor, *, scale: float, log_likelihood: float) -> None:
        self.groups, self.log_likelihood = groups, log_likelihood
        self.norms = groups.sums(theta.double().square())
        self.sizes = np.bincount(groups.labels.cpu().numpy(), minlength=len(groups.names)).astype(float)
        a = scale * pairs.values.clamp(min=0)
        grams = []
        for number in range(len(groups.names)):
            rows = pairs.vectors[groups.labels == number]
            grams.append((rows.T @ rows).double() * a.sqrt()[:, None] * a.sqrt())
        self.grams = torch.stack(grams).cpu().numpy()
        trace = scale * groups.sums(pairs.probe * pairs.product)
        error = scale * np.sqrt(2 * groups.sums(pairs.product.double().square()))
        self._most = np.maximum(trace + DEVIATIONS * error, 0.0)
        p, k = pairs.spectrum.dimension, len(a)
        self._left = p - k
        self._slack = 2 * scale * pairs.residual_sum
        nodes, counts = _rest(pairs, k)
        shares = np.maximum(trace, 0.0)
        # The total is that of the measure, which is known better.
        ratios = shares / self.sizes * p / shares.sum() if shares.sum() > 0 else np.zeros_like(shares)
        # The rest of each group (g, n), and how many eigenvalues each node stands for.
        self._rest = scale * nodes * ratios[:, None]
        self._counts = counts * self.sizes[:, None] / p

    def _inverse(self, prior: Array) -> tuple[Array, float]:
        inner = np.eye(self.grams.shape[1]) + np.tensordot(1 / prior, self.grams, 1)
        inverse: Array = np.asarray(np.linalg.inv(inner), dtype=np.float64)
        return inverse, float(np.linalg.slogdet(inner)[1])

    def _limits(self, prior: Array) -> float:
        return float((self._most / prior).sum())

    def log_evidence(self, prior: Array) -> Estimate:
        """Return log p(data | precisions) in nats, including all constants, with an interval; see the module."""
        joint = self.log_likelihood - float(prior @ self.norms) / 2
        low = self._inverse(prior)[1]
        high = low + (self._left * np.log1p(self._limits(prior) / self._left) if self._left else 0.0)
        value = low + float((self._counts * np.log1p(self._rest / prior[:, None])).sum())
        slack = self._slack / float(prior.min())
        return _within(joint - value / 2, joint - (high + slack) / 2, joint - (low - slack) / 2)

    def _numbers(self, prior: Array) -> tuple[Array, Array]:
        """Effective parameters of each group: of the eigenpairs, and the estimate for the rest."""
        inverse, _ = self._inverse(prior)
        found = np.einsum("gij,ij->g", self.grams, inverse) / prior
        return found, (self._counts * (self._rest / (self._rest + prior[:, None]))).sum(1)

    def effective_parameters(self, prior: Array) -> dict[str, Estimate]:
        """Return the effective number of parameters of each group, with intervals."""
        found, rest = self._numbers(prior)
        room = self._limits(prior)
        slack = self._slack / float(prior.min())
        return {
            name: _within(low + more, max(low - slack, 0.0), min(low + room + slack, size))
            for name, low, more, size in zip(self.groups.names, found, rest, self.sizes, strict=True)
        }

    def optimise(self, start: float) -> dict[str, Estimate]:
        r"""Return the precisions of a local maximum of the evidence, from equal ones.

        Since d log Z / d log t_g = (gamma_g - t_g ||theta_g||^2)/2, it is a fixed point t_g = gamma_g/||theta_g||^2
        (MacKay 1992). The intervals are those of gamma_g at this point, divided by the squared norms.

        Raises
        ------
        ValueError
            If all parameters of a group are zero: its evidence is monotone.
        """
        empty = [name for name, norm in zip(self.groups.names, self.norms, strict=True) if not norm > 0]
        if empty:
            raise InputError(
                f"All parameters of the group {empty[0]!r} are zero, so that its precision has no maximum."
            )

        def objective(logarithms: Array) -> tuple[float, Array]:
            prior = np.exp(logarithms)
            joint = -float(prior @ self.norms) / 2
            value = self._inverse(prior)[1] + float((self._counts * np.log1p(self._rest / prior[:, None])).sum())
            gradient = (sum(self._numbers(prior)) - prior * self.norms) / 2
            return value / 2 - joint, -gradient

        # A precision of 1e-12 to 1e12 of the common one is that of a group without or with all of the prior.
        begin = np.full(len(self.norms), np.log(start))
        bounds = [(value - 27.6, value + 27.6) for value in begin]
        options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10}
        found = np.exp(
            scipy.optimize.minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        )
        numbers = self.effective_parameters(found)
        return {
            name: _within(float(value), numbers[name].lower / norm, numbers[name].upper / norm)
            for name, value, norm in zip(self.groups.names, found, self.norms, strict=True)
        }


def precisions(prior: Mapping[str, float]) -> Array:
    """Return the precisions of groups as an array, in their order; raises ValueError unless all are positive."""
    return np.array([positive(f"prior_precision of {name!r}", value) for name, value in prior.items()])


def _within(value: float, lower: float, upper: float) -> Estimate:
    return Estimate(float(value), float(min(lower, value)), float(max(upper, value)))


def _rest(pairs: LowRank, k: int) -> tuple[Array, Array]:
    """Nodes and counts of the measure without its k largest eigenvalues, those of the pairs."""
    spectrum = pairs.spectrum
    order = np.argsort(spectrum.nodes)[::-1]
    nodes, counts = np.maximum(spectrum.nodes[order], 0.0), spectrum.weights[order] * spectrum.dimension
    before = np.concatenate([[0.0], np.cumsum(counts)[:-1]])
    return nodes, np.clip(before + counts - k, 0.0, counts)
