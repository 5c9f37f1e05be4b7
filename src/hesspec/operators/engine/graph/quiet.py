"""Silencing of PyTorch's tracer during a trace, which may fail without consequences."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_tracer"]


@contextmanager
def quiet_tracer() -> Iterator[None]:
    """Silence PyTorch's loggers and all warnings within this context.

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
    finally:
        top.setLevel(level)
        for logger, before in zip(loggers, disabled, strict=True):
            logger.disabled = before
