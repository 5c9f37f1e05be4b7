"""Values of --device and --dtype."""

import os

import torch

from hesspec.backend.suggest import unknown

__all__ = ["device_of", "dtype_of"]


def dtype_of(name: str) -> torch.dtype:
    """Value of --dtype."""
    known = {"float32": torch.float32, "float64": torch.float64}
    if name not in known:
        raise ValueError(unknown("dtype", name, known))
    return known[name]


def device_of(name: str) -> torch.device:
    """Value of --device; under `torchrun`, cuda is the GPU of this process."""
    kind, _, number = name.partition(":")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        number = os.environ["LOCAL_RANK"]
    if kind not in {"cpu", "cuda"} or (number and not number.isdecimal()):
        raise ValueError(unknown("device", name, ["cpu", "cuda", "cuda:0"]))
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(f"There is no device {name!r}: PyTorch finds {torch.cuda.device_count()} CUDA devices.")
    return torch.device(f"{kind}:{number}" if number else kind)
