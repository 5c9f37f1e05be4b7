"""False alarms and power of rules for outliers, on random matrices whose outliers are known.

Usage: python benchmarks/outliers.py [--draws 200]

Bulks are diagonal operators, whose eigenvectors do not matter to a probe. Wigner and Marchenko-Pastur are eigenvalues
of Dumitriu and Edelman's tridiagonal matrices (2002). A GOE's are mapped to any other law by quantiles, which keeps
their repulsion; "independent" are draws of the law instead, which repel one another not at all. Spikes of a matrix are
put where Baik, Ben Arous and Peche's transition puts those of a population: theta + 1/theta for a Wigner bulk of edge
2, which is the edge itself for theta <= 1.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.stats
import torch

import hesspec
from hesspec.spectra.outliers import LEVEL
from hesspec.spectra.spectrum import Spectrum

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from random_operators import Diagonal

Array = np.ndarray
Rule = Callable[[Spectrum], Array]

SIZES = (300, 3000, 100_000)


def wigner(p: int, rng: np.random.Generator) -> Array:
    """Gaussian orthogonal ensemble with edges -2 and 2."""
    off = np.sqrt(rng.chisquare(np.arange(p - 1, 0, -1)))
    return scipy.linalg.eigvalsh_tridiagonal(rng.normal(0, np.sqrt(2), p) / np.sqrt(p), off / np.sqrt(p))


def marchenko_pastur(p: int, rng: np.random.Generator) -> Array:
    """Sample covariance of p dimensions and 2p samples; edges (1 -+ sqrt(1/2))^2."""
    n = 2 * p
    diagonal = np.sqrt(rng.chisquare(np.arange(n, n - p, -1)))
    off = np.sqrt(rng.chisquare(np.arange(p - 1, 0, -1)))
    main = diagonal**2 + np.append(0.0, off**2)
    return scipy.linalg.eigvalsh_tridiagonal(main / n, diagonal[:-1] * off / n)


@cache
def _large(p: int) -> Array:
    return wigner(p, np.random.default_rng(p))


def repelling(p: int, rng: np.random.Generator) -> Array:
    """Numbers of (0, 1), ascending, that are as regular as a GOE's eigenvalues."""
    # One of the largest size, shifted at random, as it takes a minute.
    found = wigner(p, rng) if p <= 10_000 else _large(p)
    unfolded = np.clip(scipy.stats.semicircular.cdf(np.clip(found / 2, -1, 1)), 0, 1)
    return np.sort((unfolded + rng.random()) % 1.0) if p > 10_000 else np.sort(np.clip(unfolded, 0.3 / p, 1 - 0.3 / p))


def independent(p: int, rng: np.random.Generator) -> Array:
    """Numbers of (0, 1) that know nothing of each other."""
    return np.sort(rng.random(p))


def power_law(uniform: Array, index: float) -> Array:
    """Positive, with a density of |lambda|^-(1 + 1/index)."""
    return (1 - np.minimum(uniform, 1 - 1e-12)) ** -index


def two_sided(uniform: Array, index: float, rng: np.random.Generator) -> Array:
    """Student's tails of either sign, mixed."""
    return power_law(uniform, index) * rng.choice([-1.0, 1.0], uniform.size)


BULKS: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "Wigner": lambda p, rng: wigner(p, rng) if p <= 10_000 else _large(p),
    "Marchenko-Pastur": lambda p, rng: marchenko_pastur(min(p, 10_000), rng),
    "normal": lambda p, rng: scipy.stats.norm.ppf(repelling(p, rng)),
    "exponential, two-sided": lambda p, rng: scipy.stats.laplace.ppf(repelling(p, rng)),
    "power law 0.3": lambda p, rng: power_law(repelling(p, rng), 0.3),
    "power law 1": lambda p, rng: power_law(repelling(p, rng), 1.0),
    "power law 1, two-sided": lambda p, rng: two_sided(repelling(p, rng), 1.0, rng),
    "power law 0.3, independent": lambda p, rng: power_law(independent(p, rng), 0.3),
    "power law 1, independent": lambda p, rng: power_law(independent(p, rng), 1.0),
    "power law 1, independent, two-sided": lambda p, rng: two_sided(independent(p, rng), 1.0, rng),
}
"""Bulks without spikes."""


def gap(spectrum: Spectrum) -> Array:
    """Each side by itself: everything beyond the first factor of 1.25."""
    values, bounds = spectrum.eigenvalues, spectrum.error_bounds
    mask = np.zeros(values.size, bool)
    for sign in (1.0, -1.0):
        side = np.flatnonzero(sign * values > 0)
        sizes = np.abs(values[side])
        edge = max(float((sign * spectrum.bulk_nodes).max(initial=0.0)), 0.0)
        gaps = np.flatnonzero(sizes - bounds[side] >= 1.25 * np.append((sizes + bounds[side])[1:], edge))
        gaps = gaps[gaps < spectrum.dimension / 2]
        if gaps.size:
            mask[side[: gaps[-1] + 1]] = True
    return mask


def lanczos_edge(spectrum: Spectrum) -> Array:
    """Beyond a -+ 2b by a tenth, a and b the limits of the Lanczos coefficients: medians of their last quarter."""
    first = spectrum.ritz_probe == 0
    alpha, beta = coefficients(spectrum.ritz_values[first], spectrum.ritz_weights[first])
    last = max(alpha.size // 4, 1)
    middle, half = float(np.median(alpha[-last:])), 2 * float(np.median(beta[-last:]))
    return np.abs(spectrum.eigenvalues - middle) > 1.1 * half + spectrum.error_bounds


def coefficients(nodes: Array, weights: Array) -> tuple[Array, Array]:
    """Of the three-term recurrence of a discrete measure: Lanczos on its nodes, with full reorthogonalisation."""
    basis = [np.sqrt(weights / weights.sum())]
    alpha, beta = [], []
    for _ in range(nodes.size - 1):
        alpha.append(float(basis[-1] @ (nodes * basis[-1])))
        rest = nodes * basis[-1]
        for _ in range(2):
            rest = rest - np.array(basis).T @ (np.array(basis) @ rest)
        beta.append(float(np.linalg.norm(rest)))
        if beta[-1] <= 1e-10 * np.abs(nodes).max():
            break
        basis.append(rest / beta[-1])
    return np.array(alpha), np.array(beta)


def fence(spectrum: Spectrum) -> Array:
    """Beyond the quantiles of 1 and 99% by as much as these are apart (Tukey's fences)."""
    nodes, cumulative = spectrum.nodes, np.cumsum(spectrum.weights)
    low, high = nodes[np.searchsorted(cumulative, 0.01)], nodes[min(np.searchsorted(cumulative, 0.99), nodes.size - 1)]
    return (spectrum.eigenvalues > high + (high - low)) | (spectrum.eigenvalues < low - (high - low))


def repulsion(spectrum: Spectrum) -> Array:
    """Log-spacings as `hesspec`, judged by Wigner's surmise for eigenvalues that repel one another."""
    sizes = np.sort(np.abs(spectrum.nodes))[::-1]
    sizes = sizes[sizes > spectrum.rounding]
    count = spectrum.eigenvalues.size
    spacings = np.arange(1, sizes.size) * np.log(sizes[:-1] / sizes[1:])
    mask = np.zeros(count, bool)
    for i in range(min(count, spacings.size - 10)):
        ratio = spacings[i] / spacings[i + 1 : i + 31].mean()
        if np.exp(-np.pi * ratio**2 / 4) * (i + 1) * (i + 2) <= LEVEL:
            mask[: i + 1] = True
    return mask


RULES: dict[str, Rule] = {
    "gap of 1.25": gap,
    "a ± 2b": lanczos_edge,
    "fences": fence,
    "Wigner's surmise": repulsion,
    "hesspec": lambda spectrum: spectrum.is_outlier,
    "hesspec, 10 classes": lambda spectrum: (
        replace(spectrum, attributes={"matrix": "Hessian", "classes": 10}).is_outlier
    ),
}


def measured(values: Array, steps: int, seed: int) -> Spectrum:
    """Spectrum of a diagonal operator."""
    return hesspec.spectrum(Diagonal(values, torch.float64), steps=min(steps, len(values)), seed=seed)


def false_alarms(draws: int, steps: int, sizes: tuple[int, ...]) -> None:
    """Share of bulks without spikes in which there is an outlier."""
    print("\n| bulk | p | " + " | ".join(RULES) + " |\n" + "|---" * (len(RULES) + 2) + "|")
    for name, bulk in BULKS.items():
        for p in sizes:
            count = draws if p <= 3000 else max(draws // 10, 10)
            alarms = np.zeros(len(RULES))
            for seed in range(count):
                spectrum = measured(bulk(p, np.random.default_rng([seed, p])), steps, seed)
                alarms += [bool(rule(spectrum).any()) for rule in RULES.values()]
            print(f"| {name} | {p:,} | " + " | ".join(f"{x:.0%}" for x in alarms / count) + " |", flush=True)


def power(draws: int, steps: int, sizes: tuple[int, ...]) -> None:
    """Share of spiked bulks whose spikes are all found, and nothing else."""
    print("\n| bulk | p | spikes | " + " | ".join(RULES) + " |\n" + "|---" * (len(RULES) + 3) + "|")
    for name in ("Wigner", "Marchenko-Pastur", "normal", "exponential, two-sided", "power law 0.3"):
        for p in sizes:
            for spikes in (1, 3, 10, 100):
                count = draws if p <= 3000 else max(draws // 10, 10)
                right = np.zeros(len(RULES))
                for seed in range(count):
                    rng = np.random.default_rng([seed, p, spikes])
                    values = BULKS[name](p, rng)
                    edge = np.abs(values).max()
                    signs = rng.choice([-1.0, 1.0], spikes) if values.min() < 0 else np.ones(spikes)
                    top = signs * edge * np.append(2.0, rng.uniform(2, 6, spikes - 1))
                    spectrum = measured(np.concatenate([values[spikes:], top]), max(steps, 2 * spikes), seed)
                    for index, rule in enumerate(RULES.values()):
                        found = np.sort(spectrum.eigenvalues[rule(spectrum)])
                        # Copies of one, or spikes too near to one another to be told apart, are one.
                        right[index] += (
                            found.size > 0 and np.abs(found).min() > 1.5 * edge and (found.size >= 0.9 * spikes)
                        )
                print(
                    f"| {name} | {p:,} | {spikes} | " + " | ".join(f"{x:.0%}" for x in right / count) + " |", flush=True
                )


def transition(draws: int, steps: int) -> None:
    """Share of Wigner matrices, p = 3,000, in which one spike theta of the population is found."""
    print(
        "\n| theta | place of the eigenvalue / edge | " + " | ".join(RULES) + " |\n" + "|---" * (len(RULES) + 2) + "|"
    )
    for theta in (0.5, 0.9, 1.2, 1.5, 2.0, 3.7):
        place = theta + 1 / theta if theta > 1 else 2.0
        hits = np.zeros(len(RULES))
        for seed in range(draws):
            values = wigner(3000, np.random.default_rng(seed))
            if theta > 1:
                values[-1] = place
            spectrum = measured(values, steps, seed)
            hits += [bool(rule(spectrum).any()) for rule in RULES.values()]
        print(f"| {theta} | {place / 2:.2f} | " + " | ".join(f"{x:.0%}" for x in hits / draws) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    given = parser.parse_args()
    sizes = tuple(given.sizes)
    false_alarms(given.draws, given.steps, sizes)
    power(given.draws // 4, given.steps, sizes)
    transition(given.draws // 4, given.steps)


if __name__ == "__main__":
    main()
