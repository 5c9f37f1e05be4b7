"""False alarms and power of rules for outliers, on random matrices whose outliers are known.

Usage: python benchmarks/outliers.py [--draws 200] [--sizes 300 3000 100000] [--tables alarms power transition]

The matrices are those of `_spiked.py`; the rules are in `_outlier_rules.py`. Rules, a person and class means on trained
networks: `outliers_networks.py`.
"""

import argparse

import numpy as np

import hesspec
from _outlier_rules import RULES
from _spiked import BULKS, EDGES, POSITIVE, Covariance, Spiked, edge_of, marchenko_pastur, spiked, wigner

SIZES = (300, 3000, 100_000)
SPIKES = (1, 3, 10, 100)
SPIKED = ("Wigner", "Marchenko-Pastur", "normal", "exponential, two-sided", "power law 0.3", "power law 1")
LARGE = 10_000
FEWER = 5  # fifth of the draws for large matrices


def count_of(draws: int, p: int, spikes: int = 0) -> int:
    """Fewer draws of large matrices, and again of those with many spikes, which take many steps."""
    if p <= LARGE:
        return draws
    return max(draws // FEWER // (2 if spikes >= 100 else 1), 5)


def head(*names: str) -> None:
    """Print the first rows of a table."""
    print("\n| " + " | ".join([*names, *RULES]) + " |\n" + "|---" * (len(names) + len(RULES)) + "|", flush=True)


def row(*names: object, shares: np.ndarray) -> None:
    """Print a row."""
    print("| " + " | ".join([*map(str, names), *(f"{x:.0%}" for x in shares)]) + " |", flush=True)


def false_alarms(draws: int, steps: int, sizes: tuple[int, ...], bulks: tuple[str, ...]) -> None:
    """Share of bulks without spikes in which there is an outlier."""
    head("bulk", "p", "draws")
    for name in bulks:
        for p in sizes:
            count, alarms = count_of(draws, p), np.zeros(len(RULES))
            for seed in range(count):
                matrix = BULKS[name](p, np.random.default_rng([seed, p]))
                spectrum = hesspec.spectrum(matrix, steps=steps, seed=seed)
                alarms += [bool(rule(spectrum).any()) for rule in RULES.values()]
            row(name, f"{p:,}", count, shares=alarms / count)


def power(draws: int, steps: int, sizes: tuple[int, ...], bulks: tuple[str, ...]) -> None:
    """Share of spiked bulks of which at least 90% of the spikes are found, and nothing else.

    One spike tends to twice the edge, the others to 2 to 6 times it.
    """
    head("bulk", "p", "spikes", "draws")
    for name in bulks:
        for p in sizes:
            for spikes in SPIKES:
                count, right = count_of(draws, p, spikes), np.zeros(len(RULES))
                for seed in range(count):
                    rng = np.random.default_rng([seed, p, spikes])
                    bulk = BULKS[name](p, rng)
                    edge = edge_of(name, bulk)
                    signs = np.ones(spikes) if name in POSITIVE else rng.choice([-1.0, 1.0], spikes)
                    places = signs * edge * np.append(2.0, rng.uniform(2, 6, spikes - 1))
                    matrix = spiked(name, bulk, places, rng)
                    spectrum = hesspec.spectrum(matrix, steps=min(max(steps, 2 * spikes), p), seed=seed)
                    for index, rule in enumerate(RULES.values()):
                        found = np.abs(spectrum.eigenvalues[rule(spectrum)])
                        # Spikes that are too near to one another to be told apart are one. Many spikes of a small
                        # covariance spread, down to 1.2 times the edge.
                        right[index] += 0.9 * spikes <= found.size <= spikes and found.min() > 1.1 * edge
                row(name, f"{p:,}", spikes, count, shares=right / count)


def transition(draws: int, steps: int, sizes: tuple[int, ...]) -> None:
    """Share of matrices with one spike that have an outlier.

    The threshold of spikes is 1 (Wigner) and 1 + sqrt(1/2) (Marchenko-Pastur).
    """
    head("bulk", "spike / threshold", "its eigenvalue / edge", "p", "draws")
    for name, threshold in (("Wigner", 1.0), ("Marchenko-Pastur", 1 + np.sqrt(0.5))):
        for times in (0.5, 0.9, 1.2, 1.5, 2.0, 3.0, 4.0):
            theta = times * threshold
            place = theta + (1 / theta if name == "Wigner" else 0.5 * theta / (theta - 1))
            for p in sizes:
                count, hits = count_of(draws, p), np.zeros(len(RULES))
                for seed in range(count):
                    rng = np.random.default_rng([seed, p])
                    matrix: Spiked | Covariance = (
                        Spiked(wigner(p, rng), np.array([theta]), rng)
                        if name == "Wigner"
                        else Covariance(marchenko_pastur(p, rng), np.array([theta - 1]), rng)
                    )
                    spectrum = hesspec.spectrum(matrix, steps=steps, seed=seed)
                    hits += [bool(rule(spectrum).any()) for rule in RULES.values()]
                row(name, times, f"{place / EDGES[name] if times > 1 else 1:.2f}", f"{p:,}", count, shares=hits / count)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200, help="draws of each bulk; a quarter with spikes")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--bulks", nargs="+", choices=BULKS, default=None)
    tables = ("alarms", "power", "transition")
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    given = parser.parse_args()
    sizes = tuple(given.sizes)
    if "alarms" in given.tables:
        false_alarms(given.draws, given.steps, sizes, tuple(given.bulks or BULKS))
    if "power" in given.tables:
        power(given.draws // 4, given.steps, sizes, tuple(given.bulks or SPIKED))
    if "transition" in given.tables:
        transition(given.draws // 4, given.steps, sizes)


if __name__ == "__main__":
    main()
