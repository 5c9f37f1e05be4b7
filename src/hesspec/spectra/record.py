"""Results as files: a dataclass is converted to a labelled dataset, written atomically, and validated when read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import import_module
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import xarray as xr

from hesspec.backend.netcdf import Kind, OtherKindError, format_of, read_dataset, sealed, write_dataset
from hesspec.backend.shown import Shown
from hesspec.spectra import checked_fields
from hesspec.spectra.checked_fields import refuse_unless

__all__ = ["Array", "Attributes", "Integers", "Record", "Sketches", "Strings", "load"]

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Sketches = npt.NDArray[np.float32]
Strings = npt.NDArray[np.str_]
Attributes = Mapping[str, Any]

# Types of fields by name, as dataclasses store annotations as strings.
_DTYPES: Final[dict[str, type[np.generic]]] = {"Array": np.float64, "Integers": np.int64, "Sketches": np.float32}
_SCALARS: Final[dict[str, Callable[[xr.Dataset, str], Any]]] = {
    "int": checked_fields.integer,
    "float": checked_fields.real,
    "bool": checked_fields.flag,
    "str": checked_fields.text,
}

# The class for each kind of file, by the attribute that holds the format number. Imported when such a file is read.
KINDS: Final = {
    "hesspec_format": "hesspec.spectra.spectrum.Spectrum",
    "hesspec_structure_format": "hesspec.applications.class_structure.record.ClassStructure",
    "hesspec_blocks_format": "hesspec.applications.blocks.record.BlockSpectra",
    "hesspec_comparison_format": "hesspec.applications.comparison.record.Comparison",
    "hesspec_laplace_format": "hesspec.applications.laplace.record.Evidence",
    "hesspec_predictions_format": "hesspec.applications.laplace.prediction_comparison.PredictionComparison",
    "hesspec_calibration_format": "hesspec.applications.language.calibration_record.Calibration",
    "hesspec_label_consistency_format": "hesspec.applications.language.consistency_record.LabelConsistency",
    "hesspec_objectives_format": "hesspec.applications.language.objectives_record.ObjectiveComparison",
    "hesspec_reward_law_format": "hesspec.applications.language.reward_record.RewardLaw",
    "hesspec_exit_times_format": "hesspec.applications.noise.exit_record.ExitTimes",
    "hesspec_tail_index_format": "hesspec.applications.noise.tail_record.TailIndex",
    "hesspec_gradient_noise_format": "hesspec.applications.noise.tail_record.GradientNoise",
    "hesspec_sharpness_dimension_format": "hesspec.applications.stability.record.SharpnessDimension",
    "hesspec_lyapunov_format": "hesspec.applications.stability.record.LyapunovExponents",
    "hesspec_stability_format": "hesspec.applications.stability.record.StabilityRun",
    "hesspec_angles_format": "hesspec.applications.noise.angles_record.PrincipalAngles",
    "hesspec_loss_change_format": "hesspec.applications.noise.one_step_record.ExpectedLossChange",
    "hesspec_flatness_format": "hesspec.applications.noise.flatness_record.FlatnessBound",
    "hesspec_dominant_share_run_format": "hesspec.applications.optim.share_run.DominantShareRun",
    "hesspec_dominant_share_format": "hesspec.applications.optim.share_record.DominantShare",
    "hesspec_competitor_share_format": "hesspec.applications.optim.record.CompetitorShare",
    "hesspec_loss_along_format": "hesspec.applications.loss_along.record.LossAlong",
    "hesspec_steps_format": "hesspec.applications.optim.record.StepComparison",
    "hesspec_transfer_law_format": "hesspec.applications.transfer.law_record.TransferLaw",
    "hesspec_effective_data_format": "hesspec.applications.transfer.effective_record.EffectiveData",
}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Record(Shown):
    """Base class of results that can be saved as NetCDF files.

    A subclass is a frozen dataclass. Its fields are annotated by `int`, `float`, `bool`, `str`, `Array`, `Integers`,
    `Sketches` or `Strings`; `attributes: Attributes` is a mapping of names to strings, numbers and booleans. Add a row
    to `KINDS` for each subclass, so that `hesspec.load` can read its files. Files of earlier versions may lack fields
    that have a default.

    Attributes
    ----------
    KIND : str
        Name of the kind of result in messages, such as "spectrum".
    FORMAT_ATTRIBUTE : str
        Attribute of the file that holds its format number.
    FORMAT : int
        Current format number; files of later formats are rejected.
    DIMENSIONS : mapping of str to tuple of str or int
        Dimensions of each array: a name, which denotes the same length in all arrays, or a length.
    FINITE, NOT_NEGATIVE : tuple of str
        Fields whose values must be finite, and nonnegative.
    """

    KIND: ClassVar[str]
    FORMAT_ATTRIBUTE: ClassVar[str]
    FORMAT: ClassVar[int]
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]]
    FINITE: ClassVar[tuple[str, ...]] = ()
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ()

    attributes: Attributes = field(default_factory=dict)

    def check(self) -> None:
        """Raise ValueError if values are inconsistent; shapes and signs have been checked before."""

    def summary(self) -> dict[str, str]:
        """Names and values, as text, by which the result is shown: its numbers, unless its class says more."""
        shown = [item.name for item in fields(self) if item.name not in self.DIMENSIONS and item.name != "attributes"]
        return {name.replace("_", " "): str(getattr(self, name)) for name in shown}

    def to_dataset(self) -> xr.Dataset:
        """Return all fields as a labelled dataset, with the scalars as its attributes.

        Every dimension has a coordinate: names, epochs, sizes and the like where the result has them, and otherwise
        numbers from 0. Each of `attributes` is also an attribute of its own, unless a scalar has its name.

        Raises
        ------
        ValueError
            If a value of `attributes` is not a string, a number or a boolean.
        """
        dataset = self._stored().assign(self._derived())
        # NetCDF has no booleans among attributes.
        single = {name: int(value) if isinstance(value, bool) else value for name, value in self.attributes.items()}
        return sealed(dataset.assign_attrs({**single, **dataset.attrs}))

    def _stored(self) -> xr.Dataset:
        """Return the dataset that files hold."""
        arrays: dict[str, Any] = {}
        scalars: dict[str, Any] = {}
        units = self._units()
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in self.DIMENSIONS:
                stored = value.astype(object) if value.dtype.kind == "U" else value
                unit = {"units": units[item.name]} if units.get(item.name) else {}
                arrays[item.name] = (_labels(item.name, self.DIMENSIONS[item.name]), stored, unit)
            elif item.name == "attributes":
                scalars[item.name] = checked_fields.attributes_as_text(value)
            else:
                scalars[item.name] = int(value) if isinstance(value, bool) else value
        dataset = xr.Dataset(arrays, attrs=scalars | {self.FORMAT_ATTRIBUTE: self.FORMAT})
        known = self._coordinates()
        # Dimensions are not part of the digest, and are not read: they repeat what the fields say.
        return sealed(
            dataset.assign_coords(
                {name: _coordinate(known.get(str(name)), size) for name, size in dataset.sizes.items()}
            )
        )

    def _coordinates(self) -> Mapping[str, Any]:
        """Values along dimensions, each of their length; dimensions that are left out are numbered."""
        return {}

    def _derived(self) -> Mapping[str, Any]:
        """Variables of `to_dataset` that follow from the fields and are not stored, as (dimensions, values)."""
        return {}

    def _units(self) -> Mapping[str, str]:
        """Units of fields; fields without one, or whose unit is not known, are left out or have an empty one."""
        return {}

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> Self:
        """Create the result from the dataset that `to_dataset` returns.

        Raises
        ------
        ValueError
            If the dataset is not of this kind, contains invalid values, or has a later format than this version reads.
        """
        format_of(dataset, cls.FORMAT_ATTRIBUTE, cls.FORMAT, cls.KIND)
        values = {
            item.name: cls._read(dataset, item)
            for item in fields(cls)
            if item.name in dataset or item.name in dataset.attrs or not _has_default(item)
        }
        found = cls(**values)
        found._check_all()
        return found

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write to a NetCDF file, atomically.

        Parameters
        ----------
        path : path
            Name of the file.
        overwrite : bool
            Whether to replace an existing file.

        Raises
        ------
        FileExistsError
            If the file exists and `overwrite` is False.
        OSError
            If the folder cannot be created or written to; the message says how much space the file needs.
        """
        write_dataset(self._stored(), path, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of this kind, bit for bit.

        Raises
        ------
        FileNotFoundError, ValueError
            See `hesspec.load`; ValueError also if the file holds a result of another kind.
        """
        return read_dataset(path, cls.KIND, lambda _: cls._kind())

    @classmethod
    def _kind(cls) -> Kind[Self]:
        return Kind(cls.KIND, cls.FORMAT_ATTRIBUTE, cls.FORMAT, cls.from_dataset)

    @classmethod
    def _read(cls, dataset: xr.Dataset, item: Field[Any]) -> Any:
        if item.name == "attributes":
            return checked_fields.attributes_of(dataset)
        if item.name not in cls.DIMENSIONS:
            return _SCALARS[str(item.type)](dataset, item.name)
        count = len(cls.DIMENSIONS[item.name])
        if item.type == "Strings":
            return checked_fields.texts(dataset, item.name)
        return checked_fields.array(dataset, item.name, _DTYPES[str(item.type)], count)

    def _check_all(self) -> None:
        lengths: dict[str, int] = {}
        for name, dimensions in self.DIMENSIONS.items():
            shape = getattr(self, name).shape
            for length, dimension in zip(shape, dimensions, strict=True):
                wanted = dimension if isinstance(dimension, int) else lengths.setdefault(dimension, length)
                refuse_unless(
                    length == wanted, f"Its variable {name!r} has shape {shape}, and {wanted} in place of {length}."
                )
        for name in self.FINITE:
            refuse_unless(np.isfinite(getattr(self, name)).all(), f"Its {name} are not all finite.")
        for name in self.NOT_NEGATIVE:
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                refuse_unless((value >= 0).all(), f"Its {name} are not all at least zero.")
            else:
                refuse_unless(value >= 0, f"Its {name!r} is {value}, but should be at least 0.")
        self.check()


def load(path: str | os.PathLike[str]) -> Any:
    """Read any result that hesspec saved, bit for bit: a spectrum, a class structure, or that of another application.

    Returns
    -------
    hesspec.Spectrum, hesspec.ClassStructure, or another subclass of Record
        The result. `Spectrum.load` and the like read files of one kind only.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is not a NetCDF file, is damaged, does not contain a result, was written by a later version of
        hesspec, refers to other files, or declares more data than a result needs.
    """
    return read_dataset(path, "result of hesspec", _kind_of)


def _kind_of(dataset: xr.Dataset) -> Kind[Any]:
    for attribute, name in KINDS.items():
        if attribute in dataset.attrs:
            module, _, kind = name.rpartition(".")
            found: type[Record] = getattr(import_module(module), kind)
            return found._kind()  # noqa: SLF001 - of a class of this module's kind
    raise OtherKindError(f"It has none of the attributes {', '.join(map(repr, KINDS))}.")


def _has_default(item: Field[Any]) -> bool:
    return item.default is not MISSING or item.default_factory is not MISSING


def _labels(name: str, dimensions: tuple[str | int, ...]) -> list[str]:
    """Names of an array's dimensions in a dataset; no array has the same name twice."""
    labels: list[str] = []
    for axis, dimension in enumerate(dimensions):
        label = f"{name}_{axis}" if isinstance(dimension, int) else dimension
        labels.append(f"{label}_{axis}" if label in labels else label)
    return labels


def _coordinate(values: Any, size: int) -> Any:
    """Values along a dimension; numbers from 0 if there are none, or others than its length."""
    given = np.arange(size) if values is None or len(values) != size else np.asarray(values)
    return given.astype(object) if given.dtype.kind == "U" else given
