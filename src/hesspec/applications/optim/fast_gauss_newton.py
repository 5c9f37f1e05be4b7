"""Fast Gauss-Newton: an optimiser with damped steps from the true-vs-rest part of the Gauss-Newton matrix."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hesspec.applications.optim.systems import CURVATURES, loss_of
from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import free_shares
from hesspec.backend.numbers import check_counts, check_fractions
from hesspec.errors import InputError
from hesspec.operators.data.structures import flatten
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.engine.jacobian import LinearisedModel
from hesspec.operators.model.ambient import neutral
from hesspec.operators.model.module import evaluation_mode
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.logits import check_softmax_loss
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec

__all__ = ["FastGaussNewton", "Step", "softmax_risk"]

POLICIES = ("gain ratio", "constant")
# The trust-region rule of the siblings of this method in the authors' library (Korbit's somax, April 2026).
LOW, RAISE = 0.25, 1.5
HIGH, LOWER = 0.75, 0.5
SMALLEST, LARGEST = 1e-12, 1e6
# Rounding of the difference of two losses relative to the loss, in units of eps of the logits.
NOISE = 10.0


class Step(NamedTuple):
    """One step of `FastGaussNewton`.

    Attributes
    ----------
    loss : float
        Loss on the batch before the step, float64.
    gain_ratio : float
        Decrease of the loss on the batch, divided by the change that the quadratic model predicts (a decrease for any
        lr up to 1); 1 for a quadratic loss, and nan if both are below rounding.
    damping : float
        Damping of this step, in units of eigenvalues of the curvature; the next one is in `FastGaussNewton.damping`.
    iterations : int
        Number of conjugate-gradient iterations.
    accepted : bool
        Whether the parameters were changed.
    """

    loss: float
    gain_ratio: float
    damping: float
    iterations: int
    accepted: bool


class FastGaussNewton:
    r"""Optimiser for softmax cross-entropy with steps :math:`-\mathrm{lr}\,(A + \mu I)^{-1} g`, g the gradient.

    A is the true-vs-rest part of the Gauss-Newton matrix G of the batch, or G itself. The model is evaluated in
    evaluation mode, whatever its mode is.

    Parameters
    ----------
    model : torch.nn.Module
        Model that returns logits. Its parameters are changed in place.
    loss_fn : torch.nn.CrossEntropyLoss or torch.nn.functional.cross_entropy
        The loss, without label smoothing, with class indices as targets.
    params : optional
        Parameters to train; see `hesspec.Hessian`.
    damping : float
        Positive damping mu of the first step, in units of eigenvalues of A.
    policy : {"gain ratio", "constant"}
        "gain ratio" rejects steps that increase the loss of the batch, multiplies the damping by 1.5 where the gain
        ratio is below 0.25 and by 0.5 where it is above 0.75, within [1e-12, 1e6]. "constant" takes every step with the
        same damping.
    lr : float
        Positive factor of the step.
    iterations : int
        Largest number of conjugate-gradient iterations in a step.
    curvature : {"true-vs-rest", "full"}
        A. The systems are solved in R^N for the N rows (samples) of the batch, or in R^p.
    tolerance : float
        Tolerance of the residual of the system, relative to its right-hand side.
    memory : str or int, optional
        See `hesspec.GaussNewton`.

    Attributes
    ----------
    damping, lr : float
        Damping and factor of the next step; they may be set.

    Raises
    ------
    ValueError
        If an argument is out of range, or the loss is a different one. In the first step: for the reasons of
        `hesspec.GaussNewton`, as when the batch does not match the model.

    Notes
    -----
    Korbit and Zanon, "Fast Gauss-Newton for Multiclass Cross-Entropy" (arXiv 2605.06081), for the split of G and the
    row system. The damping rule is that of the authors' library for related methods. The solution for the last batch is
    the start for the next one if its residual is smaller than that of zero, as it is for the same samples.

    A step costs a gradient, one forward pass for the gain ratio, and a product with A for each iteration and one or two
    more. A product needs one Jacobian-vector and one vector-Jacobian product. The first step for each shape of batch
    also traces and verifies the products, as operators do; later ones do not.

    Examples
    --------
    >>> import torch, hesspec
    >>> model = torch.nn.Linear(4, 3)
    >>> inputs, targets = torch.randn(60, 4), torch.arange(60) % 3
    >>> optimizer = hesspec.optim.FastGaussNewton(model, torch.nn.CrossEntropyLoss(), damping=0.1)
    >>> steps = [optimizer.step(inputs, targets) for _ in range(5)]
    >>> all(step.accepted for step in steps), steps[-1].loss < steps[0].loss
    (True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        params: ParameterSpec = None,
        *,
        damping: float = 1.0,
        policy: str = "gain ratio",
        lr: float = 1.0,
        iterations: int = 20,
        curvature: str = "true-vs-rest",
        tolerance: float = 1e-4,
        memory: str | int | None = None,
    ) -> None:
        for name, value in (("damping", damping), ("lr", lr)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; it must be a positive number.")
        check_fractions(tolerance=tolerance)
        check_counts(iterations=iterations)
        if policy not in POLICIES:
            raise ValueError(f"policy={policy!r} is unknown; use one of {', '.join(map(repr, POLICIES))}.")
        if curvature not in CURVATURES:
            raise ValueError(f"curvature={curvature!r} is unknown; use one of {', '.join(map(repr, CURVATURES))}.")
        self._budget = None if memory is None else parse_memory(memory)
        self._model, self._loss, self._params = model, loss_fn, params
        self._policy, self._iterations, self._tolerance = policy, int(iterations), tolerance
        self._system = CURVATURES[curvature]
        self._cached_graphs = GraphCache(points=1_000)
        self._prepared: dict[Hashable, tuple[EmpiricalRisk, LinearisedModel]] = {}
        self._start: Tensor | None = None
        self.damping, self.lr = float(damping), float(lr)

    def step(self, inputs: Any, targets: Tensor) -> Step:
        """Compute a step on a batch, and take it if the policy accepts it.

        Parameters
        ----------
        inputs : Tensor (N, ...), or a structure of tensors
            Inputs of the model, as in a batch of `hesspec.Hessian`.
        targets : Tensor (N,) or (N, d1, ...)
            Classes, int64.

        Returns
        -------
        Step

        Raises
        ------
        ValueError, MemoryError
            See `hesspec.GaussNewton`.
        NonFiniteError
            If the loss or the step contains NaN or infinity; the parameters are left unchanged.
        """
        with evaluation_mode(self._model), neutral():
            risk, linearised = self._linearised([(inputs, targets)])
            system = self._system(linearised)
            solved = system.solve(self.damping, self._tolerance, self._iterations, self._start)
            if not solved.x.isfinite().all():
                raise InputError(
                    "The step contains NaN or infinity; check the inputs and the weights, or raise damping."
                )
            moved = [
                value - self.lr * part
                for value, part in zip(risk.parameters.values, risk.parameters.split(solved.x), strict=True)
            ]
            before, after = loss_of(system.rows), loss_of(linearised.rows_at(moved))
        self._start = solved.unknown
        decrease = before - after
        predicted = self.lr * solved.slope - self.lr**2 * solved.curvature / 2
        noise = NOISE * torch.finfo(risk.parameters.dtype).eps * before
        below = abs(decrease) <= noise and abs(predicted) <= noise
        ratio = math.nan if below or predicted == 0 else decrease / abs(predicted)
        used = self.damping
        accepted = self._policy == "constant" or below or (decrease > 0 and math.isfinite(after))
        if accepted:
            with torch.no_grad():
                for parameter, value in zip(risk.parameters.parameters, risk.parameters.natural(moved), strict=True):
                    parameter.copy_(value)
        if self._policy == "gain ratio" and not below:
            factor = LOWER if ratio > HIGH else 1.0 if ratio >= LOW else RAISE
            self.damping = min(max(used * factor, SMALLEST), LARGEST)
        return Step(before, ratio, used, solved.iterations, accepted)

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on: the damping, and the start of the next solve, a tensor or None."""
        return {"damping": self.damping, "start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.damping, self._start = float(state["damping"]), state["start"]

    def _linearised(self, data: list[tuple[Any, Any]]) -> tuple[EmpiricalRisk, LinearisedModel]:
        """Return the products for a batch; only the first one of each shape is examined, traced and verified."""
        tensors, structure = flatten(data[0])
        places = {(value.device, value.dtype) for value in self._model.parameters()}
        key = structure, tuple((tensor.shape, tensor.dtype) for tensor in tensors), frozenset(places)
        if key in self._prepared and not self._prepared[key][0].outdated:
            risk = self._prepared[key][0].again(data)
            return risk, self._prepared[key][1].again(risk)
        risk = softmax_risk(self._model, self._loss, data, self._params)
        budget = free_shares(risk.parameters.device).products if self._budget is None else self._budget
        linearised = LinearisedModel(risk, budget, graphs=self._cached_graphs)
        # The passes of this batch would take memory as long as the optimiser exists.
        self._prepared[key] = risk, linearised.emptied()
        return risk, linearised


def softmax_risk(model: nn.Module, loss_fn: LossFunction, data: Any, params: ParameterSpec) -> EmpiricalRisk:
    """Return the risk of a softmax cross-entropy without label smoothing.

    Raises
    ------
    ValueError
        If the loss is a different one.
    """
    risk = EmpiricalRisk(model, loss_fn, data, params)
    check_softmax_loss(risk.loss)
    smoothing = getattr(risk.loss.function, "label_smoothing", 0.0)
    if smoothing:
        raise InputError(
            f"The loss has label_smoothing={smoothing}, with which its gradient is outside "
            "the span of the rows of the true-vs-rest matrix: leave it out."
        )
    return risk
