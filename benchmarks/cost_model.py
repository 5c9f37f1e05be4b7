"""What the cost model says, beside what is measured at sizes that can be run here.

    python benchmarks/cost_model.py [--models] [--quick]

Hessians of MLPs of 1e5 to 2.8e7 parameters and of VGG11-BN, on random data, in one and in two processes of one thread
each, which communicate through Gloo. The rates that the model asks for, operations, communication and memory per
second, are those of this machine, measured at the middle one of these sizes; everything else is predicted from them.
Products, communication and spectra are timed apart, the first two as medians.

Prints the tables, and writes them into docs/scaling.md. `--models` only writes that page's table of networks that
cannot be run here, which needs no measurement. `--quick` has two small networks, and writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import hesspec
from _tables import ROOT, Block, console, markdown, publish, rewrite
from hesspec.backend.heap import give_back, keep_freed_memory
from hesspec.backend.memory import in_words
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.vectors import Space
from hesspec.measure.cost import cost
from hesspec.measure.cost_result import H100, Cost, Device
from hesspec.operators.engine.trace_cost import count_work
from hesspec.study import build_network

PAGE = ROOT / "docs" / "scaling.md"
PIXELS, CLASSES = 64, 10
# Widths of MLPs of two square layers: p = 1e5, 1e6, 1e7, 2.8e7.
WIDTHS = (210, 700, 2230, 3720)
# Samples times parameters of a MLP, so that all of their products do the same work, and that of the images.
WORK, IMAGES = 3.6e9, 32
STEPS, REPEATS = 16, 5
# What is read to measure the memory's rate: 256 MB, beyond any cache.
ROWS, COLUMNS = 16, 1 << 22

# Networks that cannot be run here. ResNet50: torchvision's, operations counted by PyTorch at 224 pixels (4.1 G
# multiply-adds, as in He et al. 2015), activations by hesspec's trace of one image; ImageNet's training set. Devices
# within a machine are joined by NVLink, 450 GB/s each way, of which 400 are taken; beyond it by a port of 400 Gbit/s.
NVLINK = replace(H100, bandwidth=400e9)
MODELS: dict[str, Callable[[], Cost]] = {
    "ResNet50, ImageNet, 8 H100": lambda: cost(
        25_557_032, samples=1_281_167, flops_forward=8.178e9, activations="266MB", devices=8, device=NVLINK
    ),
    "GPT-2 small, 1e9 tokens, 8 H100": lambda: cost(124.4e6, tokens=1e9, context=1024, devices=8, device=NVLINK),
    "1 B, 1e9 tokens, 64 H100": lambda: cost(1e9, tokens=1e9, context=1024, devices=64),
    "7 B, 1e9 tokens, 64 H100": lambda: cost(7e9, tokens=1e9, devices=64),
    "7 B, 1e9 tokens, 256 H100": lambda: cost(7e9, tokens=1e9, devices=256),
    "the same, 400 GB/s between all": lambda: cost(7e9, tokens=1e9, devices=256, device=NVLINK),
}


def models() -> str:
    """The table of networks that cannot be run here."""
    rows = []
    for name, plan in MODELS.items():
        found = plan()
        words = found.summary()
        rows.append(
            (
                name,
                "whole model" if found.way == "whole" else "sharded",
                found.basis,
                f"{found.flops_matvec / 1e18:.3g}",
                *(
                    words[key]
                    for key in ("computation of a matvec", "communication of a matvec", "rest of a step", "spectrum")
                ),
                in_words(found.bytes_parameters + found.bytes_vectors),
                in_words(found.bytes_basis),
                in_words(found.bytes_passes),
                words["devices needed"],
                f"{(found.tokens or found.samples) * found.share_in_a_day:.1e}",
            )
        )
    columns = (
        "network, data, devices", "parameters", "width of the basis", "product, EFLOP", "compute", "communication",
        "rest of a step", "spectrum, 64 steps", "memory: parameters, vectors", "basis", "passes", "least devices",
        "tokens or images in a day",
    )  # fmt: skip
    note = (
        "Hessian, float32; sequences of 1,024 tokens, at 7 B of 2,048. Devices have 80 GB and sustain 33.5 TFLOP/s "
        "(half of the peak: an assumption); seconds and bytes are those of a device for one product."
    )
    return markdown(Block("Networks that cannot be run here", note, columns, rows))


@dataclass(frozen=True)
class Point:
    """A network, as what builds it, and its data."""

    name: str
    width: int
    samples: int

    @property
    def model(self) -> nn.Module:
        """The network as it is initialised from seed 0; width 0 is VGG11-BN."""
        torch.manual_seed(0)
        if not self.width:
            return build_network("vgg11_bn", channels=1, classes=CLASSES, size=32).eval()
        square = [layer for _ in range(2) for layer in (nn.Linear(self.width, self.width), nn.Tanh())]
        return nn.Sequential(nn.Linear(PIXELS, self.width), nn.Tanh(), *square, nn.Linear(self.width, CLASSES))

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Two batches of random data."""
        torch.manual_seed(1)
        shape = (PIXELS,) if self.width else (1, 32, 32)
        half = self.samples // 2
        return [(torch.randn(half, *shape), torch.randint(CLASSES, (half,))) for _ in range(2)]


def median(call: Callable[[], object], repeats: int) -> float:
    """Median of the seconds of a call, which all ranks begin together."""
    seconds = []
    for _ in range(repeats):
        if dist.is_initialized():
            dist.barrier()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def resident() -> int:
    """Bytes of memory that this process has, beside what its allocator keeps for later."""
    gc.collect()
    # What it has from freed tensors would hide what a basis takes.
    give_back()
    return int(psutil.Process().memory_info().rss)


@keep_freed_memory()  # as the command line does
def worker(rank: int, size: int, folder: str, point: Point, steps: int, repeats: int) -> None:
    """One process: measure, and leave what was seen in a file."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    group = dist.group.WORLD if size > 1 else None
    batches = point.batches if group is None else hesspec.shard_data(point.batches, group)
    operator = hesspec.Hessian(point.model, nn.CrossEntropyLoss(), batches, group=group)
    space = Space(operator.shape[0], operator.ranks)
    torch.manual_seed(2)
    vector = torch.randn(space.size)
    vector /= vector.norm()
    operator.partial_products([vector])
    part, whole = vector[space.begin : space.end].clone(), vector.clone()
    found: dict[str, Any] = {
        "params": space.size,
        "kept": operator.attributes["kept_bytes"],
        "compute": median(lambda: operator.partial_products([vector]), repeats),
        "gather": median(lambda: operator.ranks.whole(part, space.size), repeats),
        "scatter": median(lambda: operator.ranks.slice_of_sum(whole), repeats),
    }
    before = resident()
    basis = KrylovBasis(space, dtype=torch.float32, device=torch.device("cpu"))
    for _ in range(steps):
        basis.append(part)
    found["basis"] = resident() - before
    del basis
    start = time.perf_counter()
    hesspec.spectrum(operator, steps=steps, basis="full")
    found["spectrum"] = time.perf_counter() - start
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def measured(point: Point, size: int, steps: int, repeats: int) -> dict[str, Any]:
    """What so many processes saw: the slowest of them, the largest basis, all of what is kept."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (size, folder, point, steps, repeats), nprocs=size)  # type: ignore[no-untyped-call]
        seen = [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]
    found = {key: max(each[key] for each in seen) for key in seen[0]}
    found["kept"] = sum(each["kept"] for each in seen)
    console.print(f"{point.name}, processes: {size}: {found}", style="dim")
    return found


def memory_rate() -> float:
    """Bytes of memory that one thread reads per second, in the product of the rows of a basis with a vector."""
    rows, vector = torch.ones(ROWS, COLUMNS), torch.ones(COLUMNS)
    return float(rows.nbytes / median(lambda: torch.mv(rows, vector), 2 * REPEATS))


def forward_flops(point: Point) -> float:
    """Operations of a forward pass of one sample, as PyTorch counts them."""
    model, (inputs, _) = point.model, point.batches[0]
    return float(count_work(lambda: model(inputs[:1])).flops)


def ratio(above: float, below: float) -> str:
    """Predicted over measured."""
    return f"{above / below:.2f}"


def compared(points: Sequence[Point], middle: Point, steps: int, repeats: int) -> list[Block]:
    """The tables of what was measured beside what is predicted."""
    seen = {(point, size): measured(point, size, steps, repeats) for point in points for size in (1, 2)}
    alone, two = seen[middle, 1], seen[middle, 2]
    # A rank receives half of the vector, twice.
    received = 4 * two["params"]
    work = cost(alone["params"], samples=middle.samples, flops_forward=forward_flops(middle), activations=1)
    rates = Device(
        work.flops_matvec / alone["compute"], received / (two["gather"] + two["scatter"]), memory_rate(), "measured"
    )
    products, spectra = [], []
    for (point, size), found in seen.items():
        said = cost(
            found["params"],
            samples=point.samples,
            flops_forward=forward_flops(point),
            activations=max(1, found["kept"] // point.samples),
            devices=size,
            memory=psutil.virtual_memory().total,
            device=rates,
            steps=steps,
            basis="full",
        )
        what = (point.name, f"{found['params']:,}", f"{size}")
        sent = found["gather"] + found["scatter"]
        both = size > 1
        products.append(
            (
                *what,
                f"{found['compute']:.3f}",
                f"{said.seconds_compute:.3f}",
                ratio(said.seconds_compute, found["compute"]),
                in_words(said.bytes_communicated) if both else "",
                f"{sent:.4f}" if both else "",
                f"{said.seconds_communicate:.4f}" if both else "",
                ratio(said.seconds_communicate, sent) if both else "",
            )
        )
        spectrum = said.seconds - said.seconds_setup
        spectra.append(
            (
                *what,
                in_words(found["basis"]),
                in_words(said.bytes_basis),
                ratio(said.bytes_basis, max(found["basis"], 1)),
                f"{found['spectrum']:.2f}",
                f"{spectrum:.2f}",
                ratio(spectrum, found["spectrum"]),
            )
        )
    note = (
        f"Seconds, medians of {repeats}; × is predicted over measured. Rates, measured at {middle.name} with "
        f"{alone['params']:,} parameters, whose own rows therefore agree: {rates.flops / 1e9:.1f} GFLOP/s (one "
        f"process), {in_words(rates.bandwidth)}/s received (two). The model does not know that inputs of the first "
        "layer have no tangents."
    )
    first = ("network", "p", "processes")
    columns = (
        "product, measured", "predicted", "×", "received by a process", "communication, measured", "predicted", "×"
    )  # fmt: skip
    more = (
        f"{steps} steps, basis of full width, once; memory is what a process grew by when it kept as many vectors. The "
        f"memory's rate is {in_words(rates.memory_bandwidth)}/s, measured with one process; two share it. Tracing and "
        "primal passes came before."
    )
    return [
        Block("Products", note, (*first, *columns), products),
        Block(
            "Spectra",
            more,
            (*first, "basis of a process, measured", "predicted", "×", "spectrum, measured", "predicted", "×"),
            spectra,
        ),
    ]


def points(quick: bool) -> list[Point]:
    """Networks from small to large."""
    if quick:
        return [Point("MLP", width, 64) for width in (20, 40)]
    mlps = [Point("MLP", width, 2 * round(WORK / (2 * width**2) / 2)) for width in WIDTHS]
    return [*mlps, Point("VGG11-BN", 0, IMAGES)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", action="store_true", help="write the table of networks that cannot be run here")
    parser.add_argument("--quick", action="store_true", help="two small networks; the page stays as it is")
    options = parser.parse_args()
    if options.models:
        rewrite("models", models(), PAGE)
        return
    torch.set_num_threads(1)
    start, load = time.perf_counter(), os.getloadavg()[0]
    chosen = points(options.quick)
    steps, repeats = (8, 1) if options.quick else (STEPS, REPEATS)
    blocks = compared(chosen, chosen[len(chosen) // 2], steps, repeats)
    what = "MLPs and VGG11-BN as they are initialised, random data, one thread for each process"
    publish("measured", what, blocks, load, start, write=not options.quick, page=PAGE)
    if not options.quick:
        rewrite("models", models(), PAGE)


if __name__ == "__main__":
    main()
