"""Traces shared by several operators."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

from hesspec.backend.numbers import check_counts
from hesspec.operators.model.content import loss_with_settings

if TYPE_CHECKING:
    from hesspec.operators.engine.graph.tracing import JointTrace, LinearTrace
    from hesspec.operators.risk.empirical_risk import EmpiricalRisk

__all__ = ["GraphCache", "TraceSet"]


class TraceSet(NamedTuple):
    """Traces of one kind of matrix by shape of the batch; cut traces also by use of bfloat16."""

    joint: dict[Hashable, JointTrace]
    linear: dict[Hashable, LinearTrace]


class GraphCache:
    """Traces of curvature matrices, shared by operators of one model object at several checkpoints.

    A trace depends on the shapes of a batch and on the model's code, but not on its weights, so a model need not be
    traced again after its weights have changed. Pass one object to several operators as `graphs=`.

    Parameters
    ----------
    points : int
        Expected number of checkpoints, each with the products that its operator expects, which determines whether
        tracing pays off.

    Notes
    -----
    Traces are shared by operators with the identical model and loss objects, in the same mode and with the same
    attributes, settings, parameters and kind of matrix. Each operator verifies the traces that it reuses.

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
        check_counts(points=points)
        self.points = points
        self._found: dict[Hashable, tuple[object, TraceSet]] = {}

    def of(self, risk: EmpiricalRisk, matrix: Hashable) -> TraceSet:
        """Return the traces of one kind of matrix of a risk, to which new ones are added."""
        objects = risk.module, risk.loss_fn
        # Modes, attributes and settings of the loss are fixed in a trace and may change between operators.
        built_in = tuple(risk.settings), loss_with_settings(risk.loss_fn)
        key = (*map(id, objects), *built_in, risk.parameters.names, tuple(risk.fixed), matrix)
        # The objects are stored with their traces, as otherwise another object could get the same id.
        return self._found.setdefault(key, (objects, TraceSet({}, {})))[1]
