"""AMUSE: Muon whose gradients move from the fast iterate towards its average, without a learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from hesspec.applications.optim.orthogonalisation import orthogonalise
from hesspec.backend.numbers import check_counts

__all__ = ["AMUSE"]

AUXILIARY = ("adamw", "sgd")
# Scale of an orthogonalised update whose entries then have about the size of an AdamW update, 0.2 (Moonshot's form of
# Muon, "match_rms_adamw" of torch.optim.Muon).
RMS = 0.2


# What numbers may be.
FINITE = (lambda value: 0 <= value < math.inf, "a finite number of at least 0")
DECAY = (lambda value: 0 <= value < 1, "at least 0 and below 1")
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("lr", "weight_decay", "rho", "averaging_power", "eps"), FINITE),
    **dict.fromkeys(("momentum", "beta2"), DECAY),
    "beta": (lambda value: 0 <= value <= 1, "between 0 and 1"),
}


class AMUSE(Optimizer):
    r"""Anytime Muon with stable gradient evaluation (Kim et al., arXiv 2605.22432).

    Three sequences start from the initial parameters. In step t = 1, 2, ..., with learning rate eta_t = lr min(1, t/T0)
    and T0 = `warmup_steps`, the gradient is evaluated at y, Muon moves z, and x is the weighted mean of z:

    .. math::
        y_t &= (1 - b_t) z_t + b_t x_t \\
        m_t &= \mu m_{t-1} + (1 - \mu) g_t, \quad g_t = \nabla L(y_t), \quad u_t = (1 - \mu) g_t + \mu m_t \\
        z_{t+1} &= (1 - \eta_t \lambda) z_t - \eta_t s\, \mathrm{NS}(u_t) \\
        x_{t+1} &= (1 - c_t) x_t + c_t z_{t+1}, \quad c_t = \eta_t^r / \sum_{i \le t} \eta_i^r

    with NS from `orthogonalise`, the scale s = 0.2 sqrt(max(rows, columns)), and r = `averaging_power`. The weight b_t
    is `beta` during warm-up, and then rises to 1 as

    .. math:: b_t = 1 - (1 - \beta) \left( \frac{c_t (1 - c_{T_0})}{c_{T_0} (1 - c_t)} \right)^\rho .

    Kernels of convolutions are matrices (out, -1). Parameters of groups with `use_muon` False have the same sequences,
    with a step of AdamW without first moment, g/(sqrt(v/(1 - beta2^t)) + eps), or of SGD, instead of s NS.

    The parameters are y in training mode and x, with which the model is evaluated, after `eval()`; `train()` switches
    back. The optimiser starts in training mode.

    Parameters
    ----------
    params : iterable of dict
        Parameter groups with a key `use_muon`, as from `muon_groups`; a group can have any of the following settings.
    lr : float
        Learning rate after warm-up. It stays in `param_groups`, where schedulers may change it.
    warmup_steps : int
        Number T0 of steps of linear warm-up.
    weight_decay : float
        Decoupled weight decay lambda of z.
    momentum : float
        Momentum mu of Muon, in [0, 1).
    beta : float
        Weight b_t of the average x during warm-up, in [0, 1].
    rho : float
        Exponent with which b_t rises to 1; with 0 it stays at `beta`, which is schedule-free Muon.
    averaging_power : float
        Exponent r of learning rates in the weights of the average. 0 weights all steps equally, so that b_t = 1 -
        ((T0 - 1)/(t - 1))^rho (1 - beta), as in the first description in the authors' repository.
    auxiliary : {"adamw", "sgd"}
        Step of parameters without Muon. With "sgd", the scale s is sqrt(max(1, rows/columns)).
    beta2, eps : float
        Decay of the mean squared gradient, and the term added to its root, of the AdamW step.
    ns_steps, ns_dtype
        `steps` and `dtype` of `orthogonalise`.

    Raises
    ------
    ValueError
        If a setting is out of range, a group lacks `use_muon`, a Muon parameter is not a matrix, or a parameter is not
        real and floating-point.

    Notes
    -----
    State are z, x, and the momentum or mean square: three numbers for each parameter (SGD: two).

    It differs from the authors' code (github.com/kjeiun/amuse) in these points:

    - x is stored. Their code recovers it from y = (1 - b) z + b x with the b of the current step, although y was built
      with that of the step before, so that x is off by (1 - b_{t-1}/b_t)(z - x) in each step after warm-up. In
      exchange for the memory, mode changes are exact, and b = 0 is possible.
    - y_{t+1} is built at the end of step t, with the learning rate that is set by then. A scheduler that changes it
      afterwards affects b one step late; eta_t and c_t always use the current one.
    - If a scheduler raises the learning rate after warm-up, b_t does not fall below `beta`.
    - The orthogonalisation runs in the precision of the parameters, not in bfloat16, unless `ns_dtype` is set.
    - Gradients are not overwritten, and the learning rate in `param_groups` is not replaced by eta_t.

    Parameters are written in each step from x and z: changes that others make to them between steps, such as clipping
    weights, are lost. Statistics of batch normalisation belong to y; recompute those of x after `eval()`, by
    `torch.optim.swa_utils.update_bn`.

    Examples
    --------
    >>> import torch, hesspec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> inputs, targets = torch.randn(50, 4), torch.randn(50, 1)
    >>> optimizer = hesspec.optim.AMUSE(hesspec.optim.muon_groups(model), lr=0.02, warmup_steps=5)
    >>> for step in range(20):
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.mse_loss(model(inputs), targets)
    ...     loss.backward()
    ...     optimizer.step()
    >>> optimizer.eval()  # the model is now the average x
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        warmup_steps: int,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        beta: float = 0.9,
        rho: float = 1.0,
        averaging_power: float = 2.0,
        auxiliary: Literal["adamw", "sgd"] = "adamw",
        beta2: float = 0.999,
        eps: float = 1e-10,
        ns_steps: int = 5,
        ns_dtype: torch.dtype | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "beta": beta,
            "rho": rho,
            "averaging_power": averaging_power,
            "auxiliary": auxiliary,
            "beta2": beta2,
            "eps": eps,
            "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
            # What changes from step to step is kept in the groups too, and thereby in `state_dict`.
            "train_mode": True,
            "steps": 0,
            "weight_sum": 0.0,
            "warmup_odds": 0.0,
            "interpolation": beta,
        }
        super().__init__(params, settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with a key `use_muon`; see the class for its settings and errors."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check(group)
        except ValueError:
            self.param_groups.pop()
            raise
        group["interpolation"] = float(group["beta"])
        group["train_mode"] = self.param_groups[0]["train_mode"]

    # Modes ------------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Set the parameters to y, at which gradients are evaluated."""
        self._switch(train_mode=True)

    def eval(self) -> None:
        """Set the parameters to x, the average, with which the model is evaluated."""
        self._switch(train_mode=False)

    @property
    def train_mode(self) -> bool:
        """Whether the parameters are y."""
        return bool(self.param_groups[0]["train_mode"])

    @torch.no_grad()
    def _switch(self, *, train_mode: bool) -> None:
        for group in self.param_groups:
            group["train_mode"] = train_mode
            self._write(group, "y" if train_mode else "x")

    @contextmanager
    def at(self, sequence: Literal["x", "y", "z"]) -> Iterator[None]:
        """Set the parameters to one of the three sequences within a `with` block, to measure curvature there.

        Parameters
        ----------
        sequence : {"x", "y", "z"}
            The average x, the point y at which gradients are evaluated, or the point z that Muon moves.

        Raises
        ------
        ValueError
            If the sequence has another name.
        """
        if sequence not in ("x", "y", "z"):
            raise ValueError(f"sequence is {sequence!r}; it must be 'x', 'y' or 'z'.")
        saved = [(p, p.detach().clone()) for group in self.param_groups for p in group["params"]]
        try:
            with torch.no_grad():
                for group in self.param_groups:
                    self._write(group, sequence)
            yield
        finally:
            with torch.no_grad():
                for parameter, value in saved:
                    parameter.copy_(value)

    def _write(self, group: dict[str, Any], sequence: str) -> None:
        """Set the parameters of a group; those that have never had a gradient are the same in all sequences."""
        for parameter in group["params"]:
            state = self.state.get(parameter)
            if state:
                if sequence == "y":
                    parameter.copy_(torch.lerp(state["z"], state["x"], group["interpolation"]))
                else:
                    parameter.copy_(state[sequence])

    # Steps ------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the loss and its gradient, and returns the loss.

        Returns
        -------
        The loss, if there is a closure.

        Raises
        ------
        RuntimeError
            If the optimiser is in evaluation mode, in which the parameters are not those of the gradient.
        """
        if not self.train_mode:
            raise RuntimeError("AMUSE is in evaluation mode; call train() before gradients are computed for a step.")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        t = group["steps"] + 1
        rate = _learning_rate(group, t)
        weight, before = rate ** group["averaging_power"], group["weight_sum"]
        share = weight / (before + weight) if weight > 0 else float(before == 0)
        if t == group["warmup_steps"]:
            group["warmup_odds"] = weight / before if before > 0 else math.inf
        update = _muon if group["use_muon"] else _AUXILIARY_STEPS[group["auxiliary"]]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise RuntimeError("AMUSE does not support sparse gradients.")
            state = self.state[parameter]
            if not state:
                state["z"], state["x"] = parameter.detach().clone(), parameter.detach().clone()
            direction = update(parameter.grad, state, group, t)
            state["z"].mul_(1 - rate * group["weight_decay"]).sub_(direction, alpha=rate)
            state["x"].lerp_(state["z"], share)
        group["steps"], group["weight_sum"] = t, before + weight
        group["interpolation"] = _interpolation(group)
        self._write(group, "y")


def _learning_rate(group: dict[str, Any], t: int) -> float:
    """Learning rate eta_t."""
    return float(group["lr"]) * min(1.0, t / int(group["warmup_steps"]))


def _interpolation(group: dict[str, Any]) -> float:
    """Weight b_t of x in y for the next step, as the learning rate is now."""
    t, beta, before = group["steps"] + 1, float(group["beta"]), group["weight_sum"]
    if t <= group["warmup_steps"] or before == 0:
        return beta
    # c_t/(1 - c_t) is the step's weight over the sum of those before.
    odds = _learning_rate(group, t) ** group["averaging_power"] / before
    ratio = 1.0 if odds >= group["warmup_odds"] else odds / group["warmup_odds"]
    return float(1 - (1 - beta) * ratio ** group["rho"])


def _muon(gradient: Tensor, state: dict[str, Any], group: dict[str, Any], _: int) -> Tensor:
    """Scaled orthogonalisation of the Nesterov momentum."""
    momentum = group["momentum"]
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
    matrix = torch.lerp(gradient, mean, momentum).flatten(1)
    rows, columns = matrix.shape
    scale = RMS * math.sqrt(max(rows, columns)) if group["auxiliary"] == "adamw" else math.sqrt(max(1, rows / columns))
    return orthogonalise(matrix, group["ns_steps"], group["ns_dtype"]).mul_(scale).view_as(gradient)


def _adamw(gradient: Tensor, state: dict[str, Any], group: dict[str, Any], t: int) -> Tensor:
    """Gradient over the root of its mean square."""
    if "exp_avg_sq" not in state:
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    square: Tensor = state["exp_avg_sq"]
    square.mul_(group["beta2"]).addcmul_(gradient, gradient, value=1 - group["beta2"])
    root: Tensor = (square / (1 - group["beta2"] ** t)).sqrt_().add_(group["eps"])
    return gradient / root


def _sgd(gradient: Tensor, _: dict[str, Any], __: dict[str, Any], ___: int) -> Tensor:
    return gradient


_AUXILIARY_STEPS = {"adamw": _adamw, "sgd": _sgd}


def _check(group: dict[str, Any]) -> None:
    """Raise ValueError if a group cannot be trained."""
    _check_settings(group)
    for parameter in group["params"]:
        if not parameter.is_floating_point():
            raise ValueError(f"A parameter is {parameter.dtype}; AMUSE trains real floating-point parameters.")
        if group["use_muon"] and parameter.ndim < 2:
            raise ValueError(
                f"A parameter of shape {tuple(parameter.shape)} is in a group for Muon, which trains matrices and "
                "kernels; put it into a group with use_muon=False."
            )


def _check_settings(group: dict[str, Any]) -> None:
    if not isinstance(group.get("use_muon"), bool):
        raise ValueError(
            "A parameter group does not say by use_muon=True or False whether Muon trains it; "
            "hesspec.optim.muon_groups(model) returns groups that do."
        )
    for name, (allowed, text) in RANGES.items():
        if not allowed(float(group[name])):
            raise ValueError(f"{name} is {group[name]!r}; it must be {text}.")
    check_counts(warmup_steps=group["warmup_steps"], ns_steps=group["ns_steps"])
    if group["auxiliary"] not in AUXILIARY:
        raise ValueError(f"auxiliary is {group['auxiliary']!r}; it must be 'adamw' or 'sgd'.")
