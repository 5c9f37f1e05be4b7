"""What is compared, one module for each house; each says what runs, from which code, with which settings.

Every module has `operator`, which builds the matvec of that house, and `METHODS`, the ways in which it measures a
spectrum. All see the same problem and owe the same answer: a measure, and the ten largest eigenvalues. `SCANS`, where
there are some, measure the same spectrum at many settings, on a dense matrix that all houses share: what it costs is
counted in products, not timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = [
    "LARGEST",
    "MATRICES",
    "Answer",
    "Candidate",
    "Counted",
    "CountedDense",
    "Matrix",
    "Method",
    "Problem",
    "deflated_measure",
    "largest",
    "quadrature",
]

Array = npt.NDArray[np.float64]
Matrix = Literal["Hessian", "GaussNewton"]

MATRICES: tuple[Matrix, ...] = ("Hessian", "GaussNewton")
LARGEST = 10


@dataclass(frozen=True)
class Problem:
    """A matrix of a network: float32, evaluation mode, cross-entropy, all data in one batch; its entries, if known."""

    model: nn.Module
    data: list[tuple[Tensor, Tensor]]
    matrix: Matrix
    loss: nn.CrossEntropyLoss
    entries: Tensor | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """In the order in which every house flattens them."""
        return list(self.model.parameters())

    @property
    def size(self) -> int:
        """Number of parameters p."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def classes(self) -> int:
        """Number of classes C: of outliers that the papers' procedure looks for."""
        return int(self.data[0][1].max()) + 1

    @property
    def dense(self) -> Tensor:
        """The entries, shape (p, p)."""
        if self.entries is None:
            raise ValueError("The entries of this matrix are not known.")
        return self.entries

    def first(self, images: int) -> Problem:
        """The same on the first images only, which has the same kernels to warm up."""
        ((inputs, targets),) = self.data
        return replace(self, data=[(inputs[:images], targets[:images])])

    def split(self, size: int) -> Problem:
        """The same in batches of this size."""
        ((inputs, targets),) = self.data
        return replace(self, data=list(zip(inputs.split(size), targets.split(size), strict=True)))

    def fresh(self, dtype: torch.dtype = torch.float32) -> Problem:
        """The same with a model of its own, so that nobody inherits a graph or a gradient from another."""
        data = [(x.to(dtype) if x.is_floating_point() else x, y) for x, y in self.data]
        return replace(self, model=copy.deepcopy(self.model).to(dtype), data=data)


@dataclass(frozen=True)
class Answer:
    """An estimated spectrum.

    Parameters
    ----------
    nodes, weights : array (n,)
        Its measure; weights sum to 1.
    largest : array (10,)
        Its ten eigenvalues of largest absolute value.
    matvecs : int
        Products with a vector that it took, all of them.
    """

    nodes: Array
    weights: Array
    largest: Array
    matvecs: int


@dataclass(frozen=True)
class Candidate:
    """A measure, nodes and weights as in `Answer`, the settings that gave it, and the products that it took."""

    settings: str
    nodes: Array
    weights: Array
    matvecs: int


@dataclass(frozen=True)
class Method:
    """A way to measure a spectrum; one run may give several answers, each with a label of its own."""

    labels: tuple[str, ...]
    run: Callable[[Problem, int], Sequence[Answer]]
    matrices: tuple[Matrix, ...] = MATRICES


class Counted:
    """A matvec that counts how often it is called."""

    def __init__(self, multiply: Callable[[Tensor], Tensor]) -> None:
        self._multiply, self.calls = multiply, 0

    def __call__(self, vector: Tensor) -> Tensor:
        """The product."""
        self.calls += 1
        return self._multiply(vector)

    def rows(self, vectors: Tensor) -> Tensor:
        """The products with the rows of a matrix, one after the other."""
        return torch.stack([self(vector) for vector in vectors])


class CountedDense(Counted):
    """A dense symmetric matrix that counts its products."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(lambda vector: matrix @ vector)
        self._matrix = matrix

    def rows(self, vectors: Tensor) -> Tensor:
        """All at once: as many products."""
        self.calls += len(vectors)
        return vectors @ self._matrix


def largest(values: Array) -> Array:
    """The ten of largest absolute value."""
    return values[np.argsort(-np.abs(values), kind="stable")[:LARGEST]]


def deflated_measure(outliers: Array, nodes: Array, weights: Array, size: int) -> tuple[Array, Array]:
    """Nodes and weights of outliers, 1/p each, and of the quadrature of the operator without them."""
    share = len(outliers) / size
    return (
        np.concatenate([outliers, nodes]),
        np.concatenate([np.full(len(outliers), 1 / size), weights / weights.sum() * (1 - share)]),
    )


def quadrature(alpha: Array, beta: Array) -> tuple[Array, Array]:
    """Nodes and weights of the tridiagonal matrix with this diagonal and off-diagonal."""
    nodes, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
    return nodes, vectors[0] ** 2
