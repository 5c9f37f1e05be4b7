"""Damaged files: reading gives the same result or a sentence that names the file, and never another result."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import hesspec
from hesspec.applications.class_structure.record import ClassStructure
from hesspec.spectra.spectrum import Spectrum

OLD = Path(__file__).parents[1] / "data" / "format1"
EACH = 61  # of so many bytes one is changed, in the quick test


def bits(result: Any) -> dict[str, Any]:
    """Every field of a result, to compare it with another."""
    return {
        name: (value.dtype.kind, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in vars(result).items()
    }


def outcomes(path: Path, load: Callable[[Path], Any], damage: Callable[[bytes], list[bytes]]) -> set[str]:
    """What reading gives of damaged forms of a file: "the same", or "refused"."""
    good, expected, found = path.read_bytes(), bits(load(path)), set()
    for content in damage(good):
        path.write_bytes(content)
        try:
            loaded = load(path)
        except ValueError as error:
            assert str(error).startswith(repr(str(path)))  # noqa: PT017 - any of them has to say so
            found.add("refused")
        else:
            assert bits(loaded) == expected
            found.add("the same")
    return found


def flipped(step: int) -> Callable[[bytes], list[bytes]]:
    """One byte of each `step` inverted, or one of its bits."""

    def damage(good: bytes) -> list[bytes]:
        forms = []
        for place in range(0, len(good), step):
            content = bytearray(good)
            content[place] ^= 255 if place % 2 else 1 << place // 2 % 8
            forms.append(bytes(content))
        return forms

    return damage


def zeroed(good: bytes) -> list[bytes]:
    return [
        good[:start] + bytes(len(good[start : start + size])) + good[start + size :]
        for size in (16, 512, 4096)
        for start in range(0, len(good), max(size, 1000))
    ]


def truncated(good: bytes) -> list[bytes]:
    return [good[:length] for length in range(0, len(good), 500)]


@pytest.mark.parametrize("damage", [flipped(EACH), zeroed, truncated])
def test_a_damaged_spectrum_is_refused_or_the_same(tmp_path, spectrum, damage):
    spectrum().save(tmp_path / "a.nc")
    assert "refused" in outcomes(tmp_path / "a.nc", hesspec.load, damage)


def test_a_damaged_class_structure_is_refused_or_the_same(tmp_path, structure):
    structure.save(tmp_path / "a.nc")
    assert outcomes(tmp_path / "a.nc", hesspec.load, flipped(5 * EACH)) == {"refused", "the same"}


@pytest.mark.hours
def test_any_damaged_byte_is_found(tmp_path, spectrum):
    spectrum().save(tmp_path / "a.nc")
    assert outcomes(tmp_path / "a.nc", hesspec.load, flipped(1)) == {"refused", "the same"}


def changed_value(path: Path, name: str, place: Any, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        file[name][place] = value


@pytest.mark.parametrize("name", ["eigenvalues", "error_bounds", "bulk_weights", "ritz_values", "eigenvector_sketches"])
def test_a_value_that_was_changed_is_found(tmp_path, spectrum, name):
    path = tmp_path / "a.nc"
    spectrum().save(path)
    changed_value(path, name, 0, 0.125)
    with pytest.raises(ValueError, match=r"a\.nc' has no valid spectrum: It is damaged, or was changed"):
        hesspec.load(path)


@pytest.mark.parametrize("name", ["attributes", "hesspec_digest", "stopped"])
def test_an_attribute_that_was_changed_or_removed_is_found(tmp_path, spectrum, name):
    path = tmp_path / "a.nc"
    for change in (lambda file: file.attrs.__setitem__(name, "{}"), lambda file: file.attrs.__delitem__(name)):
        spectrum().save(path)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(ValueError, match="It is damaged, or was changed"):
            hesspec.load(path)


def test_a_dataset_that_xarray_wrote_and_read_is_the_same(tmp_path, spectrum, structure):
    spectrum().to_dataset().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert bits(hesspec.load(tmp_path / "a.nc")) == bits(spectrum())
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as dataset:
        assert bits(Spectrum.from_dataset(dataset)) == bits(spectrum())
    structure.to_dataset().to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    assert bits(hesspec.load(tmp_path / "b.nc")) == bits(structure)


def test_files_of_the_first_format_are_read(tmp_path, spectrum, structure):
    assert bits(hesspec.load(OLD / "spectrum.nc")) == bits(spectrum(note="λ"))
    assert bits(hesspec.load(OLD / "structure.nc")) == bits(structure)


def test_files_of_a_later_format_say_so(tmp_path, spectrum, structure):
    for result, load, name in (
        (spectrum(), hesspec.load, "hesspec_format"),
        (structure, hesspec.load, "hesspec_structure_format"),
    ):
        result.to_dataset().assign_attrs({name: 3}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
        with pytest.raises(
            ValueError, match=r"a\.nc' cannot be read: .* has format 3; .* reads up to 2. Update hesspec"
        ):
            load(tmp_path / "a.nc")


NAN, INFINITE = np.nan, np.inf


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("dimension", -5, "Its 'dimension' is -5, but should be a nonnegative integer."),
        ("dimension", 0, "Its 'dimension' is 0."),
        ("dimension", 2, "It has 3 eigenvalues, and an operator of dimension 2."),
        ("dimension", 2.5, "Its 'dimension' is 2.5"),
        ("probes", 0, "Its 'probes' is 0."),
        ("steps", -1, "Its 'steps' is -1"),
        ("matvecs", "many", "Its 'matvecs' is 'many'"),
        ("norm", NAN, "Its 'norm' is nan, but should be a finite number"),
        ("norm", -1.0, "Its 'norm' is -1.0"),
        ("rounding", INFINITE, "Its 'rounding' is inf"),
        ("exact", 2, "Its 'exact' is 2, but should be 0 or 1."),
        ("stopped", 3, "Its 'stopped' is 3, but should be a text."),
        ("attributes", "[1]", "Its attributes are not a mapping"),
        ("attributes", '{"a": [1]}', "Its attribute 'a' is [1], of type list"),
        ("attributes", '{"epoch": 1' + 400 * "0" + "}", "Its attribute 'epoch' is 1"),
        ("attributes", "{", "Expecting property name"),
        ("attributes", "[" * 100_000, "nested too deeply"),
        ("eigenvalues", [1.0, NAN, 2.0], "Its eigenvalues are not all finite."),
        ("eigenvalues", [1.0, 2.0], "has shape (3,), and 2 in place of 3."),
        ("eigenvalues", [[1.0, 2.0, 3.0]], "should have type float64 and 1 dimension."),
        ("eigenvalues", [1, 2, 3], "has type int64"),
        ("error_bounds", [1.0, -1.0, 1.0], "Its error_bounds are not all at least zero."),
        ("error_bounds", [1.0, NAN, 1.0], "Its error_bounds are not all at least zero."),
        ("eigenvalue_weights", [-0.1, 0.1, 0.1], "Its eigenvalue_weights are not all at least zero."),
        ("bulk_weights", [INFINITE] * 12, "Its bulk_weights are not all finite."),
        ("bulk_probe", [1] * 12, "numbers of probes that are not below 1"),
        ("bulk_probe", [-1] * 12, "numbers of probes that are not below 1"),
        ("ritz_weights", [NAN] * 15, "Its ritz_weights are not all finite."),
        ("ritz_values", [INFINITE] * 15, "Its ritz_values are not all finite."),
        ("eigenvector_sketches", np.zeros((4, 4), np.float32), "sketches of 4 eigenvectors"),
        ("eigenvector_sketches", np.full((2, 4), NAN, np.float32), "Its eigenvector_sketches are not all finite."),
    ],
)
def test_values_that_no_spectrum_has_are_refused(tmp_path, spectrum, field, value, reason):
    dataset = spectrum().to_dataset()
    if field in dataset:
        values = np.asarray(value)
        dataset = dataset.drop_vars(field).assign({field: ([f"d{axis}" for axis in range(values.ndim)], values)})
    else:
        dataset.attrs[field] = value
    # In a file of the first format, which has no digest.
    del dataset.attrs["hesspec_digest"]
    dataset.attrs["hesspec_format"] = 1
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"a\.nc' has no valid spectrum: ") as raised:
        hesspec.load(tmp_path / "a.nc")
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("classes", 3, "Its weights have shape (2, 2), but it has 3 classes."),
        ("gram", np.eye(3), "Its variable 'gram_true' has shape (2,), and 3 in place of 2."),
        ("gram", np.full((2, 2), NAN), "Its gram are not all finite."),
        ("gram_true", np.array([0, 2]), "Its gram_true are not all classes."),
        ("weights", -np.eye(2), "Its weights are not all at least zero."),
        ("outliers", np.array([1.0]), "has shape (1,), and 2 in place of 1"),
        ("outlier_shares", np.zeros((2, 4)), "has shape (2, 4), and 5 in place of 4"),
        ("outlier_matrix", np.array([1.0, 2.0]), "Its variable 'outlier_matrix' is not a list of texts."),
        ("outlier_bounds", np.array([-1.0, 1.0]), "Its outlier_bounds are not all at least zero."),
    ],
)
def test_values_that_no_class_structure_has_are_refused(structure, field, value, reason):
    dataset = structure.to_dataset()
    if field in dataset:
        values = np.asarray(value)
        dataset = dataset.drop_vars(field).assign({field: ([f"d{axis}" for axis in range(values.ndim)], values)})
    else:
        dataset.attrs[field] = value
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole sentence is looked at
        ClassStructure.from_dataset(dataset)
    assert reason in str(raised.value)


@pytest.mark.parametrize("value", [[1], None, {"a": 1}, 1j, 10**30])
def test_attributes_that_cannot_be_read_again_are_not_written(tmp_path, spectrum, value):
    with pytest.raises(ValueError, match="Its attribute 'mine' is "):
        dataclasses.replace(spectrum(), attributes={"mine": value}).save(tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, spectrum, monkeypatch):
    spectrum().save(tmp_path / "a.nc")
    shutil.copy(tmp_path / "a.nc", tmp_path / "b.nc")

    def refused(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError):
        hesspec.load(tmp_path / "a.nc")
