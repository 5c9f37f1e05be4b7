"""Spectra in files: bit for bit, whole or not at all; and the views of a spectrum."""

import numpy as np
import pytest
import torch
import xarray as xr

import hesspec
from hesspec.result import Spectrum


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

    def broken(self, path, **_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_netcdf", broken)
    with pytest.raises(KeyboardInterrupt):
        spectrum().save(tmp_path / "a.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]
    assert (tmp_path / "a.nc").read_bytes() == before


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*gone\.nc'"):
        hesspec.load(tmp_path / "gone.nc")


def test_a_file_that_is_no_netcdf_is_named(tmp_path):
    (tmp_path / "a.nc").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.nc' is no NetCDF file"):
        hesspec.load(tmp_path / "a.nc")


def test_another_netcdf_file_is_refused(tmp_path):
    xr.Dataset({"x": ("t", [1.0])}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="holds no spectrum.*hesspec_format"):
        hesspec.load(tmp_path / "a.nc")


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
