"""Passes over all batches within a memory budget, and products of curvature matrices with vectors."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from hesspec.backend.arithmetic import float32_sums, full_float32
from hesspec.backend.heap import Hold, from_heap
from hesspec.backend.memory import BudgetError, in_words, is_out_of_memory, release
from hesspec.backend.user_warnings import warn
from hesspec.errors import NonFiniteError
from hesspec.operators.engine.budget import PassBytes
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.engine.matrix_passes import CurvatureForm, MatrixPasses
from hesspec.operators.engine.passes import Passes
from hesspec.operators.engine.replay import recorded, recorder_for, without_graphs
from hesspec.operators.engine.splitting import ADVICE, cut_to_fit, even, most_parts
from hesspec.operators.engine.within import BlockEntries, discrepancy, product_within
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk, loss_not_finite

__all__ = ["KeptPasses", "LinearisedRisk"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

BY_ITSELF = " With mode='auto' the other modes are tried."

# Smaller passes are left to the C library, which keeps blocks up to this size by itself (mallopt(3)).
LARGE = 32 << 20

# A batch or a part of one: index of the batch and number of the part.
Place = tuple[int, int]


class Kept(NamedTuple):
    """Cached primal pass."""

    share: float
    size: PassBytes
    apply: Any


class KeptPasses:
    """Primal passes of all batches of a risk, cached as far as memory allows and recomputed otherwise.

    The first primal passes are cached, as many as fit into the budget together with the running pass. The others are
    recomputed in every pass over the data and shared by all vectors of the pass. A batch whose passes do not fit into
    the budget is split into parts along its samples. If memory runs out nevertheless, half of the cached primal passes
    are dropped, then half of the rest, and so on, then batches are split into halves, and the failed pass is repeated.
    Sums are always taken in the order of the data: the size of the cache does not change a single bit of a product.

    Parameters
    ----------
    risk : EmpiricalRisk
    passes : Passes
    budget : int
        Memory for cached primal passes and the running pass together, in bytes.

    Attributes
    ----------
    value : float
        The risk at this point.
    seconds : float
        Time that the set-up took.
    predicted_peak : int
        Predicted peak memory of passes in bytes, including the cache.

    Raises
    ------
    ValueError
        If the model draws random numbers in its forward pass, or cannot be traced and the precision requires it.
    NonFiniteError
        If the loss of a batch is NaN or infinite.
    MemoryError
        If not even one sample fits.
    """

    def __init__(self, risk: EmpiricalRisk, passes: Passes, budget: int) -> None:
        # From the first passes on, whose memory the next ones reuse.
        self._hold = Hold() if risk.parameters.device.type == "cpu" else None
        self._start(risk, passes, budget)

    def _start(self, risk: EmpiricalRisk, passes: Passes, budget: int) -> None:
        self._risk, self._budget = risk, budget
        self._device = risk.parameters.device
        self._passes = passes
        self._full = passes if passes.precision == "full" else passes.at_full_precision()
        self._kept: dict[Place, Kept] = {}
        # Number of parts of each batch, and the largest possible number.
        self._parts = dict.fromkeys(range(len(risk.batches)), 1)
        self._most = dict(enumerate(risk.batches.sizes))
        self._places = 0
        # What parts of one size share, of all sizes; what is known of it before parts are cut.
        self._shared_bytes = self._shared_by_others = 0
        self._need = 0
        # What was dropped when memory ran out, and the number of primal passes that may still be cached.
        self._steps: list[str] = []
        self._allowed = math.inf
        self._unused: set[str] = set()
        self.value, self.seconds, self.predicted_peak = 0.0, 0.0, 0
        start = time.perf_counter()
        self._surviving(self._prepare)
        if self.predicted_peak < LARGE:
            self._hold = None
        self.seconds = time.perf_counter() - start
        logger.info("%s: %s, in %.2f s", self.mode, self.reason, self.seconds)
        if self._places and len(self._unused) == len(risk.parameters.names):
            raise ValueError(
                "None of the selected parameters influences the loss. Its graph may be cut, as by .detach(), "
                "torch.no_grad(), .item() or argmax in the model or the loss: loss.backward() must give gradients."
            )
        if self._unused and risk.ranks.rank == 0:
            shown = ", ".join(name for name in risk.parameters.names if name in self._unused)
            warn(f"These parameters do not influence the loss; their curvature is zero: {shown}.")

    def __del__(self) -> None:
        """Drop the cached passes first: releasing the hold returns free memory to the system."""
        self.__dict__.pop("_kept", None)
        self.__dict__.pop("_hold", None)

    @property
    def mode(self) -> str:
        """Mode in use: "traced" or "double backward"."""
        return self._passes.mode

    @property
    def reason(self) -> str:
        """Reason for the mode, size of the cache, and what was dropped when memory ran out, as text."""
        batches = len(self._risk.batches)
        whole = f"{batches} batches" if self._places <= batches else f"{self._places} parts of {batches} batches"
        kept = f"primal passes cached for {len(self._kept)} of {whole}, {in_words(self.kept_bytes)}"
        peak = f"predicted peak {in_words(self.predicted_peak)}"
        return "; ".join([self._passes.reason, kept, peak, *self._steps])

    @property
    def error(self) -> float:
        """Error of products relative to their norm, from verification, if it exceeds rounding."""
        return self._full.error

    def avoid_infinities(self) -> bool:
        """After a product that is not finite, switch to the next mode and return True, if that may help."""
        passes = self._full
        if self._passes is not passes or self._risk.mode != "auto" or passes.mode == passes.ways[-1] or self._fault():
            return False
        passes.step_down("its product is not finite")
        self._surviving(self._prepare)
        return True

    def reconsider(self) -> None:
        """Trace after all, if that pays off for the number of products that is expected now."""
        if self._full.reconsider():
            self._surviving(self._prepare)
            logger.info("%s: %s", self.mode, self.reason)

    @property
    def kept_batches(self) -> int:
        """Number of batches, or parts of them, whose primal passes are cached."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the cached primal passes."""
        return sum(kept.size.kept for kept in self._kept.values())

    @property
    def _held_bytes(self) -> int:
        """Bytes that are held between products."""
        return self._shared_bytes + self.kept_bytes

    def at_full_precision(self) -> Self:
        """Return the same matrix at full precision, with the same traces.

        If only the arithmetic of products differs (TF32), cached primal passes are shared, too; otherwise nothing is
        cached for it.
        """
        other = copy.copy(self)
        other._passes = self._full  # noqa: SLF001
        if self._passes.precision == "bfloat16":
            other._kept, other._parts = {}, dict(self._parts)  # noqa: SLF001
        else:
            # Graphs of the device hold the arithmetic in which they were recorded.
            other._kept = self._without_graphs()  # noqa: SLF001
        return other

    def _without_graphs(self) -> dict[Place, Kept]:
        return {place: kept._replace(apply=without_graphs(kept.apply)) for place, kept in self._kept.items()}

    def at_twice_the_displacement(self) -> Self:
        """Return the same matrix with differences over twice the displacement."""
        other = copy.copy(self)
        other._passes, other._kept = self._passes.at_twice_the_displacement(), {}  # noqa: SLF001
        return other

    def emptied(self) -> Self:
        """Return a copy without cached primal passes, of which `again` makes others."""
        other = copy.copy(self)
        other._kept = {}  # noqa: SLF001 - it is of this class
        return other

    def again(self, risk: EmpiricalRisk) -> Self:
        """Return the same products of another risk, such as `EmpiricalRisk.again`.

        Of batches whose shapes are known, nothing is traced, predicted or verified again, and the mode is the same,
        unless a trace pays off by now.
        """
        other, passes = copy.copy(self), self._passes.at(risk)
        passes.reconsider()
        other._start(risk, passes, self._budget)  # noqa: SLF001 - it is of this class
        return other

    def _fault(self) -> NonFiniteError | None:
        """Return the batch and the parameter where the gradient is NaN or infinite, if any."""
        for batch in self._risk.batches:
            for part in self._cut(batch):
                if (fault := self._risk.fault(part)) is not None:
                    return fault
        return None

    def _arithmetic(self) -> AbstractContextManager[None]:
        if self._passes.precision == "bfloat16" and self._device.type == "cuda":
            return float32_sums()
        return full_float32(tf32=True) if self._passes.precision == "tf32" else nullcontext()

    def _applications(self) -> Iterator[tuple[int, float, Any]]:
        """Yield index, share and primal pass of every batch or part, in the order of the data."""
        # Cached passes always come first in the data.
        for (index, _), kept in self._kept.items():
            yield index, kept.share, kept.apply
        if len(self._kept) < self._places:
            for batch in self._risk.batches:
                for number, part in enumerate(self._cut(batch)):
                    if (batch.index, number) not in self._kept:
                        yield batch.index, part.share, self._passes.build(part).apply

    def _prepare(self) -> None:
        """Split batches that are too large, run every primal pass once, and cache the first ones."""
        self._kept.clear()
        self._places, self.value, self.predicted_peak = 0, 0.0, 0
        self._unused = set(self._risk.parameters.names)
        final = max((index for index, share in enumerate(self._risk.batches.shares) if share), default=-1)
        # Largest memory so far: of recomputed parts, of tangent passes, and shared by parts of one size.
        streamed = tangent = 0
        shared: dict[int, int] = {}
        for batch in self._risk.batches:
            parts = self._fitting(batch)
            if not self._places:
                while not self._full.settle(parts[0]):
                    parts = self._fitting(batch)
            if not self._full.settle(min(parts, key=lambda part: part.samples)):
                # What was computed so far is of the way that is given up.
                self._prepare()
                return
            for number, part in enumerate(parts):
                size = self._bytes(part)
                shared[part.samples] = size.shared
                self._shared_bytes = sum(shared.values())
                while self._kept and self._held_bytes + max(streamed, size.streamed) > self._budget:
                    _, given_up = self._kept.popitem()
                    streamed = max(streamed, given_up.size.streamed)
                self.predicted_peak = max(self.predicted_peak, self._held_bytes + size.primal)
                apply = self._first(part)
                tangent = max(tangent, size.tangent)
                # Later parts may be recomputed in every pass, in addition to the cache.
                follows = batch.index < final or number + 1 < len(parts)
                need = self._held_bytes + size.kept + max(tangent, size.streamed if follows else 0)
                if not streamed and need <= self._budget and len(self._kept) < self._allowed:
                    self._kept[batch.index, number] = Kept(part.share, size, apply)
                else:
                    streamed = max(streamed, size.streamed)
                self._places += 1
        self.predicted_peak = max(self.predicted_peak, self._held_bytes + max(tangent, streamed))
        others = self._shared_bytes - min(shared.values(), default=0)
        if self.predicted_peak > self._budget and others > self._shared_by_others:
            # Parts of several sizes, each of which was cut as if it were the only one.
            self._shared_by_others = others
            self._prepare()
            return
        graphs = tangent + 2 * self._risk.parameters.count * self._risk.parameters.dtype.itemsize
        if self.predicted_peak + graphs <= self._budget and (recorder := recorder_for(self._device)):
            self._kept = {
                place: kept._replace(apply=recorded(kept.apply, recorder)) for place, kept in self._kept.items()
            }
            self.predicted_peak += graphs

    def _first(self, part: Batch) -> Any:
        """Run the first primal pass of a batch or part, and record its properties."""
        value, apply, unused = self._passes.build(part)
        if not value.isfinite():
            raise loss_not_finite(part, value)
        self.value += part.share * float(value)
        self._unused &= set(unused)
        return apply

    def _bytes(self, part: Batch) -> PassBytes:
        """Bytes of the passes over a part, including those of the operator at full precision."""
        size = self._passes.bytes(part)
        if self._full is not self._passes:
            size = size._replace(primal=max(size.primal, self._full.bytes(part).streamed))
        self._need = size.least
        return size

    def _cut(self, batch: Batch) -> list[Batch]:
        return self._risk.batches.split(batch, self._parts[batch.index])

    def _fitting(self, batch: Batch) -> list[Batch]:
        """Split a batch into few equal parts that are predicted to fit into the budget."""
        index = batch.index
        self._most[index] = most_parts(batch)
        self._parts[index], parts = cut_to_fit(
            self._risk,
            batch,
            self._parts[index],
            lambda part: self._bytes(part).least,
            self._budget - self._shared_by_others,
        )
        return parts

    def _surviving(self, attempt: Callable[[], T]) -> T:
        """Return the result of an attempt, repeated with a smaller cache or smaller parts if memory runs out."""
        while True:
            try:
                # Verification included, which compares products to rounding.
                with full_float32(), from_heap() if self._hold else nullcontext():
                    return attempt()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                name = type(error).__name__
            # Only here, since the traceback of the error keeps all tensors of the attempt alive.
            release(self._device)
            self._step_down(name)

    def _step_down(self, name: str) -> None:
        self._kept = self._without_graphs()
        if self._kept:
            self._allowed = len(self._kept) // 2
            step = f"cached primal passes reduced from {len(self._kept)} to {self._allowed}"
            while len(self._kept) > self._allowed:
                self._kept.popitem()
        else:
            finer = {
                index: even(min(2 * count, self._most[index]), self._most[index])
                for index, count in self._parts.items()
            }
            if finer == self._parts:
                raise BudgetError(
                    f"Memory ran out ({name}) although nothing is cached and batches are split into samples, one "
                    f"of which is predicted to need {in_words(self._need)} in addition to the model; the budget is "
                    f"{in_words(self._budget)}. {ADVICE}"
                )
            self._allowed = 0
            self._parts.update(finer)
            self._places = sum(finer.values())
            step = f"batches split into {max(finer.values())} parts"
        self._steps.append(f"out of memory ({name}): {step}")
        logger.warning("out of memory (%s): %s", name, step)
        release(self._device)


class LinearisedRisk(KeptPasses):
    """Products M v for a curvature matrix M that is a sum over batches; see `KeptPasses`.

    Parameters
    ----------
    risk : EmpiricalRisk
    form : CurvatureForm
    budget : int
        Bytes that kept primal passes and the pass at work may take together.
    precision : str
        Precision of products: "full", "tf32" or "bfloat16".
    graphs : GraphCache, optional
        Where traces are kept.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        form: CurvatureForm,
        budget: int,
        precision: str = "full",
        graphs: GraphCache | None = None,
    ) -> None:
        super().__init__(risk, MatrixPasses(risk, form, precision, graphs), budget)

    def products(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Compute M v for each flat vector (p,), in one pass over the data."""
        return self._risk.ranks.together(lambda: self._surviving(lambda: self._pass(vectors)))

    def block_products(self, blocks: Sequence[BlockEntries], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Compute M_bb v for a vector (q,) of each block, in one pass over the data."""
        return self._risk.ranks.together(lambda: self._surviving(lambda: self._block_pass(blocks, vectors)))

    def block_discrepancy(self, block: BlockEntries) -> float:
        """Relative difference of a product of a block from that part of the whole product, in the first batch."""

        def apart() -> float:
            first = next(self._applications(), None)
            with torch.no_grad(), self._arithmetic():
                return 0.0 if first is None else discrepancy(first[2], self._risk.parameters, block.places)

        return self._surviving(apart)

    def _block_pass(self, blocks: Sequence[BlockEntries], vectors: Sequence[Tensor]) -> list[Tensor]:
        parameters = self._risk.parameters
        split = [block.tangents(parameters, vector) for block, vector in zip(blocks, vectors, strict=True)]
        results = [torch.zeros_like(vector) for vector in vectors]
        for _, share, apply in self._applications():
            with torch.no_grad(), self._arithmetic():
                for block, tangents, total in zip(blocks, split, results, strict=True):
                    parts = product_within(apply, parameters, block.places, tangents)
                    total.add_(block.collected(parts), alpha=share)
        return results

    def diagnose(self, vector: Tensor) -> NonFiniteError:
        """Find the batch and the parameter where M v is NaN or infinite."""
        return self._surviving(lambda: self._diagnose(vector))

    def _pass(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        parameters = self._risk.parameters
        split = [parameters.split(vector) for vector in vectors]
        results: list[Tensor] = []
        sums: list[tuple[Tensor, ...]] = []
        for _, share, apply in self._applications():
            begun = len(results) == len(vectors)
            with torch.no_grad(), self._arithmetic():
                if begun and not sums:
                    sums = [parameters.split(result) for result in results]
                for place, tangents in enumerate(split):
                    parts = apply(tangents)
                    # Small networks have many parameters with few entries: use one operation for all of them.
                    if begun:
                        torch._foreach_add_(sums[place], tuple(parts), alpha=share)
                    else:
                        flat = torch.cat([part.reshape(-1) for part in parts])
                        results.append(flat if share == 1 else flat.mul_(share))
        return results or [torch.zeros_like(vector) for vector in vectors]

    def _diagnose(self, vector: Tensor) -> NonFiniteError:
        fault = self._fault()
        if fault is not None:
            return fault
        names = self._risk.parameters.names
        tangents = self._risk.parameters.split(vector)
        for index, _, apply in self._applications():
            with torch.no_grad(), self._arithmetic():
                for name, entry in zip(names, apply(tangents), strict=True):
                    if not entry.isfinite().all():
                        return NonFiniteError(
                            f"The matvec is not finite in batch {index}, parameter {name!r}; loss and gradient are."
                            f"{BY_ITSELF if self._risk.mode != 'auto' else ''}"
                        )
        return NonFiniteError("The sum of the batches' matvecs is not finite, although each of them is: it overflows.")
