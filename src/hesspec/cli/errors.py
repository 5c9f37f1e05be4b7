"""Errors as the user sees them: which of them are a sentence, and which sentence."""

import sys

from hesspec.errors import NonFiniteError, RankError

__all__ = ["is_reportable", "sentence_of"]

REPORTED = (ValueError, OSError, MemoryError, NonFiniteError, ModuleNotFoundError, RankError)
# What tells of memory that PyTorch could not allocate, and imports it: a command that has not done so has no such
# error, and need not wait for it.
MEMORY = "hesspec._memory"


def is_reportable(error: Exception) -> bool:
    """Whether an error is the user's or the machine's fault, so that its sentence is enough."""
    if isinstance(error, REPORTED):
        return True
    return MEMORY in sys.modules and bool(sys.modules[MEMORY].is_out_of_memory(error))


def sentence_of(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {str(error.filename)!r}."
    if isinstance(error, RuntimeError) and MEMORY in sys.modules:
        return str(sys.modules[MEMORY].in_a_line(error))
    return " ".join(str(error).split()) or type(error).__name__
