"""Two processes with one core each against one with one core, and what a snapshot takes: VGG11-BN, 256 images, Hessian.

    python benchmarks/distributed.py [--quick]

Products are timed in one run of two Gloo ranks: in each repeat both multiply together, and then the first one alone
with all of the data, while the other one waits. A product of two ranks is everything between two slices: the
all-gather of the vector, both ranks' parts, the reduce-scatter. What limits their ratio is timed in the same repeats:
one rank with half of the data alone, both with half of it each but nothing exchanged, and the exchange. Snapshots are
written by a run of one process; how long the rows of a Krylov basis take does not depend on the network. Both sides
keep freed memory, as spectra do.

Prints the tables, and writes them into docs/scaling.md. `--quick` has a small network, and writes nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import hesspec
from _matvecs import Problem, real_problem
from _tables import ROOT, Block, Target, arguments, publish, ratios, spread, targets
from hesspec.backend.heap import keep_freed_memory
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.vectors import Space

PAGE = ROOT / "docs" / "scaling.md"
NETWORK, IMAGES, REPEATS, STEPS = "vgg11_bn", 256, 9, 24
EVERY = 600.0  # seconds between two snapshots, of which the overhead is reckoned
FULL_RUN = 64  # steps
LONGEST = 1500  # seconds that a part may take


def hessian(problem: Problem, graphs: hesspec.GraphCache, group: dist.ProcessGroup | None = None) -> hesspec.Hessian:
    """The operator of this process alone, or the one that the ranks of a group share."""
    data = problem.data if group is None else hesspec.shard_data(problem.data, group)
    return hesspec.Hessian(problem.model, problem.loss, data, group=group, graphs=graphs)


@keep_freed_memory()
def products(network: str, images: int, repeats: int) -> dict[str, Any]:
    """Seconds of a product together and alone, by repeat, and a rank's share of the basis; on two ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    problem, group = real_problem(network, images, "Hessian"), dist.group.WORLD
    graphs = hesspec.GraphCache()
    together, alone = hessian(problem, graphs, group).sliced(), hessian(problem, graphs)
    p, ranks = together.shape[0], together.ranks
    ((inputs, labels),) = problem.data
    mine = slice(ranks.rank * images // 2, (ranks.rank + 1) * images // 2)
    half = hessian(replace(problem, data=[(inputs[mine], labels[mine])]), graphs)
    space = Space(p, ranks)
    vector = torch.randn(p, generator=torch.Generator().manual_seed(0))
    part = vector[space.begin : space.end].clone()
    expected = (alone @ vector)[space.begin : space.end]
    error = float((together @ part - expected).norm() / expected.norm())
    whole, room = half @ vector, ranks.room(p, vector)

    def exchange() -> None:
        ranks.whole(part, p, room)
        ranks.slice_of_sum(whole, room)

    # By name: what is timed, and whether both ranks do it.
    calls: dict[str, tuple[Callable[[], object], bool]] = {
        "together": (lambda: together @ part, True),
        "alone": (lambda: alone @ vector, False),
        "half": (lambda: half @ vector, False),
        "halves": (lambda: half @ vector, True),
        "exchange": (exchange, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    work: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (call, both) in calls.items():
            dist.barrier()
            start, busy = time.perf_counter(), time.process_time()
            if both or ranks.rank == 0:
                call()
            busy = time.process_time() - busy
            if both:
                dist.barrier()
            seconds[name].append(time.perf_counter() - start)
            work[name].append(max(ranks.gather(busy)))
    basis = KrylovBasis(space, dtype=torch.float32, device=torch.device("cpu"))
    basis.append(part / space.norm(part))
    result = {"seconds": seconds, "work": work, "error": error, "share": basis.kept_row(0).nbytes / (4 * p), "p": p}
    dist.destroy_process_group()
    return result


def snapshots(network: str, images: int, steps: int) -> dict[str, Any]:
    """Seconds and bytes of the snapshots of a run, by row of the basis."""
    problem = real_problem(network, images, "Hessian")
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        found = hesspec.spectrum(
            hessian(problem, hesspec.GraphCache()), steps=steps, basis="full", snapshot=folder, every=0
        )
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    # The last snapshot is written before the last product: it has a row less, and the vector that comes next.
    rows = steps - 1
    held = (rows + 1) * 4 * found.dimension
    # Written after each step, the next vector is written as often as a row; a snapshot each 10 minutes writes it once.
    return {"seconds": found.attributes["snapshot_seconds"] / (2 * rows), "size": size, "basis": held, "rows": rows}


def worker() -> None:
    """Measure a part, as a process of its own, and print it as JSON."""
    part, network, images, count = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    result = products(network, images, count) if part == "products" else snapshots(network, images, count)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result))


def run(ranks: int, *given: object) -> dict[str, Any]:
    """What a process, or two, print as a line of JSON."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, __file__, "--worker", *map(str, given)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(  # noqa: S603 - this very script
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=LONGEST
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main() -> None:
    """Run all parts."""
    options = arguments(__doc__, "a small network; nothing is written").parse_args()
    torch.set_num_threads(1)
    load, start = os.getloadavg()[0], time.perf_counter()
    network, images, repeats, steps = ("small_cnn", 64, 3, 6) if options.quick else (NETWORK, IMAGES, REPEATS, STEPS)
    pair, kept = run(2, "products", network, images, repeats), run(1, "snapshots", network, images, steps)
    times = pair["seconds"]
    faster = ratios(times["alone"], times["together"])
    # A run that lasts as long as an interval, which is the shortest that writes a snapshot: its rows are written once.
    overhead = FULL_RUN * kept["seconds"] / EVERY
    blocks = [
        targets(
            [
                Target(
                    "two processes with one core each, times as fast as one with one", 1.8, statistics.median(faster)
                ),
                Target("a rank's share of the basis of two, in units of 1/2", 1.05, 2 * pair["share"], above=False),
                Target(
                    "size of a snapshot, in units of the basis",
                    1.01,
                    kept["size"] / kept["basis"],
                    "{:.4f}",
                    above=False,
                ),
                Target("snapshots of a run of 10 minutes, % of the run", 1.0, 100 * overhead, above=False),
            ]
        ),
        Block(
            "A product of two ranks",
            f"{network}, p = {pair['p']:,}, {images} FashionMNIST images, Gloo, one thread each; seconds, {repeats} "
            f"interleaved repeats. The two products differ by {pair['error']:.0e} of their norm. Times as fast: as one "
            "process with all images, repeat by repeat; 2.00 would be perfect for half of the images. Processor "
            "seconds: of the busier process, without what it waits for, which a machine with other work changes less.",
            ("", "seconds", "times as fast", "processor seconds", "times as fast"),
            [
                (
                    what,
                    *(
                        text
                        for taken in (times, pair["work"])
                        for text in (
                            spread(taken[name], "{:.2f}"),
                            spread(ratios(taken["alone"], taken[name]), "{:.2f}"),
                        )
                    ),
                )
                for what, name in (
                    ("one process", "alone"),
                    ("one process, half of the images", "half"),
                    ("two processes at once, half of the images each, nothing exchanged", "halves"),
                    ("two ranks", "together"),
                )
            ]
            + [
                (
                    "the exchange of two ranks alone",
                    spread(times["exchange"], "{:.2f}"),
                    "",
                    spread(pair["work"]["exchange"], "{:.2f}"),
                    "",
                )
            ],
        ),
        Block(
            "Snapshots",
            f"Of a run with {kept['rows']} rows of a basis in full precision; the basis is counted with the vector "
            f"that comes next, which T needs too. A run of {FULL_RUN} steps in 10 minutes writes each row once.",
            ("what", "measured"),
            [
                ("seconds to write a row, fsync included", f"{kept['seconds']:.3f}"),
                ("bytes of the snapshot beyond the basis", f"{kept['size'] - kept['basis']:,}"),
                ("share of a run of 10 minutes", f"{overhead:.1%}"),
            ],
        ),
    ]
    publish("distributed", f"{network}, {images} images", blocks, load, start, write=not options.quick, page=PAGE)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker()
    else:
        main()
