"""Silence of PyTorch's tracer while a trace is attempted, which may fail and has another way to go."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_tracer"]


@contextmanager
def quiet_tracer() -> Iterator[None]:
    """Within this context PyTorch's loggers and all warnings are silent.

    Fake tensors log the stack of every failure, and torch.func warns of how it is implemented: nothing of it is of any
    use to who called for a product. What fails is raised as ever.
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
        # Those that are made meanwhile, as modules are imported, take this level.
        top.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        top.setLevel(level)
        for logger, before in zip(loggers, disabled, strict=True):
            logger.disabled = before
