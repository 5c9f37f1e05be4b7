"""Ambient modes of PyTorch under which hesspec runs a user's model, independent of what the caller has set."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.utils.checkpoint
from torch.amp.autocast_mode import autocast
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from hesspec.backend.arithmetic import full_float32, is_full_float32
from hesspec.operators.model.control_flow import python_control_flow
from hesspec.operators.model.layouts import IN_ANY_LAYOUT
from hesspec.operators.model.substitutes import Substitutes

__all__ = [
    "AutocastSeen",
    "OwnRandomness",
    "differentiable_kernels",
    "neutral",
    "neutral_modes",
    "preserved_randomness",
]

# Names by which `torch.utils.checkpoint.checkpoint` finds its implementations; the second depends on the version.
REENTRANT = "CheckpointFunction"
NON_REENTRANT = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")


class AutocastSeen:
    """Record of whether a forward pass used autocast, which `neutral_modes` switches off."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()

    def __bool__(self) -> bool:
        """Whether autocast was used."""
        return bool(self.dtypes)


@contextmanager
def neutral_modes(seen: AutocastSeen | None = None) -> Iterator[None]:
    """Set the modes of arithmetic and autograd that second derivatives need.

    Inference mode is off. Products and convolutions of float32 are in full precision, which is not PyTorch's default on
    CUDA. Autocast is off, around the model and inside its forward pass, as its rounding would enter
    the curvature. Functions wrapped by `torch.compile` run eagerly, as compiled ones have no second derivative.
    Activation checkpointing calls the wrapped function directly, as its reentrant form does not work with
    `torch.autograd.grad` and neither form works with the transforms of `torch.func`.
    Control flow operators run as Python control flow (`hesspec.operators.model.control_flow`).
    Normalisation has gradients that are right in every memory layout (`hesspec.operators.model.layouts`).

    Parameters
    ----------
    seen : AutocastSeen, optional
        Records the dtypes of the autocast contexts that were switched off.
    """
    with ExitStack() as stack:
        stack.enter_context(_neutral_settings())
        stack.enter_context(_autocast_off(seen))
        stack.enter_context(_unchecked())
        stack.enter_context(_eager())
        stack.enter_context(python_control_flow())
        stack.enter_context(Substitutes(IN_ANY_LAYOUT))
        yield


@contextmanager
def _neutral_settings() -> Iterator[None]:
    """Set what the caller may have set otherwise; nothing that a forward pass sets is changed."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(full_float32())
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.is_autocast_enabled("cuda"):
            stack.enter_context(torch.autocast("cuda", enabled=False))
        yield


def neutral() -> AbstractContextManager[object]:
    """Switch to neutral modes of PyTorch if the caller has set others.

    Passes that run the user's model set the other `neutral_modes` themselves.
    """
    autocast_on = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    if not torch.is_inference_mode_enabled() and not autocast_on and is_full_float32():
        return nullcontext()
    return _neutral_settings()


def _autocast_off(seen: AutocastSeen | None) -> Any:
    enter: Callable[[Any], Any] = autocast.__enter__

    def disabled(self: Any) -> Any:
        if self._enabled:
            if seen is not None:
                seen.dtypes.add(self.fast_dtype)
            self._enabled = False
            try:
                return enter(self)
            finally:
                self._enabled = True
        return enter(self)

    return mock.patch.object(autocast, "__enter__", disabled)


def _unchecked() -> Any:
    """Make `torch.utils.checkpoint.checkpoint` call its function without saving and recomputing."""

    class Direct:
        @staticmethod
        def apply(function: Any, preserve: Any, *args: Any) -> Any:  # noqa: ARG004 - as of CheckpointFunction
            return function(*args)

    def once(*_: Any, **__: Any) -> Iterator[None]:
        yield

    stack = ExitStack()
    module = torch.utils.checkpoint
    stack.enter_context(mock.patch.object(module, REENTRANT, Direct))
    for name in NON_REENTRANT:
        if hasattr(module, name):
            stack.enter_context(mock.patch.object(module, name, once))
    return stack


def _eager() -> Any:
    # Importing Dynamo takes seconds; if anything was compiled, it has been imported.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def differentiable_kernels(seen: AutocastSeen | None = None) -> Iterator[None]:
    """Use kernels whose second derivatives exist and are accurate.

    Attention and the hard sigmoid use forms that can be differentiated twice (fused ones cannot), and cross-entropy one
    whose derivatives do not cancel.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with neutral_modes(seen), sdpa_kernel(SDPBackend.MATH), Substitutes():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Restore the states of all global random number generators on exit: PyTorch's, NumPy's and Python's."""
    state, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global generator is what is preserved
    # Not before CUDA is used: processes could not be forked afterwards.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(legacy)  # noqa: NPY002


class OwnRandomness:
    """Data iterated with its own random state, initialised from the global one, which is left unchanged.

    A `DataLoader` draws a seed for its workers in each pass, whether it shuffles or not, and datasets draw random
    augmentations. The global generators have their original states whenever an item is yielded, and each pass starts
    where the last one stopped, so data that depends on them differs from pass to pass (and is detected). A `DataLoader`
    may also count its passes, as those of accelerate do to seed their samplers; the count is restored after each pass.

    Parameters
    ----------
    data : iterable
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data
        self._state: tuple[Any, Any, torch.Tensor] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Items of the data."""
        with self._counts_put_back():
            with self._drawing():
                items = iter(self._data)
            nothing = object()
            while True:
                with self._drawing():
                    item = next(items, nothing)
                if item is nothing:
                    return
                yield item

    @contextmanager
    def _counts_put_back(self) -> Iterator[None]:
        """Restore numeric attributes of a `DataLoader` at the end of a pass."""
        own = vars(self._data) if isinstance(self._data, DataLoader) else {}
        before = {name: value for name, value in own.items() if isinstance(value, int | float)}
        try:
            yield
        finally:
            # Not by assignment, which a DataLoader rejects for some of them.
            own.update(before)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        with preserved_randomness():
            if self._state is not None:
                random.setstate(self._state[0])
                np.random.set_state(self._state[1])  # noqa: NPY002 - as data sets draw from it
                torch.set_rng_state(self._state[2])
            yield
            self._state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
