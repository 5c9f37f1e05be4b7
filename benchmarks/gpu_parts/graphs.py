"""CUDA graphs on and off: products of small and large batches, and a spectrum."""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

import hesspec
from _turns import in_turn
from gpu_parts import Given, synchronised
from gpu_parts.networks import Logits, of_torchvision, tiny, vgg
from hesspec.operators.engine import replay

TITLE = "CUDA graphs"
NOTE = (
    "The same product with tangent passes started kernel by kernel and, where hesspec does so by itself, replayed as a "
    "graph of the device; both multiply in turn. Recorded: whether they were, else why not. On a CPU, graphs are "
    "replayed by Python, which tries the code and gains nothing."
)
COLUMNS = ("network", "samples", "batches", "matrix", "plain, ms", "graphs, ms", "times", "same bits", "recorded")


class ReplayedByPython:
    """What stands in for graphs on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def timed(self, call: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], float]:
        """Results, and that it pays."""
        return call(), 1.0

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """The call itself."""
        call()
        return call


@contextlib.contextmanager
def graphs(device: torch.device, *, on: bool) -> Iterator[list[str]]:
    """Have graphs or not; yields what hesspec says of them."""
    before, said = dict(replay.GRAPHS), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("hesspec.operators.engine.replay")
    level = logger.level
    if not on:
        replay.GRAPHS.clear()
    elif device.type == "cpu":
        replay.GRAPHS["cpu"] = ReplayedByPython
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        replay.GRAPHS.clear()
        replay.GRAPHS.update(before)


def networks(*, quick: bool) -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, tuple[int, ...]]]:
    """How each is built, the shape of its samples, its tokens, and sizes of batches."""
    if quick:
        return {"tiny": (tiny, (3, 32, 32), 0, (2,))}
    return {
        "VGG11-BN": (vgg, (3, 32, 32), 0, (32, 2048)),
        "ResNet18": (of_torchvision("resnet18", num_classes=10), (3, 64, 64), 0, (8, 512)),
        "GPT-2, 4 layers of 128": (
            lambda: Logits(n_layer=4, n_embd=128, n_head=4, vocab_size=256, n_positions=64), (64,), 256, (8, 128)
        ),
    }  # fmt: skip


def run(given: Given) -> None:
    """Measure."""
    for name, (build, shape, tokens, sizes) in networks(quick=given.quick).items():
        torch.manual_seed(0)
        model = build().eval().to(given.device)
        for size in sizes:
            data = []
            for _ in range(2):
                inputs = torch.randint(tokens, (size, *shape)) if tokens else torch.randn(size, *shape)
                targets = inputs.roll(-1, 1) if tokens else torch.arange(size) % 10
                data.append((inputs.to(given.device), targets.to(given.device)))
            for matrix in ("Hessian", "GaussNewton"):
                with given.step(f"{name}, {size}, {matrix}"):
                    one(given, name, model, data, matrix)


def one(given: Given, name: str, model: nn.Module, data: list[tuple[Tensor, Tensor]], matrix: str) -> None:
    """One network, size of batches and matrix."""
    ways, products, said = {}, {}, []
    for way in ("plain", "graphs"):
        with graphs(given.device, on=way == "graphs") as words:
            operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data, mode="traced")
            vector = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(0)).to(given.device)
            for _ in range(3):
                products[way] = operator @ vector
            ways[way] = synchronised(lambda o=operator, v=vector: o @ v, given.device)
            said += words
    begun = time.perf_counter()
    taken = in_turn(ways, 3 if given.quick else 7, 0.0 if given.quick else 1.0)
    plain, replayed = (statistics.median(taken[way]) for way in ("plain", "graphs"))
    ratio = statistics.median(a / b for a, b in zip(taken["plain"], taken["graphs"], strict=True))
    same = torch.equal(products["plain"], products["graphs"])
    right = same or float((products["plain"] - products["graphs"]).norm() / products["plain"].norm()) < 1e-5
    given.keep(
        name,
        len(data[0][0]) * len(data),
        len(data),
        matrix,
        f"{1e3 * plain:.2f}",
        f"{1e3 * replayed:.2f}",
        f"{ratio:.2f}",
        same,
        "; ".join(said) or f"yes, measured for {time.perf_counter() - begun:.0f} s",
        failed=not right,
    )
