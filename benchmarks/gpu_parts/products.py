"""Products at real sizes: hesspec, plain double backward, a retained graph, and the peers."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from _matvecs import LABELS, house, multiply
from _turns import in_turn
from gpu_parts import Given, seconds_of, synchronised
from gpu_parts.ceilings import rate
from gpu_parts.networks import NETWORKS, QUICK, Network
from hesspec.operators.engine.replay import Recorded
from methods import Matrix, Problem

TITLE = "Products"
NOTE = (
    "float32 in full precision, untrained networks, random data in one batch; all multiply in turn, and "
    "wait for the device. Milliseconds: median (least to greatest); times: how many times as fast hesspec is; share: "
    "operations that the product executes over those of a large float32 matrix product in the same time."
)
COLUMNS = ("network", "p", "samples", "matrix", "by", "ms", "times", "share of peak", "error", "first, s", "peak, GB")


def plain(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Double backward, all of it in every product."""
    parameters, sizes = problem.parameters, [parameter.numel() for parameter in problem.parameters]
    ((inputs, targets),) = problem.data

    def product(vector: Tensor) -> Tensor:
        loss = problem.loss(problem.model(inputs), targets)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        parts = [part.view_as(p) for part, p in zip(vector.split(sizes), parameters, strict=True)]
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(gradient, parameters, parts)])

    return product


def retained(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Double backward of a gradient whose graph is kept."""
    parameters, sizes = problem.parameters, [parameter.numel() for parameter in problem.parameters]
    ((inputs, targets),) = problem.data
    gradient = torch.autograd.grad(problem.loss(problem.model(inputs), targets), parameters, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(vector.split(sizes), parameters, strict=True)]
        found = torch.autograd.grad(gradient, parameters, parts, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in found])

    return product


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions in a product of hesspec."""
    # What a replayed graph of the device computes is not counted: kernel by kernel.
    plainly = mock.patch.object(Recorded, "__call__", lambda recorded, tangents: recorded.apply(tangents))
    with plainly, FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def houses(problem: Problem) -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """Ways to multiply with the matrix of a problem, each to be made when it is needed."""

    def of(name: str) -> Callable[[], Callable[[Tensor], Tensor]]:
        def make() -> Callable[[Tensor], Tensor]:
            operator = house(name).operator(problem.fresh())
            return lambda vector: multiply(operator, vector)

        return make

    ways = {"hesspec": of("hesspec"), LABELS["curvlinops"]: of("curvlinops")}
    if problem.matrix == "Hessian":
        ways |= {
            "plain double backward": lambda: plain(problem.fresh()),
            "retained graph": lambda: retained(problem.fresh()),
            LABELS["eigenthings"]: of("eigenthings"),
        }
    return ways


def time_network(given: Given, name: str, network: Network, matrix: Matrix, peak: float) -> None:
    """One network and matrix, all who multiply with it."""
    problem = network.problem(matrix, given)
    vector = torch.randn(problem.size, generator=torch.Generator().manual_seed(0)).to(given.device)
    expected = plain(problem.fresh())(vector) if matrix == "Hessian" else None
    made: dict[str, Callable[[Tensor], Tensor]] = {}
    first, error, memory = {}, {}, {}
    for who, make in houses(problem).items():
        with given.step(f"{name}, {matrix}, {who}"):
            if given.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(given.device)
                held = torch.cuda.memory_allocated(given.device)
            results: list[Tensor] = []

            def begin(who: str = who, make: Callable[[], Any] = make, results: list[Tensor] = results) -> None:
                made[who] = make()
                results.append(made[who](vector))

            first[who] = seconds_of(begin, given.device)
            if given.device.type == "cuda":
                memory[who] = (torch.cuda.max_memory_allocated(given.device) - held) / 1e9
            expected = results[0] if expected is None else expected
            error[who] = float((results[0] - expected).norm() / expected.norm())
    if "hesspec" not in made:
        return
    calls = {who: synchronised(lambda product=product: product(vector), given.device) for who, product in made.items()}
    taken = in_turn(calls, 3 if given.quick else 5, 0.0 if given.quick else 2.0)
    flops = operations(calls["hesspec"])
    ours = statistics.median(taken["hesspec"])
    for who, seconds in taken.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, taken["hesspec"], strict=True))
        median = statistics.median(seconds)
        given.keep(
            name,
            f"{problem.size:,}",
            f"{len(problem.data[0][0]):,}",
            matrix,
            who,
            f"{1e3 * median:.2f} ({1e3 * min(seconds):.2f} to {1e3 * max(seconds):.2f})",
            f"{ratio:.2f}",
            f"{flops / ours / peak:.0%}" if who == "hesspec" else "",
            f"{error[who]:.0e}",
            f"{first[who]:.1f}",
            f"{memory[who]:.2f}" if who in memory else "",
        )


def run(given: Given) -> None:
    """Measure."""
    peak = rate(given.device, torch.float32, 512 if given.quick else 8192)
    for name, network in (QUICK if given.quick else NETWORKS).items():
        for matrix in ("Hessian", "GaussNewton"):
            if given.left < 20:
                given.keep(name, "", "", matrix, "no time was left", failed=True)
                continue
            with given.step(f"{name}, {matrix}"):
                time_network(given, name, copy.copy(network), matrix, peak)
            if given.device.type == "cuda":
                torch.cuda.empty_cache()
