"""Commands under `torchrun`: the processes that were started together. Imports PyTorch only where it has to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

__all__ = ["launched_ranks", "process_group", "rank_here"]


def launched_ranks() -> int:
    """Number of processes that `torchrun` started with this one; 1 without it."""
    # A scheduler may set one of the two for purposes of its own.
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank_here() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ["RANK"]) if launched_ranks() > 1 else 0


@contextmanager
def process_group(device: torch.device) -> Iterator[dist.ProcessGroup | None]:
    """The group of all processes that were launched, and None where this is the only one.

    NCCL on GPUs, Gloo on CPUs. After an error the group is left as it is, as other ranks may be gone.
    """
    if launched_ranks() == 1:
        yield None
        return
    import torch  # noqa: PLC0415 - slow to import, and not needed by all commands

    import hesspec._ranks  # noqa: F401, PLC0415 - before there is a group, as it says there

    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()
