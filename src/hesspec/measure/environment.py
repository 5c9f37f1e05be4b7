"""What a measurement was made with: dtype, device, versions, machine."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import platform

import torch

from hesspec.backend.algebra import SymmetricOperator

__all__ = ["environment"]


def environment(operator: SymmetricOperator) -> dict[str, str | int]:
    """Attributes of a measurement by which it can be repeated."""
    device = torch.device(operator.device)
    machine = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "dtype": str(operator.dtype).removeprefix("torch."),
        "device": str(device),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_versions(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": machine,
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("hesspec", "torch", "numpy", "scipy")}
