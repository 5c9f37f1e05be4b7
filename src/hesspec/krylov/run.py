"""Krylov run of a spectrum: its probes in turn, and snapshots from which it resumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator
from hesspec.backend.numbers import LARGEST_EIGENVALUE
from hesspec.errors import NonFiniteError
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos, check_product
from hesspec.krylov.lanczos_state import rounding_unit
from hesspec.krylov.quadrature import SpectralMeasure, divided, first_block, further_copies, movement, spectral_measure
from hesspec.krylov.requests import Requests, answered
from hesspec.krylov.ritz import Array, clustered_bounds, outermost
from hesspec.krylov.run_state import RunState, restored_run
from hesspec.krylov.scaling import Scaled
from hesspec.krylov.sketch import Sketch
from hesspec.krylov.snapshot import Snapshot
from hesspec.krylov.storage import Storage
from hesspec.krylov.thick_restart import ThickRestart
from hesspec.krylov.vectors import Space

__all__ = ["PARTIAL_FROM", "KrylovRun", "OnStep"]

OnStep = Callable[[int, int | None], None]

# First step at which "auto" checks the measure, and interval of checks, short enough to waste few matvecs.
AUTO_FIRST: Final = 16
AUTO_EVERY: Final = 8
# Full reorthogonalisation reads the basis in every step, which is cheap if it fits into the processor's cache; from
# this p on, partial reorthogonalisation is used.
PARTIAL_FROM: Final = 1 << 18
# The error of the 1st, 2nd, 4th, 8th ... product is measured against the reference; the largest, times this factor, is
# used for all.
NOISE_MARGIN: Final = 2.0
# Number of the largest resolved eigenvalues whose eigenvectors are stored as sketches, 8 KB each.
SKETCHED: Final = 64
# Products computed with different batching, threads or ranks agree to eps to this power times their norm, 1.7e-3 in
# float32. The largest measured difference was 2e-6 (ResNet18, VGG11, a small CNN), but a ReLU whose input is within
# rounding of zero may be active in one and not in the other: float32 and float64 differed by 3.5e-4.
SAME: Final = 0.4


class KrylovRun:
    """Lanczos processes of all probes, and the measure that they yield.

    A run has four phases: the first probe; restarts of its basis; a run for the bulk without a stored basis; the other
    probes. The second and the third only occur if the basis is restarted. Each is a generator that yields vectors and
    is sent their products, so that several runs can advance in lockstep, sharing passes over the data.

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

    """

    def __init__(
        self,
        operator: SymmetricOperator,
        space: Space,
        seed: int,
        keeping: Storage | int,
        steps: int | None,
        probes: int,
        on_step: OnStep | None,
        wanted: int,
        snapshot: Snapshot | None = None,
    ) -> None:
        self._operator, self._space, self._probes, self._wanted = Scaled(operator, space.ranks), space, probes, wanted
        self._seed, self._generator = seed, torch.Generator().manual_seed(seed)
        self._reference = getattr(operator, "reference", None)
        self._given = operator
        self._p = space.size
        self._dtype, self._device = operator.dtype, torch.device(operator.device)
        self._total = None if steps is None else steps * probes
        self._on_step, self._snapshot = on_step, snapshot
        self._sketch = Sketch(space, self._device)
        self._state = RunState(keeping=keeping)
        # Products besides those of steps.
        self._products = 0
        if snapshot is not None and (state := snapshot.read()) is not None:
            self._restore(state, snapshot)

    def multiplied(self, vectors: list[Tensor]) -> list[Any]:
        """Products of the given operator with vectors that the run asks for."""
        if len(vectors) == 1:
            return [self._given @ vectors[0]]
        products: Tensor = self._given @ torch.stack(vectors, dim=1)
        # Scaled columns are contiguous: others have sums that are rounded in another way, so a scaled operator would
        # not have the scaled spectrum number by number.
        return [column.contiguous() for column in products.unbind(dim=1)]

    @property
    def operator(self) -> Scaled:
        """The operator on the scale of the run."""
        return self._operator

    @property
    def space(self) -> Space:
        """R^p, where ranks share its vectors."""
        return self._space

    @property
    def top(self) -> KrylovBasis:
        """Eigenvectors that were wanted, after `first`."""
        return self._state.top or KrylovBasis(self._space, dtype=self._dtype, device=self._device)

    @property
    def keeping(self) -> Storage | int:
        """How the basis is kept: as given, or as it was where a snapshot is resumed."""
        return self._state.keeping

    # Phases -----------------------------------------------------------------------------------------------------------

    def first(self, limit: int, tolerance: float | None) -> Requests[None]:
        """Run the first probe, and free its basis at the end."""
        if self._state.phase == "first":
            yield from self._first(limit, tolerance)
        if self._state.restart is not None:
            yield from self._restarted(self._state.restart)
        if self._state.phase == "bulk":
            yield from self._bulk(limit)

    def _first(self, limit: int, tolerance: float | None) -> Requests[None]:
        state = self._state
        if tolerance is not None:
            limit = state.limit = state.limit or limit
        if state.lanczos is None:
            state.lanczos = self._start(Storage() if isinstance(state.keeping, int) else state.keeping)
        lanczos = state.lanczos
        capacity = min(limit, state.keeping) if isinstance(state.keeping, int) else limit
        state.stopped = yield from self._run_first(lanczos, capacity, tolerance)
        state.steps, state.exact = len(lanczos), lanczos.exhausted
        state.measure = found = spectral_measure(lanczos, self._p, len(lanczos))
        state.pairs.append(first_block(lanczos))
        state.lanczos = None
        if capacity < limit and not lanczos.exhausted and len(lanczos.starts) == 1:
            # Half of the products may be used for restarts.
            state.restart = ThickRestart(lanczos, max(limit // 2, len(lanczos)))
            state.phase = "restart"
            return
        state.bulks.append((found.bulk_nodes, found.bulk_weights))
        if self._wanted:
            largest = np.argsort(-np.abs(found.eigenvalues), kind="stable")[: self._wanted]
            chosen = torch.from_numpy(found.resolved_vectors[:, largest])
            state.top = lanczos.basis.subspace(lanczos.basis.orthonormal(chosen))
        if self._probes > 1 and found.bulk_nodes.size:
            state.deflated = lanczos.basis.subspace(torch.from_numpy(found.resolved_vectors))
        state.phase = "others"

    def _run_first(self, lanczos: Lanczos, limit: int, tolerance: float | None) -> Requests[str]:
        while not lanczos.finished and len(lanczos) < limit:
            self._keep_snapshot()
            # Sketches are linear, so those of Ritz vectors follow from those of Lanczos vectors.
            self._state.sketches.append(self._sketch(lanczos.vector))
            yield from self._advance([lanczos])
            if tolerance is not None and len(lanczos) >= AUTO_FIRST and len(lanczos) % AUTO_EVERY == 0:
                moved = movement(lanczos, self._p)
                if moved <= tolerance:
                    return f"the measure moved by {moved:.2g} of the mean |eigenvalue| since half of the steps"
        if lanczos.exhausted:
            return "the Krylov spaces filled R^p: the spectrum is exact"
        return "all steps done" if tolerance is None else "the basis reached the memory that it may fill"

    def _restarted(self, restart: ThickRestart) -> Requests[None]:
        """Measure the outermost eigenvalues by restarts, without more memory."""
        state = self._state
        while restart.outer is None:
            self._keep_snapshot()
            (image,) = yield from self._multiply([restart.vector])
            restart.step(image)
        outer = restart.outer
        k, floor = len(outer.values), restart.rounding(outer.matvecs)
        state.measure = replace(
            state.measure,
            eigenvalues=outer.values,
            error_bounds=clustered_bounds(outer.values, outer.residuals, floor),
            eigenvalue_weights=np.full(k, 1 / self._p),
            # Further copies are measured by the run for the bulk and by the other probes.
            eigenvalue_sampled=np.zeros(k),
            complete=np.zeros(k, bool),
            again=np.zeros(k, bool),
            norm=max(state.measure.norm, float(np.abs(outer.values).max(initial=0.0))),
            rounding=floor,
            resolved_vectors=np.eye(k),
        )
        state.sketches = [self._sketch(outer.vectors[i]) for i in range(k)]
        if self._wanted:
            largest = np.argsort(-np.abs(outer.values), kind="stable")[: self._wanted]
            state.top = outer.vectors.subspace(torch.eye(k, dtype=torch.float64, device="cpu")[:, largest])
        state.deflated, state.steps = outer.vectors, outer.matvecs
        state.restart, state.phase = None, "bulk"

    def _bulk(self, limit: int) -> Requests[None]:
        """Measure the bulk by a run without a stored basis.

        It is orthogonal to the resolved eigenvectors, along which Lanczos vectors lose orthogonality, and ends when its
        own vectors lose it.
        """
        state = self._state
        if state.lanczos is None:
            state.lanczos = self._start(None, state.deflated)
        bulk = state.lanczos
        while not bulk.finished and state.steps + len(bulk) < limit:
            self._keep_snapshot()
            yield from self._advance([bulk])
        pairs = first_block(bulk)
        state.pairs.append(pairs)
        state.measure = further_copies(state.measure, bulk, pairs)
        state.steps += len(bulk)
        weights = pairs.weights / pairs.weights.sum() * (1 - len(state.measure.eigenvalues) / self._p)
        state.bulks = [(pairs.values, weights)]
        state.stopped = "all steps done"
        if bulk.spent:
            state.stopped = (
                f"the bulk's run, without a basis, lost orthogonality after {len(bulk)} steps; more memory helps"
            )
        state.deflated = state.deflated if self._probes > 1 else None
        state.lanczos, state.phase = None, "others"

    def others(self, together: int) -> Requests[None]:
        """Run the other probes in the complement of the resolved eigenvectors, which leaves a bulk to measure.

        As many as `together` go in lockstep, so that one pass over the data serves all of them.
        """
        state = self._state
        if state.deflated is None:
            return
        together = state.together = state.together or together
        storage = None if isinstance(state.keeping, int) else state.keeping
        nodes, weights = state.bulks[0]
        # After restarts, which used part of the first probe's steps, as many steps as for its bulk.
        steps = state.steps if storage is not None else len(nodes)
        mass = float(weights.sum())
        while (waiting := self._probes - len(state.bulks)) > 0:
            state.group = state.group or [self._start(storage, state.deflated) for _ in range(min(together, waiting))]
            while working := [
                lanczos
                for lanczos in state.group
                if not lanczos.finished and len(lanczos.starts) == 1 and len(lanczos) < steps
            ]:
                self._keep_snapshot()
                yield from self._advance(working)
            for lanczos in state.group:
                pairs = first_block(lanczos)
                state.pairs.append(pairs)
                state.measure = further_copies(state.measure, lanczos, pairs)
                state.bulks.append((pairs.values, pairs.weights / pairs.weights.sum() * mass))
            state.group = []
        self._look_back()

    def _look_back(self) -> None:
        """Recompute the bulk of the first probe with the multiplicities found by the other probes."""
        found, first = self._state.measure, self._state.pairs[0]
        if isinstance(self._state.keeping, int) or found.eigenvalues.size != outermost(first, found.rounding).size:
            # The first probe has no bulk, or multiplicities are known from several of its blocks.
            return
        nodes, weights, sampled = divided(first, self._p, found.rounding, found.complete, found.again)
        self._state.bulks[0] = nodes, weights
        self._state.measure = replace(found, eigenvalue_sampled=sampled)

    def confirm(self) -> Requests[None]:
        """Multiply the first vector once more at the end, and reject an operator that is not a fixed matrix.

        Symmetry is tested during the run, but an operator that drifts can be symmetric at all times. Smaller changes of
        the product are included in all bounds.

        Raises
        ------
        ValueError
            If the product differs from that at the beginning.
        """
        if self._state.first_product is None:
            raise RuntimeError("Nothing was multiplied yet.")
        length, apart, allowed = yield from self._moved(self._state.first_product)
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
        found = self._state.measure
        if apart > rounding_unit(self._dtype) * found.norm:
            # Each product may have changed by this much relative to its norm, which is at most that of the operator.
            moved = apart * math.sqrt(self._state.steps) * (found.norm / length if length > 0 else 1.0)
            self._state.measure = replace(
                found, error_bounds=found.error_bounds + moved, rounding=found.rounding + moved
            )

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
            norm=0.0 if deflated is None else self._state.measure.norm,
            storage=storage,
            partial=partial,
            space=self._space,
        )

    def _advance(self, group: Sequence[Lanczos]) -> Requests[None]:
        """Advance each process by one step, with one product for all of them."""
        vectors = [lanczos.vector for lanczos in group]
        products = yield from self._multiply(vectors)
        for lanczos, vector, product in zip(group, vectors, products, strict=True):
            image = check_product(vector, product)
            passes, error = lanczos.passes, self._error(len(lanczos) + 1, vector, image)
            if self._state.first_product is None:
                self._state.first_product, self._state.first_error = self._sketch(image), error
            lanczos.step(image, error, self._operator.underflow)
            self._state.passes += lanczos.passes - passes

    def _error(self, step: int, vector: Tensor, image: Tensor) -> float:
        """Norm of the error of a product, measured at certain steps if the operator has a reference.

        It is at least the error that the operator states and, after a snapshot, the difference from earlier products.
        """
        # What an operator states may be that of its last product, as of a sum of others.
        relative = max(self._state.apart, float(getattr(self._given, "product_error", 0.0)))
        apart = relative * self._space.norm(image) if relative else 0.0
        if self._reference is None or step & (step - 1):
            return apart
        return max(apart, NOISE_MARGIN * self._space.norm(self._operator.scale(self._reference @ vector) - image))

    def _multiply(self, vectors: list[Tensor]) -> Requests[list[Any]]:
        products = self._operator.scaled((yield vectors))
        for _ in vectors:
            self._state.done += 1
            if self._on_step is not None:
                self._on_step(self._state.done, self._total)
        return products

    # Snapshots --------------------------------------------------------------------------------------------------------

    def _keep_snapshot(self) -> None:
        """Write a snapshot if it is due: before a product, so that all decisions are included."""
        if self._snapshot is not None and self._snapshot.due():
            self._state.exponent = self._operator.exponent
            self._snapshot.write({**self._state.flat(), "generator": self._generator.get_state().numpy()})

    def _restore(self, state: dict[str, Any], snapshot: Snapshot) -> None:
        self._state = snapshot.readable(lambda: self._read(state))
        self._operator.exponent = self._state.exponent
        if self._state.first_product is not None:
            self._compare(self._state.first_product, snapshot)
        if self._on_step is not None:
            self._on_step(self._state.done, self._total)

    def _read(self, state: dict[str, Any]) -> RunState:
        self._generator.set_state(torch.from_numpy(state["generator"]))
        return restored_run(state, self._generator, self._space, partial=self._p >= PARTIAL_FROM)

    def _compare(self, before: npt.NDArray[np.float64], snapshot: Snapshot) -> None:
        """Multiply the first vector of the run again, and reject an operator whose product differs.

        The operator's `identity` does not include code: of a loss function, of a `forward`, of foreign operators.
        Lanczos would continue with any operator without any bound showing it.
        """
        length, apart, allowed = answered(self._moved(before), self.multiplied)

        def refuse() -> None:
            if not apart <= allowed:
                raise snapshot.of_another_run(
                    f"the products of its matrix and of the one here with the first vector, of norm {length:.2g}, "
                    f"are {apart:.2g} apart, of which rounding explains {allowed:.2g}. Where weights and data are the "
                    "same, the code of the network or of the loss is another one"
                )

        self._space.ranks.together(refuse)
        self._state.apart = max(self._state.apart, apart / length if length else 0.0)

    def _moved(self, before: npt.NDArray[np.float64]) -> Requests[tuple[float, float, float]]:
        """Multiply the first vector of the run again: norm of the product, its change, and the allowed rounding."""
        # As created by the run: normalising it again would give a different vector, and a difference that looks like
        # noise.
        generator = torch.Generator().manual_seed(self._seed)
        (image,) = self._operator.scaled((yield [self._start(None, generator=generator).vector]))
        now = self._sketch(image)
        length, apart = float(np.linalg.norm(before)), float(np.linalg.norm(now - before))
        # Each of the two products may have the measured error.
        return length, apart, torch.finfo(self._dtype).eps ** SAME * length + 2 * self._state.first_error

    @property
    def simple(self) -> npt.NDArray[np.bool_]:
        """Whether each eigenvalue of the spectrum is known to have no copies other than those that the spectrum has."""
        found = self._state.measure
        order = np.argsort(-np.abs(found.eigenvalues), kind="stable")
        return np.asarray((found.complete & (np.rint(found.eigenvalue_weights * self._p) == 1))[order])

    # Result -----------------------------------------------------------------------------------------------------------

    def measure(self) -> dict[str, Any]:
        """Measure of all probes: the fields of a `hesspec.Spectrum` except its attributes."""
        state, restore = self._state, self._restored
        found, count = state.measure, len(state.bulks)
        order = np.argsort(-np.abs(found.eigenvalues), kind="stable")
        return {
            "dimension": self._p,
            "eigenvalues": restore(found.eigenvalues[order]),
            "error_bounds": restore(found.error_bounds[order]),
            "eigenvalue_weights": found.eigenvalue_weights[order],
            "eigenvalue_sampled": found.eigenvalue_sampled[order],
            "eigenvector_sketches": self._sketches_of(found, order[:SKETCHED]),
            "bulk_nodes": restore(np.concatenate([nodes for nodes, _ in state.bulks])),
            "bulk_weights": np.concatenate([weights for _, weights in state.bulks]) / count,
            "bulk_probe": np.repeat(np.arange(count), [nodes.size for nodes, _ in state.bulks]),
            "ritz_values": restore(np.concatenate([pairs.values for pairs in state.pairs])),
            "ritz_weights": np.concatenate([pairs.weights for pairs in state.pairs]),
            "ritz_bounds": restore(np.concatenate([pairs.residuals + found.rounding for pairs in state.pairs])),
            "ritz_probe": np.repeat(np.arange(len(state.pairs)), [pairs.values.size for pairs in state.pairs]),
            "norm": float(restore(np.array(found.norm))),
            "rounding": float(restore(np.array(found.rounding))),
            "probes": count,
            "steps": state.steps,
            "matvecs": state.done + self._products,
            "exact": state.exact,
            "stopped": state.stopped,
        }

    @property
    def reorthogonalised_steps(self) -> float:
        """Number of reorthogonalisations against the basis; fractional if against a part of it."""
        return round(self._state.passes, 2)

    def _restored(self, numbers: Array) -> Array:
        """Convert numbers to the scale of the operator.

        Raises
        ------
        NonFiniteError
            If they, or differences and small multiples of them, are too large for float64.
        """
        restored = self._operator.restore(numbers)
        if not (np.abs(restored) <= LARGEST_EIGENVALUE).all():
            raise NonFiniteError(
                f"Eigenvalues of the operator exceed the largest float64, {np.finfo(float).max:.2g}, or come within a "
                "factor of 16 of it, where their differences do; measure the operator divided by 1024 or more."
            )
        return restored

    def _sketches_of(self, found: SpectralMeasure, chosen: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        if not chosen.size:
            return np.empty((0, 0), np.float32)
        sketches = found.resolved_vectors[:, chosen].T @ np.stack(self._state.sketches)
        # In float32, whose rounding is negligible compared with the error of sketches.
        return sketches.astype(np.float32)
