"""Commands under `torchrun`: the processes that share a measurement, and what each of them says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

__all__ = ["launched_ranks", "process_group"]


def launched_ranks() -> int:
    """Number of processes that `torchrun` started with this one; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextmanager
def process_group(device: torch.device) -> Iterator[dist.ProcessGroup | None]:
    """The group of all processes that were launched, and None where this is the only one.

    NCCL on GPUs, Gloo on CPUs. After an error the group is left as it is, as other ranks may be gone.
    """
    if launched_ranks() == 1:
        yield None
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield dist.group.WORLD
    dist.destroy_process_group()
