"""HTML page of a report: a self-contained file that runs only its own scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hesspec.backend.files import write_bytes
from hesspec.matrices import DEFAULT_MATRICES, MATRICES, symbol_of
from hesspec.report.collection import Collection, distinct, read_folder
from hesspec.report.dynamics import tracks_of
from hesspec.report.figures import spectrum_data
from hesspec.report.payload import Tracks, first_shown, has_several, payload
from hesspec.report.pdf import write_figures
from hesspec.report.run_tables import common_attributes, details, listed
from hesspec.report.sentences import (
    glance,
    heading,
    not_measured,
    outlier_table,
    overview,
    progress_sentence,
    sentence,
    unmeasured,
)
from hesspec.report.structure_section import structure_tables

__all__ = ["report_on", "write_report"]

logger = logging.getLogger(__name__)

# Largest number of files with two tables each; more files share one table with a row each.
MANY_FILES = 40


def write_report(
    folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None, *, all_figures: bool = False
) -> Path:
    """Write one self-contained HTML page of all spectra below a folder, which opens offline.

    Parameters
    ----------
    folder : path
        Every `*.nc` in it and in its subfolders is read as a spectrum or a class structure, and every `training.json`
        as a list of records, one for each epoch, with the keys `epoch`, `train_loss`, `train_error`, `test_loss`,
        `test_error` and `learning_rate` (losses in nats, errors as fractions). Files that cannot be read are named on
        the page, and logged as warnings. If there is a `study.yaml`, the folder is that of a study: its figures at the
        largest sample size and the last epoch are also written as PDF, to the folder `figures` next to the page.
    path : path, optional
        Name of the page; by default `report.html` in the folder. It is written atomically.
    all_figures : bool
        Whether to write PDF figures of a study at all other sample sizes and epochs as well, which takes about a second
        each.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    NotADirectoryError
        If the folder does not exist, or `figures` is a symbolic link.
    ValueError
        If it contains no readable spectra and no `study.yaml`. For a study that has not measured anything yet, the page
        shows the progress of its trainings.
    OSError
        If the page or a figure cannot be written.
    """
    return report_on(folder, path, all_figures=all_figures)[0]


def report_on(
    folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None, *, all_figures: bool = False
) -> tuple[Path, list[str]]:
    """Write the report as `write_report`; return the page and the names of unreadable files."""
    source = Path(folder)
    if not source.is_dir():
        raise NotADirectoryError(f"There is no folder {str(source)!r} to report on.")
    target = source / "report.html" if path is None else Path(path)
    collection, drawn = _drawn(read_folder(source))
    tracks = tracks_of(collection.members)
    text = _rendered(collection, drawn, tracks, source.resolve().name)
    # Names of files that are not UTF-8 are shown with escapes.
    write_bytes(target, text.encode("utf-8", "backslashreplace"))
    if collection.study is not None:
        write_figures(collection, tracks, target.parent / "figures", everywhere=all_figures)
    for file, reason in collection.unread:
        logger.warning("left out of the report: %r: %s", str(source / file), " ".join(reason.split()))
    return target, [str(source / file) for file, _ in collection.unread]


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
    if not members and collection.study is None:
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
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_resource("template.html.j2"))
    few = len(members) <= MANY_FILES
    plotly, script = (_with_line_ends(text) for text in (get_plotlyjs(), _resource("page.js")))
    return template.render(
        policy=_policy(plotly, script),
        heading=heading(members, folder),
        sentences=[sentence(member) for member in shown] or [not_measured(collection)],
        overview=overview(members, folder),
        legend=[f"{row.symbol} is {row.title}" for row in MATRICES.values() if row.symbol in matrices],
        equation={symbol_of(name) for name in DEFAULT_MATRICES} <= set(matrices),
        has_spectra=bool(members),
        has_dynamics=has_several(members, "checkpoint"),
        has_samples=has_several(members, "samples"),
        has_pairs=bool(shown_data["pairs"]),
        has_laws=bool(shown_data["laws"]),
        training=collection.training,
        unmeasured=unmeasured(collection),
        unread=[(path.as_posix(), reason) for path, reason in collection.unread],
        structures=[structure_tables(item) for item in collection.structures],
        tables=[outlier_table(member) for member in members] if few else [],
        study=collection.study,
        folder=folder,
        progress=progress_sentence(collection),
        common=common_attributes(members),
        details=[details(member) for member in members] if few else [],
        listed=None if few else listed(members),
        data=_embedded(shown_data),
        css=Markup(_resource("page.css")),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        plotly=Markup(plotly),  # noqa: S704 - a file of the plotly package
    )


def _resource(name: str) -> str:
    return files("hesspec.report").joinpath(name).read_text(encoding="utf-8")


def _with_line_ends(text: str) -> str:
    """Normalise line ends as browsers do, so that digests agree."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _policy(*scripts: str) -> Markup:
    """Content security policy of a page that runs only these scripts and makes no requests."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
    return Markup(policy)  # noqa: S704 - made here, of digests


def _embedded(value: object) -> Markup:
    """JSON that is safe inside a script element, whatever text it contains."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - the three characters that HTML reads are escaped
