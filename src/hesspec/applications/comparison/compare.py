"""Comparison of spectra, files, folders and studies: `hesspec.compare`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from hesspec.applications.comparison.quantities import (
    QUANTITIES,
    distance_of,
    estimates_of,
    overlap_of_pairs,
    overlap_of_sketches,
)
from hesspec.applications.comparison.record import Comparison
from hesspec.applications.comparison.sources import EXTRA, PLACE, Item, Source, matched, read_source, selected

__all__ = ["compare"]

# Points of a drawn density on either side of zero, and the smallest |lambda| among them relative to the bulk.
CURVE_POINTS: Final = 128
CURVE_FLOOR: Final = 1e-5


def compare(
    *sources: Any,
    names: Sequence[str] | None = None,
    matrix: str | Sequence[str] | None = None,
    split: str | None = None,
    checkpoint: str | None = None,
    epoch: float | None = None,
) -> Comparison:
    """Compare spectra with the first of them: differences with their errors, distances, and overlaps of eigenspaces.

    Parameters
    ----------
    *sources : Spectrum, Eigenpairs or path
        At least two: spectra, results of `hesspec.eigenpairs`, files, folders of spectra, or folders of studies.
        Spectra of folders are matched by matrix, split and checkpoint (or epoch), and by sample size and seed of a
        study; what only some have is listed in the result. An attribute that has one value in each source is not
        matched, so that two checkpoints, two splits or Hess and G can be compared.
    names : sequence of str, optional
        Names of the sources; by default what distinguishes them.
    matrix, split, checkpoint, epoch : optional
        Compare only spectra with these attributes. A checkpoint "end" is the last epoch where checkpoints have no
        names.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If there is only one source, or nothing that all have in common; a source holds no spectra, or none with the
        selected attributes; or `names` are not distinct.
    FileNotFoundError
        If a file or folder does not exist.

    Examples
    --------
    >>> import torch, hesspec
    >>> values = torch.cat([torch.linspace(-0.1, 0.1, 300), torch.tensor([5.0, 9.0])])
    >>> first, second = (hesspec.spectrum(torch.diag(c * values), steps=64) for c in (1, 2))
    >>> found = hesspec.compare(first, second, names=["once", "twice"])
    >>> rows = found.to_dataframe().set_index("quantity")
    >>> row = rows.loc["largest eigenvalue"]
    >>> float(row["difference"].round(3)), bool(row["exceeds_error"])
    (9.0, True)
    """
    if len(sources) < 2:
        raise ValueError(
            f"compare takes at least two spectra, files or folders, and was given {len(sources)}; spectra of one "
            "folder can be compared by passing their files."
        )
    read = [read_source(source) for source in sources]
    names = _names(sources, read) if names is None else [str(name) for name in names]
    if len(names) != len(sources) or len(set(names)) < len(names):
        raise ValueError(f"names are {', '.join(names)}; they must be {len(sources)} different names.")
    chosen = [
        selected(source, name, matrix=matrix, split=split, checkpoint=checkpoint, epoch=epoch)
        for source, name in zip(read, names, strict=True)
    ]
    found = matched(chosen, names)
    unread = [line for source in chosen for line in source.unread]
    return _compared(names, found.places, found.items, found.unmatched, [*found.notes, *unread])


def _names(sources: Sequence[object], read: Sequence[Source]) -> list[str]:
    """Names by what distinguishes single spectra, or else by files and folders, or else by numbers."""
    parts: list[list[str]] = [[] for _ in read]
    if all(len(source.items) == 1 for source in read):
        for attribute in (*PLACE, *EXTRA):
            values = [source.items[0].value(attribute) for source in read]
            if len(set(values)) > 1:
                for part, value in zip(parts, values, strict=True):
                    part.append(value or f"no {attribute.replace('_', ' ')}")
            labels = [", ".join(part) for part in parts]
            if len(set(labels)) == len(labels):
                return labels
    for labels in (
        [source.name for source in read],
        [os.fspath(s) if isinstance(s, str | os.PathLike) else "" for s in sources],
    ):
        if all(labels) and len(set(labels)) == len(labels):
            return [str(label) for label in labels]
    return [f"{source.name} ({number})".strip() for number, source in enumerate(read, start=1)]


def _compared(
    names: Sequence[str],
    places: Sequence[str],
    items: Sequence[Sequence[Item]],
    unmatched: Sequence[str],
    notes: Sequence[str],
) -> Comparison:
    runs, count = len(names), len(places)
    ranks = max(item.spectrum.eigenvalues.size for mine in items for item in mine)
    numbers = np.full((3, runs, count, len(QUANTITIES)), np.nan)
    between = np.zeros((2, runs, count))
    overlaps = np.full((2, runs, count), np.nan)
    overlap_counts = np.zeros((runs, count), np.int64)
    resolved = np.full((2, runs, count, ranks), np.nan)
    outlier = np.zeros((runs, count, ranks), np.int64)
    curves = np.full((2, runs, count, 2 * CURVE_POINTS + 1), np.nan)
    for i, mine in enumerate(items):
        for j, item in enumerate(mine):
            spectrum, first = item.spectrum, items[0][j]
            estimates = estimates_of(spectrum)
            numbers[:, i, j] = np.array([estimates[name] for name in QUANTITIES]).T
            k = spectrum.eigenvalues.size
            resolved[0, i, j, :k], resolved[1, i, j, :k] = spectrum.eigenvalues, spectrum.error_bounds
            outlier[i, j, :k] = spectrum.is_outlier
            low, high = spectrum.bulk_range
            if high > low:
                grid = np.geomspace(CURVE_FLOOR, 1, CURVE_POINTS) * max(-low, high)
                x = np.clip(np.concatenate([-grid[::-1], [0.0], grid]), low, high)
                curves[:, i, j] = x, spectrum.density(x)["density"].to_numpy()
            if i:
                between[:, i, j] = distance_of(first.spectrum, spectrum)
                overlaps[0, i, j], overlaps[1, i, j], overlap_counts[i, j] = _overlap(first, item)
    return Comparison(
        runs=np.array(names, dtype=str),
        places=np.array(places, dtype=str),
        quantities=np.array(list(QUANTITIES), dtype=str),
        matrices=np.array([item.value("matrix") for mine in items for item in mine], dtype=str),
        parameters=np.array([[item.spectrum.dimension for item in mine] for mine in items], np.int64),
        values=numbers[0],
        lower=numbers[1],
        upper=numbers[2],
        distances=between[0],
        distance_bounds=between[1],
        overlaps=overlaps[0],
        overlap_errors=overlaps[1],
        overlap_counts=overlap_counts,
        eigenvalues=resolved[0],
        error_bounds=resolved[1],
        is_outlier=outlier,
        curve_at=curves[0],
        curve=curves[1],
        unmatched=np.array(unmatched, dtype=str),
        notes=np.array(notes, dtype=str),
    )


def _overlap(first: Item, second: Item) -> tuple[float, float, int]:
    """Overlap of the spans of the largest eigenvectors, if both are known and of the same parameters."""
    same = first.spectrum.dimension == second.spectrum.dimension
    if not same or any(first.value(name) != second.value(name) for name in ("network", "params")):
        return np.nan, np.nan, 0
    if first.pairs is not None and second.pairs is not None:
        return overlap_of_pairs(first.pairs, second.pairs)
    return overlap_of_sketches(first.spectrum, second.spectrum)
