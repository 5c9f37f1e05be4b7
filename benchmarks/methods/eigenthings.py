"""hessian-eigenthings: its operators, `spectral_density` and `lanczos`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hessian_eigenthings import (
    GGNOperator,
    HessianOperator,
    LambdaOperator,
    SpectralDensityResult,
    lanczos,
    spectral_density,
    supervised_forward,
    supervised_loss,
    supervised_loss_of_output,
)
from hessian_eigenthings.algorithms.lanczos import lanczos_tridiagonal
from torch import Tensor

from methods import LARGEST, Answer, Array, Candidate, Counted, CountedDense, Method, Problem, largest, quadrature

__all__ = ["METHODS", "SCANS", "operator"]

STEPS = 128
SCAN_STEPS, SCAN_RUNS, MOST = (16, 32, 64), (1, 2, 4, 8, 16), 512


def operator(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Hessian by double backward (its default; it has finite differences too), Gauss-Newton by jvp and vjp."""
    if problem.matrix == "Hessian":
        return HessianOperator(problem.model, problem.data, supervised_loss(problem.loss))
    return GGNOperator(problem.model, problem.data, supervised_forward, supervised_loss_of_output(problem.loss))


def counted(problem: Problem) -> tuple[LambdaOperator, Counted]:
    """The operator as its algorithms take it, and its counter.

    The product of its Gauss-Newton operator carries a graph, which the basis would keep and prolong: detached here.
    """
    matrix = operator(problem)
    counter = Counted(lambda vector: matrix(vector).detach())
    return LambdaOperator(counter, size=problem.size, dtype=torch.float32), counter


def measure(density: SpectralDensityResult) -> tuple[Array, Array]:
    """Its quadrature before smoothing; runs that ended early are padded with NaN."""
    kept = ~density.raw_eigenvalues.isnan()
    weights = density.raw_weights[kept].double().numpy()
    return density.raw_eigenvalues[kept].double().numpy(), weights / weights.sum()


def defaults(problem: Problem, seed: int) -> list[Answer]:
    """`spectral_density` (10 runs of 80 reorthogonalised steps) and `lanczos(k=10)` (20 steps), as they are."""
    matrix, counter = counted(problem)
    nodes, weights = measure(spectral_density(matrix, seed=seed))
    top = lanczos(matrix, k=LARGEST, seed=seed).eigenvalues.double().numpy()
    return [Answer(nodes, weights, largest(top), counter.calls)]


def single(problem: Problem, seed: int) -> list[Answer]:
    """One run of 128 reorthogonalised steps, its best for the products that it takes."""
    matrix, counter = counted(problem)
    nodes, weights = measure(spectral_density(matrix, num_runs=1, lanczos_steps=STEPS, seed=seed))
    return [Answer(nodes, weights, largest(nodes), counter.calls)]


def scan(problem: Problem, seed: int) -> list[Candidate]:
    """The quadrature of `spectral_density` with fewer steps and more runs, up to `MOST` products.

    From the Lanczos process that it calls, on its kind of probe: a run of many steps has the shorter ones in it.
    """
    operator = LambdaOperator(CountedDense(problem.dense), size=problem.size, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    runs = []
    for run in range(max(SCAN_RUNS)):
        probe = torch.randint(2, (problem.size,), generator=generator) * 2.0 - 1
        longest = max(steps for steps in SCAN_STEPS if (run + 1) * steps <= MOST)
        found = lanczos_tridiagonal(operator, probe, longest, reorthogonalize=True)
        runs.append((found.alphas.double().numpy(), found.betas.double().numpy()))
    candidates = []
    for count in SCAN_RUNS:
        for steps in (steps for steps in SCAN_STEPS if count * steps <= MOST):
            pairs = [quadrature(alpha[:steps], beta[: steps - 1]) for alpha, beta in runs[:count]]
            nodes, weights = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
            settings = f"spectral_density(num_runs={count}, lanczos_steps={steps})"
            candidates.append(Candidate(settings, nodes, weights / weights.sum(), count * steps))
    return candidates


SCANS = {"hessian-eigenthings": scan}

METHODS = [
    Method(("hessian-eigenthings: spectral_density() and lanczos(k=10), defaults",), defaults),
    Method(("hessian-eigenthings: spectral_density(1 run, 128 steps)",), single),
]
