"""Spectra that a recorder or a callback has measured during a training, as one labelled dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from hesspec.matrices import MATRICES
from hesspec.spectra.folder import Unread, read_results, result_files
from hesspec.spectra.spectrum import Spectrum
from hesspec.spectra.study_names import SPLITS
from hesspec.study.columns import RANKED, SCALARS, UNITS, fill

__all__ = ["open_recorded"]

# When a spectrum was measured: epoch, which may be unknown within an epoch, and step. And of what: split and matrix.
Point = tuple[float, int]
Key = tuple[Point, str, str]


def open_recorded(folder: Path, unread: Unread) -> xr.Dataset:
    """Read the spectra of one training into a dataset; `hesspec.study.open` documents it.

    Parameters
    ----------
    folder : Path
        Folder of `hesspec.study.SpectrumRecorder`.
    unread : list of (Path, str)
        Gets an entry for each file that cannot be read, with the reason.

    Raises
    ------
    FileNotFoundError
        If the folder has no spectra of a training.
    ValueError
        If it has several for the same epoch, split and matrix.
    """
    spectra = _read(folder, unread)
    if not spectra:
        raise FileNotFoundError(
            f"There is no study in {str(folder)!r}, and no spectra of a training: it has no study.yaml, and no "
            "readable files *.nc with an epoch and a split, as SpectrumRecorder and the callbacks write them."
        )
    points = sorted({point for point, _, _ in spectra})
    splits = _in_order({split for _, split, _ in spectra}, SPLITS)
    matrices = _in_order({matrix for _, _, matrix in spectra}, tuple(MATRICES))
    shape = (len(points), len(splits), len(matrices))
    ranks = max(spectrum.eigenvalues.size for spectrum in spectra.values())
    each = ("epoch", "split", "matrix")
    values = {
        **{name: np.full((*shape, ranks), blank) for name, blank in RANKED.items()},
        **{name: np.full(shape, np.nan) for name in SCALARS},
    }
    for split in splits:
        for matrix in matrices:
            series = [point for point in points if (point, split, matrix) in spectra]
            places = [(points.index(point), splits.index(split), matrices.index(matrix)) for point in series]
            fill(values, places, [spectra[point, split, matrix] for point in series])
    epochs = [epoch for epoch, _ in points]
    result = xr.Dataset(
        {name: ((*each, "rank") if name in RANKED else each, array) for name, array in values.items()},
        coords={
            "epoch": [int(epoch) for epoch in epochs] if all(epoch.is_integer() for epoch in epochs) else epochs,
            "step": ("epoch", [step for _, step in points]),
            "split": splits,
            "matrix": matrices,
            "rank": list(range(ranks)),
        },
        attrs={"folder": str(folder), "unread": "\n".join(reason for _, reason in unread)},
    )
    for name, unit in UNITS.items():
        result[name].attrs["units"] = unit
    return result


def _read(folder: Path, unread: Unread) -> dict[Key, Spectrum]:
    spectra: dict[Key, Spectrum] = {}
    files: dict[Key, Path] = {}
    for file, found in read_results(result_files(folder, subfolders=False), unread):
        epoch = found.attributes.get("epoch") if isinstance(found, Spectrum) else None
        if not isinstance(found, Spectrum) or not isinstance(epoch, int | float) or not math.isfinite(epoch):
            continue  # of something else than a training
        attributes = found.attributes
        step = attributes.get("step", -1)
        point = (float(epoch), step if isinstance(step, int) else -1)
        key = (point, str(attributes.get("split", "")), str(attributes.get("matrix", "operator")))
        if key in files:
            raise ValueError(
                f"The files {str(files[key])!r} and {str(file)!r} are both of epoch {epoch:g}, split {key[1]!r} and "
                f"matrix {key[2]!r}: the folder has spectra of several trainings. Open a folder of one training."
            )
        spectra[key], files[key] = found, file
    return spectra


def _in_order(names: set[str], known: Sequence[str]) -> list[str]:
    """Known names in their order, and then the others."""
    return [name for name in known if name in names] + sorted(name for name in names if name not in known)
