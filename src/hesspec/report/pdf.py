"""Figures of a study for a paper, one PDF file each."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from hesspec.applications.class_structure.figure import plot_structure
from hesspec.backend.files import atomic_path, safe_name
from hesspec.plot import (
    literal,
    plot_against_samples,
    plot_hessian_against_gauss_newton,
    plot_learning_curves,
    plot_overlaps,
    plot_spectrum,
    plot_tail,
    plot_training,
)
from hesspec.report.across_spectra import pairs_of
from hesspec.report.collection import Collection, Training
from hesspec.report.member import Explained, Member
from hesspec.spectra.spectrum import Spectrum

__all__ = ["OnFigure", "write_figures"]

Tracks = npt.NDArray[np.int64]
Named = tuple[str, Callable[[], Figure]]
OnFigure = Callable[[int, int], None]


def write_figures(
    collection: Collection,
    tracks: Sequence[Tracks | None],
    folder: Path,
    *,
    everywhere: bool = False,
    on_figure: OnFigure | None = None,
) -> list[Path]:
    """Write the figures of every group of a study, each at its largest sample size and last epoch.

    Parameters
    ----------
    collection : Collection
        Content of the study. Spectra without a sample size are skipped, as are class structures and trainings of other
        groups.
    tracks : sequence
        Track numbers of the spectra, from `tracks_of`.
    folder : Path
        Folder for the files, created if it is missing; files of the same names are replaced.
    everywhere : bool
        Whether to write figures for every sample size and epoch as well, with both in their names.
    on_figure : callable, optional
        Called with the numbers of written and of all figures, before the first and after each.

    Returns
    -------
    list of Path
        Files that were written.
    """
    if folder.is_symlink():
        raise NotADirectoryError(
            f"{str(folder)!r} is a symbolic link, but figures are not written elsewhere. Replace it by a folder."
        )
    members = collection.members
    named: list[tuple[_Group, str, Callable[[], Figure]]] = []
    for run in dict.fromkeys(member.run for member in members if member.samples is not None):
        places = [index for index, member in enumerate(members) if member.run == run and member.samples is not None]
        group = _Group(
            [members[index] for index in places],
            [tracks[index] for index in places],
            [item for item in collection.structures if item.run == run],
            [item for item in collection.training if item.run == run],
        )
        named += [(group, name, draw) for name, draw in group.figures(everywhere)]
    written: list[Path] = []
    report = on_figure or (lambda _done, _total: None)
    report(0, len(named))
    for group, name, draw in named:
        path = folder / f"{_unused(group.slug, name, written)}.pdf"
        _save(draw, path)
        written.append(path)
        report(len(written), len(named))
    return written


def _save(draw: Callable[[], Figure], path: Path) -> None:
    with _silent("fontTools"), warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = draw()
        with atomic_path(path) as temporary:
            # Without a date, so that the same spectra give the same file.
            figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Silence fontTools, which logs dozens of lines per figure and warns about old fonts."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _unused(slug: str, name: str, written: Sequence[Path]) -> str:
    """Return a file name that no other group uses: different names may reduce to the same letters."""
    taken, name = {path.stem for path in written}, _safe(name)
    number, found = 1, f"{slug}-{name}"
    while found in taken:
        number += 1
        found = f"{slug}_{number}-{name}"
    return found


def _safe(name: str) -> str:
    """Convert a name to part of a file name, which may have 255 bytes."""
    return safe_name(name)[:100].strip("._")


class _Group:
    """Spectra that differ in sample size, epoch, matrix and split."""

    def __init__(
        self,
        members: Sequence[Member],
        tracks: Sequence[Tracks | None],
        structures: Sequence[Explained],
        training: Sequence[Training],
    ) -> None:
        self.members, self.tracks, self.structures, self.training = members, tracks, structures, training
        self.pairs = pairs_of(members)
        attributes = members[0].spectrum.attributes
        names = [str(attributes.get(name, "")) for name in ("dataset", "network")]
        parts = [part for part in members[0].run.split(" · ") if part and part not in names]
        self.title = " · ".join([*filter(None, names), *parts])
        self.slug = _safe("-".join([*filter(None, names), *parts])) or "spectra"
        self.places = sorted({(member.samples or 0, member.epoch or 0.0) for member in members})
        self.last = max(epoch for _, epoch in self.places)
        # While a study is running, its largest network may not have reached its last epoch.
        self.samples, self.latest = self.places[-1]

    def figures(self, everywhere: bool) -> Iterator[Named]:
        """Figure names, and functions that draw the figures."""
        yield from self._at(self.samples, self.latest)
        yield from self._through_training(self.samples)
        yield from self._over_sizes(self.last)
        if not everywhere:
            return
        for samples, epoch in self.places:
            yield from _named(f"n{samples}-epoch{epoch:g}", self._at(samples, epoch))
        for samples in dict.fromkeys(samples for samples, _ in self.places):
            yield from _named(f"n{samples}", self._through_training(samples))
        for epoch in sorted({epoch for _, epoch in self.places}):
            yield from _named(f"epoch{epoch:g}", self._over_sizes(epoch))

    def _at(self, samples: int, epoch: float) -> Iterator[Named]:
        """Figures of one sample size and epoch."""
        here = {(m.matrix, m.split): m.spectrum for m in self.members if (m.samples, m.epoch) == (samples, epoch)}
        matrices, splits = (dict.fromkeys(names) for names in zip(*here, strict=True))
        where = f"n = {samples}, epoch {epoch:g}"
        for matrix in matrices:
            of_splits = {split: spectrum for (name, split), spectrum in here.items() if name == matrix}
            if matrix == "Hess" or len(matrices) == 1:
                yield f"{matrix}-splits", self._draw(plot_spectrum, of_splits, f"{matrix}, {where}")
        for split in splits:
            of_matrices = {matrix: spectrum for (matrix, name), spectrum in here.items() if name == split}
            if len(of_matrices) > 1:
                yield f"matrices-{split}", self._draw(plot_spectrum, of_matrices, f"{split}, {where}")
            yield f"tails-{split}", self._draw(plot_tail, of_matrices, f"{split}, {where}")
        pairs = {
            split: (here["Hess", split], here["G", split])
            for split in splits
            if {("Hess", split), ("G", split)} <= {*here}
        }
        if pairs:
            yield "Hess-against-G", self._draw(plot_hessian_against_gauss_newton, pairs, where)
        for pair in self.pairs:
            mine = pair.hessian
            if (mine.samples, mine.epoch) == (samples, epoch) and pair.overlaps is not None and pair.overlaps.size:
                words = f"{mine.split}, {where}"
                yield f"overlaps-{mine.split}", self._draw(plot_overlaps, pair.overlaps, words)
        for item in self.structures:
            if (item.samples, item.epoch) == (samples, epoch) and item.structure.class_eigenvalues.size:
                words = f"class structure, {item.split}, {where}"
                gauss_newton = here.get(("G", item.split))
                yield (
                    f"structure-{item.split}",
                    self._draw(plot_structure, item.structure, words, spectrum=gauss_newton),
                )

    def _draw(self, plot: Callable[..., Figure], what: Any, words: str, **more: Any) -> Callable[[], Figure]:
        if isinstance(what, dict):
            what = {literal(name) if isinstance(name, str) else name: value for name, value in what.items()}
        return lambda: plot(what, title=literal(f"{self.title}: {words}", 200), **more)

    def _through_training(self, samples: int) -> Iterator[Named]:
        """Figures of one sample size against the epoch."""
        for item in self.training:
            if item.samples == samples:
                yield "training", self._draw(plot_learning_curves, item.records, f"training, n = {samples}")
        for matrix, split in dict.fromkeys((m.matrix, m.split) for m in self.members):
            found: dict[str, Spectrum] = {}
            numbers: list[Tracks] = []
            for member, mine in zip(self.members, self.tracks, strict=True):
                if (member.matrix, member.split, member.samples) == (matrix, split, samples):
                    found[member.checkpoint] = member.spectrum
                    numbers += [] if mine is None else [mine]
            if len(found) > 1:
                followed = {"tracks": numbers} if len(numbers) == len(found) else {}
                words = f"{matrix}, {split}, n = {samples}"
                yield f"epochs-{matrix}-{split}", self._draw(plot_training, found, words, **followed)

    def _over_sizes(self, epoch: float) -> Iterator[Named]:
        """Figures of one epoch against the sample size."""
        for matrix, split in dict.fromkeys((m.matrix, m.split) for m in self.members):
            found = {
                member.samples: member.spectrum
                for member in self.members
                if (member.matrix, member.split, member.epoch) == (matrix, split, epoch)
            }
            if len(found) > 1:
                words = f"{matrix}, {split}, epoch {epoch:g}"
                yield f"samples-{matrix}-{split}", self._draw(plot_against_samples, found, words)


def _named(place: str, figures: Iterable[Named]) -> Iterator[Named]:
    """Figures with their place in their names."""
    return ((f"{name}-{place}", draw) for name, draw in figures)
