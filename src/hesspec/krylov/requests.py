"""Runs that ask for products, and are given them: one alone, or several in lockstep."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["Requests", "answered", "in_lockstep"]

T = TypeVar("T")

# Generator that yields the vectors that are to be multiplied next, is sent their products, and returns a result.
Requests = Generator[list[Tensor], list[Any], T]


def answered(requests: Requests[T], multiply: Callable[[list[Tensor]], list[Any]]) -> T:
    """Run a generator of requests to its end, with products by a function of the vectors, and return its result."""
    (found,) = in_lockstep([requests], lambda pairs: multiply([vector for _, vector in pairs]))
    return found


def in_lockstep(runs: Sequence[Requests[T]], multiply: Callable[[list[tuple[int, Tensor]]], Sequence[Any]]) -> list[T]:
    """Advance several generators of requests together, one step at a time, and return their results.

    Parameters
    ----------
    runs : sequence of Requests
        Runs, which may end after different numbers of steps.
    multiply : callable
        Maps pairs of the number of a run and a vector to the products, in the same order. It is called once for each
        step with the vectors of all runs that have not ended.
    """
    results: dict[int, T] = {}
    asked: dict[int, list[Tensor]] = {}

    def advance(number: int, products: list[Any] | None) -> None:
        try:
            asked[number] = next(runs[number]) if products is None else runs[number].send(products)
        except StopIteration as end:
            results[number] = end.value

    for number in range(len(runs)):
        advance(number, None)
    while asked:
        counts = {number: len(vectors) for number, vectors in asked.items()}
        products = iter(multiply([(number, vector) for number, vectors in asked.items() for vector in vectors]))
        asked.clear()
        for number, count in counts.items():
            advance(number, [next(products) for _ in range(count)])
    return [results[number] for number in range(len(runs))]
