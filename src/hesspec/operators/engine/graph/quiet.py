"""Silencing of PyTorch's tracer during a trace, which may fail without consequences."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["quiet_tracer"]


@contextmanager
def quiet_tracer() -> Iterator[None]:
    """Silence PyTorch's loggers and all warnings within this context, and release what its errors keep.

    Fake tensors log the stack of every failure, and torch.func warns about its implementation, which does not help the
    user of a product. Errors are raised as usual.
    """
    top = logging.getLogger("torch")
    loggers = [
        logger
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and (name == top.name or name.startswith(f"{top.name}."))
    ]
    disabled, level = [logger.disabled for logger in loggers], top.level
    try:
        for logger in loggers:
            logger.disabled = True
        # Loggers created meanwhile by imports use this level.
        top.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BaseException as error:
        _release(error)
        raise
    finally:
        top.setLevel(level)
        for logger, before in zip(loggers, disabled, strict=True):
            logger.disabled = before


def _release(error: BaseException) -> None:
    """Clear the local variables of the finished frames of an error, and of errors that led to it.

    While PyTorch shows a tensor, as in the messages of its errors, a local variable of `torch._tensor_str._str` sets
    which kernels run in this thread, and it restores the former ones when it is freed. If showing fails, as within
    torch.func, the error keeps that variable: whenever garbage is collected, the thread returns to the kernels of the
    middle of a trace, and autograd is switched off for all that follows.
    """
    waiting: list[BaseException | None] = [error]
    released: set[int] = set()
    kernels = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()  # noqa: SLF001
    # Returns to these when it ends.
    with torch._C._ForceDispatchKeyGuard(*kernels):  # noqa: SLF001
        while waiting:
            one = waiting.pop()
            if one is not None and id(one) not in released:
                released.add(id(one))
                traceback.clear_frames(one.__traceback__)
                waiting += [one.__cause__, one.__context__]
