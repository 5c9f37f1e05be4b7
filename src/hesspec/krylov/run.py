"""The Krylov run behind a spectrum: its probes one after the other, and snapshots from which it goes on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.algebra import SymmetricOperator
from hesspec.errors import NonFiniteError
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos, check_product, rounding_unit
from hesspec.krylov.quadrature import Measure, divided, first_block, further_copies, measure, movement
from hesspec.krylov.ritz import Array, RitzPairs, clustered_bounds, outermost
from hesspec.krylov.scaling import Scaled
from hesspec.krylov.sketch import SKETCH, Sketch
from hesspec.krylov.snapshot import Snapshot
from hesspec.krylov.state import columns, fields
from hesspec.krylov.storage import Storage, restored_storage
from hesspec.krylov.thick_restart import ThickRestart
from hesspec.krylov.vectors import Space

__all__ = ["PARTIAL_FROM", "Progress", "Run"]

Progress = Callable[[int, int | None], None]

# "auto" looks at the measure from this step on, and each so many steps: often enough to waste few matvecs.
AUTO_FIRST: Final = 16
AUTO_EVERY: Final = 8
# Reorthogonalising fully reads the basis in every step, which costs less than the rest of a step where it fits into the
# processor's cache; from this p on it is done where it is needed.
PARTIAL_FROM: Final = 1 << 18
# Products whose error is measured, against those of the reference, are the 1st, 2nd, 4th, 8th ...; the largest error
# seen, times this, stands for those of all.
NOISE_MARGIN: Final = 2.0
# Resolved eigenvalues whose eigenvectors are kept as sketches, the largest: 8 KB each.
SKETCHED: Final = 64
# Products of an operator and of the same one with other batches, threads or ranks differ by less than eps to this
# power, in float32 1.7e-3 of their norm. They differed by 2e-6 at most (ResNet18, VGG11, a small CNN), but a ReLU whose
# input is within rounding of zero may pass here and not there: float32 and float64 differed by 3.5e-4.
SAME: Final = 0.4
# Numbers and words that a snapshot holds, and the sketch of the first product, with their types.
KEPT: Final[dict[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("_phase", "_stopped"), str),
    **dict.fromkeys(("_done", "_steps"), int),
    **dict.fromkeys(("_passes", "_apart", "_first_error"), float),
    **dict.fromkeys(("_limit", "_together"), (int, NoneType)),
    "_exact": bool,
    "_exponent": (int, NoneType),
    "_first_product": (np.ndarray, NoneType),
}


class Run:
    """Lanczos processes of all probes, and the measure that they add up to.

    A run has four phases, of which it has the second and the third only where a basis is restarted: the first probe;
    restarts of its basis; a run for the bulk that keeps no basis; the other probes.

    Parameters
    ----------
    operator : SymmetricOperator
        Of a sharded space, multiplied with slices. The run is that of 2^-e times it, see `Scaled`.
    space : Space
    seed : int
    keeping : Storage or int
        How the basis is kept, or the size of one that is restarted.
    steps : int or None
        Of each probe, where it is known.
    probes : int
    on_step : callable, optional
    wanted : int
        Eigenvectors of the largest resolved eigenvalues that are kept, at most.
    snapshot : Snapshot, optional
        From which the run goes on, where there is one, and to which it is written.

    Attributes
    ----------
    top : KrylovBasis
        Eigenvectors that were wanted, after `first`.
    keeping : Storage or int
        As given, or as it was where a snapshot is gone on from.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        space: Space,
        seed: int,
        keeping: Storage | int,
        steps: int | None,
        probes: int,
        on_step: Progress | None,
        wanted: int,
        snapshot: Snapshot | None = None,
    ) -> None:
        self._operator, self._space, self._probes, self._wanted = Scaled(operator, space.ranks), space, probes, wanted
        self._seed, self._generator = seed, torch.Generator().manual_seed(seed)
        self._reference = getattr(operator, "reference", None)
        self._given = operator
        self.keeping, self._p = keeping, space.size
        self._dtype, self._device = operator.dtype, torch.device(operator.device)
        self._total = None if steps is None else steps * probes
        self._on_step, self._snapshot = on_step, snapshot
        self._sketch = Sketch(space, self._device)
        self.top = KrylovBasis(space, dtype=self._dtype, device=self._device)
        # What a snapshot holds, beside the processes at work and the basis of eigenvectors.
        self._phase, self._stopped = "first", ""
        self._done, self._passes, self._steps, self._exact = 0, 0.0, 0, False
        # Products beside those of steps.
        self._products = 0
        self._first_product: npt.NDArray[np.float64] | None = None
        self._first_error, self._apart = 0.0, 0.0
        # What depends on the memory that was free: most steps where their number is not given, and probes in lockstep.
        self._limit: int | None = None
        self._together: int | None = None
        self._pairs: list[RitzPairs] = []
        self._bulks: list[tuple[Array, Array]] = []
        self._sketches: list[npt.NDArray[np.float64]] = []
        # Of the first probe, from the end of its first phase on.
        self._measure: Measure
        self._deflated: KrylovBasis | None = None
        self._lanczos: Lanczos | None = None
        self._restart: ThickRestart | None = None
        self._group: list[Lanczos] = []
        if snapshot is not None and (state := snapshot.read()) is not None:
            self._restore(state, snapshot)

    @property
    def operator(self) -> Scaled:
        """The operator on the scale of the run."""
        return self._operator

    @property
    def space(self) -> Space:
        """R^p, where ranks share its vectors."""
        return self._space

    @property
    def _exponent(self) -> int | None:
        return self._operator.exponent

    @_exponent.setter
    def _exponent(self, exponent: int | None) -> None:
        self._operator.exponent = exponent

    # Phases -----------------------------------------------------------------------------------------------------------

    def first(self, limit: int, tolerance: float | None) -> None:
        """Run the first probe. Its basis goes with the end of it."""
        if self._phase == "first":
            self._first(limit, tolerance)
        if self._restart is not None:
            self._restarted(self._restart)
        if self._phase == "bulk":
            self._bulk(limit)

    def _first(self, limit: int, tolerance: float | None) -> None:
        if tolerance is not None:
            limit = self._limit = self._limit or limit
        if self._lanczos is None:
            self._lanczos = self._start(Storage() if isinstance(self.keeping, int) else self.keeping)
        lanczos = self._lanczos
        capacity = min(limit, self.keeping) if isinstance(self.keeping, int) else limit
        self._stopped = self._run_first(lanczos, capacity, tolerance)
        self._steps, self._exact = len(lanczos), lanczos.exhausted
        self._measure = found = measure(lanczos, self._p, len(lanczos))
        self._pairs.append(first_block(lanczos))
        self._lanczos = None
        if capacity < limit and not lanczos.exhausted and len(lanczos.starts) == 1:
            # Half of the products may go to the restarts.
            self._restart = ThickRestart(lanczos, max(limit // 2, len(lanczos)))
            self._phase = "restart"
            return
        self._bulks.append((found.bulk_nodes, found.bulk_weights))
        if self._wanted:
            largest = np.argsort(-np.abs(found.eigenvalues), kind="stable")[: self._wanted]
            self.top = lanczos.basis.subspace(torch.from_numpy(found.resolved_vectors[:, largest]))
        if self._probes > 1 and found.bulk_nodes.size:
            self._deflated = lanczos.basis.subspace(torch.from_numpy(found.resolved_vectors))
        self._phase = "others"

    def _run_first(self, lanczos: Lanczos, limit: int, tolerance: float | None) -> str:
        while not lanczos.finished and len(lanczos) < limit:
            self._keep_snapshot()
            # Sketches are linear: those of the Lanczos vectors give those of all Ritz vectors.
            self._sketches.append(self._sketch(lanczos.vector))
            self._advance([lanczos])
            if tolerance is not None and len(lanczos) >= AUTO_FIRST and len(lanczos) % AUTO_EVERY == 0:
                moved = movement(lanczos, self._p)
                if moved <= tolerance:
                    return f"the measure moved by {moved:.2g} of the mean |eigenvalue| since half of the steps"
        if lanczos.exhausted:
            return "the Krylov spaces filled R^p: the spectrum is exact"
        return "all steps done" if tolerance is None else "the basis reached the memory that it may fill"

    def _restarted(self, restart: ThickRestart) -> None:
        """Go on without more memory: the outermost eigenvalues by restarts."""
        while restart.outer is None:
            self._keep_snapshot()
            (image,) = self._multiply([restart.vector])
            restart.step(image)
        outer = restart.outer
        k, floor = len(outer.values), restart.rounding(outer.matvecs)
        self._measure = replace(
            self._measure,
            eigenvalues=outer.values,
            error_bounds=clustered_bounds(outer.values, outer.residuals, floor),
            eigenvalue_weights=np.full(k, 1 / self._p),
            # The run for the bulk, and the other probes, measure whatever further copies they have.
            eigenvalue_sampled=np.zeros(k),
            complete=np.zeros(k, bool),
            again=np.zeros(k, bool),
            norm=max(self._measure.norm, float(np.abs(outer.values).max(initial=0.0))),
            rounding=floor,
            resolved_vectors=np.eye(k),
        )
        self._sketches = [self._sketch(outer.vectors[i]) for i in range(k)]
        if self._wanted:
            largest = np.argsort(-np.abs(outer.values), kind="stable")[: self._wanted]
            self.top = outer.vectors.subspace(torch.eye(k, dtype=torch.float64)[:, largest])
        self._deflated, self._steps = outer.vectors, outer.matvecs
        self._restart, self._phase = None, "bulk"

    def _bulk(self, limit: int) -> None:
        """Measure the bulk by a run that keeps nothing.

        It is orthogonal to what is resolved, which is what makes Lanczos vectors lose orthogonality, and ends where its
        own do.
        """
        if self._lanczos is None:
            self._lanczos = self._start(None, self._deflated)
        bulk = self._lanczos
        while not bulk.finished and self._steps + len(bulk) < limit:
            self._keep_snapshot()
            self._advance([bulk])
        pairs = first_block(bulk)
        self._pairs.append(pairs)
        self._measure = further_copies(self._measure, bulk, pairs)
        self._steps += len(bulk)
        weights = pairs.weights / pairs.weights.sum() * (1 - len(self._measure.eigenvalues) / self._p)
        self._bulks = [(pairs.values, weights)]
        self._stopped = "all steps done"
        if bulk.spent:
            self._stopped = (
                f"the bulk's run, without a basis, lost orthogonality after {len(bulk)} steps; more memory helps"
            )
        self._deflated = self._deflated if self._probes > 1 else None
        self._lanczos, self._phase = None, "others"

    def others(self, together: int) -> None:
        """Run the other probes in the complement of the resolved eigenvectors, which leaves a bulk to measure.

        As many as `together` go in lockstep, so that one pass over the data serves all of them.
        """
        if self._deflated is None:
            return
        together = self._together = self._together or together
        storage = None if isinstance(self.keeping, int) else self.keeping
        nodes, weights = self._bulks[0]
        # After restarts, which took their share of the first probe's steps, as many as its bulk was given.
        steps = self._steps if storage is not None else len(nodes)
        mass = float(weights.sum())
        while (waiting := self._probes - len(self._bulks)) > 0:
            self._group = self._group or [self._start(storage, self._deflated) for _ in range(min(together, waiting))]
            while working := [
                lanczos
                for lanczos in self._group
                if not lanczos.finished and len(lanczos.starts) == 1 and len(lanczos) < steps
            ]:
                self._keep_snapshot()
                self._advance(working)
            for lanczos in self._group:
                pairs = first_block(lanczos)
                self._pairs.append(pairs)
                self._measure = further_copies(self._measure, lanczos, pairs)
                self._bulks.append((pairs.values, pairs.weights / pairs.weights.sum() * mass))
            self._group = []
        self._look_back()

    def _look_back(self) -> None:
        """Measure the bulk of the first probe again, with what the others have said of multiplicities."""
        found, first = self._measure, self._pairs[0]
        if isinstance(self.keeping, int) or found.eigenvalues.size != outermost(first, found.rounding).size:
            # What the first probe measured is in no bulk, or is known from several of its blocks.
            return
        nodes, weights, sampled = divided(first, self._p, found.rounding, found.complete, found.again)
        self._bulks[0] = nodes, weights
        self._measure = replace(found, eigenvalue_sampled=sampled)

    def confirm(self) -> None:
        """Multiply the first vector once more, at the end, and refuse an operator that is not one fixed matrix.

        Symmetry is tested along the way, but an operator that drifts can be symmetric at all times. What its product
        moved by, less than that, is part of all bounds.

        Raises
        ------
        ValueError
            If the product is another one than at the beginning.
        """
        if self._first_product is None:
            raise RuntimeError("Nothing was multiplied yet.")
        length, apart, allowed = self._moved(self._first_product)
        self._products += 1

        def refuse() -> None:
            if not apart <= allowed:
                numbers = self._operator.restore(np.array([length, apart, allowed]))
                raise ValueError(
                    "The operator is not one fixed matrix: its product with the first Lanczos vector, of norm "
                    f"{numbers[0]:.3g}, was another one when it was taken again at the end, by {numbers[1]:.2g}, of "
                    f"which rounding explains {numbers[2]:.2g}. Look for randomness or state in what multiplies: "
                    "generators, counters, caches, weights or data that change."
                )

        self._space.ranks.together(refuse)
        found = self._measure
        if apart > rounding_unit(self._dtype) * found.norm:
            # Each product may have moved by as much, relative to its norm, which is at most that of the operator.
            moved = apart * math.sqrt(self._steps) * (found.norm / length if length > 0 else 1.0)
            self._measure = replace(found, error_bounds=found.error_bounds + moved, rounding=found.rounding + moved)

    # Steps ------------------------------------------------------------------------------------------------------------

    def _start(
        self,
        storage: Storage | None,
        deflated: KrylovBasis | None = None,
        generator: torch.Generator | None = None,
    ) -> Lanczos:
        generator = self._generator if generator is None else generator
        start = self._space.random_vector(generator, dtype=self._dtype, device=self._device)
        partial = self._p >= PARTIAL_FROM
        return Lanczos(
            start,
            generator,
            deflated=deflated,
            norm=0.0 if deflated is None else self._measure.norm,
            storage=storage,
            partial=partial,
            space=self._space,
        )

    def _advance(self, group: Sequence[Lanczos]) -> None:
        """One step of each process, with one product for all of them."""
        vectors = [lanczos.vector for lanczos in group]
        for lanczos, vector, product in zip(group, vectors, self._multiply(vectors), strict=True):
            image = check_product(vector, product)
            passes, error = lanczos.passes, self._error(len(lanczos) + 1, vector, image)
            if self._first_product is None:
                self._first_product, self._first_error = self._sketch(image), error
            lanczos.step(image, error, self._operator.underflow)
            self._passes += lanczos.passes - passes

    def _error(self, step: int, vector: Tensor, image: Tensor) -> float:
        """Norm of what the product is off by, where the operator can tell and it is time to ask.

        No less than what the operator states of itself, and, after a snapshot, than products differ from those before.
        """
        # What an operator states may be that of its last product, as of a sum of others.
        relative = max(self._apart, float(getattr(self._given, "product_error", 0.0)))
        apart = relative * self._space.norm(image) if relative else 0.0
        if self._reference is None or step & (step - 1):
            return apart
        return max(apart, NOISE_MARGIN * self._space.norm(self._operator.scale(self._reference @ vector) - image))

    def _multiply(self, vectors: Sequence[Tensor]) -> list[Any]:
        products = self._operator @ (vectors[0] if len(vectors) == 1 else torch.stack(list(vectors), dim=1))
        for _ in vectors:
            self._done += 1
            if self._on_step is not None:
                self._on_step(self._done, self._total)
        return [products] if len(vectors) == 1 else list(products.unbind(dim=1))

    # Snapshots --------------------------------------------------------------------------------------------------------

    def _keep_snapshot(self) -> None:
        """Write a snapshot if it is time: before a product, so that all that was decided is in it."""
        if self._snapshot is not None and self._snapshot.due():
            self._snapshot.write(self._state())

    def _state(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in KEPT},
            "pairs": [dataclasses.asdict(pairs) for pairs in self._pairs],
            "bulks": [list(bulk) for bulk in self._bulks],
            "sketches": np.stack(self._sketches) if self._sketches else None,
            "measure": None if self._phase == "first" else dataclasses.asdict(self._measure),
            "keeping": dataclasses.asdict(self.keeping) if isinstance(self.keeping, Storage) else self.keeping,
            "generator": self._generator.get_state().numpy(),
            "deflated": self._deflated,
            "top": self.top if len(self.top) else None,
            "lanczos": None if self._lanczos is None else self._lanczos.state(),
            "restart": None if self._restart is None else self._restart.state(),
            "group": [lanczos.state() for lanczos in self._group],
        }

    def _restore(self, state: dict[str, Any], snapshot: Snapshot) -> None:
        snapshot.readable(lambda: self._take(state))
        if self._first_product is not None:
            self._compare(self._first_product, snapshot)
        if self._on_step is not None:
            self._on_step(self._done, self._total)

    def _take(self, state: dict[str, Any]) -> None:
        """Take what `_state` gave; errors of many kinds where it is something else."""
        for name, value in fields(state, KEPT).items():
            setattr(self, name, value)
        kept = state["keeping"]
        self.keeping = restored_storage(kept) if isinstance(kept, dict) else fields(state, {"keeping": int})["keeping"]
        self._pairs = [
            RitzPairs(**columns(pairs, "values", "weights", "residuals"), **fields(pairs, {"vectors": np.ndarray}))
            for pairs in fields(state, {"pairs": list})["pairs"]
        ]
        both = [dict(zip(("nodes", "weights"), bulk, strict=True)) for bulk in fields(state, {"bulks": list})["bulks"]]
        self._bulks = [
            (bulk["nodes"], bulk["weights"]) for bulk in (columns(bulk, "nodes", "weights") for bulk in both)
        ]
        sketches = fields(state, {"sketches": (np.ndarray, NoneType)})["sketches"]
        if sketches is not None and sketches.shape[1:] != (min(self._p, SKETCH),):
            raise ValueError(f"its sketches are of the shape {sketches.shape}")
        self._sketches = [] if sketches is None else list(sketches)
        if state["measure"] is not None:
            given, single = state["measure"], {"norm": float, "rounding": float, "resolved_vectors": np.ndarray}
            single |= dict.fromkeys(("complete", "again"), np.ndarray)
            resolved = columns(given, "eigenvalues", "error_bounds", "eigenvalue_weights", "eigenvalue_sampled")
            self._measure = Measure(
                **{**resolved, **columns(given, "bulk_nodes", "bulk_weights")}, **fields(given, single)
            )
        width = min(self._p, SKETCH)
        if self._first_product is not None and self._first_product.shape != (width,):
            raise ValueError(f"its first product has a sketch of the shape {self._first_product.shape}")
        self._generator.set_state(torch.from_numpy(state["generator"]))
        bases = fields(state, {"deflated": (KrylovBasis, NoneType), "top": (KrylovBasis, NoneType)})
        self._deflated, self.top = bases["deflated"], bases["top"] or self.top
        if state["lanczos"] is not None:
            self._lanczos = self._resumed(state["lanczos"])
        if state["restart"] is not None:
            self._restart = ThickRestart.restored(state["restart"], self._space)
        self._group = [self._resumed(lanczos) for lanczos in fields(state, {"group": list})["group"]]
        self._check_phase(known=state["measure"] is not None)

    def _check_phase(self, *, known: bool) -> None:
        """Refuse a state that lacks what its phase has."""
        there = {
            "first": True,
            "restart": self._restart is not None,
            "bulk": self._deflated is not None,
            "others": bool(self._bulks),
        }
        if self._phase not in there or not there[self._phase] or not 0 <= self._steps <= self._done:
            raise ValueError(f"it is not that of a run in its phase {self._phase!r}")
        if (self._first_product is None) != (self._done == 0):
            raise ValueError("it has no first product, or one that was not taken")
        if self._lanczos is not None and self._lanczos.finished:
            raise ValueError("it has a process that has finished")
        if self._phase == "first":
            if len(self._sketches) != (0 if self._lanczos is None else len(self._lanczos)):
                raise ValueError("it has not a sketch for each step")
            return
        shape = len(self._sketches), len(self._measure.eigenvalues) if known else 0
        if not known or not self._pairs or self._measure.resolved_vectors.shape != shape:
            raise ValueError("it has no measure of a first probe")
        flags = self._measure.complete, self._measure.again
        if any(flag.dtype != bool or flag.shape != shape[1:] for flag in flags):
            raise ValueError("it has a measure whose multiplicities make no sense")

    def _compare(self, before: npt.NDArray[np.float64], snapshot: Snapshot) -> None:
        """Multiply the first vector of the run again, and refuse an operator whose product is another one.

        What the operator says of itself (`identity`) leaves out what code does: of a loss function, of a `forward`, of
        operators of others. Lanczos would go on with any, and none of its bounds would tell.
        """
        length, apart, allowed = self._moved(before)

        def refuse() -> None:
            if not apart <= allowed:
                raise snapshot.of_another_run(
                    f"the products of its matrix and of the one here with the first vector, of norm {length:.2g}, "
                    f"are {apart:.2g} apart, of which rounding explains {allowed:.2g}. Where weights and data are the "
                    "same, the code of the network or of the loss is another one"
                )

        self._space.ranks.together(refuse)
        self._apart = max(self._apart, apart / length if length else 0.0)

    def _moved(self, before: npt.NDArray[np.float64]) -> tuple[float, float, float]:
        """Multiply the first vector of the run again: norm of its product, its distance now, and what is rounding."""
        # As the run made it: another division by its norm would be another vector, and its product look like noise.
        generator = torch.Generator().manual_seed(self._seed)
        now = self._sketch(self._operator @ self._start(None, generator=generator).vector)
        length, apart = float(np.linalg.norm(before)), float(np.linalg.norm(now - before))
        # Either product may be off by as much as was measured.
        return length, apart, torch.finfo(self._dtype).eps ** SAME * length + 2 * self._first_error

    def _resumed(self, state: dict[str, Any]) -> Lanczos:
        return Lanczos.restored(
            state,
            self._generator,
            self._space,
            deflated=self._deflated,
            partial=self._p >= PARTIAL_FROM or not state["_keeps"],
            dtype=self._dtype,
            device=self._device,
        )

    @property
    def simple(self) -> npt.NDArray[np.bool_]:
        """Which eigenvalues of the spectrum are known to have no further copies beside those that it has."""
        found = self._measure
        order = np.argsort(-np.abs(found.eigenvalues), kind="stable")
        return np.asarray((found.complete & (np.rint(found.eigenvalue_weights * self._p) == 1))[order])

    # Result -----------------------------------------------------------------------------------------------------------

    def measure(self) -> dict[str, Any]:
        """The measure of all probes: the fields of a `hesspec.Spectrum` but for its attributes."""
        found, count, restore = self._measure, len(self._bulks), self._restored
        order = np.argsort(-np.abs(found.eigenvalues), kind="stable")
        return {
            "dimension": self._p,
            "eigenvalues": restore(found.eigenvalues[order]),
            "error_bounds": restore(found.error_bounds[order]),
            "eigenvalue_weights": found.eigenvalue_weights[order],
            "eigenvalue_sampled": found.eigenvalue_sampled[order],
            "eigenvector_sketches": self._sketches_of(found, order[:SKETCHED]),
            "bulk_nodes": restore(np.concatenate([nodes for nodes, _ in self._bulks])),
            "bulk_weights": np.concatenate([weights for _, weights in self._bulks]) / count,
            "bulk_probe": np.repeat(np.arange(count), [nodes.size for nodes, _ in self._bulks]),
            "ritz_values": restore(np.concatenate([pairs.values for pairs in self._pairs])),
            "ritz_weights": np.concatenate([pairs.weights for pairs in self._pairs]),
            "ritz_bounds": restore(np.concatenate([pairs.residuals + found.rounding for pairs in self._pairs])),
            "ritz_probe": np.repeat(np.arange(len(self._pairs)), [pairs.values.size for pairs in self._pairs]),
            "norm": float(restore(np.array(found.norm))),
            "rounding": float(restore(np.array(found.rounding))),
            "probes": count,
            "steps": self._steps,
            "matvecs": self._done + self._products,
            "exact": self._exact,
            "stopped": self._stopped,
        }

    @property
    def reorthogonalised_steps(self) -> float:
        """Number of steps that were orthogonalised against the basis; a fraction where against part of it."""
        return round(self._passes, 2)

    def _restored(self, numbers: Array) -> Array:
        """Numbers on the scale of the operator.

        Raises
        ------
        NonFiniteError
            If they are too large for float64.
        """
        restored = self._operator.restore(numbers)
        if not np.isfinite(restored).all():
            raise NonFiniteError(
                f"Eigenvalues of the operator exceed the largest float64, {np.finfo(float).max:.2g}, though its "
                "products do not; measure the operator divided by 1024 or more."
            )
        return restored

    def _sketches_of(self, found: Measure, chosen: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        if not chosen.size:
            return np.empty((0, 0), np.float32)
        sketches = found.resolved_vectors[:, chosen].T @ np.stack(self._sketches)
        # In float32, whose rounding is nothing beside the sketches' own error.
        return sketches.astype(np.float32)
