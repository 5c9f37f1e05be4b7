"""Errors as the user sees them: which errors are reported in one line, and their messages."""

import sys

from hesspec.backend.text import error_line
from hesspec.errors import NonFiniteError, RankError

__all__ = ["is_reportable", "sentence_of"]

REPORTED = (ValueError, OSError, MemoryError, NonFiniteError, ModuleNotFoundError, RankError)
# Recognises failed allocations of PyTorch, and imports PyTorch. Before a command has imported it, such an error cannot
# occur, and the command need not wait for the import.
MEMORY = "hesspec.backend.memory"


def is_reportable(error: Exception) -> bool:
    """Whether an error is caused by the input or the machine, so that its message suffices."""
    if isinstance(error, REPORTED):
        return True
    return MEMORY in sys.modules and bool(sys.modules[MEMORY].is_out_of_memory(error))


def sentence_of(error: Exception) -> str:
    """Message of an error, in one line."""
    if isinstance(error, RuntimeError) and MEMORY in sys.modules:
        return str(sys.modules[MEMORY].in_a_line(error))
    return error_line(error)
