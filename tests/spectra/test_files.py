"""Spectra in files: bit for bit, whole or not at all; and the views of a spectrum."""

import dataclasses
import errno
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import hesspec
from hesspec.spectra.spectrum import Spectrum


def spectrum(**attributes) -> Spectrum:
    diagonal = torch.cat([torch.linspace(-0.1, 0.1, 200), torch.tensor([5.0, 9.0])]).double()
    result = hesspec.spectrum(torch.diag(diagonal), steps=24, probes=2)
    return Spectrum(**{**vars(result), "attributes": {**result.attributes, **attributes}})


def same(one: Spectrum, other: Spectrum) -> bool:
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            loaded = getattr(other, name)
            if value.dtype != loaded.dtype or not np.array_equal(value, loaded):
                return False
        elif value != getattr(other, name) or type(value) is not type(getattr(other, name)):
            return False
    return True


def test_a_spectrum_comes_back_bit_for_bit(tmp_path):
    saved = spectrum(matrix="Hessian", note="Größe λ", epoch=3, risk=0.1, traced=True)
    saved.save(tmp_path / "a.nc")
    assert same(saved, hesspec.load(tmp_path / "a.nc"))


def test_an_exact_spectrum_without_bulk_comes_back_too(tmp_path):
    saved = hesspec.spectrum(torch.diag(torch.tensor([3.0, 1.0, -2.0])), steps=5)
    assert saved.exact
    assert saved.bulk_nodes.size == 0
    saved.save(tmp_path / "a.nc")
    assert same(saved, hesspec.load(tmp_path / "a.nc"))


def test_the_folder_is_made(tmp_path):
    spectrum().save(tmp_path / "new" / "folder" / "a.nc")
    assert (tmp_path / "new" / "folder" / "a.nc").is_file()


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    saved = spectrum()
    saved.save(tmp_path / "a.nc")
    before = (tmp_path / "a.nc").read_bytes()

    write = Path.write_bytes

    def broken(self, content):
        write(self, content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(KeyboardInterrupt):
        spectrum().save(tmp_path / "a.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]
    assert (tmp_path / "a.nc").read_bytes() == before


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*gone\.nc'"):
        hesspec.load(tmp_path / "gone.nc")


def test_a_file_that_is_no_netcdf_is_named(tmp_path):
    (tmp_path / "a.nc").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.nc' is not a NetCDF file"):
        hesspec.load(tmp_path / "a.nc")


def test_another_netcdf_file_is_refused(tmp_path):
    xr.Dataset({"x": ("t", [1.0])}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="has no valid result of hesspec: .*hesspec_format"):
        hesspec.load(tmp_path / "a.nc")
    with pytest.raises(ValueError, match="has no valid spectrum: .*hesspec_format"):
        hesspec.Spectrum.load(tmp_path / "a.nc")


def test_a_later_format_is_refused(tmp_path):
    dataset = spectrum().to_dataset()
    dataset.attrs["hesspec_format"] = 99
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="format 99.*Update hesspec"):
        hesspec.load(tmp_path / "a.nc")


def test_the_dataframe_has_a_row_for_each_atom():
    result = spectrum()
    frame = result.to_dataframe()
    assert list(frame.columns) == ["eigenvalue", "error_bound", "weight", "kind"]
    assert len(frame) == result.nodes.size
    assert frame.weight.sum() == pytest.approx(1, abs=1e-12)
    assert frame.eigenvalue[frame.kind == "outlier"].tolist() == result.outliers.tolist()
    assert frame.error_bound[frame.kind == "bulk"].isna().all()


def test_repr_and_html_say_the_same_and_escape_names():
    result = spectrum(matrix="<script>alert(1)</script>")
    assert "of which 2 are outliers" in repr(result)
    assert "of which 2 are outliers" in result._repr_html_()
    assert "<script>" not in result._repr_html_()


def bits(value):
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else (type(value), value)


@pytest.mark.parametrize("values", [[-0.0, 0.0], [5e-324, -2e-310], [1.7e308, np.nextafter(1, 2)], []])
def test_every_bit_of_a_number_comes_back(tmp_path, values):
    values = np.array(values)
    saved = dataclasses.replace(
        spectrum(),
        bulk_nodes=values,
        bulk_weights=np.abs(values),
        bulk_probe=np.zeros(values.size, np.int64),
        norm=5e-324,
        stopped="",
    )
    saved.save(tmp_path / "a.nc")
    loaded = hesspec.load(tmp_path / "a.nc")
    for name in vars(saved):
        assert bits(getattr(loaded, name)) == bits(getattr(saved, name))


def test_a_spectrum_without_resolved_eigenvalues_comes_back(tmp_path):
    saved = hesspec.spectrum(torch.diag(torch.linspace(-1, 1, 50)), steps=2)
    assert saved.eigenvalues.size == 0
    saved.save(tmp_path / "a.nc")
    assert same(saved, hesspec.load(tmp_path / "a.nc"))


def test_a_saved_file_replaces_the_one_before(tmp_path):
    spectrum(note="first").save(tmp_path / "a.nc")
    spectrum(note="second").save(tmp_path / "a.nc")
    assert hesspec.load(tmp_path / "a.nc").attributes["note"] == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]


def test_a_loaded_file_is_not_kept_open(tmp_path):
    spectrum(note="first").save(tmp_path / "a.nc")
    hesspec.load(tmp_path / "a.nc")
    (tmp_path / "a.nc").unlink()
    spectrum(note="second").save(tmp_path / "a.nc")
    assert hesspec.load(tmp_path / "a.nc").attributes["note"] == "second"


def test_an_error_while_writing_a_new_file_leaves_nothing(tmp_path, monkeypatch):
    write = Path.write_bytes

    def broken(self, content):
        write(self, content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError, match="there is no space left"):
        spectrum().save(tmp_path / "a.nc")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        spectrum().save(tmp_path / "file" / "a.nc")


@pytest.mark.parametrize("length", [0, 100, 3000])
def test_a_truncated_file_is_named(tmp_path, length):
    spectrum().save(tmp_path / "a.nc")
    (tmp_path / "a.nc").write_bytes((tmp_path / "a.nc").read_bytes()[:length])
    with pytest.raises(ValueError, match=r"a\.nc' is not a NetCDF file that hesspec can read"):
        hesspec.load(tmp_path / "a.nc")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        hesspec.load(tmp_path)


def test_a_file_that_lacks_a_field_is_refused_naming_it(tmp_path):
    dataset = spectrum().to_dataset()
    del dataset.attrs["probes"]
    dataset.attrs["hesspec_format"] = 1
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"a\.nc' has no valid spectrum: It has no attribute 'probes'"):
        hesspec.load(tmp_path / "a.nc")


def test_a_format_that_is_no_number_is_refused(tmp_path):
    dataset = spectrum().to_dataset()
    dataset.attrs["hesspec_format"] = "new"
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="'new', which is not a format number"):
        hesspec.load(tmp_path / "a.nc")


def test_attributes_may_be_numpy_scalars(tmp_path):
    spectrum(epoch=np.int64(3), risk=np.float32(0.5), traced=np.bool_(True)).save(tmp_path / "a.nc")
    attributes = hesspec.load(tmp_path / "a.nc").attributes
    assert (attributes["epoch"], attributes["risk"], attributes["traced"]) == (3, 0.5, True)


def test_the_dataframe_lists_resolved_by_size_and_then_the_bulk_in_order():
    frame = spectrum().to_dataframe()
    bulk = frame[frame.kind == "bulk"].eigenvalue
    resolved = frame[frame.kind != "bulk"].eigenvalue.abs()
    assert bulk.is_monotonic_increasing
    assert resolved.is_monotonic_decreasing
    assert frame.index[frame.kind == "bulk"].min() == resolved.size
    assert set(frame.kind) <= {"outlier", "resolved", "bulk"}


def test_html_escapes_everything_that_came_from_a_file():
    result = dataclasses.replace(spectrum(matrix='<b onclick="x">&'), stopped="<i>")
    page = result._repr_html_()
    assert "&lt;b onclick=&quot;x&quot;&gt;&amp;" in page
    assert "&lt;i&gt;" in page
    assert "<i>" not in page
    assert "<b" not in page


def test_repr_has_a_line_for_each_row_of_the_summary():
    result = spectrum(matrix="Hessian")
    lines = repr(result).splitlines()
    assert lines[0] == "Spectrum"
    rows = list(result.summary())
    assert [line.strip().split("  ")[0] for line in lines[1 : 1 + len(rows)]] == rows
    # The table of outliers comes after them.
    assert len(lines) > 1 + len(rows) + result.outliers.size
