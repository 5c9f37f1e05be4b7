"""How much memory a device has left."""

import psutil
import torch

__all__ = ["free_memory"]


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a CPU or CUDA device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available)
