"""What a Krylov run has found so far: all that a snapshot holds of it, besides its operator."""

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
from hesspec.krylov.state import columns, fields, restored, state_of
from hesspec.krylov.storage import Storage, restored_storage
from hesspec.krylov.thick_restart import ThickRestart
from hesspec.krylov.vectors import Space

__all__ = ["RunState", "restored_run"]


@dataclass(kw_only=True)
class _Numbers:
    """Numbers and words of a run; see `RunState`."""

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
    """What a run has found, and the processes at work.

    Attributes
    ----------
    phase : str
        "first", "restart", "bulk" or "others": the one that comes next, or is at work.
    stopped : str
        Why the first probe ended, as text.
    done : int
        Products of steps so far.
    steps : int
        Steps of the first probe.
    exact : bool
        Whether the Krylov spaces filled R^p.
    passes : float
        Number of steps that were reorthogonalised.
    apart : float
        What products differ by from those before a snapshot, relative to their norm.
    first_error, first_product
        Norm of what the first product is off by, and its sketch.
    limit, together : int or None
        What depends on the memory that was free: most steps, and probes in lockstep, where they are chosen.
    exponent : int or None
        Of the scale of the run, see `Scaled`.
    keeping : Storage or int
        How the basis is kept, or the size of one that is restarted.
    pairs : list of RitzPairs
        Of the probes, and after restarts of the bulk's run.
    bulks : list of (array, array)
        Nodes and weights of the bulk, of each probe.
    sketches : list of array
        Of the vectors of the first probe; after restarts of the resolved eigenvectors.
    found : SpectralMeasure or None
        That of the first probe, from the end of its first phase on.
    deflated : KrylovBasis or None
        Resolved eigenvectors that processes are kept orthogonal to.
    top : KrylovBasis or None
        Eigenvectors that were wanted.
    lanczos, restart, group
        The processes at work: of the first probe or the bulk; of restarts; of the other probes.
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
        """The measure of the first probe.

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
        """All of it, as `Snapshot.write` takes it."""
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
        """Raise ValueError where it lacks what its phase has.

        Parameters
        ----------
        width : int
            Numbers of a sketch.
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
    """What `RunState.flat` gave; errors of many kinds where it is something else.

    Parameters
    ----------
    state : dict
        That was read from a file.
    generator : torch.Generator
        Of the run.
    space : Space
    partial : bool
        Whether processes that keep a basis are reorthogonalised where it is needed only.
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
    """The measure, whose arrays belong together."""
    columns(state, "eigenvalues", "error_bounds", "eigenvalue_weights", "eigenvalue_sampled")
    columns(state, "bulk_nodes", "bulk_weights")
    return restored(SpectralMeasure, state)
