"""Control flow operators of PyTorch (`torch.cond`, `while_loop`, `scan`, `map`, `switch`) run as Python control flow.

PyTorch compiles what calls them, so that parameters in their branches become arguments. Where nothing is compiled,
these parameters get no gradient; where it is, the gradient has no second derivative, and there is none of `torch.func`.
Python's own control flow has all derivatives. On values that are not known, as in a trace, it raises an error.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["python_control_flow"]

MODULES = "torch._higher_order_ops"


def _cond(_: Any, pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any) -> Any:
    return true_fn(*operands) if pred else false_fn(*operands)


def _switch(_: Any, index: Any, branches: Sequence[Callable[..., Any]], operands: Any) -> Any:
    # An index out of bounds selects the nearest branch.
    return branches[min(max(int(index), 0), len(branches) - 1)](*operands)


def _while_loop(
    _: Any,
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., Any],
    carried_inputs: Sequence[Any],
    additional_inputs: Sequence[Any],
    **__: Any,
) -> Any:
    carried: Any = tuple(carried_inputs)
    while cond_fn(*pytree.tree_leaves(carried), *additional_inputs):
        carried = body_fn(*pytree.tree_leaves(carried), *additional_inputs)
    return tuple(carried)


def _scan(
    _: Any,
    combine_fn: Callable[..., Any],
    init: Sequence[Tensor],
    xs: Sequence[Tensor],
    additional_inputs: Sequence[Any],
    **__: Any,
) -> Any:
    carry, found = list(init), []
    # Of a function of the user, or of the graph of one, whose results are flat.
    structured = isinstance(combine_fn, functools.partial)
    last: Any = tuple(init)
    for place in range(len(xs[0])):
        result = combine_fn(*carry, *(x[place] for x in xs), *additional_inputs)
        last, out = result if structured else (tuple(result[: len(init)]), tuple(result[len(init) :]))
        carry = pytree.tree_leaves(last)
        found.append(out)
    stacked = pytree.tree_map(lambda *parts: torch.stack(parts), found[0], *found[1:])
    return (last, stacked) if structured else (*last, *stacked)


def _map(_: Any, f: Callable[..., Any], xs: Sequence[Tensor], pos_args: Sequence[Any], **__: Any) -> Any:
    found = [f(*(x[place] for x in xs), *pos_args) for place in range(len(xs[0]))]
    return pytree.tree_map(lambda *parts: torch.stack(parts), found[0], *found[1:])


def _called(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
    return fn(*args, **(kwargs or {}))


# Names of modules in which PyTorch has an operator, depending on its version, with its class or function.
OPERATORS: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("cond", "CondOp", _cond),
    ("switch", "SwitchOp", _switch),
    ("while_loop", "WhileLoopOp", _while_loop),
    ("scan", "ScanOp", _scan),
    ("map", "MapImpl", _map),
)
COMPILING = "_hop_compile_and_call"


@functools.cache
def _replaced() -> tuple[tuple[Any, str, Callable[..., Any]], ...]:
    found: list[tuple[Any, str, Callable[..., Any]]] = []
    for name, operator, function in OPERATORS:
        try:
            module = importlib.import_module(f"{MODULES}.{name}")
        except ImportError:
            continue
        if hasattr(module, operator):
            found.append((getattr(module, operator), "__call__", function))
    utilities = importlib.import_module(f"{MODULES}.utils")
    if hasattr(utilities, COMPILING):
        found.append((utilities, COMPILING, _called))
    return tuple(found)


@contextmanager
def python_control_flow() -> Iterator[None]:
    """Run control flow operators as Python control flow within this context."""
    with ExitStack() as stack:
        for owner, name, function in _replaced():
            stack.enter_context(mock.patch.object(owner, name, function))
        yield
