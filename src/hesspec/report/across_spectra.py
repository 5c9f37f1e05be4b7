"""Comparisons across spectra: outliers during training, power laws in sample size, outliers of Hess and of G."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hesspec.report.member import Member
from hesspec.spectra.power_law import PowerLaw, earned_power_law
from hesspec.spectra.spectrum import Spectrum
from hesspec.spectra.tracking import eigenvector_overlaps, steady_outliers, track_outliers

__all__ = ["Law", "Pair", "laws_of", "pairs_of", "steadied", "tracks_of"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Law:
    """Power law in the sample size, at one epoch.

    Parameters
    ----------
    member : Member
        One of the fitted spectra, which differ only in sample size.
    what : str
        "outlier 1" for the largest, and so on; "negative outlier 1" for the lowest, and so on; "upper bulk edge" and
        "lower bulk edge". For negative values, the law is that of the magnitude.
    law : PowerLaw
        Fitted law.
    sizes : (int, int)
        Smallest and largest sample size in the fit.
    """

    member: Member
    what: str
    law: PowerLaw
    sizes: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Hess and G of one network on the same data.

    Parameters
    ----------
    hessian, gauss_newton : Member
    overlaps : array (outliers of Hess, outliers of G) or None
        Squared cosines between eigenvectors; None if there are no sketches of eigenvectors.
    """

    hessian: Member
    gauss_newton: Member
    overlaps: Array | None

    @property
    def positive(self) -> list[tuple[int, int]]:
        """Indices, among the outliers of Hess and of G, of the positive ones of the same rank."""
        of_hessian, of_gauss_newton = (
            np.flatnonzero(member.spectrum.outliers > 0).tolist() for member in (self.hessian, self.gauss_newton)
        )
        return list(zip(of_hessian, of_gauss_newton, strict=False))


def steadied(members: Sequence[Member]) -> list[Member]:
    """Label the outliers of each training of a folder by `steady_outliers`, where the epochs are known and distinct."""
    names = ("network", "dataset", "samples_per_class", "params")
    series: dict[tuple[object, ...], list[int]] = {}
    for index, member in enumerate(members):
        if member.epoch is not None:
            mine = tuple(str(member.spectrum.attributes.get(name)) for name in names)
            series.setdefault((member.matrix, member.split, member.spectrum.dimension, *mine), []).append(index)
    found = list(members)
    for indices in series.values():
        if len({members[index].epoch for index in indices}) < len(indices):
            continue
        indices.sort(key=lambda index: members[index].epoch or 0.0)
        for index, spectrum in zip(
            indices, steady_outliers([members[index].spectrum for index in indices]), strict=True
        ):
            found[index] = replace(members[index], spectrum=spectrum)
    return found


def tracks_of(members: Sequence[Member]) -> list[npt.NDArray[np.int64] | None]:
    """Track numbers of the outliers in each training; None if they cannot be tracked."""
    series: dict[tuple[object, ...], list[int]] = {}
    for index, member in enumerate(members):
        series.setdefault((member.run, member.samples, member.matrix, member.split), []).append(index)
    found: list[npt.NDArray[np.int64] | None] = [None] * len(members)
    for indices in series.values():
        if len({members[index].checkpoint for index in indices}) < max(len(indices), 2):
            continue
        try:
            numbers = track_outliers([members[index].spectrum for index in indices])
        except ValueError:
            continue  # from an earlier version, without sketches, or of different networks
        for index, mine in zip(indices, numbers, strict=True):
            found[index] = mine
    return found


def laws_of(members: Sequence[Member]) -> list[Law]:
    """Fit power laws of outliers by rank, and of both bulk edges, against sample size, where `earned_power_law`.

    Networks for different sample sizes are trained separately: their outliers are compared by rank, as their
    eigenvectors have little in common.
    """
    series: dict[tuple[object, ...], list[Member]] = {}
    for member in members:
        if member.samples is not None:
            series.setdefault((member.run, member.epoch, member.matrix, member.split), []).append(member)
    found = []
    for mine in series.values():
        for what, values in _magnitudes([member.spectrum for member in mine]):
            sizes = [member.samples or 0 for member in mine]
            used = [size for size, value in zip(sizes, values, strict=True) if np.isfinite(value) and value > 0]
            law = earned_power_law(sizes, values, [member.spectrum.outliers.size for member in mine])
            if isinstance(law, PowerLaw):
                found.append(Law(member=mine[0], what=what, law=law, sizes=(min(used), max(used))))
    return found


def _magnitudes(spectra: Sequence[Spectrum]) -> Iterator[tuple[str, list[float]]]:
    """Quantities against sample size, by name: a magnitude of each spectrum, NaN if there is none."""
    for name, sign in (("outlier", 1), ("negative outlier", -1)):
        sizes = [np.sort(sign * spectrum.outliers[sign * spectrum.outliers > 0])[::-1] for spectrum in spectra]
        for rank in range(max(mine.size for mine in sizes)):
            yield f"{name} {rank + 1}", [float(mine[rank]) if rank < mine.size else np.nan for mine in sizes]
    for name, sign, side in (("upper bulk edge", 1, 1), ("lower bulk edge", -1, 0)):
        edges = [(sign * spectrum.bulk_edges[side], spectrum.rounding) for spectrum in spectra]
        # The lower edge of a matrix without negative eigenvalues is zero up to rounding, which does not follow a law.
        yield name, [edge if edge > rounding else np.nan for edge, rounding in edges]


def pairs_of(members: Sequence[Member]) -> list[Pair]:
    """Pair Hess with G if both were measured for the same network and data."""
    places: dict[tuple[object, ...], dict[str, Member]] = {}
    for member in members:
        key = (member.run, member.samples, member.checkpoint, member.split)
        places.setdefault(key, {})[member.matrix] = member
    found = []
    for by_matrix in places.values():
        if {"Hess", "G"} <= by_matrix.keys():
            hessian, gauss_newton = by_matrix["Hess"], by_matrix["G"]
            try:
                squared = eigenvector_overlaps(hessian.spectrum, gauss_newton.spectrum)
            except ValueError:
                squared = None
            found.append(Pair(hessian=hessian, gauss_newton=gauss_newton, overlaps=squared))
    return found
