"""Spectra, eigenpairs and class structures of this process alone and of all ranks together."""

import json
import sys
import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import hesspec
from hesspec.krylov import run
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.sketch import Sketch
from hesspec.krylov.storage import STORAGES
from hesspec.krylov.vectors import Space, random_vector
from hesspec.operators.base import CurvatureOperator

FAR, STEPS = float("inf"), 28


def far(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference, in units of the largest number."""
    return FAR if one.shape != other.shape else float(np.abs(one - other).max() / np.abs(one).max())


def beyond(one: np.ndarray, other: np.ndarray, allowed: np.ndarray) -> float:
    """Largest difference beyond what eigenvectors' errors allow."""
    return FAR if one.shape != other.shape else float(np.clip(np.abs(one - other) - allowed, 0, None).max())


def problem(dtype: torch.dtype) -> tuple[nn.Module, nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A small network, fitted a little, and batches of 12, 12 and 7.

    Its products are cheap: what is compared are bases.
    """
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    model, loss = nn.Sequential(*layers).to(torch.float64), nn.CrossEntropyLoss()
    data = [(torch.randn(n, 1, 8, 8, dtype=torch.float64), torch.arange(n) % 4) for n in (12, 12, 7)]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(10):
        for x, y in data:
            optimiser.zero_grad()
            loss(model(x), y).backward()
            optimiser.step()
    return model.eval().to(dtype), loss, [(x.to(dtype), y) for x, y in data]


def measured(dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Differences of spectra in all ways in which a basis is kept, reorthogonalised when due and always."""
    model, loss, data = problem(dtype)
    group = dist.group.WORLD
    one: CurvatureOperator = hesspec.Hessian(model, loss, data)
    many = hesspec.Hessian(model, loss, hesspec.shard_data(data, group), group=group)
    # Room for 16 vectors of a rank's slice, or of the whole.
    few = 24 * one.shape[0] * dtype.itemsize
    ways = {
        "full": {},
        "half": {"basis": "half"},
        "half on disk": {"basis": "half", "offload": "disk"},
        "several probes": {"probes": 2},
        "auto": {"steps": "auto", "tolerance": 0.3},
        "restarted": {"basis": "restarted", "memory": few},
    }
    found = {}
    for partial in (1, 1 << 30):
        run.PARTIAL_FROM = partial
        for way, options in ways.items():
            given = {"steps": STEPS, **options}
            shared = dict(given)
            if way == "restarted":
                shared["memory"] = few // dist.get_world_size() + 24 * dtype.itemsize
            a, b = hesspec.spectrum(one, **given), hesspec.spectrum(many, **shared)
            found[f"{way}, {'partial' if partial == 1 else 'whole'}"] = {
                "eigenvalues": far(a.eigenvalues, b.eigenvalues),
                "excess over bounds": float(
                    (np.abs(a.eigenvalues - b.eigenvalues) / (a.error_bounds + b.error_bounds)).max()
                )
                if a.eigenvalues.shape == b.eigenvalues.shape
                else FAR,
                "steps": abs(a.steps - b.steps),
                "ranks": b.attributes["ranks"],
            }
    a, b = (hesspec.eigenpairs(operator, count=3, steps=STEPS) for operator in (one, many))
    found["eigenpairs"] = {
        "values": far(a.values, b.values),
        "vectors": float((1 - (a.vectors * b.vectors).sum(0).abs()).max()),
        "residuals": float(np.abs(a.residuals - b.residuals).max() / a.values.max()),
    }
    return found


def explained(dtype: torch.dtype) -> dict[str, float]:
    """Differences of all that a class structure has."""
    model, loss, data = problem(dtype)
    group = dist.group.WORLD
    one = hesspec.class_structure(model, loss, data, steps=16)
    many = hesspec.class_structure(model, loss, hesspec.shard_data(data, group), steps=16, group=group)
    names = (
        *("weights", "gram", "class_eigenvalues", "cross_eigenvalues", "same_eigenvalues", "sum_eigenvalues"),
        *("ritz_values", "traces", "within_traces", "outliers", "knockout_edges"),
    )
    # Quadratic forms of unit vectors at an angle whose sine is s differ by 2 s times the norm of the matrix at most;
    # that of H is below the sum of those of Hess and G.
    apart = 2 * (one.outlier_vector_errors + many.outlier_vector_errors)
    largest = float(np.abs(one.outliers).max())
    return {
        **{name: far(getattr(one, name), getattr(many, name)) for name in names},
        "outlier_in_class": beyond(one.outlier_in_class, many.outlier_in_class, apart),
        "outlier_shares": beyond(one.outlier_shares, many.outlier_shares, 2 * largest * apart[:, None]) / largest,
    }


def of_slices() -> dict[str, float]:
    """What vectors are in slices, of sizes that ranks do and do not divide."""
    ranks = hesspec.Hessian(
        nn.Linear(2, 2), nn.MSELoss(), [(torch.ones(2, 2), torch.ones(2, 2))], group=dist.group.WORLD
    ).ranks
    found: dict[str, float] = {"shares of the basis": 0.0}
    for size in (1, 2, 5, 16, 1000, (1 << 20) + 7, 3 * (1 << 20)):
        space = Space(size, ranks)
        whole = random_vector(size, torch.Generator().manual_seed(5), dtype=torch.float64, device=torch.device("cpu"))
        mine = space.random_vector(torch.Generator().manual_seed(5), dtype=torch.float64, device=torch.device("cpu"))
        for native in (False, True):
            ranks._native = native
            gathered = ranks.whole(mine, size)
            summed = ranks.slice_of_sum(whole * (ranks.rank + 1))
            found[f"gathered, {size}, {native}"] = float((gathered - whole).abs().max())
            factor = ranks.size * (ranks.size + 1) / 2
            expected = factor * whole[space.begin : space.end]
            found[f"scattered, {size}, {native}"] = float((summed - expected).abs().max()) if len(expected) else 0.0
        sketched = Sketch(space, torch.device("cpu"))(mine)
        alone = Sketch(Space(size), torch.device("cpu"))(whole)
        found[f"sketched, {size}"] = float(np.abs(sketched - alone).max())
    space = Space(100_003, ranks)
    for name, storage in STORAGES.items():
        basis = KrylovBasis(space, dtype=torch.float32, device=torch.device("cpu"), storage=storage)
        for _ in range(16):
            vector = space.random_vector(
                torch.Generator().manual_seed(3), dtype=torch.float32, device=torch.device("cpu")
            )
            basis.append(vector / space.norm(vector))
        held = sum(basis.kept_row(i).nbytes for i in range(16))
        whole_bytes = 16 * storage.row_bytes(space.size, torch.float32)
        found["shares of the basis"] = max(found["shares of the basis"], abs(held / whole_bytes * ranks.size - 1))
        assert name
    return found


def main() -> None:
    dist.init_process_group("gloo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dtype = getattr(torch, sys.argv[1])
        found = {"spectra": measured(dtype), "structure": explained(dtype), "slices": of_slices()}
    print(json.dumps(found))  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
