"""How many products an accuracy takes, on trained networks whose exact spectra are known.

    python benchmarks/accuracy.py [--networks NAME ...] [--seeds 10] [--threads N] [--quick]

For each network and matrix: the smallest number of products at which the mean Wasserstein-1 distance to the exact
spectrum, over the seeds, is at most that of the papers' procedure. Every house is scanned over its settings. Where a
library smooths its density, its quadrature before smoothing is scored, which is the more exact. A second table says how
few products could do: what bounds them, and what algorithms reach that are told parts of the exact spectrum.

Products are counted and not timed, so all houses multiply with the same dense float32 matrix, made of the network once;
its trace and norm are compared with the exact ones. Nothing here depends on the machine's speed.

Prints the tables, and writes them into benchmarks/README.md. `--quick` has one small network, one seed and the Hessian
only; it writes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import wasserstein_distance

from _exact import NETWORKS, load_network, relative_error
from _limits import best_atoms, best_weights, known_outliers
from _matvecs import house
from _tables import ROOT, Block, Target, arguments, begin, console, counted, publish, targets
from methods import LARGEST, MATRICES, Array, Candidate, Problem, largest

sys.path.insert(0, str(ROOT / "tests" / "scripts"))

import make_exact_spectra

SCANNED = ("papers", "hesspec", "curvlinops", "eigenthings", "pyhessian")
PAPERS, OURS = "papers' procedure", "hesspec"
FEWER_THAN_PAPERS, FEWER_THAN_PEERS = 20, 3.5
MOST = 64


@dataclass(frozen=True)
class Setting:
    """Means over the seeds of one setting of one house."""

    settings: str
    matvecs: float
    distance: float
    error: float


def dense(problem: Problem, exact: Array) -> torch.Tensor:
    """All entries in float32: the Gauss-Newton matrix of Jacobians, the Hessian of products with unit vectors."""
    if problem.matrix == "GaussNewton":
        matrix = make_exact_spectra.gauss_newton(problem.model, problem.data[0][0])
    else:
        operator = house("hesspec").operator(problem)
        matrix = torch.stack([operator @ unit for unit in torch.eye(problem.size)])
        matrix = (matrix + matrix.T) / 2
    norm, trace = float(matrix.double().norm()), float(matrix.double().trace())
    if not np.allclose([norm, trace], [np.linalg.norm(exact), exact.sum()], rtol=1e-4):
        raise ValueError(f"Norm {norm} and trace {trace} of the dense matrix are not those of its exact eigenvalues.")
    return matrix


def means(runs: list[list[Candidate]], exact: Array) -> list[Setting]:
    """By setting, in order of products; no measure has more nodes than products, by which `best_atoms` bounds all."""
    found = []
    for same in zip(*runs, strict=True):
        if any(np.unique(run.nodes).size > run.matvecs for run in same):
            raise ValueError(f"{same[0].settings} gave more nodes than it took products.")
        scores = [
            (
                run.matvecs,
                wasserstein_distance(run.nodes, exact, run.weights),
                relative_error(largest(run.nodes), exact) if run.nodes.size >= LARGEST else np.inf,
            )
            for run in same
        ]
        found.append(Setting(same[0].settings, *map(float, np.mean(scores, axis=0))))
    return sorted(found, key=lambda setting: setting.matvecs)


def limits(case: str, exact: Array, runs: list[list[Candidate]], allowed: float, peer: float) -> Block:
    """The table of the products that would do if parts of the exact spectrum were known.

    Parameters
    ----------
    case : str
        Network and matrix.
    exact : array (p,)
        Eigenvalues.
    runs : list of lists of Candidate
        hesspec's scan, for each seed.
    allowed : float
        W1 that is to be reached.
    peer : float
        Products of the best peer.
    """
    start, ours = time.perf_counter(), means(runs, exact)
    every, steps = np.arange(1, MOST + 1), np.array([setting.matvecs for setting in ours])
    weighted = np.mean([[best_weights(run.nodes, exact) for run in scan] for scan in runs], axis=0)
    deflated, outliers = known_outliers(exact, MOST, len(runs))

    def shown(distances: Array) -> int:
        """Where they first are as small as allowed, or else least."""
        return int((distances <= allowed).argmax() if distances.min() <= allowed else distances.argmin())

    known = f"{outliers[shown(deflated)]} exact outliers, a product each, Lanczos on the rest"
    wanted, rows = int(peer / FEWER_THAN_PEERS), []
    for what, products, distances in (
        ("as many atoms as products, where they are best (bound)", every, best_atoms(exact, MOST)),
        ("nodes of hesspec's runs, best weights", steps, weighted),
        (known, every, deflated),
        (OURS, steps, np.array([setting.distance for setting in ours])),
    ):
        i = shown(distances)
        reached, soon = distances[i] <= allowed, distances[products <= wanted]
        rows.append(
            (
                what,
                f"{products[i]:.0f}" if reached else f"not reached up to {products[-1]:.0f}",
                f"{peer / products[i]:.1f}" if reached else "–",
                f"{distances[i]:.2e}",
                f"{soon.min() / allowed:.2f}" if soon.size else "–",
            )
        )
    console.print(f"{case}: limits, {time.perf_counter() - start:.0f} s", style="dim")
    note = (
        f"Smallest number of products at which W1 is at most that of the papers' procedure, {allowed:.2e}, for "
        "measures that are told parts of the exact spectrum. No measure scanned above has more nodes than it took "
        f"products: the first row bounds them all. Numbers of products: all up to {MOST}, or those that hesspec was "
        f"scanned at. Means over {counted(len(runs), 'start vector')}; of exact outliers there are as many as is best "
        f"for each number of products. {FEWER_THAN_PEERS} times fewer than the best peer's {peer:.0f} are {wanted}; W1 "
        "there, or at the last scanned number before."
    )
    columns = ("what", "products", "best peer's, × these", "W1", f"W1 at {wanted} products, × the papers'")
    return Block(f"What limits it: {case}", note, columns, rows, (OURS,))


def needed(problem: Problem, exact: Array, network: str, seeds: int) -> tuple[list[Block], list[Target]]:
    """The tables of products needed for the accuracy of the papers' procedure and of limits, and the targets."""
    problem = replace(problem, entries=dense(problem, exact))
    case = f"{network}, {problem.matrix}"

    def scanned(label: str, scan: Callable[[Problem, int], list[Candidate]]) -> list[list[Candidate]]:
        start = time.perf_counter()
        found = [scan(problem, seed) for seed in range(seeds)]
        console.print(f"{case}: {label}, {time.perf_counter() - start:.0f} s", style="dim")
        return found

    houses = [house(name) for name in SCANNED]
    scans = {
        label: scan
        for module in houses
        if problem.matrix in module.METHODS[0].matrices
        for label, scan in module.SCANS.items()
    }
    runs = {label: scanned(label, scan) for label, scan in scans.items()}
    settings = {label: means(found, exact) for label, found in runs.items()}
    (papers,) = settings[PAPERS]
    enough = {
        label: next((setting for setting in found if setting.distance <= papers.distance), None)
        for label, found in settings.items()
    }
    ours = enough[OURS]
    rows = []
    for label, found in settings.items():
        reached, most = enough[label], max(setting.matvecs for setting in found)
        shown = reached or min(found, key=lambda setting: setting.distance)
        rows.append(
            (
                label,
                shown.settings,
                f"{reached.matvecs:,.0f}" if reached else f"not reached up to {most:,.0f}",
                f"{reached.matvecs / ours.matvecs:.1f}" if reached and ours else "–",
                f"{shown.distance:.2e}",
                f"{shown.error:.0e}" if shown.error < 1 else "–",
            )
        )
    # A house that does not get there counts with all products that it was given.
    rivals = [
        reached.matvecs if reached else max(setting.matvecs for setting in settings[label])
        for label, reached in enough.items()
        if label not in {OURS, PAPERS}
    ]
    peer = min(rivals)
    wanted = [
        Target(
            f"{case}: products of {what}, times hesspec's",
            factor,
            count / ours.matvecs if ours else None,
            "{:.1f}",
        )
        for what, factor, count in (
            ("the papers' procedure", FEWER_THAN_PAPERS, papers.matvecs),
            ("the best peer", FEWER_THAN_PEERS, peer),
        )
    ]
    note = (
        f"p = {problem.size:,}; largest |λ| {np.abs(exact).max():.3g}, mean |λ| {np.abs(exact).mean():.2e}. Smallest "
        f"number of products at which the mean W1 over {counted(seeds, 'seed')} is at most that of the papers' "
        "procedure, and the setting, chosen with the exact spectrum known; where that is not reached, the best one. "
        "–: copies are among the largest nodes. Settings scanned: "
        + ", ".join(f"{len(found)} of {label}" for label, found in settings.items())
        + "."
    )
    columns = ("house", "setting", "products", "× products", "mean W1", f"mean error of the {LARGEST} largest")
    products = Block(f"Products needed: {case}", note, columns, rows, (OURS,))
    return [products, limits(case, exact, runs[OURS], papers.distance, peer)], wanted


def main() -> None:
    """Count, print, write."""
    parser = arguments(__doc__, "one small network, one seed, the Hessian only; the README stays as it is")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=["fashion-cnn", "fashion-plain"], help="default: fashion-*"
    )
    parser.add_argument("--seeds", type=int, default=10, help="default: 10")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; it has to be at least 1.")
    begin(options.threads)
    start, load = time.perf_counter(), os.getloadavg()[0]
    networks, seeds, matrices = options.networks, options.seeds, MATRICES
    if options.quick:
        networks, seeds, matrices = ["digits-cnn"], 1, MATRICES[:1]
    blocks: list[Block] = []
    wanted: list[Target] = []
    for network in networks:
        problem, eigenvalues = load_network(network)
        for matrix in matrices:
            tables, goals = needed(problem(matrix), eigenvalues[matrix], network, seeds)
            blocks += tables
            wanted += goals
    what = f"Trained networks, {counted(seeds, 'seed')}"
    publish("accuracy", what, [targets(wanted), *blocks], load, start, write=not options.quick)


if __name__ == "__main__":
    main()
