"""The group of processes that `torchrun` started together."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

import hesspec._ranks  # noqa: F401 - before there is a group, as it says there
from hesspec.cli.launch import launched_ranks

__all__ = ["process_group"]


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
