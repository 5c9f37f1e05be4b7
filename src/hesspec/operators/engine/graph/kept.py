"""Tensors of a trace, which have no values or belong to a transform that ends with it, are nowhere after it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hesspec.operators.engine.graph.recording import UnsoundTraceError
from hesspec.operators.model.kept import Holder, Results
from hesspec.operators.model.module import ModuleState

__all__ = ["traces_dropped"]


@contextmanager
def traces_dropped(model: nn.Module, holders: Sequence[Holder]) -> Iterator[AbstractContextManager[object]]:
    """Leave no tensor of a trace in a model, or in anything else that it and its loss write into in this context.

    Parameters
    ----------
    model : torch.nn.Module
        Its attributes are restored.
    holders : sequence of Holder
        What else is known to hold tensors is restored, too.

    Yields
    ------
    context manager
        Within it, the model and its loss are to be called, any number of times. Nothing that PyTorch returned there may
        be held at the end.

    Raises
    ------
    UnsoundTraceError
        If anything else holds such tensors; they have been removed from it.
    """
    state, results = ModuleState(model, holders), Results()
    try:
        yield results
    except BaseException as error:
        state.restore()
        # The frames of what failed hold its tensors.
        for raised in _with_contexts(error):
            traceback.clear_frames(raised.__traceback__)
        Holder.of(list(filter(_of_a_trace, results.alive())))
        raise
    state.restore()
    others = Holder.of(list(filter(_of_a_trace, results.alive())))
    if others:
        words = ", ".join(dict.fromkeys(holder.words for holder in others))
        raise UnsoundTraceError(f"the model or the loss keeps tensors between calls in {words}")


def _of_a_trace(tensor: Tensor) -> bool:
    return (
        type(tensor) is FakeTensor
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # noqa: SLF001 - there is no public test
        or torch._is_functional_tensor(tensor)  # noqa: SLF001
    )


def _with_contexts(error: BaseException) -> Iterator[BaseException]:
    raised: BaseException | None = error
    while raised is not None:
        yield raised
        raised = raised.__cause__ or raised.__context__
