"""Base class of all curvature matrices: a symmetric linear operator on flat vectors."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesspec.backend.algebra import Composable
from hesspec.backend.bars import phase
from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import free_shares
from hesspec.backend.numbers import is_whole
from hesspec.backend.ranks import Ranks
from hesspec.errors import NonFiniteError
from hesspec.operators.data.fingerprints import octets
from hesspec.operators.engine.differences import length
from hesspec.operators.engine.forecast import Forecast, forecast
from hesspec.operators.engine.graph.precision import check_precision
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.engine.linearised import Linearised
from hesspec.operators.engine.passes import MODES, Passes
from hesspec.operators.engine.trace_cost import PRODUCTS
from hesspec.operators.engine.verification import SETTLES
from hesspec.operators.model.ambient import neutral
from hesspec.operators.model.content import architecture, digest, loss_with_settings
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.operators.sliced import Sliced

__all__ = ["CurvatureOperator"]


class CurvatureOperator(Composable, ABC):
    """Symmetric curvature matrix M (p, p) of an empirical risk, given by its products with vectors.

    The constructor reads the data once and computes the loss of a few samples, to detect mismatches between model, loss
    and data, and to find out how the losses of batches add up to that of all data. The first product traces the matrix
    once for each shape of batch and runs the primal pass of every batch. Later products cost only the tangent passes,
    plus the primal passes of batches that do not fit into the cache. Problems that are too small for tracing to pay off
    use double backward.

    Parameters
    ----------
    model : torch.nn.Module
        Any model in evaluation mode, with parameters of one dtype (float32 or float64) on one device. Parameters and
        buffers are copied: later changes to the model do not affect the operator.
    loss_fn : callable
        `loss_fn(outputs, targets)`, a function or a loss module, or `hesspec.closure(function)` of `function(model,
        batch)`. The matrix is that of the loss of all data as one batch: a mean over its terms (samples, tokens that
        are not ignored, masks, class weights), not over batches, or a sum. This is determined from the losses of a few
        samples and of two parts of them. A loss that couples samples is neither: its batches are never split, and
        several batches are weighted by their numbers of samples, with a warning.
    data : iterable
        Any iterable that can be iterated repeatedly and yields the same batches in the same order each time: pairs
        (inputs, targets), mappings with "labels" as from data loaders of transformers, objects with their targets in an
        attribute `y` or `labels`; batches of any structure for a closure. Inputs are a single argument of the model, of
        any structure; a tuple or list contains positional arguments, a mapping keyword arguments. Tensors and NumPy
        arrays are copied to the model's device, floating-point ones to its dtype. Changes to the data between passes
        raise an error that names the change.
    params : optional
        Parameters to differentiate with respect to: names, glob patterns, submodules or parameters. By default all that
        require a gradient.
    terms : callable, optional
        `targets -> number` of terms in the mean of a batch (`batch -> number` for a closure), if it cannot be
        determined from the loss. An error is raised if it contradicts the loss.
    memory : str or int, optional
        Memory for products on the model's device, in addition to model, data and vectors: "8GB", "500MB", "2GiB" or a
        number of bytes. By default half of the free memory when the operator is built. The limit applies to predictions
        from tensor shapes; if memory runs out nevertheless, products continue with smaller caches. The size of the
        caches does not change the results; splitting a batch changes them by rounding.
    precision : {"full", "tf32", "bfloat16"}, optional
        Arithmetic of matrix products and convolutions in a product with a vector: "full" is that of the parameters;
        "tf32" is for CUDA; "bfloat16" uses bfloat16 inputs with everything else, including sums, in float32. The last
        two require float32 parameters, and do not affect the loss, the gradient, or anything else that does not depend
        on the vector. `reference` is the same operator at full precision, to measure the error.
    mode : {"auto", "traced", "double backward", "double backward in place", "differences"}, optional
        How products are computed. "auto" uses the first of the other modes that works, pays off for the number of
        products (see `expect_products`), and passes verification. "differences" are central differences of gradients,
        for models without second derivatives; their error is measured (see `reference`) and included in all bounds of a
        spectrum.
    verify : bool, optional
        Whether to compare a product for a few samples with central differences of first derivatives of the model itself
        before the first product, in float64 if the model can run in it. A mode that disagrees is not used. The
        comparison and its error are recorded in `attributes`.
    batch_statistics : bool, optional
        Allow batch norm in training mode: the loss of each batch then uses its own statistics, and batches are never
        split.
    graphs : GraphCache, optional
        GraphCache shared by operators of the same model at several checkpoints, so that it is traced only once.
    group : torch.distributed.ProcessGroup, optional
        Processes that share the data: each has the same model and passes its own batches as `data`
        (`hesspec.shard_data(data, group)`, or your own split; no sample twice). Every rank builds the operator and
        multiplies it with the same vectors; products are those with the matrix of all data, the same on every rank. An
        error on one rank is raised on all ranks.

    Raises
    ------
    ValueError
        If batch norm or dropout is active; if data is empty, can be iterated only once, or changes between passes; if
        model, loss and data do not match; if `params`, `memory` or `precision` is invalid; if ranks have different
        weights; in the first product, if the precision is not "full" and the model cannot be traced.
    MemoryError
        In the first product, if not even one sample fits into the memory; the message states the required and the
        available memory.
    RankError
        If another rank failed or exited.

    Notes
    -----
    Weight decay is not part of the loss. Parameters that do not influence the loss have zero curvature; a warning lists
    them.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Iterable[Any],
        params: ParameterSpec = None,
        *,
        terms: Callable[[Any], float] | None = None,
        memory: str | int | None = None,
        precision: str = "full",
        mode: str = "auto",
        verify: bool = True,
        batch_statistics: bool = False,
        graphs: GraphCache | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        budget = None if memory is None else parse_memory(memory)
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is not a known mode; use one of {', '.join(map(repr, MODES))}.")
        # Copies made here must support autograd, whatever the caller's mode.
        with torch.inference_mode(mode=False):
            self._risk = EmpiricalRisk(
                model,
                loss_fn,
                data,
                params,
                terms=terms,
                mode=mode,
                verify=verify,
                batch_statistics=batch_statistics,
                group=group,
            )
            self._check_loss()
        check_precision(precision, dtype=self.dtype, device=self.device)
        self._precision = precision
        self._cached_graphs = GraphCache() if graphs is None else graphs
        by_default = free_shares(self.device, self.ranks).products
        self._budget = by_default if budget is None else budget
        self._built: Linearised | None = None
        # Whether the mode is that for the number of products that is expected now.
        self._reconsidered = True
        self._value = 0.0
        mine = float(self._risk.batches.samples), float(len(self._risk.batches))
        self._counts = [int(total) for total in self.ranks.numbers(*mine).sum(0).tolist()]
        self.matvecs = 0
        """Number of products with vectors so far."""

    def _check_loss(self) -> None:
        """Raise ValueError for a loss for which this matrix is not defined."""

    @abstractmethod
    def _passes(self) -> Passes:
        """Return passes that compute M v for a single batch, for timing."""

    @abstractmethod
    def _linearise(self) -> Linearised:
        """Linearise all batches, within this operator's memory and at its precision."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (p, p)."""
        count = self._risk.parameters.count
        return count, count

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters and of all vectors."""
        return self._risk.parameters.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters and of all vectors."""
        return self._risk.parameters.device

    @property
    def reference(self) -> CurvatureOperator | None:
        """The same matrix computed in another way, to measure the error of products; None if there is none.

        If `precision` is not "full", it is the operator at full precision, which shares traces and, where possible,
        caches (for bfloat16 it caches nothing, as only a few products are expected). If products are differences, it
        uses twice the displacement. It has its own `matvecs`.
        """
        built = self._build()
        if self._precision == "full" and built.mode != "differences":
            return None
        other = copy.copy(self)
        other._precision, other.matvecs = "full", 0  # noqa: SLF001 - it is of this class
        exact = self._precision != "full"
        other._built = built.at_full_precision() if exact else built.at_twice_the_displacement()  # noqa: SLF001
        return other

    def expect_products(self, number: int | None) -> None:
        """Say how many products will follow, by which mode="auto" decides whether a trace of the model pays off.

        Functions of hesspec such as `hesspec.spectrum` call this with the number of their products. Numbers of several
        calls add up: a trace that does not pay off for the first of them may do so later, and is then used from the
        next product on. That product is verified as the first one was; products before and after differ by rounding.

        Parameters
        ----------
        number : int or None
            If it is None, 64 are assumed, as for products of which nothing was said.
        """
        if number is not None and not is_whole(number, 0):
            raise ValueError(f"The number of products is {number!r}; it must be a nonnegative integer or None.")
        self._risk.products, self._reconsidered = self._with(number), False

    def _with(self, number: int | None) -> int:
        """Number of products that are expected with so many more."""
        return (self._risk.products or 0) + (PRODUCTS if number is None else int(number))

    def forecast(self, memory: int | None = None, *, devices: int = 1, products: int | None = None) -> Forecast:
        """Predict time and memory of products from one timed batch; nothing is cached.

        Parameters
        ----------
        memory : int, optional
            Memory for products in bytes, instead of this operator's own.
        devices : int
            Number of devices that share the data.
        products : int, optional
            Number of products, as for `expect_products`.

        Raises
        ------
        MemoryError
            If not even one sample fits.
        """
        passes = self._passes()
        passes.products = self._with(products)
        return forecast(self._risk, passes, self._budget if memory is None else memory, devices)

    @property
    def ranks(self) -> Ranks:
        """Processes that share the data."""
        return self._risk.ranks

    @property
    def samples(self) -> int:
        """Number of samples in all batches of all ranks."""
        return self._counts[0]

    @property
    def batches(self) -> int:
        """Number of batches on all ranks."""
        return self._counts[1]

    @property
    def model(self) -> nn.Module:
        """The user's model, without wrappers."""
        return self._risk.module

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the selected parameters, in the order of flat vectors."""
        return self._risk.parameters.names

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the selected parameters by name, in the order of flat vectors; complex ones as pairs of reals."""
        return dict(zip(self.names, self._risk.parameters.shapes, strict=True))

    @property
    def risk(self) -> float:
        """Loss on all data at this point."""
        self._build()
        return self._value

    @property
    def product_error(self) -> float:
        """Error of products relative to their norm, in addition to the rounding of their dtype.

        It is measured by verification, and is nonzero if the error exceeds ordinary rounding, for example if a model
        computes in bfloat16.
        """
        return self._build().error

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """Attributes for the record of a measurement."""
        risk, built = self._risk, self._build()
        shared = {} if self.ranks.size == 1 else {"ranks": self.ranks.size}
        # Of a label for each sample: those at positions, such as words, are no classes of samples.
        classes = risk.batches.classes if risk.batches.terms == self.samples else None
        return {
            **shared,
            **({} if classes is None else {"classes": classes}),
            **({"params": risk.parameters.words} if risk.parameters.words else {}),
            "matrix": type(self).__name__,
            "loss": risk.loss.name,
            "reduction": risk.loss.reduction,
            "risk": self._value,
            "samples": self.samples,
            "terms": risk.batches.terms,
            "batches": self.batches,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "mode": built.mode,
            "mode_reason": built.reason,
            "product_error": built.error,
            "precision": self._precision,
            "kept_batches": built.kept_batches,
            "kept_bytes": built.kept_bytes,
            "predicted_peak_bytes": built.predicted_peak,
            "build_seconds": built.seconds,
        }

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with a vector (p,) or with the columns of a matrix (p, k), of this dtype and on this device.

        Raises
        ------
        ValueError
            If shape, dtype or device differs.
        NonFiniteError
            If the product contains NaN or infinity; the message names the batch and the parameter.
        """
        self._check(vectors)
        if not vectors.numel():
            return vectors.clone()
        with neutral():
            given = vectors.clone() if vectors.is_inference() else vectors
            columns = [given] if given.dim() == 1 else [column.contiguous() for column in given.T]
            products = [self.ranks.sum_(product) for product in self.partial_products(columns)]
            return products[0] if given.dim() == 1 else torch.stack(products, dim=1)

    def partial_products(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """Compute this rank's part of M v for each flat vector (p,), the same on all ranks; the parts sum to M v.

        Raises
        ------
        NonFiniteError
            If a part contains NaN or infinity; the other ranks raise RankError.
        """
        built = self._build()
        products = built.products(columns)
        place = _not_finite(products)
        if place and _not_finite(built.products(list(map(_at_most_one, columns)))):
            # It does not overflow. Forward over reverse may divide zero by zero where double backward does not (the
            # determinant of a matrix with equal singular values), and that where differences do not (functions of
            # equal eigenvalues).
            while all(column.isfinite().all() for column in columns) and built.avoid_infinities():
                products = built.products(columns)
                place = _not_finite(products)
                if not place:
                    break
            if built.mode == "differences" and not place:
                _check_steady(products, built.at_twice_the_displacement().products(columns))
        self.matvecs += len(columns)

        def check() -> None:
            if place:
                column = columns[place - 1]
                if not column.isfinite().all():
                    raise NonFiniteError("The vector contains NaN or infinity; the product cannot be computed.")
                raise built.diagnose(column)

        self.ranks.together(check)
        return products

    def sliced(self) -> CurvatureOperator | Sliced:
        """Return the operator on slices of vectors, one for each rank; with one rank, the operator itself."""
        return self if self.ranks.size == 1 else Sliced(self)

    def identity(self) -> dict[str, str]:
        """Content hashes that identify this operator; they do not depend on batching or the number of ranks."""
        risk = self._risk
        return {
            "matrix": type(self).__name__,
            "loss": loss_with_settings(risk.loss.function),
            "network": architecture(risk.model),
            "parameters": digest([repr((name, tuple(value.shape))) for name, value in risk.named()]),
            "weights": digest([octets(value) for _, value in risk.named()]),
            "data": f"{sum(self.ranks.gather(risk.batches.digest())) % 2**128:032x}",
            "precision": self._precision,
        }

    def to_named(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a flat vector (p,) with the shapes and names of the parameters."""
        return self._risk.parameters.to_named(vector)

    def to_flat(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return the flat vector (p,) of tensors with the names and shapes of the parameters."""
        return self._risk.parameters.to_flat(named)

    def entries_of(self, names: Sequence[str]) -> Tensor:
        """Return the indices of parameters in flat vectors, (n,) int64, ascending.

        Parameters
        ----------
        names : sequence of str
            Names or glob patterns ("features.*.weight") of selected parameters.

        Raises
        ------
        ValueError
            If a name or pattern matches none of them.
        """
        return self._risk.parameters.entries_of(names)

    def __repr__(self) -> str:
        """Matrix, size, dtype, device and data."""
        risk = self._risk
        return (
            f"{type(self).__name__}({self.shape[0]:,} parameters of {type(risk.model).__name__}, {risk.loss.name} over "
            f"{self.samples:,} samples, {self.dtype}, {self.device})"
        )

    def _build(self) -> Linearised:
        if self._built is None:
            phase("reading the data")
            with neutral():
                self._built = self.ranks.together(self._linearise)
            self._value = self.ranks.total(self._built.value)
        elif not self._reconsidered:
            with neutral():
                self.ranks.together(self._built.reconsider)
        self._reconsidered = True
        return self._built

    def _check(self, vectors: Tensor) -> None:
        p = self.shape[0]
        if not isinstance(vectors, Tensor):
            raise ValueError(
                f"The operator takes tensors, not {type(vectors).__name__}; for NumPy arrays use .to_scipy()."
            )
        if vectors.dim() not in (1, 2) or vectors.shape[0] != p:
            raise ValueError(f"The operator takes shapes ({p},) and ({p}, k), not {tuple(vectors.shape)}.")
        if vectors.dtype != self.dtype or vectors.device != self.device:
            raise ValueError(
                f"The operator is {self.dtype} on {self.device}, the vector {vectors.dtype} on {vectors.device}; "
                "convert it with vector.to(operator.device, operator.dtype)."
            )


def _not_finite(products: Sequence[Tensor]) -> int:
    """Number, starting at 1, of the first product that is not finite; 0 if all are finite."""
    # One wait for the device, whatever the number of products.
    sums = torch.stack([product.sum() for product in products]).tolist()
    for place, (product, total) in enumerate(zip(products, sums, strict=True), 1):
        # A sum is finite only if every entry is; the second check rules out that the sum itself overflows.
        if not math.isfinite(total) and not product.isfinite().all():
            return place
    return 0


def _at_most_one(vector: Tensor) -> Tensor:
    """The vector in units of its largest entry."""
    return vector / vector.abs().max().clamp(min=torch.finfo(vector.dtype).tiny)


def _check_steady(products: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Raise NonFiniteError where differences, taken where double backward is not finite, depend on the displacement."""
    change = max(length([a - b]) / max(length([a]), 1e-300) for a, b in zip(products, others, strict=True))
    if not change <= SETTLES:
        raise NonFiniteError(
            "The matvec is not finite, though loss and gradient are, and differences of gradients change by "
            f"{change:.0%} of themselves with twice the displacement: the loss has no second derivative at these "
            "parameters. Look for powers below 2, square roots and norms of zero."
        )
