"""What the card reaches: large matrix products in each precision, and copies of its memory."""

from __future__ import annotations

import statistics

import torch

from _turns import in_turn
from gpu_parts import Given, synchronised

TITLE = "Ceilings of this machine"
NOTE = "Square matrix products, and a copy that counts reads and writes; medians of at least five turns."
COLUMNS = ("what", "reached")


def rate(device: torch.device, dtype: torch.dtype, size: int, *, tf32: bool = False) -> float:
    """Floating-point operations a second of a product of two square matrices."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        taken = in_turn({"product": synchronised(lambda: one @ other, device)}, 5, 1.0)["product"]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * size**3 / statistics.median(taken)


def run(given: Given) -> None:
    """Measure."""
    size = 512 if given.quick else 8192
    kinds = {"float32": (torch.float32, False), "bfloat16": (torch.bfloat16, False), "float64": (torch.float64, False)}
    if given.device.type == "cuda":
        kinds["TF32"] = (torch.float32, True)
    for name, (dtype, tf32) in kinds.items():
        with given.step(name):
            reached = rate(given.device, dtype, size, tf32=tf32)
            given.keep(f"product of {size:,} x {size:,}, {name}", f"{reached / 1e12:.2f} TFLOP/s")
    with given.step("copy"):
        count = 2**24 if given.quick else 2**30
        source = torch.empty(count, dtype=torch.uint8, device=given.device)
        target = torch.empty_like(source)
        taken = in_turn({"copy": synchronised(lambda: target.copy_(source), given.device)}, 5, 1.0)["copy"]
        given.keep("copy of memory", f"{2 * count / statistics.median(taken) / 1e12:.3f} TB/s")
