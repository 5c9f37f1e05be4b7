r"""Stability thresholds of optimisers: the largest eigenvalue of a quadratic loss for which a step is stable.

Along an eigenvector of the Hessian (for adaptive optimisers with a constant preconditioner P, of P^(-1/2) Hess
P^(-1/2)) with eigenvalue lambda, a step is linear in the weight w and the momentum buffer b. As lambda grows, a root of
its characteristic polynomial x^2 - T x + D first leaves the unit circle at -1, where 1 + T + D = 0. With eta the
learning rate, mu the momentum and c the weight decay in the gradient:

- SGD, b <- mu b + (1 - tau) (lambda + c) w, w <- w - eta b: T = 1 + mu - eta (1 - tau) (lambda + c), D = mu, so that
  lambda + c = (2 + 2 mu) / ((1 - tau) eta), where tau is the dampening;
- its Nesterov form, w <- w - eta ((lambda + c) w + mu b): T = 1 + mu - (1 + mu) eta (lambda + c), D = mu (1 - eta
  (lambda + c)), so that lambda + c = (2 + 2 mu) / ((1 + 2 mu) eta);
- Adam, whose buffer is the mean m <- beta_1 m + (1 - beta_1) lambda w: SGD with mu = tau = beta_1, so that lambda =
  (2 + 2 beta_1) / ((1 - beta_1) eta), which is 38/eta for beta_1 = 0.9;
- AdamW, and Adam with decoupled weight decay, w <- (1 - eta d) w - eta m: T = 1 - eta d + beta_1 - eta (1 - beta_1)
  lambda, D = beta_1 (1 - eta d), so that lambda = (2 - eta d) (1 + beta_1) / ((1 - beta_1) eta);
- RMSprop: as SGD without dampening; Adagrad: as SGD without momentum.

For beta_1 = 0.9 that is the threshold of Cohen et al., "Adaptive Gradient Methods at the Edge of Stability" (arXiv
2207.14484).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.optim import SGD, Adagrad, Adam, Optimizer, RMSprop

from hesspec.backend.text import kind_of

__all__ = ["ADAPTIVE", "Threshold", "threshold"]

ADAPTIVE = (Adam, RMSprop, Adagrad)
"""Optimisers with a preconditioner; AdamW is a subclass of Adam."""

# Settings that determine the threshold; all groups with the parameters must agree on them.
_SETTINGS = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "betas", "decoupled_weight_decay", "maximize")


class Threshold(NamedTuple):
    """Stability threshold of an optimiser.

    Attributes
    ----------
    value : float
        Threshold of the largest eigenvalue of Hess + `decay`, preconditioned if the optimiser is adaptive.
    decay : float
        Weight decay in the gradient; 0 if it is decoupled.
    learning_rate : float
        Learning rate of the optimiser.
    """

    value: float
    decay: float
    learning_rate: float


def threshold(optimizer: Optimizer, parameters: Iterable[nn.Parameter] | None = None) -> Threshold:
    """Return the largest eigenvalue for which the next step of an optimiser is stable, with its current settings.

    Parameters
    ----------
    optimizer : torch.optim.SGD, Adam, AdamW, RMSprop or Adagrad
        Optimiser.
    parameters : iterable of Parameter, optional
        Only groups that contain one of these parameters are considered; by default all groups.

    Raises
    ------
    ValueError
        If the optimiser is of another class or maximises, its learning rate is not positive, its groups have different
        settings, or it does not train one of the parameters.

    Examples
    --------
    >>> import torch, hesspec
    >>> optimizer = torch.optim.Adam([torch.zeros(2, requires_grad=True)], lr=0.01)
    >>> round(hesspec.stability.threshold(optimizer).value, 6)  # 38 / lr
    3800.0
    """
    if not isinstance(optimizer, (SGD, *ADAPTIVE)):
        raise ValueError(
            f"No stability threshold is known for {kind_of(optimizer)}; SGD, Adam, AdamW, RMSprop "
            "and Adagrad are supported."
        )
    group = _group(optimizer, parameters)
    rate, decay = float(group["lr"]), float(group["weight_decay"])
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"The learning rate of the optimiser is {rate!r}; it must be positive and finite.")
    if group["maximize"]:
        raise ValueError("The optimiser maximises; stability thresholds are defined for descent.")
    kept = 1.0
    if isinstance(optimizer, Adam):
        momentum = dampening = float(group["betas"][0])
        if group["decoupled_weight_decay"]:
            kept, decay = 1 - rate * decay, 0.0
    else:
        momentum, dampening = float(group.get("momentum", 0.0)), float(group.get("dampening", 0.0))
    if not momentum > 0:
        # Without momentum, SGD has no buffer and ignores the dampening.
        dampening = 0.0
    reach = 1 + 2 * momentum if group.get("nesterov", False) else 1 - dampening
    return Threshold((1 + kept) * (1 + momentum) / (reach * rate), decay, rate)


def _group(optimizer: Optimizer, parameters: Iterable[nn.Parameter] | None) -> Mapping[str, Any]:
    """Return the settings of the groups with these parameters."""
    groups = optimizer.param_groups
    if parameters is not None:
        trained = {id(parameter): index for index, group in enumerate(groups) for parameter in group["params"]}
        wanted = [id(parameter) for parameter in parameters]
        missing = sum(each not in trained for each in wanted)
        if missing:
            raise ValueError(
                f"The optimiser does not train {missing} of the {len(wanted)} selected parameters; select those that "
                "it trains with params=[...]."
            )
        groups = [groups[index] for index in sorted({trained[each] for each in wanted})]
    for name in _SETTINGS:
        seen = [group[name] for group in groups if name in group]
        if any(value != seen[0] for value in seen):
            raise ValueError(
                f"Groups of the optimiser differ in {name!r}: {', '.join(map(str, seen))}. A threshold "
                "requires equal settings; select the parameters of one group with params=[...]."
            )
    first: Mapping[str, Any] = groups[0]
    return first
