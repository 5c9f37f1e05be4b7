"""State of a Krylov run: everything that a snapshot contains, apart from the operator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.quadrature import SpectralMeasure
from hesspec.krylov.ritz import Array, RitzPairs
from hesspec.krylov.sketch import SKETCH
from hesspec.krylov.state_dicts import columns, fields, restored, state_of
from hesspec.krylov.storage import Storage, restored_storage
from hesspec.krylov.thick_restart import ThickRestart
from hesspec.krylov.vectors import Space

__all__ = ["RunState", "restored_run"]


@dataclass(kw_only=True)
class _Numbers:
    """Numbers and strings of a run; see `RunState`."""

    phase: str = "first"
    stopped: str = ""
    done: int = 0
    steps: int = 0
    exact: bool = False
    passes: float = 0.0
    apart: float = 0.0
    first_error: float = 0.0
    first_product: npt.NDArray[np.float64] | None = None
    limit: int | None = None
    together: int | None = None
    exponent: int | None = None


@dataclass(kw_only=True)
class RunState(_Numbers):
    """Results of a run so far, and its active processes.

    Attributes
    ----------
    phase : str
        Current or next phase: "first", "restart", "bulk" or "others".
    stopped : str
        Why the first probe ended, as text.
    done : int
        Number of products in steps so far.
    steps : int
        Number of steps of the first probe.
    exact : bool
        Whether the Krylov spaces filled R^p.
    passes : float
        Number of reorthogonalised steps.
    apart : float
        Difference of products from those before a snapshot, relative to their norm.
    first_error, first_product
        Norm of the error of the first product, and its sketch.
    limit, together : int or None
        Choices that depend on free memory: largest number of steps, and number of probes in lockstep.
    exponent : int or None
        Exponent of the scale of the run, see `Scaled`.
    keeping : Storage or int
        Storage of the basis, or the size of a restarted one.
    pairs : list of RitzPairs
        Ritz pairs of the probes and, after restarts, of the run for the bulk.
    bulks : list of (array, array)
        Nodes and weights of the bulk for each probe.
    sketches : list of array
        Sketches of the vectors of the first probe; after restarts, of the resolved eigenvectors.
    found : SpectralMeasure or None
        Measure of the first probe, once its first phase has ended.
    deflated : KrylovBasis or None
        Resolved eigenvectors to which processes are kept orthogonal.
    top : KrylovBasis or None
        Requested eigenvectors.
    lanczos, restart, group
        Active processes: of the first probe or the bulk; of restarts; of the other probes.
    """

    keeping: Storage | int
    pairs: list[RitzPairs] = field(default_factory=list)
    bulks: list[tuple[Array, Array]] = field(default_factory=list)
    sketches: list[Array] = field(default_factory=list)
    found: SpectralMeasure | None = None
    deflated: KrylovBasis | None = None
    top: KrylovBasis | None = None
    lanczos: Lanczos | None = None
    restart: ThickRestart | None = None
    group: list[Lanczos] = field(default_factory=list)

    @property
    def measure(self) -> SpectralMeasure:
        """Measure of the first probe.

        Raises
        ------
        RuntimeError
            Before the end of its first phase.
        """
        if self.found is None:
            raise RuntimeError("Nothing was measured yet.")
        return self.found

    @measure.setter
    def measure(self, found: SpectralMeasure) -> None:
        self.found = found

    def flat(self) -> dict[str, Any]:
        """Return the state in the form that `Snapshot.write` accepts."""
        return {
            **{item.name: getattr(self, item.name) for item in dataclasses.fields(_Numbers)},
            "keeping": state_of(self.keeping) if isinstance(self.keeping, Storage) else self.keeping,
            "pairs": [state_of(pairs) for pairs in self.pairs],
            "bulks": [list(bulk) for bulk in self.bulks],
            "sketches": np.stack(self.sketches) if self.sketches else None,
            "measure": None if self.found is None else state_of(self.found),
            "deflated": self.deflated,
            "top": self.top,
            "lanczos": None if self.lanczos is None else self.lanczos.state(),
            "restart": None if self.restart is None else self.restart.state(),
            "group": [lanczos.state() for lanczos in self.group],
        }

    def check(self, width: int) -> None:
        """Raise ValueError if the state is inconsistent with its phase.

        Parameters
        ----------
        width : int
            Length of a sketch.
        """
        there = {
            "first": True,
            "restart": self.restart is not None,
            "bulk": self.deflated is not None,
            "others": bool(self.bulks),
        }
        if self.phase not in there or not there[self.phase] or not 0 <= self.steps <= self.done:
            raise ValueError(f"it is not that of a run in its phase {self.phase!r}")
        if (self.first_product is None) != (self.done == 0):
            raise ValueError("it has no first product, or one that was not taken")
        if self.first_product is not None and self.first_product.shape != (width,):
            raise ValueError(f"its first product has a sketch of the shape {self.first_product.shape}")
        if self.lanczos is not None and self.lanczos.finished:
            raise ValueError("it has a process that has finished")
        if self.phase == "first":
            if len(self.sketches) != (0 if self.lanczos is None else len(self.lanczos)):
                raise ValueError("it has not a sketch for each step")
            return
        shape = len(self.sketches), 0 if self.found is None else len(self.found.eigenvalues)
        if self.found is None or not self.pairs or self.found.resolved_vectors.shape != shape:
            raise ValueError("it has no measure of a first probe")
        flags = self.found.complete, self.found.again
        if any(flag.dtype != bool or flag.shape != shape[1:] for flag in flags):
            raise ValueError("it has a measure whose multiplicities make no sense")


def restored_run(state: Any, generator: torch.Generator, space: Space, *, partial: bool) -> RunState:
    """Restore a run from the result of `RunState.flat`; raises errors of many kinds if the state is invalid.

    Parameters
    ----------
    state : dict
        State that was read from a file.
    generator : torch.Generator
        Generator of the run.
    space : Space
    partial : bool
        Whether processes with a stored basis use partial reorthogonalisation.
    """
    numbers = restored(_Numbers, state)
    entries = fields(
        state,
        {
            "keeping": (dict, int),
            **dict.fromkeys(("pairs", "bulks", "group"), list),
            "sketches": (np.ndarray, NoneType),
            **dict.fromkeys(("measure", "lanczos", "restart"), (dict, NoneType)),
            **dict.fromkeys(("deflated", "top"), (KrylovBasis, NoneType)),
        },
    )
    keeping, sketches, deflated = entries["keeping"], entries["sketches"], entries["deflated"]
    width = min(space.size, SKETCH)
    if sketches is not None and sketches.shape[1:] != (width,):
        raise ValueError(f"its sketches are of the shape {sketches.shape}")

    def process(of: Any) -> Lanczos:
        return Lanczos.restored(of, generator, space, deflated=deflated, partial=partial)

    found = RunState(
        **vars(numbers),
        keeping=restored_storage(keeping) if isinstance(keeping, dict) else keeping,
        pairs=[_pairs(pairs) for pairs in entries["pairs"]],
        bulks=[_bulk(bulk) for bulk in entries["bulks"]],
        sketches=[] if sketches is None else list(sketches),
        found=None if entries["measure"] is None else _measure(entries["measure"]),
        deflated=deflated,
        top=entries["top"],
        lanczos=None if entries["lanczos"] is None else process(entries["lanczos"]),
        restart=None if entries["restart"] is None else ThickRestart.restored(entries["restart"], space),
        group=[process(lanczos) for lanczos in entries["group"]],
    )
    found.check(width)
    return found


def _pairs(state: Any) -> RitzPairs:
    return RitzPairs(**columns(state, "values", "weights", "residuals"), **fields(state, {"vectors": np.ndarray}))


def _bulk(state: Any) -> tuple[Array, Array]:
    both = columns(dict(zip(("nodes", "weights"), state, strict=True)), "nodes", "weights")
    return both["nodes"], both["weights"]


def _measure(state: Any) -> SpectralMeasure:
    """Return the measure, after checking that its arrays match."""
    columns(state, "eigenvalues", "error_bounds", "eigenvalue_weights", "eigenvalue_sampled")
    columns(state, "bulk_nodes", "bulk_weights")
    return restored(SpectralMeasure, state)
