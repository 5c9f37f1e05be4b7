"""Hessian of a model with sharded parameters, by central differences of its gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hesspec.backend.ranks import Ranks, collectives_of_model
from hesspec.errors import NonFiniteError
from hesspec.operators.data.fingerprints import octets
from hesspec.operators.data.items import as_pair
from hesspec.operators.model.ambient import OwnRandomness
from hesspec.operators.model.content import architecture, digest, loss_with_settings
from hesspec.operators.model.substitutes import Substitutes, cross_entropy
from hesspec.operators.risk.batches import Batch, Batches
from hesspec.operators.risk.empirical_risk import refuse_active_modules
from hesspec.operators.risk.losses import Loss, LossFunction
from hesspec.operators.risk.outputs import differentiable_outputs
from hesspec.operators.risk.parameters import ParameterSpec, select_parameters
from hesspec.operators.risk.shards import check_share, is_distributed

__all__ = ["ShardedHessian"]

# Displacements that are tried, in units of ||theta||: 0.1 divided by powers of four, until differences between products
# grow again because of rounding. In float64 the best is near eps^(1/3) = 6e-6.
LARGEST, FACTOR, TRIED = 0.1, 4.0, 10

Segment = tuple[int, int]


class ShardedHessian:
    r"""Hessian of the empirical risk of a model that was sharded by `fully_shard` (FSDP2).

    .. math:: \mathrm{Hess}\, v \approx \frac{\nabla L(\theta + h v) - \nabla L(\theta - h v)}{2 h}, \quad \|v\| = 1

    PyTorch has no second derivatives through FSDP2. If a model fits on a device, use `Hessian`, which is exact and as
    fast: here a product takes two gradients. The displacement h is chosen with the first product, as the one at which
    products change least from one displacement to the next. `reference` uses twice the displacement: as long as either
    truncation (h^2) or rounding (1/h) dominates, the error of a product is at most the difference between the two, and
    `hesspec.spectrum` includes it, measured in some steps and doubled, in all bounds.

    Vectors are slices, as for an operator whose data is shared by ranks: of R^p, in the order of
    `model.named_parameters()`, each rank holds the entries `ranks.part(p)`. Parameters are gathered layer by layer as
    in training, never all at once.

    Parameters
    ----------
    model : torch.nn.Module
        Model in evaluation mode, with the selected parameters sharded over one mesh dimension, all in float32 or all in
        float64. Its parameters are unchanged between products.
    loss_fn, params, terms
        See `hesspec.Hessian`. Selected parameters must require a gradient.
    data : iterable of (inputs, targets)
        This rank's share of the data (`hesspec.shard_data(data, group)`), in batches small enough for a gradient in one
        pass. Ranks with fewer batches than others repeat one of theirs with zero weight.

    Attributes
    ----------
    step : float or None
        The displacement h; None before the first product.
    matvecs : int
        Number of products so far.

    Raises
    ------
    ValueError
        If batch norm or dropout is active, the model is not sharded in this way, or data or loss cannot be used.
    NonFiniteError
        In a product, if a loss or a gradient is NaN or infinite; the other ranks raise RankError.
    RankError
        If another rank failed or exited.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Iterable[Any],
        params: ParameterSpec = None,
        *,
        terms: Callable[[Any], float] | None = None,
    ) -> None:
        refuse_active_modules(model)
        # Distributed tensors, as checked below.
        named: dict[str, Any] = dict(select_parameters(model, params))
        for name, value in named.items():
            if not is_distributed(value) or [str(place) for place in value.placements] != ["S(0)"]:
                raise ValueError(
                    f"The parameter {name!r} is not sharded along its first dimension over one group of ranks; shard "
                    "the model with torch.distributed.fsdp.fully_shard(model), over a one-dimensional mesh."
                )
            if not value.requires_grad:
                raise ValueError(
                    f"The parameter {name!r} does not require a gradient; call requires_grad_() before fully_shard."
                )
        self._model, self._named = model, named
        first = next(iter(named.values()))
        self.ranks = Ranks(first.device_mesh.get_group())
        shards = [value.to_local() for value in named.values()]
        self.dtype, self.device = shards[0].dtype, shards[0].device
        if {shard.dtype for shard in shards} - {self.dtype} or self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"The parameters are {', '.join(sorted({str(s.dtype) for s in shards}))}; curvature is measured in "
                "float32 or float64, the same for all parameters."
            )
        self._loss = Loss(loss_fn, terms=terms, device=self.device, dtype=self.dtype)
        check_share(data, self.ranks)
        self._data = OwnRandomness(data)
        self._batches = Batches(data, self._loss, device=self.device, dtype=self.dtype, ranks=self.ranks)
        count = sum(value.numel() for value in named.values())
        self.shape = count, count
        self._layout = _Layout(list(named.values()), count, self.ranks)
        totals = self.ranks.numbers(sum(share > 0 for share in self._batches.shares), self._batches.samples)
        self._passes, self.samples = int(totals[:, 0].max()), int(totals[:, 1].sum())
        self.step: float | None = None
        self.matvecs = 0
        self._value = float("nan")

    @property
    def reference(self) -> _Doubled:
        """The same operator with twice the displacement, to measure the error."""
        return _Doubled(self)

    @property
    def risk(self) -> float:
        """Loss on all data, at the displaced parameters of the last product."""
        return self._value

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """Attributes for the record of a measurement."""
        return {
            "matrix": "Hessian",
            "loss": self._loss.name,
            "reduction": self._loss.reduction,
            "risk": self.risk,
            "samples": self.samples,
            "terms": self._batches.terms,
            "ranks": self.ranks.size,
            "mode": "central differences",
            "displacement": self.step or 0.0,
        }

    def sliced(self) -> ShardedHessian:
        """Return this operator, whose vectors are slices already."""
        return self

    def identity(self) -> dict[str, str]:
        """Content hashes that identify this operator; they do not depend on the number of ranks."""
        return {
            "loss": loss_with_settings(self._loss.function),
            "network": architecture(self._model),
            "parameters": digest([repr((name, tuple(value.shape))) for name, value in self._named.items()]),
            "weights": digest(self._weights()),
            "data": f"{sum(self.ranks.gather(self._batches.digest())) % 2**128:032x}",
        }

    def _weights(self) -> Iterator[bytes]:
        """Content hash of all parameters and buffers, which are gathered one after the other."""
        fixed = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        for value in {**self._named, **fixed}.values():
            yield octets(value.full_tensor() if is_distributed(value) else value)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with the slice of a vector (length,) or of the columns of a matrix (length, k), as slices."""
        columns = [vectors] if vectors.dim() == 1 else list(vectors.T)
        if self.step is None:
            self.step = self._chosen(columns[0])
        products = [self.difference(column, self.step) for column in columns]
        self.matvecs += len(columns)
        return products[0] if vectors.dim() == 1 else torch.stack(products, dim=1)

    def difference(self, vector: Tensor, step: float) -> Tensor:
        """Product with a vector at a displacement of this length; vector and product are slices."""
        length = self.ranks.norm(float(torch.linalg.vector_norm(vector, dtype=torch.float64)))
        if length == 0:
            return torch.zeros_like(vector)
        direction = self._layout.to_shards(vector / length)
        with self._kept():
            forward = self._gradient(direction, step)
            backward = self._gradient(direction, -step)
        # Gradients at neighbouring points are subtracted exactly (Sterbenz); all error is in the gradients themselves.
        return self._layout.to_slice(forward.sub_(backward).mul_(length / (2 * step)))

    def _chosen(self, vector: Tensor) -> float:
        """Choose the displacement at which products with this vector change least from one to the next smaller one."""
        squares = sum(float(value.to_local().detach().double().square().sum()) for value in self._named.values())
        step = LARGEST * (math.sqrt(self.ranks.total(squares)) or 1.0)
        before, best = self.difference(vector, step), (float("inf"), step)
        for _ in range(TRIED):
            step /= FACTOR
            product = self.difference(vector, step)
            change = self.ranks.norm(float(torch.linalg.vector_norm(product - before, dtype=torch.float64)))
            if change > best[0]:
                break
            before, best = product, (change, step)
        return best[1]

    def _gradient(self, direction: Tensor, step: float) -> Tensor:
        """Yield this rank's shards of the gradient of the loss at theta + step direction."""
        at = 0
        with torch.no_grad():
            for value, start in zip(self._named.values(), self._start, strict=True):
                shard = value.to_local()
                shard.copy_(start.add(direction[at : at + shard.numel()].view_as(shard), alpha=step))
                at += shard.numel()
        total, fault = 0.0, None
        # Parameters that are not selected have a gradient, too.
        for value in self._model.parameters():
            value.grad = None
        for batch, share in self._in_step():
            with collectives_of_model():
                loss = self._pass(batch, share)
            total += float(loss)
            if fault is None and not loss.isfinite():
                fault = f"The loss of batch {batch.index} is {float(loss)}; check its inputs and targets."
        shards = []
        for name, value in self._named.items():
            # FSDP2 returns the mean over the ranks.
            gradient = torch.zeros_like(value.to_local()) if value.grad is None else value.grad.to_local()
            if fault is None and not gradient.isfinite().all():
                fault = f"The gradient of {name!r} is not finite."
            shards.append(gradient.reshape(-1) * self.ranks.size)

        def check() -> None:
            if fault is not None:
                raise NonFiniteError(fault)

        self.ranks.together(check)
        self._value = self.ranks.total(total)
        return torch.cat(shards)

    def _pass(self, batch: Batch, share: float) -> Tensor:
        """Return the loss of a batch times its share, and add its gradient to those of the parameters."""
        with torch.enable_grad(), Substitutes({F.cross_entropy: cross_entropy}):
            inputs = batch.inputs
            if isinstance(inputs, dict):
                outputs = self._model(**inputs)
            else:
                outputs = self._model(*inputs) if isinstance(inputs, tuple | list) else self._model(inputs)
            if batch.share:
                loss = self._loss(outputs, batch.targets) * share
            else:
                # Its loss is a mean over zero terms.
                tensors, _ = differentiable_outputs(self._loss.taken(outputs))
                loss = torch.stack([(tensor * 0).sum().to(self.dtype) for tensor in tensors]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _in_step(self) -> Iterator[tuple[Batch, float]]:
        """Yield this rank's batches with their shares, padded by one of them with zero share up to the longest rank."""
        count, last = 0, None
        for batch in self._batches:
            count, last = count + 1, batch
            yield batch, batch.share
        for _ in range(count, self._passes):
            last = self._without_terms() if last is None else last
            yield last, 0.0

    def _without_terms(self) -> Batch:
        """Whether all targets of a batch are ignored, so that it has no share in the loss."""
        inputs, targets = as_pair(0, next(iter(self._data)))

        def placed(leaf: Tensor) -> Tensor:
            return leaf.to(device=self.device, dtype=self.dtype if leaf.is_floating_point() else leaf.dtype)

        return Batch(0, pytree.tree_map_only(Tensor, placed, inputs), targets, 0.0)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Restore parameters and gradients bit for bit afterwards."""
        gradients = {value: value.grad for value in self._model.parameters()}
        self._start = [value.to_local().detach().clone() for value in self._named.values()]
        try:
            yield
        finally:
            with torch.no_grad():
                for value, start in zip(self._named.values(), self._start, strict=True):
                    value.to_local().copy_(start)
                for value, gradient in gradients.items():
                    value.grad = gradient
            self._start = []


class _Doubled:
    """Operator that uses twice the displacement of another one."""

    def __init__(self, operator: ShardedHessian) -> None:
        self._operator = operator

    def __matmul__(self, vector: Tensor) -> Tensor:
        operator = self._operator
        if operator.step is None:
            raise RuntimeError(
                "The displacement is chosen by the operator's first product; compute one before using its reference."
            )
        return operator.difference(vector, 2 * operator.step)


class _Layout:
    """Correspondence between flat vectors in slices of the ranks and shards of the parameters."""

    def __init__(self, values: list[Any], count: int, ranks: Ranks) -> None:
        self._ranks = ranks
        starts = [0, *itertools.accumulate(value.numel() for value in values)]
        sizes = ranks.gather([value.to_local().numel() for value in values])
        self._segments: list[list[Segment]] = [[] for _ in range(ranks.size)]
        for number, start in enumerate(starts[:-1]):
            ends = [start, *(start + end for end in itertools.accumulate(of_rank[number] for of_rank in sizes))]
            for rank, segment in enumerate(itertools.pairwise(ends)):
                self._segments[rank].append(segment)
        length = -(-count // ranks.size)
        self._slices = [(min(r * length, count), min((r + 1) * length, count)) for r in range(ranks.size)]

    def to_shards(self, vector: Tensor) -> Tensor:
        """Yield this rank's shards of a vector, given the slices of all ranks."""
        me = self._ranks.rank
        begin = self._slices[me][0]
        sent = [
            _joined([vector[a - begin : b - begin] for a, b in _common(segments, self._slices[me])], vector)
            for segments in self._segments
        ]
        mine = self._segments[me]
        places = [_common(mine, slice_) for slice_ in self._slices]
        received = self._ranks.exchange(sent, [sum(b - a for a, b in some) for some in places])
        found = torch.empty(sum(b - a for a, b in mine), dtype=vector.dtype, device=vector.device)
        for piece, some in zip(received, places, strict=True):
            for part, (a, b) in zip(torch.split(piece, [b - a for a, b in some]), some, strict=True):
                found[_within(mine, a, b)] = part
        return found

    def to_slice(self, shards: Tensor) -> Tensor:
        """Inverse of `to_shards`."""
        me = self._ranks.rank
        mine = self._segments[me]
        sent = [
            _joined([shards[_within(mine, a, b)] for a, b in _common(mine, slice_)], shards) for slice_ in self._slices
        ]
        begin, end = self._slices[me]
        places = [_common(segments, (begin, end)) for segments in self._segments]
        received = self._ranks.exchange(sent, [sum(b - a for a, b in some) for some in places])
        found = torch.empty(end - begin, dtype=shards.dtype, device=shards.device)
        for piece, some in zip(received, places, strict=True):
            for part, (a, b) in zip(torch.split(piece, [b - a for a, b in some]), some, strict=True):
                found[a - begin : b - begin] = part
        return found


def _common(segments: list[Segment], slice_: Segment) -> list[Segment]:
    """Intersections of the segments with a slice, in order."""
    cut = [(max(a, slice_[0]), min(b, slice_[1])) for a, b in segments]
    return [(a, b) for a, b in cut if a < b]


def _within(segments: list[Segment], a: int, b: int) -> slice:
    """Position of [a, b), which lies in one of the segments, in their concatenation."""
    before = 0
    for begin, end in segments:
        if begin <= a and b <= end:
            return slice(before + a - begin, before + b - begin)
        before += end - begin
    raise IndexError(f"[{a}, {b}) is not in any of the segments.")


def _joined(pieces: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(pieces) if pieces else like[:0]
