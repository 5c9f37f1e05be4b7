"""Page faults and memory of a process of its own: `python heap.py tensors`, or another part, which prints JSON."""

import contextlib
import gc
import json
import resource
import sys

import psutil
import torch
from torch import nn

import hesspec
from hesspec.backend.heap import Hold, keep_freed_memory
from hesspec.krylov.vectors import Space

SIZE = 16 << 20  # float32 numbers: 64 MB, which the C library maps anew each time
COUNT = 16


def faults() -> int:
    """Page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def resident() -> int:
    """Bytes of memory of this process."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def of_tensors() -> int:
    """Faults of so many tensors, one after the other, beyond the first."""
    torch.ones(SIZE)
    before = faults()
    for _ in range(COUNT):
        torch.ones(SIZE)
    return faults() - before


def tensors() -> dict[str, float]:
    """Faults outside of a block, within one, and within one after an error; memory within and after it, in tensors."""
    outside = of_tensors()
    with keep_freed_memory():
        settling, within = of_tensors(), of_tensors()
    with contextlib.suppress(ZeroDivisionError), keep_freed_memory():
        _ = 1 // 0
    with keep_freed_memory():
        again = of_tensors()
    before = resident()
    with keep_freed_memory():
        torch.ones(2 * SIZE)
        kept = resident()
        with keep_freed_memory():
            torch.ones(SIZE)
        inner = resident()
    sizes = {"kept": kept, "after an inner block": inner, "end": resident()}
    found = {"outside": outside, "settling": settling, "within": within, "after an error": again}
    return {**found, **{name: (size - before) / (4 * SIZE) for name, size in sizes.items()}}


def data(samples: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A batch of 64 numbers each."""
    return [(torch.randn(samples, 64), torch.arange(samples) % 10)]


def operator() -> dict[str, float]:
    """Of a product: faults, in pages of the largest tensor; what the operator keeps, and what is left after it."""
    samples, width = 20_000, 512
    layers = (nn.Linear(64, width), *(nn.Tanh() for _ in range(4)), nn.Linear(width, 10))
    model, batches = nn.Sequential(*layers), data(samples)
    size = samples * width * 4

    def multiplied() -> tuple[hesspec.Hessian, int]:
        matrix = hesspec.Hessian(model, nn.CrossEntropyLoss(), batches)
        vector = torch.ones(matrix.shape[0])
        # The first builds, and the second leaves the memory that the third works in.
        _ = matrix @ vector, matrix @ vector
        before = faults()
        _ = matrix @ vector
        return matrix, faults() - before

    multiplied()
    before = resident()
    matrix, seen = multiplied()
    found = {
        "peak": matrix.attributes["predicted_peak_bytes"] / size,
        "faults": seen * resource.getpagesize() / size,
        "kept": (resident() - before) / size,
    }
    del matrix
    return {**found, "end": (resident() - before) / size}


def spectrum() -> dict[str, float]:
    """Memory that a spectrum of 40 steps leaves while its operator lives, in vectors."""
    model = nn.Sequential(nn.Linear(64, 10_000), nn.Tanh(), nn.Linear(10_000, 10))
    matrix = hesspec.Hessian(model, nn.CrossEntropyLoss(), data(200))
    hesspec.spectrum(matrix, steps=2)
    before = resident()
    hesspec.spectrum(matrix, steps=40)
    return {"end": (resident() - before) / (4 * matrix.shape[0])}


def residuals() -> dict[str, float]:
    """Faults of a later residual of a Lanczos process while memory is held, in its pages."""
    space, size = Space(SIZE), 4 * SIZE
    image, last, q = (torch.ones(SIZE) for _ in range(3))
    hold = Hold()
    # Room for three vectors, and for their alignment, is found in the first steps.
    for _ in range(COUNT):
        before = faults()
        # A step keeps two vectors and releases the one before them.
        last, q = q, space.combine(image, [(-0.5, q), (-0.5, last)], q)[0]
        seen = faults() - before
    del hold
    return {"faults": seen * resource.getpagesize() / size}


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = {"tensors": tensors, "operator": operator, "spectrum": spectrum, "residuals": residuals}
    sys.stdout.write(json.dumps(parts[sys.argv[1]]()))
