"""Forward passes with fake tensors, which have shapes and no values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from hesspec.operators.data.structures import map_tensors
from hesspec.operators.engine.graph.kept import traces_dropped
from hesspec.operators.engine.graph.quiet import quiet_tracer
from hesspec.operators.engine.graph.tracing import compiling
from hesspec.operators.model.module import conversions_refused
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk, Named

__all__ = ["without_values"]


@contextmanager
def without_values(risk: EmpiricalRisk, batch: Batch) -> Iterator[tuple[Named, Named, Any, Any]]:
    """Yield the parameters, buffers, inputs and targets of a batch as fake tensors, within their mode."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    stand_ins = map_tensors(mode.from_tensor, (risk.leaves(), risk.fixed, batch.inputs, batch.targets))
    with (
        traces_dropped(risk.model, risk.holders) as called,
        quiet_tracer(),
        compiling(),
        conversions_refused(),
        mode,
        called,
    ):
        yield stand_ins
