"""Gradient, momentum and update of the next step of any optimiser, which is made on copies."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesspec.applications.optim.amuse import AMUSE
from hesspec.backend.text import kind_of
from hesspec.operators.model.ambient import preserved_randomness
from hesspec.operators.risk.parameters import ParameterSpec, select_parameters

__all__ = ["StepVectors", "step_vectors"]

# Names under which optimisers keep a mean of gradients: SGD, RMSprop, Muon; Adam and its relatives.
MOMENTA = ("momentum_buffer", "exp_avg")


class StepVectors(NamedTuple):
    """Vectors of the next step of an optimiser.

    Attributes
    ----------
    vectors : dict of str to Tensor (p,)
        `gradient`; `momentum`, if the optimiser has one; `update`, the difference that the step makes to the
        parameters; for AMUSE also `update of z`. In the order of `model.named_parameters()`, zero for parameters that
        have none.
    rounding : dict of str to float
        Bound on the norm of the rounding error of each vector: that of parameters, which differences of them contain.
    optimizer : str
        Class names of the optimisers.
    """

    vectors: dict[str, Tensor]
    rounding: dict[str, float]
    optimizer: str


def step_vectors(
    optimizer: Optimizer | Sequence[Optimizer], model: nn.Module, params: ParameterSpec = None
) -> StepVectors:
    """Compute gradient, momentum and update of the step that an optimiser would make now.

    The step is made by a copy of the optimiser on copies of its parameters and their gradients: model, gradients,
    optimiser and all global random generators are left unchanged, to the bit. The copies need memory for as much as
    parameters, gradients and the optimiser's state. Hooks of the optimiser are not called.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer or a sequence of them
        Any optimiser whose `step` needs no closure; several, such as Muon and AdamW, if they train different parameters
        of the model. Gradients must have been computed, and clipped or unscaled as for a step.
    model : torch.nn.Module
        Model that it trains.
    params : None, str, Module, Parameter, or an iterable of them
        Parameters in the vectors, as for the matrix that they are compared with; see `hesspec.Hessian`.

    Returns
    -------
    StepVectors
        The momentum includes the current gradient. The update includes learning rate and weight decay.

    Raises
    ------
    ValueError
        If no selected parameter has a gradient, the optimiser trains none of them, or it cannot be copied or needs a
        closure.

    Examples
    --------
    >>> import torch, hesspec
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    >>> model(torch.tensor([3.0, 4.0])).sum().backward()
    >>> vectors = hesspec.optim.step_vectors(optimizer, model).vectors
    >>> {name: vector.numpy().round(2).tolist() for name, vector in vectors.items()}
    {'gradient': [3.0, 4.0], 'momentum': [3.0, 4.0], 'update': [-1.5, -2.0]}
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    for each in optimizers:
        if not isinstance(each, Optimizer):
            raise ValueError(f"{kind_of(each, first=True)} is not a torch.optim.Optimizer.")
    chosen = list(select_parameters(model, params).values())
    names = " and ".join(type(each).__name__ for each in optimizers)
    trained = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    if not any(id(p) in trained for p in chosen):
        raise ValueError(f"{names or 'No optimiser'} trains none of the selected parameters of the model.")
    gradients = {id(p): p.grad for p in chosen if p.grad is not None}
    if not gradients:
        raise ValueError("No selected parameter has a gradient: call backward() on the loss first.")
    step = _Step()
    for each in optimizers:
        step.make(each)
    vectors = {"gradient": _flat(chosen, gradients)}
    if any(id(p) in step.momenta for p in chosen):
        vectors["momentum"] = _flat(chosen, step.momenta)
    rounding = dict.fromkeys(vectors, 0.0)
    for name, moves in (("update", step.moves), ("update of z", step.moves_of_z)):
        if moves:
            vectors[name] = _flat(chosen, {key: end - begin for key, (begin, end) in moves.items()})
            # A step rounds twice: after weight decay, and after the update.
            ends = _flat(chosen, {key: end for key, (_, end) in moves.items()})
            rounding[name] = float(torch.finfo(ends.dtype).eps * torch.linalg.vector_norm(ends, dtype=torch.float64))
    return StepVectors(vectors, rounding, names)


class _Step:
    """A step made on copies: momenta, parameters before and after, and z of AMUSE, by the identity of the parameter."""

    def __init__(self) -> None:
        self.momenta: dict[int, Tensor] = {}
        self.moves: dict[int, tuple[Tensor, Tensor]] = {}
        self.moves_of_z: dict[int, tuple[Tensor, Tensor]] = {}

    def make(self, optimizer: Optimizer) -> None:
        """Add the step of an optimiser."""
        trial, copies = _copied(optimizer)
        with preserved_randomness():
            trial.step()
        for original, moved in copies.items():
            state = trial.state.get(moved, {})
            self.moves[id(original)] = original.detach(), moved.detach()
            momentum = next((state[name] for name in MOMENTA if state.get(name) is not None), None)
            if momentum is not None:
                self.momenta[id(original)] = momentum
            if isinstance(trial, AMUSE) and "z" in state:
                before = optimizer.state.get(original, {}).get("z", original.detach())
                self.moves_of_z[id(original)] = before, state["z"]


def _flat(parameters: Iterable[nn.Parameter], tensors: Mapping[int, Tensor]) -> Tensor:
    """Flat vector (p,) of tensors by the identity of their parameter, zero where there is none."""
    parts = []
    for parameter in parameters:
        part = tensors.get(id(parameter))
        part = torch.zeros_like(parameter.detach()) if part is None else part.detach().to(parameter.dtype)
        part = part.to_dense() if part.is_sparse else part
        parts.append((torch.view_as_real(part) if part.is_complex() else part).reshape(-1))
    return torch.cat(parts)


def _copied(optimizer: Optimizer) -> tuple[Optimizer, dict[nn.Parameter, nn.Parameter]]:
    """Copy of an optimiser, and of each of its parameters by the original."""
    kind = type(optimizer)
    name = kind.__name__
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"A step of {name} needs a closure, which computes gradients of the model itself, so that no step can be "
            "made on a copy. Pass its vectors as tensors (p,)."
        )
    copies: dict[nn.Parameter, nn.Parameter] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            copied = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            copied.grad = None if parameter.grad is None else parameter.grad.detach().clone()
            copies[parameter] = copied
    trial = object.__new__(kind)
    # What deepcopy finds here it takes as the copy, so that the state of parameters becomes that of their copies.
    known: dict[int, Any] = {id(parameter): copied for parameter, copied in copies.items()}
    known[id(optimizer)] = trial
    for attribute, value in vars(optimizer).items():
        if attribute.endswith("_hooks"):
            vars(trial)[attribute] = OrderedDict[int, Callable[..., Any]]()
        # A scheduler replaces `step` of the optimiser by one that counts calls.
        elif attribute != "step":
            try:
                vars(trial)[attribute] = copy.deepcopy(value, known)
            except (TypeError, RuntimeError, AttributeError) as error:
                raise ValueError(
                    f"The {name} cannot be copied, because of its attribute {attribute!r} ({error}). Pass its vectors "
                    "as tensors (p,)."
                ) from error
    return trial, copies
