"""Problems at real sizes, and products timed side by side."""

from __future__ import annotations

import gc
import importlib
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hesspec.backend.heap import M_TRIM_THRESHOLD, TRIM_THRESHOLD, _libc, keep_freed_memory
from hesspec.study import build_network, load_dataset, small_cnn
from methods import Matrix, Problem

__all__ = ["LABELS", "Timed", "house", "interleaved", "multiply", "real_problem", "time_houses", "with_images"]

LABELS = {
    "hesspec": "hesspec",
    "curvlinops": "curvlinops",
    "eigenthings": "hessian-eigenthings",
    "papers": "reverse over reverse (DeepnetHessian)",
    "pyhessian": "kept double-backward graph (PyHessian)",
}


OTHERS = LABELS.keys() - {"hesspec"}


@dataclass(frozen=True)
class Timed:
    """Products of several houses with one matrix: seconds of each repeat, of the build, and the error.

    `seconds` with memory as in a process with that library alone, `kept` where freed memory is kept for everybody.
    """

    seconds: dict[str, list[float]]
    kept: dict[str, list[float]]
    built: dict[str, float]
    errors: dict[str, float]
    mode: str


def house(name: str) -> Any:
    """A module of `methods`, imported where it is first used so that a first use can be timed."""
    return importlib.import_module(f"methods.{name}")


def multiply(operator: Any, vector: Tensor) -> Tensor:
    """A house's operator times a vector, whether it is called or has @."""
    product: Tensor = operator @ vector if hasattr(operator, "__matmul__") else operator(vector)
    return product.detach()


def real_problem(network: str, images: int, matrix: Matrix) -> Problem:
    """A network of `hesspec.study` as it is initialised from seed 0, on FashionMNIST images padded to 32x32, one batch.

    `small_cnn` has its global average in place of a linear layer on all pixels, which keeps it below 40,000 parameters.
    """
    torch.manual_seed(0)
    if network == "small_cnn":
        layers = list(small_cnn(1, 10, 4))
        model: nn.Module = nn.Sequential(*layers[:-2], nn.AvgPool2d(8), *layers[-2:])
    else:
        model = build_network(network, channels=1, classes=10, size=32)
    return with_images(model, images, matrix)


def with_images(model: nn.Module, images: int, matrix: Matrix) -> Problem:
    """A model of 32x32 images on the first FashionMNIST images, equally many of each class or nearly so."""
    data = load_dataset("fashion-mnist", "train", samples_per_class=math.ceil(images / 10))
    return Problem(model.eval(), [(data.inputs[:images], data.targets[:images])], matrix, nn.CrossEntropyLoss())


def interleaved_kept(calls: Mapping[str, Callable[[], object]], repeats: int, inner: int = 1) -> dict[str, list[float]]:
    """Seconds of each call as of `interleaved`, where freed memory is kept for everybody, as for hesspec.

    One call of each that is not timed comes first, which finds that memory.
    """
    with keep_freed_memory():
        for call in calls.values():
            call()
        return _in_random_order(calls, repeats, lambda name: _seconds(calls[name], inner))


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int, inner: int = 1) -> dict[str, list[float]]:
    """Seconds of each call, by repeat: all of them once in each repeat, in a random order, `inner` times in a row.

    Calls of other houses find memory as the C library manages it in a process without hesspec; those of hesspec, whose
    operators keep freed memory, come after one that is not timed, as in a run.
    """

    def timed(name: str) -> float:
        others = name in OTHERS
        _keep_memory(keep=not others)
        if not others:
            calls[name]()
        return _seconds(calls[name], inner)

    seconds = _in_random_order(calls, repeats, timed)
    _keep_memory(keep=True)
    return seconds


def _in_random_order(names: Iterable[str], repeats: int, timed: Callable[[str], float]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in random.Random(repeat).sample(list(seconds), len(seconds)):  # noqa: S311
            seconds[name].append(timed(name))
    return seconds


def _seconds(call: Callable[[], object], inner: int) -> float:
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) / inner


def _keep_memory(*, keep: bool) -> None:
    """Undo what operators of hesspec that are alive have told the C library, or tell it again."""
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_TRIM_THRESHOLD, -1 if keep else TRIM_THRESHOLD)
        if not keep:
            libc.malloc_trim(0)


def time_houses(
    problem: Problem, names: tuple[str, ...], repeats: int, inner: int = 1, *, float64: bool = True
) -> Timed:
    """Products of one vector; it also checks that every house multiplies with the same matrix.

    Parameters
    ----------
    problem : Problem
    names : tuple of str
        Houses.
    repeats, inner : int
        As in `interleaved`.
    float64 : bool
        Precision of the reverse-over-reverse product that errors are measured against; float32 where float64 is dear.
    """
    vector = torch.randn(problem.size, generator=torch.Generator().manual_seed(0))
    exact = torch.float64 if float64 else torch.float32
    true = multiply(house("papers").operator(problem.fresh(exact)), vector.to(exact)).double()
    operators, built, errors = {}, {}, {}
    few = problem.first(2)
    for name in names:
        # What happens once in a process, the first use of a matvec, is not this one: there it is on two images.
        multiply(house(name).operator(few.fresh()), vector)
        mine = problem.fresh()
        gc.collect()
        start = time.perf_counter()
        operators[name] = house(name).operator(mine)
        product = multiply(operators[name], vector)
        built[name] = time.perf_counter() - start
        errors[name] = float((product - true).norm() / true.norm())
        if not errors[name] < 1e-3:
            raise ValueError(f"The product of {LABELS[name]} is off by {errors[name]:.1e}: it is of another matrix.")
    calls = {name: lambda operator=operator: multiply(operator, vector) for name, operator in operators.items()}
    seconds, kept = interleaved(calls, repeats, inner), interleaved_kept(calls, repeats, inner)
    mode = str(operators["hesspec"].attributes["mode"]) if "hesspec" in operators else ""
    # Where the first product is of the size of the others, the difference is what was built.
    built = {name: max(0.0, built[name] - statistics.median(seconds[name])) for name in names}
    return Timed(seconds, kept, built, errors, mode)
