"""What all curvature matrices have in common: a symmetric linear operator on flat vectors."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesspec.algebra import Composable
from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import free_shares
from hesspec.backend.ranks import Ranks
from hesspec.errors import NonFiniteError
from hesspec.operators.data.fingerprints import octets
from hesspec.operators.engine.forecast import Forecast, forecast
from hesspec.operators.engine.graph.precision import check_precision
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.engine.matrix_passes import CurvatureForm, MatrixPasses
from hesspec.operators.engine.passes import MODES, Passes
from hesspec.operators.engine.streaming import LinearisedRisk
from hesspec.operators.model.ambient import neutral_modes
from hesspec.operators.model.content import architecture, digest, loss_with_settings
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.operators.sliced import Sliced

__all__ = ["CurvatureOperator", "Linearised", "SumOverBatches"]


class Linearised(Protocol):
    """Products of a matrix over all batches: `LinearisedRisk`, or what has its interface."""

    value: float
    seconds: float
    predicted_peak: int

    @property
    def mode(self) -> str:
        """How products are had."""

    @property
    def reason(self) -> str:
        """Why."""

    @property
    def error(self) -> float:
        """Error of products, relative to their norm, beyond the rounding of their dtype."""

    @property
    def kept_batches(self) -> int:
        """Number of batches, or parts of them, whose primal passes are kept."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of these."""

    def step_down(self, why: str) -> None:
        """Compute products in the next way."""

    def at_full_precision(self) -> Self:
        """The same matrix at full precision."""

    def at_twice_the_displacement(self) -> Self:
        """The same matrix with differences over twice the displacement."""

    def products(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """M v for each flat vector (p,)."""

    def diagnose(self, vector: Tensor) -> NonFiniteError:
        """Where M v is NaN or infinite."""


class CurvatureOperator(Composable, ABC):
    """Curvature matrix M of an empirical risk, (p, p) and symmetric, known by its products with vectors.

    Building it reads the data once, and computes the loss of a few samples: what does not belong together is told
    there, and how the losses of batches add up to that of all data. The first product traces the matrix once for each
    shape of batch and runs the primal pass of every batch; from then on a product costs the tangent passes only, and
    the primal passes of those batches that the memory has no room to keep. Problems too small for a trace to pay are
    multiplied by double backward.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, in evaluation mode, with parameters of one dtype (float32 or float64) on one device. The operator is
        the curvature at the parameters (and buffers) that it has now: they are copied.
    loss_fn : callable
        `loss_fn(outputs, targets)`, a function or a loss module, or `hesspec.closure(function)` of
        `function(model, batch)`. The matrix is that of the loss of all data as one batch: a mean over its terms
        (samples, tokens that are not ignored, masks, class weights), not over batches, or a sum. Which it is is told
        from the losses of a few samples and of two parts of them. A loss that couples samples is neither: its batches
        are never cut, and several of them are weighted by their numbers of samples, with a warning.
    data : iterable
        Anything that can be iterated again and gives the same batches in the same order each time: pairs
        (inputs, targets), mappings with "labels" as data loaders of transformers give them, objects with their targets
        in an attribute `y` or `labels`; of any structure for a closure. Inputs are one argument of the model, of any
        structure; a tuple or list is its positional arguments, a mapping its keyword arguments. Tensors and NumPy
        arrays are copied to the model's device, floating-point ones to its dtype. What happens to the data's own memory
        later does not matter where a batch is kept, and is an error that names the change where it is read again.
    params : optional
        Names, glob patterns, submodules or parameters to differentiate by; by default all that require a gradient.
    terms : callable, optional
        `targets -> number` of terms that the mean of a batch is over (of the batch, for a closure), where the loss does
        not tell. An error if it contradicts the loss.
    memory : str or int, optional
        What the products may take on the model's device, beside model, data and vectors: "8GB", "500MB", "2GiB" or a
        number of bytes. By default half of what is free there when the operator is built. It bounds predictions from
        the shapes of all tensors; where memory runs out all the same, products go on with less. How much is kept does
        not change them; where a batch has to be split, they change by rounding.
    precision : {"full", "tf32", "bfloat16"}, optional
        Arithmetic of the matrix products and convolutions of a product with a vector: that of the parameters; TF32, on
        CUDA; or bfloat16 inputs with everything else, sums included, in float32. The last two are for float32, and
        leave out loss, gradient and whatever else does not depend on the vector. `reference` is the same operator at
        full precision, to measure the noise by.
    mode : {"auto", "traced", "double backward", "double backward in place", "differences"}, optional
        How products are computed. "auto" takes the first of the others that can be computed, pays, and is verified.
        "differences" are central differences of gradients, for models without second derivatives; their error is
        measured (see `reference`) and is part of all bounds of a spectrum.
    verify : bool, optional
        Whether, before the first product, one with the parameters and a few samples is compared with central
        differences of first derivatives of the model itself, in float64 where it can be run in that. A way of computing
        products that disagrees is not taken. What was compared, and how far apart it was, is in `attributes`.
    batch_statistics : bool, optional
        Allow batch norm in training mode: the loss of each batch is then that with its own statistics, and batches are
        never cut into parts.
    graphs : GraphCache, optional
        What operators of the same model at several checkpoints share, so that it is traced once.
    group : torch.distributed.ProcessGroup, optional
        Processes that share the data: each of them has the same model, and gives its own batches as `data`
        (`hesspec.shard_data(data, group)`, or a share of your own; no sample twice). Every rank builds the operator,
        and multiplies it with the same vectors: products are those with the matrix of all data, the same on every rank.
        What fails on one rank is raised on all of them.

    Raises
    ------
    ValueError
        If batch norm or dropout is active; if data is empty, can be iterated once only, or changes between passes; if
        model, loss and data do not belong together; if parameters, memory or precision cannot be used; if ranks have
        different weights; with the first product, if the precision is not "full" and the model cannot be traced.
    MemoryError
        With the first product, if not even one sample fits into the memory; the message gives both numbers.
    RankError
        If another rank failed, or is gone.

    Notes
    -----
    Weight decay is not part of the loss. Parameters that do not influence the loss have zero curvature; a warning
    lists them.
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
            raise ValueError(f"mode={mode!r} is not a known mode; it is one of {', '.join(map(repr, MODES))}.")
        # What is copied here must be fit for autograd, whatever the caller's mode is.
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
        self._value = 0.0
        mine = float(self._risk.batches.samples), float(len(self._risk.batches))
        self._counts = [int(total) for total in self.ranks.numbers(*mine).sum(0).tolist()]
        self.matvecs = 0
        """Number of products with a vector so far."""

    def _check_loss(self) -> None:
        """Raise ValueError for a loss that this matrix is not of."""

    @abstractmethod
    def _passes(self) -> Passes:
        """Passes that leave v -> M v of one batch by itself, to time."""

    @abstractmethod
    def _linearise(self) -> Linearised:
        """All batches, within this operator's memory and at its precision."""

    @property
    def shape(self) -> tuple[int, int]:
        """(p, p)."""
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
        """The same matrix, computed in another way that tells how far off products are; None where there is none.

        At full precision where `precision` is less, sharing traces and, as far as possible, kept passes (for bfloat16
        it keeps none: it is meant for few products); with differences over twice the displacement where products are
        differences. It counts its own `matvecs`.
        """
        built = self._build()
        if self._precision == "full" and built.mode != "differences":
            return None
        other = copy.copy(self)
        other._precision, other.matvecs = "full", 0  # noqa: SLF001 - it is of this class
        exact = self._precision != "full"
        other._built = built.at_full_precision() if exact else built.at_twice_the_displacement()  # noqa: SLF001
        return other

    def forecast(self, memory: int | None = None, *, devices: int = 1) -> Forecast:
        """What products take, from one timed batch; nothing of it is kept.

        Parameters
        ----------
        memory : int, optional
            Bytes that products may take, in place of this operator's own.
        devices : int
            Number of devices that the data is spread over.

        Raises
        ------
        MemoryError
            If not even one sample fits.
        """
        return forecast(self._risk, self._passes(), self._budget if memory is None else memory, devices)

    @property
    def ranks(self) -> Ranks:
        """The processes that share the data."""
        return self._risk.ranks

    @property
    def samples(self) -> int:
        """Number of samples in all batches, those of all ranks."""
        return self._counts[0]

    @property
    def batches(self) -> int:
        """Number of batches, those of all ranks."""
        return self._counts[1]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the selected parameters, in the order in which flat vectors hold them."""
        return self._risk.parameters.names

    @property
    def risk(self) -> float:
        """The loss of all data at this point."""
        self._build()
        return self._value

    @property
    def product_error(self) -> float:
        """What products may be off by, relative to their norm, apart from the rounding of their dtype.

        It is measured in the verification, and is not zero where that found more than rounding leaves in general, as
        where a model computes in bfloat16.
        """
        return self._build().error

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """What this operator is, for the record of a measurement."""
        risk, built = self._risk, self._build()
        shared = {} if self.ranks.size == 1 else {"ranks": self.ranks.size}
        return {
            **shared,
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
            If shape, dtype or device is another.
        NonFiniteError
            If the product holds NaN or infinity; the message names the batch and the parameter.
        """
        self._check(vectors)
        with _neutral():
            given = vectors.clone() if vectors.is_inference() else vectors
            columns = [given] if given.dim() == 1 else [column.contiguous() for column in given.T]
            products = [self.ranks.sum_(product) for product in self.partial_products(columns)]
            return products[0] if given.dim() == 1 else torch.stack(products, dim=1)

    def partial_products(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """Part, of this rank, of M v for each flat vector (p,), which all ranks give alike; the parts add up to M v.

        Raises
        ------
        NonFiniteError
            If a part holds NaN or infinity; RankError on the other ranks.
        """
        built = self._build()
        products = built.products(columns)
        # Forward over reverse may divide zero by zero where double backward does not (the determinant of a matrix with
        # equal singular values).
        if built.mode == "traced" and self._precision == "full" and _not_finite(products):
            built.step_down("its product is not finite")
            products = built.products(columns)
        self.matvecs += len(columns)

        def check() -> None:
            if place := _not_finite(products):
                column = columns[place - 1]
                if not column.isfinite().all():
                    raise NonFiniteError("The vector that the operator was to be multiplied with is not finite.")
                raise built.diagnose(column)

        self.ranks.together(check)
        return products

    def sliced(self) -> CurvatureOperator | Sliced:
        """The operator on the slices of vectors that the ranks have; itself where there is one rank."""
        return self if self.ranks.size == 1 else Sliced(self)

    def identity(self) -> dict[str, str]:
        """What this operator is, by its content: the same for the same, whatever the batches and the ranks."""
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
        """Views of a flat vector (p,), shaped and named as the parameters are."""
        return self._risk.parameters.to_named(vector)

    def to_flat(self, named: Mapping[str, Tensor]) -> Tensor:
        """Flat vector (p,) of tensors named and shaped as the parameters are."""
        return self._risk.parameters.to_flat(named)

    def entries_of(self, names: Sequence[str]) -> Tensor:
        """Entries of flat vectors that belong to parameters, (n,) of int64, in ascending order.

        Parameters
        ----------
        names : sequence of str
            Names or glob patterns ("features.*.weight") of selected parameters.

        Raises
        ------
        ValueError
            If one matches none of them.
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
            with _neutral():
                self._built = self.ranks.together(self._linearise)
            self._value = self.ranks.total(self._built.value)
        return self._built

    def _check(self, vectors: Tensor) -> None:
        p = self.shape[0]
        if not isinstance(vectors, Tensor):
            raise ValueError(
                f"The operator takes tensors, not {type(vectors).__name__}; for NumPy arrays there is .to_scipy()."
            )
        if vectors.dim() not in (1, 2) or vectors.shape[0] != p:
            raise ValueError(f"The operator takes shapes ({p},) and ({p}, k), not {tuple(vectors.shape)}.")
        if vectors.dtype != self.dtype or vectors.device != self.device:
            raise ValueError(
                f"The operator is {self.dtype} on {self.device}, the vector {vectors.dtype} on {vectors.device}; "
                "convert it with vector.to(operator.device, operator.dtype)."
            )


def _not_finite(products: Sequence[Tensor]) -> int:
    """Number, from 1 on, of the first product that is not finite; 0 where all are."""
    for place, product in enumerate(products, 1):
        # A sum is finite only if every entry is, unless it overflows itself, which the second look rules out.
        if not math.isfinite(product.sum()) and not product.isfinite().all():
            return place
    return 0


def _neutral() -> AbstractContextManager[object]:
    """Neutral modes of PyTorch, where the caller has set others."""
    usual = not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
    if usual and not (torch.cuda.is_available() and torch.is_autocast_enabled("cuda")):
        return nullcontext()
    return neutral_modes()


class SumOverBatches(CurvatureOperator):
    """A curvature matrix that is a sum of matrices of the batches; see `CurvatureOperator`."""

    _form: CurvatureForm
    """The matrix of one batch. Apart from the operator: what products keep must not keep the operator alive."""

    def _passes(self) -> MatrixPasses:
        return MatrixPasses(self._risk, self._form, self._precision, self._cached_graphs)

    def _linearise(self) -> LinearisedRisk:
        return LinearisedRisk(self._risk, self._form, self._budget, self._precision, self._cached_graphs)
