"""Numbers of the figures, to all digits, as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from hesspec.backend.csv_text import csv_text
from hesspec.report.across_spectra import Law, Pair
from hesspec.report.collection import Training
from hesspec.report.member import Member
from hesspec.spectra.marchenko_pastur import law_of_gauss_newton
from hesspec.spectra.tails import TailFit

__all__ = ["PLACE", "hessian_against_gauss_newton", "outliers", "place", "power_laws", "spectra", "training"]

POINT = ("run", "matrix", "split", "checkpoint", "epoch")
# Columns that identify a spectrum, in tables that the page's script creates.
PLACE = (*POINT, "n", "seed", "file")
TAIL = ("resolved", "exponent", "lower", "upper", "start", "top", "mass", "against_exponential", "curvature")
LAW = ("aspect", "variance", "edge_ratio", "trace_beyond", "kolmogorov_smirnov", "wasserstein")
RECORD = ("train_loss", "train_error", "test_loss", "test_error", "learning_rate")


def _point(member: Member) -> list[object]:
    epoch = None if member.epoch is None else f"{member.epoch:g}"
    return [member.run, member.matrix, member.split, member.spectrum.attributes.get("checkpoint", ""), epoch]


def _seed(member: Member) -> object:
    return member.spectrum.attributes.get("training_seed")


def place(member: Member) -> list[object]:
    """Values of `PLACE`."""
    return [*_point(member), member.samples, _seed(member), member.path.as_posix()]


def outliers(members: Sequence[Member], tracks: Sequence[npt.NDArray[np.int64] | None]) -> str:
    """Return a row for each outlier; within a run, n, matrix and split, the same eigenvector has the same `track`."""

    def rows() -> Iterable[list[object]]:
        for member, numbers in zip(members, tracks, strict=True):
            spectrum = member.spectrum
            bounds = spectrum.error_bounds[spectrum.is_outlier]
            for index, (value, bound) in enumerate(zip(spectrum.outliers, bounds, strict=True)):
                track = None if numbers is None or numbers[index] < 0 else int(numbers[index])
                yield [
                    *_point(member),
                    index + 1,
                    value,
                    bound,
                    member.samples,
                    _seed(member),
                    track,
                    member.path.as_posix(),
                ]

    return csv_text([*POINT, "rank", "eigenvalue", "error_bound", "n", "seed", "track", "file"], rows())


def spectra(members: Sequence[Member]) -> str:
    """Return a row of scalars for each spectrum."""
    names = ("risk", "train_error", "test_error", "learning_rate")
    header = [
        *POINT, "n", "seed", "parameters", "outliers", "largest_eigenvalue", "lower_bulk_edge", "upper_bulk_edge",
        "trace", "trace_standard_error", "effective_rank", "negative", "negative_lower", "negative_upper",
        "wasserstein_bound", *(f"tail_{name}" for name in TAIL),
        *(f"marchenko_pastur_{name}" for name in LAW), "mean_loss", *names[1:], "file",
    ]  # fmt: skip

    def row(member: Member) -> list[object]:
        spectrum = member.spectrum
        negative, p = spectrum.num_negative, spectrum.dimension
        law = law_of_gauss_newton(spectrum)
        compared = [None if law is None else getattr(law, name) for name in LAW]
        return [
            *_point(member), member.samples, _seed(member), p, spectrum.outliers.size,
            float(spectrum.nodes.max(initial=-math.inf)), *map(float, spectrum.bulk_edges),
            float(spectrum.trace), spectrum.trace_standard_error, spectrum.effective_rank,
            *(float(part) / p for part in negative), spectrum.wasserstein_bound, *_tail(member.tail), *compared,
            *(spectrum.attributes.get(name) for name in names), member.path.as_posix(),
        ]  # fmt: skip

    return csv_text(header, map(row, members))


def _tail(tail: TailFit | None) -> list[object]:
    """Values of `TAIL`; empty for a tail that is not resolved."""
    if tail is None or not tail.resolved:
        return [False, *[None] * (len(TAIL) - 1)]
    return [getattr(tail, name) for name in TAIL]


def power_laws(laws: Sequence[Law]) -> str:
    """Return a row for each power law in the sample size."""
    header = [
        "run", "matrix", "split", "epoch", "what", "exponent", "lower", "upper", "prefactor", "r_squared", "points",
        "smallest_n", "largest_n",
    ]  # fmt: skip
    return csv_text(
        header,
        (
            [
                law.member.run, law.member.matrix, law.member.split, f"{law.member.epoch:g}", law.what,
                float(law.law.exponent), float(law.law.lower), float(law.law.upper), float(law.law.prefactor),
                float(law.law.r_squared), law.law.points, *law.sizes,
            ]
            for law in laws
        ),
    )  # fmt: skip


def hessian_against_gauss_newton(pairs: Sequence[Pair]) -> str:
    """Return a row for each rank with a positive outlier in both Hess and G."""
    header = [
        "run", "split", "checkpoint", "epoch", "n", "seed", "rank", "hess", "hess_error_bound", "g", "g_error_bound",
        "relative_difference", "squared_overlap", "largest_squared_overlap", "of_g_rank",
    ]  # fmt: skip

    def rows() -> Iterable[list[object]]:
        for pair in pairs:
            hessian, gauss_newton = pair.hessian.spectrum, pair.gauss_newton.spectrum
            run, _, *point = _point(pair.hessian)
            bounds = [spectrum.error_bounds[spectrum.is_outlier] for spectrum in (hessian, gauss_newton)]
            for rank, (i, j) in enumerate(pair.positive, start=1):
                x, y = gauss_newton.outliers[j], hessian.outliers[i]
                overlap: list[object] = [None] * 3
                if pair.overlaps is not None and np.isfinite(pair.overlaps[i]).any():
                    best = int(np.nanargmax(pair.overlaps[i]))
                    overlap = [pair.overlaps[i, j], pair.overlaps[i, best], best + 1]
                yield [
                    run, *point, pair.hessian.samples, _seed(pair.hessian), rank, y, bounds[0][i], x, bounds[1][j],
                    y / x - 1, *overlap,
                ]  # fmt: skip

    return csv_text(header, rows())


def training(records: Sequence[Training]) -> str:
    """Return a row for each epoch of each training."""

    def rows() -> Iterable[list[object]]:
        for item in records:
            for place, record in enumerate(item.records, start=1):
                epoch = record.get("epoch")
                number = f"{place if epoch is None else epoch:g}"
                yield [item.run, item.samples, number, *(record.get(name) for name in RECORD), item.path.as_posix()]

    return csv_text(["run", "n", "epoch", *RECORD, "file"], rows())
