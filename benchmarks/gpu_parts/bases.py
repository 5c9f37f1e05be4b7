"""Reorthogonalisation against a basis on the device, on the host and on disk, in both widths."""

from __future__ import annotations

import statistics

import torch

from _turns import in_turn
from gpu_parts import Given, seconds_of, synchronised
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.storage import STORAGES
from hesspec.krylov.vectors import Space

TITLE = "Krylov bases"
NOTE = (
    "One orthogonalisation of a float32 vector against a whole basis, which reads it twice, and storing a vector in "
    "it; GB/s of the basis as stored."
)
COLUMNS = ("storage", "p", "rows", "orthogonalise, ms", "GB/s", "store, ms", "along the basis")


def run(given: Given) -> None:
    """Measure."""
    size, rows = (200_000, 17) if given.quick else (25_000_000, 32)
    generator = torch.Generator(given.device).manual_seed(0)
    for name, storage in STORAGES.items():
        if given.left < 10:
            given.keep(name, "no time was left", failed=True)
            continue
        with given.step(name):
            basis = KrylovBasis(Space(size), dtype=torch.float32, device=given.device, storage=storage)
            stored = []
            for _ in range(rows):
                vector = torch.randn(size, generator=generator, device=given.device)
                basis.orthogonalise(vector)
                vector /= vector.norm()
                stored.append(seconds_of(lambda b=basis, v=vector: b.append(v), given.device))
            vector = torch.randn(size, generator=generator, device=given.device)
            call = synchronised(lambda b=basis, v=vector: b.orthogonalise(v.clone()), given.device)
            taken = statistics.median(in_turn({"orthogonalise": call}, 3, 0.0 if given.quick else 1.0)["orthogonalise"])
            basis.orthogonalise(vector)
            left = float(basis.orthogonalise(vector.clone()).norm() / vector.norm())
            # Two passes, as a random vector is shortened by little: one finds components, the other removes them.
            rate = 2 * rows * storage.row_bytes(size, torch.float32) / taken
            given.keep(
                name,
                f"{size:,}",
                rows,
                f"{1e3 * taken:.2f}",
                f"{rate / 1e9:.1f}",
                f"{1e3 * statistics.median(stored):.2f}",
                f"{left:.1e}",
                failed=not left <= 1e-3,
            )
            del basis
