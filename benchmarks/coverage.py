"""How often what a spectrum states of its errors is true: intervals of 95%, over random operators and seeds.

    python benchmarks/coverage.py [--operators 512] [--seeds 200] [--first 0] [--write]

Operators are of all kinds of spectrum in turn, of random size, steps, probes and precision; each is measured with as
many seeds. Their eigenvectors do not matter to probes that are uniform on the sphere, so that they are diagonal. A
statement is counted with what rounding may add to it, which the spectrum states too.

Prints a table by kind of spectrum, and with --write puts it into docs/coverage.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import wasserstein_distance

import hesspec
from hesspec.krylov.vectors import random_vector
from hesspec.krylov.xtrace import xtrace

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from random_operators import SPECTRA, Diagonal  # noqa: E402 - found by the path above

STATEMENTS = (
    "trace",
    "num_negative",
    "W1",
    "CDF",
    "probe's CDF",
    "XTrace, 4",
    "XTrace, 8",
    "XTrace, 32",
    "vector_errors",
)
WANTED = 0.93


@dataclass(frozen=True)
class Case:
    """An operator, and how it is measured."""

    kind: str
    operator: Diagonal
    truth: np.ndarray
    options: dict[str, object]


def cases(first: int, count: int) -> Iterator[Case]:
    """Random ones, all kinds in turn."""
    kinds = list(SPECTRA)
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        kind = kinds[number % len(kinds)]
        p = int(rng.choice([12, 30, 60, 100, 200, 300, 1000], p=[0.1, 0.15, 0.25, 0.2, 0.15, 0.1, 0.05]))
        dtype = (torch.float64, torch.float32)[int(rng.integers(2))]
        operator = Diagonal(SPECTRA[kind](p, rng), dtype)
        options = {
            "steps": int(rng.choice([2, 4, 8, 12, 16, 20, 24, 32, 48, 64])),
            "probes": int(rng.choice([1, 1, 1, 2, 4])),
            "basis": str(rng.choice(["full", "full", "half", "restarted"])),
        }
        if options["basis"] == "restarted":
            options["memory"] = p * dtype.itemsize * int(rng.integers(13, 40))
        yield Case(kind, operator, np.sort(operator.values.double().numpy()), options)


def statements(case: Case, seed: int) -> dict[str, float]:
    """Share of what is stated that is true, for each statement that a run makes."""
    operator, truth = case.operator, case.truth
    p, norm, eps = truth.size, float(np.abs(truth).max()), np.finfo(float).eps
    spectrum = hesspec.spectrum(operator, seed=seed, **case.options)
    found: dict[str, float] = {}
    # Sums of p numbers in float64.
    floor = spectrum.rounding + p * eps * norm
    found["trace"] = abs(spectrum.trace - truth.sum()) <= 2 * spectrum.trace_standard_error + p * floor
    number = spectrum.num_negative
    surely, possibly = (truth < -floor).sum(), (truth <= floor).sum()
    found["num_negative"] = number.lower <= possibly + 1e-9 and number.upper >= surely - 1e-9
    distance = wasserstein_distance(spectrum.nodes, truth, spectrum.weights) if norm else 0.0
    found["W1"] = distance <= spectrum.wasserstein_bound + floor
    # At places that do not depend on what was measured, between eigenvalues.
    distinct = truth[np.append(True, np.diff(truth) > 4 * floor)]
    places = (distinct[1:] + distinct[:-1]) / 2
    places = places[np.unique(np.linspace(0, places.size - 1, 9).round().astype(int))] if places.size else places
    if places.size:
        bracket = spectrum.cdf_bracket(places)
        share = np.searchsorted(truth, places) / p
        inside = (bracket.operator_lower <= share + 1e-9) & (share <= bracket.operator_upper + 1e-9)
        found["CDF"] = float(inside.mean())
        generator = torch.Generator().manual_seed(seed)
        probe = random_vector(p, generator, dtype=torch.float64, device=operator.device).numpy()
        drawn = probe[np.argsort(operator.values.double().numpy(), kind="stable")] ** 2
        drawn = np.append(0, np.cumsum(drawn / drawn.sum()))[np.searchsorted(truth, places)]
        inside = (bracket.lower <= drawn + 1e-6) & (drawn <= bracket.upper + 1e-6)
        found["probe's CDF"] = float(inside.mean())
    for matvecs in (4, 8, 32):
        estimate = xtrace(operator, matvecs, seed)
        found[f"XTrace, {matvecs}"] = abs(estimate.value - truth.sum()) <= 2 * estimate.standard_error + p * eps * norm
    return found


def vectors(case: Case, seed: int) -> dict[str, float]:
    """Share of eigenvectors whose angle to those of the operator is within its bound."""
    options = {name: value for name, value in case.options.items() if name != "probes"}
    pairs = hesspec.eigenpairs(case.operator, count=5, seed=seed, **options)
    values, eps = case.operator.values.double().numpy(), float(torch.finfo(case.operator.dtype).eps)
    told = np.flatnonzero(pairs.vector_errors < 1)
    if not told.size:
        return {}
    inside = []
    for i in told:
        nearest = np.abs(values - pairs.values[i])
        # Eigenvectors of one eigenvalue are any of its eigenspace.
        same = nearest <= nearest.min() + 4 * eps * np.abs(values).max()
        vector = pairs.vectors[:, i].double().numpy()
        outside = np.linalg.norm(vector[~same]) / np.linalg.norm(vector)
        inside.append(outside <= pairs.vector_errors[i])
    return {"vector_errors": float(np.mean(inside))}


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--operators", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number, case in enumerate(cases(options.first, options.operators), options.first):
        shares: dict[str, list[float]] = defaultdict(list)
        for seed in range(options.seeds):
            for statement, true in {**statements(case, seed), **vectors(case, seed)}.items():
                shares[statement].append(float(true))
        for statement, each in shares.items():
            seen[case.kind, statement].append(float(np.mean(each)))
            if np.mean(each) < 0.9:
                print(
                    f"{number} {case.kind} p={case.truth.size} {case.options} {statement}: "
                    f"{np.mean(each):.3f} of {len(each)}",
                    flush=True,
                )
    for kind in SPECTRA:
        row = [
            f"{np.mean(seen[kind, s]):.3f}/{np.min(seen[kind, s]):.2f}" if seen[kind, s] else "-" for s in STATEMENTS
        ]
        print(f"{kind:22s}", *(f"{entry:>11s}" for entry in row))
    row = [f"{np.mean([entry for kind in SPECTRA for entry in seen[kind, s]]):.3f}" for s in STATEMENTS]
    print(f"{'all':22s}", *(f"{entry:>11s}" for entry in row))
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
