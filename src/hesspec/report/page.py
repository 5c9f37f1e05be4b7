"""The HTML page: what is said in words and tables, and the file that holds all of it."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hesspec.backend.files import write_bytes
from hesspec.matrices import DEFAULT_MATRICES, MATRICES, symbol_of
from hesspec.plot import exponent_text, three_digits
from hesspec.report import tables
from hesspec.report.collection import Collection, Member, Training, read_folder
from hesspec.report.dynamics import laws_of, pairs_of, tracks_of
from hesspec.report.figures import Look, spectrum_data, training_figure
from hesspec.report.pdf import write_figures
from hesspec.report.progress import progress, trainings
from hesspec.report.rounding import with_bound
from hesspec.report.structure_section import structure_csv, structure_figures, structure_tables, structures_over

__all__ = ["report_on", "write_report"]

logger = logging.getLogger(__name__)

Tracks = npt.NDArray[np.int64]

MARKS = ("●", "■", "▲", "⬟")
WORDS = {
    "samples_per_class": "samples per class (n)",
    "risk": "mean loss",
    "created": "measured at (UTC)",
    "seconds": "seconds",
    "build_seconds": "seconds to build the operator",
    "mode": "mode of the matvec",
    "mode_reason": "why this mode",
    "terms": "loss terms",
    "train_samples_per_class": "training samples per class (n)",
    "training_seed": "seed of the training",
}
# Said elsewhere on the page, for each spectrum.
IDENTITY = ("matrix", "split", "checkpoint", "epoch")
MANY, LONG = 6, 300  # values, and letters of them, in a cell of the table of what is common
# Files of which each has its own two tables; of more there is one table, a row each.
MANY_FILES = 40


def write_report(
    folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None, *, all_figures: bool = False
) -> Path:
    """Write one self-contained HTML page of all spectra below a folder; it opens without a network.

    Parameters
    ----------
    folder : path
        Every `*.nc` in it and in its subfolders is read as a spectrum or a class structure, and every `training.json`
        as a list of records, one for each epoch, with the keys `epoch`, `train_loss`, `train_error`, `test_loss`,
        `test_error` and `learning_rate` (losses in nats, errors as fractions). Files that cannot be read are named on
        the page, and logged as warnings. Where there is a `study.yaml`, the folder is one of `hesspec study`: its
        figures at the largest sample size and the last epoch are also written as PDF, into the folder `figures` beside
        the page.
    path : path, optional
        Of the page; `report.html` in the folder by default. It is there whole or not at all.
    all_figures : bool
        Whether the figures of a study at all other sample sizes and epochs are written as PDF too, which takes about
        a second for each.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    NotADirectoryError
        If there is no such folder, or `figures` is a symbolic link.
    ValueError
        If no spectrum in it can be read, and it has no `study.yaml` either. Of a study that has not measured anything
        yet the page tells how far the trainings are.
    OSError
        If the page or a figure cannot be written.
    """
    return report_on(folder, path, all_figures=all_figures)[0]


def report_on(
    folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None, *, all_figures: bool = False
) -> tuple[Path, list[str]]:
    """As `write_report`: the page, and the names of the files that could not be read."""
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
    """What can be drawn of a collection, and what the page's script draws of each spectrum; the others are listed."""
    members, drawn, unread = [], [], [*collection.unread]
    for member in collection.members:
        try:
            with np.errstate(all="ignore"):  # what overflows is no JSON
                data = {"glance": _glance(member), **spectrum_data(member, None)}
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
    matrices = _distinct(member.matrix for member in members)
    splits = _distinct(member.split for member in members)
    shown = _first_shown(members)
    payload = _payload(collection, drawn, tracks, matrices, splits, shown)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_resource("template.html.j2"))
    few = len(members) <= MANY_FILES
    plotly, script = (_with_line_ends(text) for text in (get_plotlyjs(), _resource("page.js")))
    return template.render(
        policy=_policy(plotly, script),
        heading=_heading(members, folder),
        sentences=[_sentence(member) for member in shown] or [_not_measured(collection)],
        overview=_overview(members, folder),
        legend=[f"{row.symbol} is {row.title}" for row in MATRICES.values() if row.symbol in matrices],
        equation={symbol_of(name) for name in DEFAULT_MATRICES} <= set(matrices),
        has_spectra=bool(members),
        has_dynamics=_has_several(members, "checkpoint"),
        has_samples=_has_several(members, "samples"),
        has_pairs=bool(payload["pairs"]),
        has_laws=bool(payload["laws"]),
        training=collection.training,
        unmeasured=_unmeasured(collection),
        unread=[(path.as_posix(), reason) for path, reason in collection.unread],
        structures=[structure_tables(item) for item in collection.structures],
        tables=[_outlier_table(member) for member in members] if few else [],
        study=collection.study,
        folder=folder,
        progress=_progress(collection),
        common=_common_attributes(members),
        details=[_details(member) for member in members] if few else [],
        listed=None if few else _listed(members),
        data=_embedded(payload),
        css=Markup(_resource("page.css")),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        plotly=Markup(plotly),  # noqa: S704 - a file of the plotly package
    )


def _resource(name: str) -> str:
    return files("hesspec.report").joinpath(name).read_text(encoding="utf-8")


def _with_line_ends(text: str) -> str:
    """Text with the ends of lines as browsers read them, so that a digest of it is theirs."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _policy(*scripts: str) -> Markup:
    """Content security policy of a page that runs these scripts and no other one, and asks for nothing elsewhere."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
    return Markup(policy)  # noqa: S704 - made here, of digests


def _embedded(value: object) -> Markup:
    """JSON that no text in it can end or break out of, inside of a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - the three characters that HTML reads are escaped


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


# What is drawn -------------------------------------------------------------------------------------------------------


def _payload(
    collection: Collection,
    drawn: Sequence[dict[str, Any]],
    tracks: Sequence[Tracks | None],
    matrices: Sequence[str],
    splits: Sequence[str],
    shown: Sequence[Member],
) -> dict[str, Any]:
    members = collection.members
    runs = _distinct(item.run for item in members or collection.training) or [""]
    laws, pairs = laws_of(members), pairs_of(members)
    files = {
        "outliers.csv": tables.outliers(members, tracks),
        "spectra.csv": tables.spectra(members),
        **({"power-laws.csv": tables.power_laws(laws)} if laws else {}),
        **({"hess-against-g.csv": tables.hessian_against_gauss_newton(pairs)} if pairs else {}),
        **({"training.csv": tables.training(collection.training)} if collection.training else {}),
        **({"class-structure.csv": structure_csv(collection.structures)} if collection.structures else {}),
    }
    places = {member.path: index for index, member in enumerate(members)}
    return {
        "runs": [_run(run, [member for member in members if member.run == run]) for run in runs],
        "matrices": [
            {"name": name, "mark": MARKS[index % len(MARKS)], "colour": Look(index, 0).dark}
            for index, name in enumerate(matrices)
        ],
        "splits": list(splits),
        "looks": [[Look(i, j).to_json() for j in range(len(splits))] for i in range(len(matrices))],
        "first": _first(shown, runs[0]),
        "spectra": [
            {
                "title": member.title or "operator",
                "place": tables.place(member),
                **data,
                "tracks": None if numbers is None else numbers.tolist(),
            }
            for member, data, numbers in zip(members, drawn, tracks, strict=True)
        ],
        "pairs": [
            {
                "hess": places[pair.hessian.path],
                "g": places[pair.gauss_newton.path],
                "overlaps": None if pair.overlaps is None or not pair.overlaps.size else _percents(pair.overlaps),
            }
            for pair in pairs
        ],
        "laws": [
            {
                "run": law.member.run,
                "matrix": law.member.matrix,
                "split": law.member.split,
                "checkpoint": law.member.checkpoint,
                "what": law.what,
                "x": law.sizes,
                "y": [law.law.prefactor * size**law.law.exponent for size in law.sizes],
                "exponent": exponent_text(law.law.exponent, law.law.lower, law.law.upper),
                "r_squared": f"{law.law.r_squared:.3f}",
                "points": law.law.points,
                "known": law.law.lower > 0 or law.law.upper < 0,
            }
            for law in laws
            if math.isfinite(law.law.prefactor)
        ],
        "structures": [structure_figures(item, members) for item in collection.structures],
        "structures_over": structures_over(collection.structures),
        "training": [
            {"run": item.run, "n": item.samples} | training_figure(item.records) for item in collection.training
        ],
        "columns": tables.PLACE,
        "files": files,
    }


def _first(shown: Sequence[Member], run: str) -> dict[str, Any]:
    """Where the controls are when the page opens: at what is shown then, or at a run without a spectrum."""
    if not shown:
        return {"run": run, "n": None, "checkpoint": "", "split": ""}
    first = shown[0]
    return {"run": first.run, "n": first.samples, "checkpoint": first.checkpoint, "split": first.split}


def _run(name: str, members: Sequence[Member]) -> dict[str, Any]:
    """Where the controls can be put within a run: sample sizes, and checkpoints in the order of training."""
    ordered = members
    if all(member.samples is not None for member in members):
        ordered = sorted(members, key=lambda member: member.epoch or 0.0)
    return {
        "name": name,
        "sizes": sorted({member.samples for member in members if member.samples is not None}),
        "checkpoints": _distinct(member.checkpoint for member in ordered),
        "epochs": list(dict.fromkeys(member.epoch for member in ordered)),
        "measured": sorted({(member.matrix, member.split) for member in members}),
    }


def _percents(overlaps: npt.NDArray[np.float64]) -> list[list[float | None]]:
    return [[round(float(part), 3) if math.isfinite(part) else None for part in row] for row in overlaps]


def _has_several(members: Sequence[Member], name: str) -> bool:
    """Whether there are two spectra that differ in their checkpoint, or in their sample size, alone."""
    names = {"checkpoint", "samples"} - {name}
    other = names.pop()
    found: dict[tuple[object, ...], set[object]] = {}
    for member in members:
        key = (member.run, member.matrix, member.split, getattr(member, other))
        found.setdefault(key, set()).add(getattr(member, name))
    return any(len(values) > 1 for values in found.values())


def _first_shown(members: Sequence[Member]) -> list[Member]:
    """What the page shows when it opens: the first run's last checkpoint, all matrices, train set if there is."""
    if not members:
        return []
    run = [member for member in members if member.run == members[0].run]
    here = [m for m in run if (m.checkpoint, m.samples) == (run[-1].checkpoint, run[-1].samples)]
    return [member for member in here if member.split == here[0].split]


# What is said --------------------------------------------------------------------------------------------------------


def _values(members: Sequence[Member], name: str) -> list[str]:
    return _distinct(str(m.spectrum.attributes[name]) for m in members if name in m.spectrum.attributes)


def _heading(members: Sequence[Member], folder: str) -> str:
    if not members:
        return f"Study {folder}"
    networks, datasets = _values(members, "network"), _values(members, "dataset")
    what = " and ".join(_distinct(member.matrix for member in members)[:3])
    if len(networks) == 1 and len(datasets) == 1:
        return f"Spectra of {networks[0]} on {datasets[0]}"
    if len(networks) == 1:
        return f"Spectra of {networks[0]}"
    return f"Spectra in {folder}" if len(members) > 1 else f"Spectrum of {what}"


def _overview(members: Sequence[Member], folder: str) -> list[tuple[str, str]]:
    """Names and values of the line below the heading."""
    if not members:
        return [("spectra", "0"), ("folder", folder)]
    sizes = sorted({member.spectrum.dimension for member in members})
    span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    seconds = [member.spectrum.attributes.get("seconds") for member in members]
    total = sum(value for value in seconds if isinstance(value, int | float) and math.isfinite(value))
    return [
        ("spectra", f"{len(members)}"),
        ("parameters (p)", span),
        ("matvecs in all", f"{sum(member.spectrum.matvecs for member in members):,}"),
        *([("time in all", _duration(total))] if total else []),
        ("folder", folder),
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _not_measured(collection: Collection) -> dict[str, str]:
    """How far a study without a spectrum is."""
    known = trainings(collection.study or "")
    parts = [f"trainings begun: {len(collection.training)}" + (f" of {known[0]}" if known else "")]
    if collection.training:
        parts[0] += (
            f", the furthest at epoch {_epoch_of(max(item.reached for item in collection.training), collection)}"
        )
    parts.append("the first spectra are measured when all trainings of the first network have ended")
    parts.append("make this page again then")
    return {"of": "Not measured yet", "is": "; ".join(parts)}


def _epoch_of(reached: float, collection: Collection) -> str:
    """An epoch, and of how many, where all trainings are to have as many."""
    known = trainings(collection.study or "")
    last = known[1] if known else []
    return f"{reached:g}" + (f" of {last[0]}" if len(last) == 1 else "")


def _unmeasured(collection: Collection) -> list[tuple[str, list[str]]]:
    """A row for each training without a spectrum: its folder, how far it is, and the last of its record."""
    return [
        (
            item.path.parent.as_posix(),
            [_epoch_of(item.reached, collection), *(_last(item, name) for name in tables.RECORD[:4])],
        )
        for item in collection.unmeasured
    ]


def _last(item: Training, name: str) -> str:
    value = item.records[-1].get(name)
    if value is None:
        return "–"
    return f"{value:#.4g}" if name.endswith("loss") else f"{value:.2%}"


def _sentence(member: Member) -> dict[str, str]:
    """The result of one spectrum in words: what it is of, and what it is."""
    spectrum = member.spectrum
    count = spectrum.outliers.size
    classes = spectrum.attributes.get("classes")
    words = f"{count or 'no'} outlier{'' if count == 1 else 's'}"
    if count and classes == count and not isinstance(classes, bool):
        words += ", as many as classes"
    parts = [words]
    if count:
        value, bound = _first_outlier(member)
        parts.append(f"the largest is {value} ± {bound}")
    low, high = spectrum.bulk_edges
    if math.isfinite(low):
        parts.append(f"99% of the bulk lies between {three_digits(low)} and {three_digits(high)}")
    return {"of": member.title or "operator", "is": "; ".join(parts)}


def _first_outlier(member: Member) -> tuple[str, str]:
    bounds = member.spectrum.error_bounds[member.spectrum.is_outlier]
    return with_bound(float(member.spectrum.outliers[0]), float(bounds[0]))


def _glance(member: Member) -> list[str]:
    """A row of the table of numbers."""
    spectrum = member.spectrum
    low, high = spectrum.bulk_edges
    negative, p = spectrum.num_negative, spectrum.dimension
    risk = spectrum.attributes.get("risk")
    trace, error = with_bound(spectrum.trace, spectrum.trace_standard_error)
    return [
        f"{spectrum.outliers.size}",
        " ± ".join(_first_outlier(member)) if spectrum.outliers.size else "–",
        f"{three_digits(low)} to {three_digits(high)}" if math.isfinite(low) else "–",
        f"{trace} ± {error}",
        f"{negative.value / p:.0%} ({negative.lower / p:.0%} to {negative.upper / p:.0%})",
        f"{risk:.4g}" if isinstance(risk, int | float) else "–",
    ]


def _outlier_table(member: Member) -> dict[str, Any]:
    spectrum = member.spectrum
    bounds = spectrum.error_bounds[spectrum.is_outlier]
    return {
        "title": member.title or "operator",
        "run": member.run,
        "rows": [
            with_bound(float(value), float(bound)) for value, bound in zip(spectrum.outliers, bounds, strict=True)
        ],
    }


# What was run --------------------------------------------------------------------------------------------------------


def _word(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _rows(attributes: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(_word(name), _text(value)) for name, value in attributes.items()]


def _common_attributes(members: Sequence[Member]) -> list[tuple[str, str]]:
    """Every attribute, with the one value or the several that the spectra have."""
    found: dict[str, list[str]] = {"Lanczos steps": [f"{member.spectrum.steps}" for member in members]}
    for member in members:
        attributes = {name: value for name, value in member.spectrum.attributes.items() if name not in IDENTITY}
        for name, text in _rows(attributes):
            found.setdefault(name, []).append(text)
    rows = []
    for name, texts in found.items():
        distinct = _distinct(texts)
        missing = "" if len(texts) >= len(members) else f" (given by {len(texts)} of {len(members)})"
        value = (
            ", ".join(distinct)
            if len(distinct) <= MANY and len("".join(distinct)) <= LONG
            else f"{len(distinct)} values, listed by file below"
        )
        rows.append((name, value + missing))
    return rows


def _progress(collection: Collection) -> str:
    """How much of a study has been measured, in words."""
    if collection.study is None:
        return ""
    counts = progress(collection.study, collection.members)
    if counts is None:
        return f"{len(collection.members)} spectra are here."
    present, wanted = counts
    if present == wanted:
        return f"All {wanted} spectra that it asks for are here."
    return f"{present} of the {wanted} spectra that it asks for are here; the same command goes on with the others."


def _listed(members: Sequence[Member]) -> dict[str, Any]:
    """One table of all files, with a column for every attribute in which they differ."""
    rows = [
        dict(_rows(member.spectrum.attributes)) | {"Lanczos steps": f"{member.spectrum.steps}"} for member in members
    ]
    names = _distinct(name for row in rows for name in row)
    columns = [name for name in names if len({row.get(name) for row in rows}) > 1]
    return {
        "columns": columns,
        "rows": [
            (member.path.as_posix(), [row.get(name, "–") for name in columns])
            for member, row in zip(members, rows, strict=True)
        ],
    }


def _details(member: Member) -> dict[str, Any]:
    return {
        "file": member.path.as_posix(),
        "title": member.title or "operator",
        "summary": list(member.spectrum.summary().items()),
        "attributes": _rows(member.spectrum.attributes),
    }
