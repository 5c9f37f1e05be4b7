"""Traces that several operators share."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

from hesspec.operators.model.content import loss_with_settings

if TYPE_CHECKING:
    from hesspec.operators.engine.graph.tracing import JointTrace, LinearTrace
    from hesspec.operators.risk.empirical_risk import EmpiricalRisk

__all__ = ["GraphCache", "TraceSet"]


class TraceSet(NamedTuple):
    """Traces of one kind of matrix, by the shape of the batch; of those that are cut, by bfloat16 or not, too."""

    joint: dict[Hashable, JointTrace]
    linear: dict[Hashable, LinearTrace]


class GraphCache:
    """Traces of curvature matrices, shared by operators of one model object at several of its checkpoints.

    A trace depends on the shapes of a batch and on the model's code, but not on its weights: a model that is measured
    again after its weights have changed need not be traced again. Given to operators as `graphs=`.

    Parameters
    ----------
    points : int
        At how many checkpoints it is expected to be used: it decides whether tracing pays.

    Notes
    -----
    Shared is what has the same model and loss (the very objects), in the same mode and with the same attributes and
    settings, the same parameters and the same kind of matrix. Each operator verifies what it takes from here.

    Examples
    --------
    >>> import torch, hesspec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> loss, data = torch.nn.CrossEntropyLoss(), [(torch.randn(20, 4), torch.randint(3, (20,)))]
    >>> graphs = hesspec.GraphCache(points=2)
    >>> first = hesspec.spectrum(hesspec.Hessian(model, loss, data, graphs=graphs), steps=8)
    >>> with torch.no_grad():
    ...     _ = model[0].weight.mul_(2)
    >>> second = hesspec.spectrum(hesspec.Hessian(model, loss, data, graphs=graphs), steps=8)
    """

    def __init__(self, *, points: int = 1) -> None:
        if not isinstance(points, int) or points < 1:
            raise ValueError(f"points is {points!r}; it has to be a positive whole number.")
        self.points = points
        self._found: dict[Hashable, tuple[object, TraceSet]] = {}

    def of(self, risk: EmpiricalRisk, matrix: Hashable) -> TraceSet:
        """Traces of one kind of matrix of a risk; new ones are to be added."""
        objects = risk.module, risk.loss_fn
        # A trace has modes, attributes and the settings of the loss built in, which may change between operators.
        built_in = tuple(risk.settings), loss_with_settings(risk.loss_fn)
        key = (*map(id, objects), *built_in, risk.parameters.names, tuple(risk.fixed), matrix)
        # The objects are kept with their traces, or another one could come to have the same id.
        return self._found.setdefault(key, (objects, TraceSet({}, {})))[1]
