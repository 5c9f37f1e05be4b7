"""The group of processes that `torchrun` started together."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

import hesspec.backend.ranks  # noqa: F401 - must be imported before a group exists; the module explains why
from hesspec.cli.launch import launched_ranks

__all__ = ["process_group"]


@contextmanager
def process_group(device: torch.device) -> Iterator[dist.ProcessGroup | None]:
    """Create the group of all launched processes (NCCL on GPUs, Gloo on CPUs); None if this is the only process.

    After an error the group is not destroyed, as other ranks may have ended already.
    """
    if launched_ranks() == 1:
        yield None
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield dist.group.WORLD
    dist.destroy_process_group()
