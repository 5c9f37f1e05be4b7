"""Free memory of devices, parsing of sizes, and out-of-memory errors."""

import gc
import re

import torch

from hesspec.backend.heap import give_back
from hesspec.backend.host_memory import host_memory
from hesspec.backend.numbers import is_whole
from hesspec.backend.text import error_line, in_words, kind_of

__all__ = [
    "BudgetError",
    "free_memory",
    "in_a_line",
    "in_words",
    "is_out_of_memory",
    "parse_memory",
    "release",
]

UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
LARGEST = 2**63  # bytes that a process can address
# The CPU allocator, and C++ behind it, have no exception class for this.
CPU_ALLOCATOR = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "std::bad_alloc",
)
# What CUDA, and libraries on it that allocate for themselves, say; memory of the host that is pinned is CUDA's as well.
CUDA_ALLOCATORS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
# Message of oneDNN when there is no memory for the code that it generates. (If it does not support an operation, it
# cannot create a "primitive descriptor".)
NO_ROOM_FOR_CODE = "could not create a primitive"


class BudgetError(MemoryError):
    """The smallest piece of work does not fit into memory; the message states the estimate and the budget."""


def free_memory(device: torch.device) -> int:
    """Return free bytes on a CPU or CUDA device; for a CPU, see `hesspec.backend.host_memory.host_memory`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    give_back()
    return host_memory()


def parse_memory(memory: str | int) -> int:
    """Convert "8GB", "500 MB", "2GiB" or a number of bytes to bytes.

    Raises
    ------
    ValueError
        If the value is not a size, or is not positive.
    """
    advice = 'use a size such as "8GB", "500MB" or "2GiB", or a number of bytes.'
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*([+-]?\d+(?:\.\d*)?|[+-]?\.\d+)\s*([a-zA-Z]*)\s*", memory)
        if found is None or found[2].upper() not in UNITS:
            raise ValueError(f"memory={memory!r} is not a valid size; {advice}")
        size = float(found[1]) * UNITS[found[2].upper()]
    elif is_whole(memory):
        size = int(memory)
    else:
        raise ValueError(f"memory={memory!r} is {kind_of(memory)}; {advice}")
    if size >= LARGEST:
        raise ValueError(f"memory={memory!r} is more than any machine has; {advice}")
    if size < 1:
        raise ValueError(f"memory={memory!r} leaves nothing to work with; {advice}")
    return int(size)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a GPU or on a CPU."""
    if isinstance(error, BudgetError):
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        any(words in said for words in (*CPU_ALLOCATOR, *CUDA_ALLOCATORS)) or said.strip() == NO_ROOM_FOR_CODE
    )


def in_a_line(error: BaseException) -> str:
    """Message of an error in one line; a plain sentence for errors of CPU allocators, whose messages are technical."""
    said = error_line(error)
    if not is_out_of_memory(error) or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return said
    asked = re.search(r"allocate (\d+) bytes", said)
    block = f": a block of {in_words(int(asked[1]))} was requested" if asked else ""
    return f"Memory ran out{block}. Use fewer samples, smaller batches, a smaller network or more memory."


def release(device: torch.device) -> None:
    """Release unreferenced memory after an allocation has failed."""
    gc.collect()
    give_back()
    if device.type == "cuda":
        torch.cuda.empty_cache()
