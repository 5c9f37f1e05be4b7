"""Effective data of a study with several starts: how many samples from scratch a start is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from hesspec.applications.transfer.effective import ScratchCurve, scratch_curve
from hesspec.applications.transfer.effective_record import EffectiveData
from hesspec.backend.suggest import unknown
from hesspec.spectra.sampling import CONFIDENCE, Estimate
from hesspec.spectra.study_names import SCRATCH
from hesspec.study.text_files import is_text

__all__ = ["STATISTICS", "transfer"]

LOSS: Final = "loss"
# Statistics of the spectrum: their values for each measurement.
SPECTRAL: Final[dict[str, Callable[[xr.Dataset], xr.DataArray]]] = {
    "outlier1": lambda found: found["eigenvalue"].isel(rank=0),
    "bulk edge": lambda found: found["bulk_high"],
    "trace": lambda found: found["trace"],
}
STATISTICS: Final = (LOSS, *SPECTRAL)
AXES: Final = ("network", "start", "samples_per_class", "seed")
# A study is reduced to one of these, by the user.
SINGLE: Final = ("dataset", "optimizer")
PLACES: Final = ("split", "matrix", "epoch", "rank", "training_epoch")


def transfer(
    found: xr.Dataset,
    statistic: str = LOSS,
    *,
    start: str | None = None,
    matrix: str = "Hessian",
    split: str = "test",
) -> EffectiveData:
    """Return the effective data of networks that were fine-tuned from a start, by the loss or a spectral statistic.

    For each network and sample size D_F, the value of the fine-tuned networks is inverted on the curve of the same
    network from scratch: `hesspec.effective_data`, with intervals from the seeds of both.

    Parameters
    ----------
    found : xarray.Dataset
        Results of a study with `start: [scratch, ...]`, from `hesspec.study.open`; one data set and one optimiser.
    statistic : str
        "loss": the lowest of all epochs on the split, which is that of early stopping by it. "outlier1": the largest
        eigenvalue by absolute value; "bulk edge": the upper edge of the bulk; "trace": of the matrix, at the last
        measured epoch.
    start : str, optional
        Name of the start; by default the only one besides scratch.
    matrix : str
        Matrix of spectral statistics.
    split : str
        Split of the measurements. On the test split, all spectra are of the same samples; those on the train split are
        each of their own D_F or D_E samples, which by itself changes outliers and edges.

    Returns
    -------
    EffectiveData
        Points that have no value are NaN, with a reason: a value beyond the curve, a curve that is not monotone. Its
        `law` is the transfer law, if the points support one. Sizes are in samples per class, of text in sequences.

    Raises
    ------
    ValueError
        If the statistic, the start, the matrix or the split is not in the study, there is nothing from scratch, or the
        study has several data sets or optimisers, or no measured network.
    """
    if statistic not in STATISTICS:
        raise ValueError(unknown("statistic", statistic, STATISTICS))
    found = _complete(found)
    name = _start(found, start)
    values, of = _values(found, statistic, matrix, split)
    points, curves = _points(found, values, name)
    if not points.has_values:
        raise ValueError(f"No training from {name!r} has a value of {statistic!r} yet: run the study first.")
    dataset = str(found["dataset"].values[0])
    return EffectiveData(
        statistic=statistic,
        of=of,
        start=name,
        unit="sequences" if is_text(dataset) else "samples per class",
        **points.arrays(),
        **curves.arrays(),
        attributes={"dataset": dataset, "optimizer": str(found["optimizer"].values[0]), "start": name},
    )


def _complete(found: xr.Dataset) -> xr.Dataset:
    """Give dimensions back that were reduced to one value, as by `squeeze`; refuse several data sets or optimisers."""
    if "start" not in found.coords:
        raise ValueError("These are not results of hesspec.study.open: they have no axis 'start'.")
    lost = [name for name in (*AXES, *SINGLE, *PLACES) if name not in found.dims]
    found = found.expand_dims(lost) if lost else found
    for name in SINGLE:
        if found.sizes[name] > 1:
            names = ", ".join(map(str, found[name].values))
            raise ValueError(f"The study has several of {name}: {names}. Choose one: found.sel({name}=...).")
    return found


def _values(found: xr.Dataset, statistic: str, matrix: str, split: str) -> tuple[xr.DataArray, str]:
    """Return the statistic over `AXES`, and where it was measured."""
    _refuse_missing(found, "split", split)
    if statistic == LOSS:
        values = found[LOSS].sel(split=split).min("training_epoch")
        of = f"{split} split, lowest of all epochs"
    else:
        _refuse_missing(found, "matrix", matrix)
        epoch = int(found["epoch"][-1])
        values = SPECTRAL[statistic](found.sel(matrix=matrix, split=split, epoch=epoch))
        of = f"{matrix}, {split} split, epoch {epoch}"
    # Of what `_complete` added, one value is left.
    extra = {name: 0 for name in values.dims if name not in AXES}
    return values.isel(extra).transpose(*AXES), of


def _points(found: xr.Dataset, table: xr.DataArray, start: str) -> tuple[_Points, _Curves]:
    """Invert the values of all fine-tuned networks on the curves from scratch."""
    counts = found["parameters"].isel(dataset=0)
    points, curves = _Points(), _Curves()
    sizes = np.asarray(found["samples_per_class"].values, np.float64)
    for network in map(str, found["network"].values):
        count = float(counts.sel(network=network).values.item())
        if np.isnan(count):
            raise ValueError(f"No spectrum of {network} is measured yet, which tells its number of parameters.")
        scratch, tuned = (np.asarray(table.sel(network=network, start=name).values) for name in (SCRATCH, start))
        try:
            curve: ScratchCurve | str = scratch_curve(sizes, scratch)
        except ValueError as error:
            curve = str(error)
        if isinstance(curve, ScratchCurve):
            curves.add(network, curve)
        for size, row in zip(sizes, tuned, strict=True):
            points.add(network, count, float(size), row, curve)
    return points, curves


def _start(found: xr.Dataset, start: str | None) -> str:
    names = [str(name) for name in found["start"].values]
    others = [name for name in names if name != SCRATCH]
    if SCRATCH not in names or not others:
        raise ValueError(
            f"The study has the start{'s' if len(names) > 1 else ''} {', '.join(names)}; effective data needs "
            f"{SCRATCH!r} and another one: start: [scratch, FILE.safetensors]."
        )
    if start is None:
        if len(others) > 1:
            raise ValueError(f"The study has several starts: choose one of {', '.join(others)} with start=...")
        return others[0]
    if start not in others:
        raise ValueError(unknown("start", start, others))
    return start


def _refuse_missing(found: xr.Dataset, what: str, wanted: str) -> None:
    names = [str(name) for name in found[what].values]
    if wanted not in names:
        raise ValueError(f"The study has no measurements of the {what} {wanted!r}, only of {', '.join(names)}.")


class _Points:
    """Columns of the fine-tuned networks."""

    def __init__(self) -> None:
        self.networks: list[str] = []
        self._reasons: list[str] = []
        self._numbers: list[tuple[float, ...]] = []

    def add(
        self, network: str, parameters: float, size: float, row: npt.NDArray[np.float64], curve: ScratchCurve | str
    ) -> None:
        """Add a sample size, with its values over the seeds."""
        given = row[~np.isnan(row)]
        value = np.nan
        if given.size:
            value = float(np.exp(np.log(given).mean())) if (given > 0).all() else float(given.mean())
        effective, reason = Estimate(np.nan, np.nan, np.nan), ""
        if not given.size:
            reason = "It is not measured, or has no such value."
        elif isinstance(curve, str):
            reason = curve
        else:
            try:
                effective = curve.invert(given, CONFIDENCE)
            except ValueError as error:
                reason = str(error)
        self.networks.append(network)
        self._reasons.append(reason)
        self._numbers.append((parameters, size, value, *effective))

    @property
    def has_values(self) -> bool:
        """Whether a point has a value."""
        return any(not np.isnan(value) for _, _, value, *_ in self._numbers)

    def arrays(self) -> dict[str, Any]:
        """Fields of the result."""
        names = ("parameters", "sizes", "values", "effective", "lower", "upper")
        columns = np.array(self._numbers).T
        return {
            "networks": np.array(self.networks, str),
            "reasons": np.array(self._reasons, str),
            **dict(zip(names, columns, strict=True)),
        }


class _Curves:
    """Columns of the curves from scratch."""

    def __init__(self) -> None:
        self._found: list[tuple[str, ScratchCurve]] = []

    def add(self, network: str, curve: ScratchCurve) -> None:
        """Add the curve of a network."""
        self._found.append((network, curve))

    def arrays(self) -> dict[str, Any]:
        """Fields of the result."""
        curves = [curve for _, curve in self._found]
        return {
            "scratch_networks": np.array([name for name, curve in self._found for _ in curve.sizes], str),
            "scratch_sizes": np.concatenate([np.empty(0), *(curve.sizes for curve in curves)]),
            "scratch_values": np.concatenate([np.empty(0), *(np.exp(curve.log_values) for curve in curves)]),
            "pooled": np.concatenate([np.empty(0, np.int64), *(curve.pooled for curve in curves)]),
        }
