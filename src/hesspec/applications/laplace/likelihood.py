"""Losses as negative log-likelihoods: their factors and constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hesspec.errors import InputError

__all__ = ["CATEGORICAL", "Likelihood", "likelihood_of", "positive", "refuse_weighted"]

CATEGORICAL = ("CrossEntropyLoss", "NLLLoss")
"""Losses that are negative log-likelihoods of class labels."""

BERNOULLI = ("BCEWithLogitsLoss",)
GAUSSIAN = ("MSELoss",)
OWN_NOISE = "GaussianLikelihood"
"""Loss that is a negative log-likelihood itself, with the noise of each output."""


@dataclass(frozen=True)
class Likelihood:
    """Likelihood p(targets | outputs) of all data, whose negative logarithm is `scale` times the loss plus a constant.

    Attributes
    ----------
    kind : {"categorical", "bernoulli", "gaussian"}
        Distribution of the targets.
    noise : float
        Standard deviation of all outputs if it is Gaussian; 1 otherwise, and where each output has its own.
    scale : float
        Factor of the loss, and hence of the Gauss-Newton matrix.
    log_likelihood : float
        Log-likelihood of all data at the measured point, including all constants.
    """

    kind: str
    noise: float
    scale: float
    log_likelihood: float


def likelihood_of(attributes: Mapping[str, Any], noise: float) -> Likelihood:
    r"""Return the likelihood that corresponds to the loss of an operator.

    `torch.nn.MSELoss` corresponds to a Gaussian of standard deviation s: for its mean L over T numbers (all outputs of
    all samples), -log p = T/(2 s^2) L + T/2 log(2 pi s^2). A mean cross-entropy L over T terms has -log p = T L.

    Parameters
    ----------
    attributes : mapping
        Attributes "loss", "reduction", "risk" and "terms" of an operator or its spectrum.
    noise : float
        Standard deviation of a Gaussian likelihood, in units of the targets.

    Raises
    ------
    ValueError
        If the loss is not a negative log-likelihood, the noise is not positive, or a noise is given for a classifier.
    """
    missing = [name for name in ("loss", "reduction", "risk", "terms") if name not in attributes]
    if missing:
        raise InputError(
            f"The spectrum does not state the {', '.join(missing)} of its loss; the evidence needs the spectrum of a "
            "hesspec.GaussNewton."
        )
    if attributes.get("matrix", "GaussNewton") != "GaussNewton":
        raise InputError(
            f"This is the spectrum of {attributes['matrix']}; the Laplace approximation uses the "
            "Gauss-Newton matrix, which has no negative eigenvalues: measure hesspec.GaussNewton."
        )
    if attributes.get("output_curvature", "full") != "full":
        raise InputError(f"The matrix is the {attributes['output_curvature']} part of G; measure the whole of G.")
    noise = positive("noise", noise)
    name, risk, terms = str(attributes["loss"]), float(attributes["risk"]), float(attributes["terms"])
    total = terms if attributes["reduction"] == "mean" else 1.0
    if name in GAUSSIAN:
        scale = total / (2 * noise**2)
        return Likelihood("gaussian", noise, scale, -scale * risk - terms / 2 * math.log(2 * math.pi * noise**2))
    if name == OWN_NOISE:
        return Likelihood("gaussian", 1.0, 1.0, -risk)
    if name not in CATEGORICAL + BERNOULLI:
        raise InputError(
            f"The loss {name} is not a known negative log-likelihood; use torch.nn.CrossEntropyLoss, "
            "torch.nn.BCEWithLogitsLoss or torch.nn.MSELoss."
        )
    if noise != 1:
        raise InputError(
            f"noise is {noise:g}, but {name} is the likelihood of a classifier, which has no noise: leave it out."
        )
    if name in CATEGORICAL and terms != round(terms):
        raise InputError(
            f"The loss counts {terms:g} terms: with class weights it is not a log-likelihood; leave them out."
        )
    return Likelihood("categorical" if name in CATEGORICAL else "bernoulli", 1.0, total, -total * risk)


def refuse_weighted(function: Any, title: str) -> None:
    """Raise ValueError for a loss whose options make it something other than a negative log-likelihood."""
    for name in ("weight", "pos_weight", "label_smoothing"):
        value = getattr(function, name, None)
        if value is not None and not (isinstance(value, float | int) and value == 0):
            raise InputError(
                f"{title} with {name} is not a negative log-likelihood, so it has no evidence or posterior: leave "
                f"{name} out."
            )


def positive(name: str, value: Any) -> float:
    """Return the value as a float.

    Raises
    ------
    ValueError
        If the value is not a positive finite number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"{name} is {value!r}; it must be a positive finite number.")
    return number
