"""HTML page of a report: a self-contained file that runs only its own scripts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hesspec.backend.files import write_bytes
from hesspec.matrices import DEFAULT_MATRICES, MATRICES, symbol_of
from hesspec.report.across_spectra import tracks_of
from hesspec.report.application_results import result_sections
from hesspec.report.collection import Collection, read_folder
from hesspec.report.figure_data import spectrum_data
from hesspec.report.markup import rendered
from hesspec.report.member import distinct
from hesspec.report.payload import Tracks, first_shown, has_several, payload
from hesspec.report.pdf import OnFigure, write_figures
from hesspec.report.run_tables import checkpoint_table, details, facts, listed, run_table
from hesspec.report.sentences import (
    glance,
    heading,
    not_measured,
    outlier_table,
    overview,
    sentence,
    unmeasured,
)
from hesspec.report.structure_section import structure_tables

__all__ = ["Report", "write_report"]

logger = logging.getLogger(__name__)

# Largest number of files with two tables each; more files share one table with a row each.
MANY_FILES = 40
# Modules of the page's script, in the order in which they build on one another; they share one scope.
SCRIPT = (
    "common",
    "state",
    "figures",
    "spectrum",
    "across_spectra",
    "training",
    "class_structure",
    "tables",
    "address",
    "controls",
    "main",
)
# Sections of the page, with the names of the template's values that say whether they are there.
SECTIONS = (
    ("spectra-title", "Spectrum", "has_spectra"),
    ("runs-title", "Runs", "runs"),
    ("dynamics-title", "Through training", "has_dynamics"),
    ("samples-title", "Against sample size", "has_samples"),
    ("pairs-title", "Hess against G", "has_pairs"),
    ("training-title", "Training", "training"),
    ("outliers-title", "Outliers", "has_spectra"),
    ("structure-title", "Class structure", "structures"),
    ("further-title", "Further results", "application_results"),
    ("numbers-title", "In numbers", "has_spectra"),
    ("run-title", "What was run", "collection"),
)


def write_report(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    figures: Literal["last", "all"] | None = None,
) -> Path:
    """Write one self-contained HTML page of all spectra below a folder, which opens offline.

    Parameters
    ----------
    folder : path
        Every `*.nc` in it and in its subfolders is read as a result of hesspec, and every `training.json`
        as a list of records, one for each epoch, with the keys `epoch`, `train_loss`, `train_error`, `test_loss`,
        `test_error` and `learning_rate` (losses in nats, errors as fractions). Files that cannot be read are named on
        the page, and logged as warnings. If there is a `study.yaml`, the folder is that of a study; if subfolders have
        one, the page shows all of these studies.
    path : path, optional
        Name of the page; by default `report.html` in the folder. It is written atomically.
    figures : {"last", "all"}, optional
        Also write figures of studies as PDF, to the folder `figures` next to the page: those at the largest sample size
        and the last epoch, or those at all sample sizes and epochs. Each takes about a second.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    NotADirectoryError
        If the folder does not exist, or `figures` is a symbolic link.
    ValueError
        If it contains no readable results and no `study.yaml`, or `figures` is another word. For a study that has not
        measured anything yet, the page shows the progress of its trainings.
    OSError
        If the page or a figure cannot be written.
    """
    if figures not in (None, "last", "all"):
        raise ValueError(f'figures={figures!r} is not a choice of figures. Use "last", "all" or None.')
    report = Report(folder, path)
    page = report.write()
    if figures is not None:
        report.write_figures(everywhere=figures == "all")
    return page


class Report:
    """Report on a folder, whose page is written before its figures.

    Parameters
    ----------
    folder, path
        See `write_report`.
    """

    def __init__(self, folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> None:
        self._source = Path(folder)
        if not self._source.is_dir():
            raise NotADirectoryError(f"There is no folder {str(self._source)!r} to report on.")
        self._target = self._source / "report.html" if path is None else Path(path)
        self._collection, self._data = _drawn(read_folder(self._source))
        self._tracks = tracks_of(self._collection.members)

    @property
    def unread(self) -> list[str]:
        """Names of the files that could not be read."""
        return [str(self._source / file) for file, _ in self._collection.unread]

    def write(self) -> Path:
        """Write the page, and log the names of files that could not be read."""
        text = _rendered(self._collection, self._data, self._tracks, self._source.resolve().name)
        # Names of files that are not UTF-8 are shown with escapes.
        write_bytes(self._target, text.encode("utf-8", "backslashreplace"))
        for file, reason in self._collection.unread:
            logger.warning("left out of the report: %r: %s", str(self._source / file), " ".join(reason.split()))
        return self._target

    def write_figures(self, *, everywhere: bool, on_figure: OnFigure | None = None) -> list[Path]:
        """Write the figures of studies as PDF, to the folder `figures` next to the page."""
        folder = self._target.parent / "figures"
        return write_figures(self._collection, self._tracks, folder, everywhere=everywhere, on_figure=on_figure)


def _drawn(collection: Collection) -> tuple[Collection, list[dict[str, Any]]]:
    """Return what can be drawn of a collection, and the data of each spectrum; list the others as unread."""
    members, drawn, unread = [], [], [*collection.unread]
    for member in collection.members:
        try:
            with np.errstate(all="ignore"):  # infinities are not valid JSON
                data = {"glance": glance(member), **spectrum_data(member, None)}
            json.dumps(data, allow_nan=False)
        except (ValueError, ArithmeticError):
            unread.append((member.path, "Its numbers are too large or too small to be drawn."))
        else:
            members.append(member)
            drawn.append(data)
    if not members and not collection.application_results and collection.study is None:
        raise ValueError(f"None of the {len(collection.members)} spectra can be drawn: {unread[-1][1]}")
    return replace(collection, members=members, unread=unread), drawn


def _rendered(
    collection: Collection, drawn: Sequence[dict[str, Any]], tracks: Sequence[Tracks | None], folder: str
) -> str:
    members = collection.members
    matrices = distinct(member.matrix for member in members)
    splits = distinct(member.split for member in members)
    shown = first_shown(members)
    shown_data = payload(collection, drawn, tracks, matrices, splits, shown)
    few = len(members) <= MANY_FILES
    several = len({member.run for member in members}) > 1
    values = {
        "has_spectra": bool(members),
        "runs": run_table(members) if several else [],
        "has_dynamics": has_several(members, "checkpoint"),
        "has_samples": has_several(members, "samples"),
        "has_pairs": bool(shown_data["pairs"]),
        "training": collection.training,
        "structures": [structure_tables(item) for item in collection.structures],
        "application_results": result_sections(collection.application_results),
        "collection": collection,
    }
    return rendered(
        "report.html.j2",
        SCRIPT,
        shown_data,
        **values,
        contents=[(name, title) for name, title, there in SECTIONS if values[there]],
        heading=heading(members, folder),
        sentences=[sentence(member, with_run=several) for member in shown] or [not_measured(collection)],
        overview=overview(members, folder),
        legend=[f"{row.symbol} is {row.title}" for row in MATRICES.values() if row.symbol in matrices],
        equation={symbol_of(name) for name in DEFAULT_MATRICES} <= set(matrices),
        has_laws=bool(shown_data["laws"]),
        unmeasured=unmeasured(collection),
        unread=[(path.as_posix(), reason) for path, reason in collection.unread],
        tables=[outlier_table(member) for member in members] if few else [],
        study=collection.study.text if collection.study else None,
        studies=[
            (place, study.text, study.progress([m for m in members if Path(place) in m.path.parents]))
            for place, study in collection.studies.items()
        ],
        folder=folder,
        progress=collection.study.progress(members) if collection.study else "",
        facts=facts(members),
        checkpoints=checkpoint_table(members),
        details=[details(member) for member in members] if few else [],
        listed=None if few else listed(members),
    )
