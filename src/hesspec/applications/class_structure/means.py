"""Class structure of the Gauss-Newton matrix: class-conditional means of logit gradients, and the parts of G."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesspec.applications.class_structure.frequent import checked_groups
from hesspec.applications.class_structure.gram import gram_of_means
from hesspec.backend.memory_shares import free_shares, shares_of
from hesspec.backend.numbers import check_seed
from hesspec.krylov.xtrace import xtrace
from hesspec.operators.class_parts import (
    GaussNewtonClass,
    GaussNewtonCross,
    GaussNewtonSame,
    GaussNewtonWithin,
    Projections,
    class_weights,
)
from hesspec.operators.engine.jacobian import LinearisedModel
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.logits import LogitRows, check_softmax_loss
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec

__all__ = ["ClassMeans", "Part", "Span"]

Array = npt.NDArray[np.float64]
Part = Literal["class", "cross", "same", "sum"]
Span = Literal["class means", "class and cross-class means"]

OPERATORS: Final = {
    "class": GaussNewtonClass,
    "cross": GaussNewtonCross,
    "within": GaussNewtonWithin,
    "same": GaussNewtonSame,
}
# Number of vectors in one pass of Jacobian-vector or vector-Jacobian products over the data.
TOGETHER = 8


class ClassMeans:
    r"""Decomposition of the Gauss-Newton matrix of a softmax cross-entropy by true class c and logit c'.

    .. math:: G = \sum_{i,c'} w_{i,c'}\, g_{i,c'} g_{i,c'}^\top
                = G_{class} + G_{cross} + G_{within} + G_{c=c'}, \qquad
              w_{i,c'} = p_{i,c'} / N, \quad g_{i,c'} = J_i^\top (e_{c'} - p_i)

    Averages over the samples of class c are the cross-class means g_{c,c'}; averages of these over c' != c are the
    class means g_c (arXiv 1901.08244, arXiv 2008.11865). Three of the four parts are sums of outer products of C, C (C
    - 1) and C means, so their nonzero eigenvalues come from Gram matrices, without any iterative eigensolver. The parts
    are available as operators: `GaussNewtonClass`, `GaussNewtonCross`, `GaussNewtonSame` and `GaussNewtonWithin`.

    Everything is computed on first use. In units of a Gauss-Newton product, the eigenvalues of G_class and G_same cost
    1 1/4 together, and those of G_cross and the sum C/2 + 1/4, provided that batches have one target for each sample
    and the means fit into memory; each vector in `project` or `eigenvectors` costs 1/2.

    Parameters
    ----------
    model, loss_fn, data, params
        See `hesspec.GaussNewton`; the loss must be `torch.nn.CrossEntropyLoss` with class indices as targets.
    classes : sequence of int or Tensor (V,), optional
        Class of each of V logits, from 0 to C - 1, where the structure is to be that of fewer classes than there are
        logits, as with language models (see `hesspec.frequent_classes`). Everything then is about the classes c of the
        true logit and c' of the other one; the four parts still sum to G. By default each logit is a class.
    memory : str or int, optional
        Device memory for passes and means, in addition to model and data: "8GB", or a number of bytes. By default a
        safe share of the free memory. Means that do not fit are computed in slices of the parameters.
    group : torch.distributed.ProcessGroup, optional
        See `hesspec.GaussNewton`: processes that share the data; all of them must make the same calls.

    Raises
    ------
    ValueError
        If the loss is a different one, or `classes` are not integers from 0 with none left out; on first use, if a
        class has no samples, targets are not integers, or there is only one class; or for the reasons of
        `hesspec.GaussNewton`.

    Notes
    -----
    Eigenvalues of parts are exact up to the rounding of gradients, a few eps of the parameters' dtype times the largest
    eigenvalue. For K means, those below K eps times the largest are treated as zero.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Iterable[Any],
        params: ParameterSpec = None,
        *,
        classes: Sequence[int] | Tensor | None = None,
        memory: str | int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        sizes = None if memory is None else shares_of(memory)
        self._risk = EmpiricalRisk(model, loss_fn, data, params, group=group)
        check_softmax_loss(self._risk.loss)
        self._groups = None if classes is None else checked_groups(classes, self.device)
        ranks = self._risk.ranks
        # The same on all ranks, as it determines the number of passes.
        self._budget, self._room = sizes or (int(ranks.least(size)) for size in free_shares(self.device, ranks))

    @property
    def dimension(self) -> int:
        """Number of parameters, p."""
        return self._risk.parameters.count

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters and of all vectors."""
        return self._risk.parameters.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters and of all vectors."""
        return self._risk.parameters.device

    @property
    def classes(self) -> int:
        """Number of classes, C."""
        return len(self.weights)

    @functools.cached_property
    def weights(self) -> Array:
        """Weights w_{c,c'} (C, C): sum of w_{i,c'} over the samples of class c."""
        return self._weights.cpu().numpy()

    @functools.cached_property
    def _weights(self) -> Tensor:
        rows = self._model.pushed([])[0]
        if self._groups is not None and len(self._groups) != rows[0].classes:
            raise ValueError(
                f"classes= names the classes of {len(self._groups):,} logits, but the model has {rows[0].classes:,}: "
                "give one for each."
            )
        return class_weights(rows, self._risk.ranks, self._groups)

    @functools.cached_property
    def _off(self) -> Tensor:
        """Weights with the diagonal c' = c set to 0."""
        return self._weights * (1 - torch.eye(len(self._weights), dtype=torch.float64, device=self.device))

    @functools.cached_property
    def _model(self) -> LinearisedModel:
        return self._risk.ranks.together(lambda: LinearisedModel(self._risk, self._budget))

    # Means, Gram matrices and eigenvalues -----------------------------------------------------------------------------

    def class_means(self) -> Tensor:
        """Class means g_c as columns (p, C), at the cost of half a Gauss-Newton product each."""
        return self._combined(self._class_coefficients[:, : self.classes].cpu().numpy())

    def cross_class_means(self, c: int) -> Tensor:
        """Cross-class means g_{c,c'} of one class c as columns (p, C), one for each c' including c."""
        chosen = np.zeros((self.classes, self.classes, self.classes))
        chosen[c] = np.eye(self.classes)
        return self._combined(chosen.reshape(-1, self.classes))

    @functools.cached_property
    def class_gram(self) -> Array:
        """Inner products (2C, 2C) of the class means g_c, followed by the means g_{c,c} of the true class's logit."""
        if "pair_gram" in self.__dict__:
            chosen = self._class_coefficients.cpu().numpy()
            return np.asarray(chosen.T @ self.pair_gram @ chosen)
        return self._gram(self._class_coefficients)

    @functools.cached_property
    def pair_gram(self) -> Array:
        """Inner products (C^2, C^2) of all means g_{c,c'}, c major."""
        return self._gram(torch.eye(self.classes**2, dtype=torch.float64, device=self.device))

    def _gram(self, coefficients: Tensor) -> Array:
        """Inner products of combinations (C^2, K) of the g_{c,c'}, each of one class."""
        blocks = coefficients.T.reshape(-1, self.classes, self.classes)
        means = []
        for block in blocks:
            c = int(block.abs().sum(1).argmax())
            means.append((c, torch.where(self._weights[c] > 0, block[c] / self._weights[c], 0)))
        return gram_of_means(self._risk, self._model.parts, means, self._room, self._groups).cpu().numpy()

    @property
    def _class_coefficients(self) -> Tensor:
        """Coefficients (C^2, 2C) of all g_c and all g_{c,c} in terms of the g_{c,c'}."""
        count = self.classes
        chosen = torch.zeros(count, count, 2 * count, dtype=torch.float64, device=self.device)
        index = torch.arange(count, device=self.device)
        chosen[index, :, index] = self._off / self._off.sum(1, keepdim=True)
        chosen[index, index, count + index] = 1
        return chosen.reshape(count**2, -1)

    def _vectors(self, part: Part) -> Tensor:
        """Coefficients (C^2, K), in terms of the g_{c,c'}, of vectors whose outer products sum to a part of G."""
        count, weights = self.classes, self._weights.reshape(-1)
        means = self._class_coefficients
        if part == "class":
            return means[:, :count] * self._off.sum(1).sqrt()
        if part == "same":
            return means[:, count:] * self._weights.diagonal().sqrt()
        every = torch.eye(count**2, dtype=torch.float64, device=self.device)
        if part == "sum":
            return every * weights.sqrt()
        if part != "cross":
            raise ValueError(f"part is {part!r}; use one of 'class', 'cross', 'same' and 'sum'.")
        centred = every - means[:, :count].repeat_interleave(count, dim=1)
        return (centred * weights.sqrt())[:, self._off.reshape(-1) > 0]

    def _decomposed(self, part: Part) -> tuple[Array, Array]:
        """Nonzero eigenvalues (k,) of a part, descending, and coefficients (C^2, k) of its eigenvectors."""
        vectors = self._vectors(part).cpu().numpy()
        if part in ("class", "same"):
            side = slice(0, self.classes) if part == "class" else slice(self.classes, None)
            scale = np.sqrt(self._off.sum(1).cpu().numpy() if part == "class" else np.diag(self.weights))
            gram = self.class_gram[side, side] * np.outer(scale, scale)
        else:
            gram = vectors.T @ self.pair_gram @ vectors
        values, columns = np.linalg.eigh((gram + gram.T) / 2)
        values, columns = values[::-1], columns[:, ::-1]
        kept = values > len(values) * torch.finfo(self.dtype).eps * max(values[0], 0)
        return values[kept], vectors @ (columns[:, kept] / np.sqrt(values[kept]))

    def eigenvalues(self, part: Part) -> Array:
        """Return the nonzero eigenvalues of a part of G, descending.

        Parameters
        ----------
        part : "class", "cross", "same" or "sum"
            Part of G; "sum" is the sum of the other three.

        Raises
        ------
        ValueError
            If there is no such part.
        """
        return self._decomposed(part)[0]

    def eigenvectors(self, part: Part, count: int | None = None) -> Tensor:
        """Return eigenvectors (p, k) of the largest eigenvalues of a part as columns; by default all nonzero ones."""
        return self._combined(self._decomposed(part)[1][:, :count])

    def span(self, span: Span) -> Array:
        """Coefficients (C^2, r), in terms of the g_{c,c'}, of an orthonormal basis of a span of means.

        Means are normalised to length 1; directions in which they differ by less than rounding are dropped.
        """
        if span == "class means":
            count = self.classes
            vectors = self._class_coefficients[:, :count].cpu().numpy()
            gram = self.class_gram[:count, :count]
        else:
            vectors = np.eye(self.classes**2)[:, self._off.reshape(-1).cpu().numpy() > 0]
            gram = vectors.T @ self.pair_gram @ vectors
        length = np.sqrt(np.diag(gram))
        vectors = vectors[:, length > 0] / length[length > 0]
        gram = gram[np.ix_(length > 0, length > 0)] / np.outer(length[length > 0], length[length > 0])
        values, columns = np.linalg.eigh((gram + gram.T) / 2)
        kept = values > len(values) * torch.finfo(self.dtype).eps * values[-1]
        return np.asarray(vectors @ (columns[:, kept] / np.sqrt(values[kept])))

    def basis(self, span: Span) -> Iterable[Tensor]:
        """Yield the vectors (p,) of a basis of a span of means, orthonormal up to rounding."""
        coefficients = self.span(span)
        for start in range(0, coefficients.shape[1], TOGETHER):
            yield from self._combined(coefficients[:, start : start + TOGETHER]).T

    def _combined(self, coefficients: Array) -> Tensor:
        """Linear combinations (p, k) of the means g_{c,c'} with coefficients (C^2, k)."""
        count = self.classes
        blocks = torch.as_tensor(coefficients.T.reshape(-1, count, count), device=self.device)
        scaled = torch.where(self._weights > 0, blocks / self._weights, 0)
        result = torch.empty(self.dimension, len(scaled), dtype=self.dtype, device=self.device)
        for start in range(0, len(scaled), TOGETHER):
            chosen = scaled[start : start + TOGETHER]

            def cotangents(rows: Sequence[LogitRows], chosen: Tensor = chosen) -> list[list[Tensor]]:
                return [[row.cotangent(row.spread(k, self._groups)) for row in rows] for k in chosen]

            for i, vector in enumerate(self._model.pulled(cotangents)):
                result[:, start + i] = vector
        return result

    def ritz_values(self, span: Span = "class means") -> Array:
        """Return the Rayleigh-Ritz values of G on a span of means, descending.

        The k-th value is at most the k-th largest eigenvalue of G (Cauchy); their difference is about the eigenvalue
        times the squared sine of the angle between eigenvector and span (Parlett 1998). Each value costs a Gauss-Newton
        product: C products for the class means, once these are known. The eigenvalues of G_class alone are smaller, as
        G_cross and G_within have large parts in the same span.
        """
        coefficients = self.span(span)
        found: list[Projections] = []
        for start in range(0, coefficients.shape[1], TOGETHER):
            found += self.project(self._combined(coefficients[:, start : start + TOGETHER]))
        # The vectors are orthonormal up to rounding, which is large in directions that the means nearly share. Their
        # inner products are computed from those with the means, so that only a few vectors are in memory at a time.
        pairs = np.stack([one.pair.reshape(-1).cpu().numpy() for one in found])
        gram = pairs @ coefficients
        curved = np.empty_like(gram)
        for i, one in enumerate(found):
            for j, other in enumerate(found[: i + 1]):
                parts = zip(one.rows, one.single, other.single, strict=True)
                curved[i, j] = curved[j, i] = sum(float((row.weights * s * t).sum()) for row, s, t in parts)
        curved = self._risk.ranks.sum_(torch.from_numpy(curved).to(self.device)).cpu().numpy()
        return np.asarray(scipy.linalg.eigh(curved, (gram + gram.T) / 2, eigvals_only=True)[::-1])

    # Vectors, traces --------------------------------------------------------------------------------------------------

    def project(self, vectors: Tensor) -> list[Projections]:
        """Compute inner products of each column of `vectors` (p, k) with all logit gradients and their means."""
        found = []
        for chosen in torch.split(vectors, TOGETHER, dim=1):
            rows, columns = self._model.pushed([vector.contiguous() for vector in chosen.T])
            found += [Projections(rows, column, self._risk.ranks, self._groups) for column in columns]
        return found

    def trace(self, part: Literal["class", "cross", "within", "same"], *, matvecs: int = 32) -> tuple[float, float]:
        """Return the trace of a part of G and its standard error, 0 if it comes from a Gram matrix.

        Parameters
        ----------
        part : str
            Part of G. The traces of G_class and G_same are exact, and so is that of G_cross once `pair_gram` is
            computed; others are estimated by XTrace.
        matvecs : int
            Number of products for XTrace (`hesspec.krylov.xtrace`); each costs as much as a Gauss-Newton product.
        """
        if part in ("class", "same") or (part == "cross" and "pair_gram" in self.__dict__):
            vectors = self._vectors(part).cpu().numpy()
            if part == "cross":
                return float(np.einsum("ik,ij,jk->", vectors, self.pair_gram, vectors)), 0.0
            side = slice(0, self.classes) if part == "class" else slice(self.classes, None)
            scale = self._off.sum(1) if part == "class" else self._weights.diagonal()
            return float(np.diag(self.class_gram)[side] @ scale.cpu().numpy()), 0.0
        estimate = xtrace(_Product(self, part), matvecs=matvecs)
        return estimate.value, estimate.standard_error

    def within_traces(self, *, probes: int = 32, seed: int = 0) -> tuple[Array, Array]:
        """Estimate the trace of the covariance within each (c, c'), sum_{i in c} w_{i,c'} ||g_{i,c'} - g_{c,c'}||^2.

        A random vector v gives an estimate of all C^2 traces at once, sum_i w_{i,c'} <g_{i,c'} - g_{c,c'}, v>^2
        (Hutchinson 1990), at the cost of half a Gauss-Newton product.

        Returns
        -------
        traces, standard_errors : array (C, C)
            Traces, which sum to the trace of G_within, and their standard errors.
        """
        generator = torch.Generator().manual_seed(check_seed(seed))
        samples = []
        for start in range(0, probes, TOGETHER):
            count = min(TOGETHER, probes - start)
            vectors = torch.randn(self.dimension, count, generator=generator, device="cpu")
            vectors = vectors.to(device=self.device, dtype=self.dtype)
            samples += [within_by_class(found).cpu().numpy() for found in self.project(vectors)]
        mean = np.mean(samples, axis=0)
        return mean, np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))


class _Product:
    """Part of G as an operator that shares all passes with its class structure."""

    def __init__(self, structure: ClassMeans, part: str) -> None:
        self._model, self._coefficients = structure._model, OPERATORS[part].coefficients  # noqa: SLF001
        self.shape = structure.dimension, structure.dimension
        self.dtype, self.device = structure.dtype, structure.device
        self._ranks, self._groups = structure._risk.ranks, structure._groups  # noqa: SLF001

    def __matmul__(self, vectors: Tensor) -> Tensor:
        columns = [vectors] if vectors.dim() == 1 else [column.contiguous() for column in vectors.T]
        products = [self._ranks.sum_(product) for product in self._model.through(columns, self._couple)]
        return products[0] if vectors.dim() == 1 else torch.stack(products, dim=1)

    def _couple(self, rows: Sequence[LogitRows], pushed: Sequence[Tensor]) -> list[Tensor]:
        chosen = self._coefficients(Projections(rows, pushed, self._ranks, self._groups))
        return [row.cotangent(k) for row, k in zip(rows, chosen, strict=True)]


def within_by_class(found: Projections) -> Tensor:
    """Return sum_{i in c} w_{i,c'} <g_{i,c'} - g_{c,c'}, v>^2, (C, C)."""
    own = torch.stack(
        [
            row.by_class(row.weights * (t - row.spread(found.pair, found.groups)) ** 2, found.groups)
            for row, t in zip(found.rows, found.single, strict=True)
        ]
    ).sum(0)
    return found.ranks.sum_(own)
