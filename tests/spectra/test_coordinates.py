"""Datasets of results: coordinates along all dimensions, units, and what follows from the fields."""

import dataclasses
import json
from importlib import import_module

import numpy as np
import pytest
import torch
import xarray as xr

import hesspec
from hesspec.matrices import CURVATURE
from hesspec.spectra.record import KINDS


def class_of(name):
    module, _, kind = name.rpartition(".")
    return getattr(import_module(module), kind)


def filled(kind):
    """A record of any kind, with an array of some length along each dimension, and made-up values."""
    sizes, values = {}, {}
    for item in dataclasses.fields(kind):
        if item.name in kind.DIMENSIONS:
            shape = [d if isinstance(d, int) else sizes.setdefault(d, 3) for d in kind.DIMENSIONS[item.name]]
            numbers = np.arange(np.prod(shape)).reshape(shape)
            dtype = {"Array": np.float64, "Integers": np.int64, "Sketches": np.float32}.get(item.type)
            values[item.name] = np.array([f"λ{n}" for n in numbers]) if dtype is None else numbers.astype(dtype)
        elif item.name != "attributes":
            values[item.name] = {"int": 3, "float": 0.5, "bool": True, "str": "text"}[item.type]
    return kind(**values, attributes={"matrix": "Hessian", "flag": True, "epoch": 2.5})


# A spectrum computes which of its eigenvalues are outliers, for which made-up values are none.
RECORDS = [class_of(name) for name in KINDS.values() if not name.endswith(".Spectrum")]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_dimension_has_a_coordinate_and_files_keep_it(tmp_path, kind):
    record = filled(kind)
    dataset = record.to_dataset()
    assert set(dataset.dims) == set(dataset.indexes)
    assert not set(dataset.dims) & {item.name for item in dataclasses.fields(kind)}
    assert (dataset.attrs["flag"], dataset.attrs["epoch"], dataset.attrs["matrix"]) == (1, 2.5, "Hessian")
    record.save(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as read:
        for name in dataset.dims:
            assert read[name].values.tolist() == dataset[name].values.tolist()
        bare = read.drop_vars(list(read.indexes)).load()  # as in files of earlier versions
    assert not bare.indexes
    kept = dataset.drop_vars(set(dataset.data_vars) - set(kind.DIMENSIONS)).drop_vars(list(dataset.indexes))
    assert {name: bare[name].values.tolist() for name in bare} == {name: kept[name].values.tolist() for name in kept}


COORDINATES = {
    "BlockSpectra": {"block": "names"},
    "Comparison": {"run": "runs", "place": "places", "quantity": "quantities"},
    "CompetitorShare": {"class": "classes"},
    "DominantShare": {"vector": "names"},
    "DominantShareRun": {"measurement": "steps", "vector": "names"},
    "Evidence": {"prior": "prior_precision"},
    "LabelConsistency": {"block": "blocks"},
    "PredictionComparison": {"prediction": "names"},
    "StabilityRun": {"measurement": "steps"},
    "StepComparison": {"damping": "dampings"},
    "TailIndex": {"length": "lengths"},
}


@pytest.mark.parametrize("name", COORDINATES)
def test_dimensions_are_labelled_by_what_the_result_says_of_them(name):
    record = filled(next(kind for kind in RECORDS if kind.__name__ == name))
    dataset = record.to_dataset()
    for dimension, field in COORDINATES[name].items():
        assert dataset[dimension].values.tolist() == getattr(record, field).tolist()


def test_labels_that_are_made_of_several_fields():
    kinds = {kind.__name__: kind for kind in RECORDS}
    objectives = filled(kinds["ObjectiveComparison"]).to_dataset()
    assert objectives["measurement"].values.tolist() == ["λ0, λ0", "λ1, λ1", "λ2, λ2"]
    assert filled(kinds["TransferLaw"]).to_dataset()["coefficient"].values.tolist() == ["ln k", "alpha", "beta"]
    along = filled(kinds["LossAlong"])
    assert along.to_dataset()["plane_column"].values.tolist() == along.displacements[1].tolist()
    assert filled(kinds["LyapunovExponents"]).to_dataset()["step"].values.tolist() == [3, 4, 5]
    bins = filled(kinds["PredictionComparison"]).to_dataset()["bin"].values
    np.testing.assert_allclose(bins, [1 / 6, 1 / 2, 5 / 6])
    blocks = dataclasses.replace(filled(kinds["BlockSpectra"]), num_resolved=np.array([0, 1, 2]))
    found = dataclasses.replace(blocks, num_bulk=np.ones(3, int), num_ritz=np.ones(3, int)).to_dataset()
    assert found["resolved_block"].values.tolist() == ["λ1", "λ2", "λ2"]


def test_classes_of_a_class_structure_are_named_where_their_names_are_known():
    structure = filled(hesspec.ClassStructure)
    dataset = structure.to_dataset()
    assert dataset["class"].values.tolist() == [0, 1, 2]
    assert dataset["mean"].values.tolist() == ["0, 0", "1, 1", "2, 2"]
    assert dataset["outlier_shares_1"].values.tolist() == ["class", "cross", "within", "same", "residual"]
    named = dataclasses.replace(structure, attributes={"tokens": json.dumps(["a", "b"])}).to_dataset()
    assert named["class_1"].values.tolist() == ["a", "b", "others"]
    assert dataset["outliers"].attrs["units"] == CURVATURE


def test_a_spectrum_says_which_eigenvalues_are_outliers_and_in_which_unit(tmp_path):
    values = torch.cat([torch.linspace(-1, 1, 3000), torch.tensor([5.0, -4.0, 3.0])])
    spectrum = hesspec.spectrum(torch.diag(values), steps=64, progress=False)
    dataset = spectrum.to_dataset()
    assert dataset.eigenvalues[dataset.is_outlier].values.tolist() == spectrum.outliers.tolist()
    assert dataset.outlier_p_values.values.tolist() == spectrum.outlier_p_values.tolist()
    assert "units" not in dataset.eigenvalues.attrs  # a matrix of one's own is no curvature of a loss
    # What xarray writes is read, and what hesspec writes has the measurement only.
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert hesspec.load(tmp_path / "a.nc").outliers.tolist() == spectrum.outliers.tolist()
    spectrum.save(tmp_path / "b.nc")
    with xr.open_dataset(tmp_path / "b.nc", engine="h5netcdf") as read:
        assert "is_outlier" not in read
    curvature = dataclasses.replace(spectrum, attributes={**spectrum.attributes, "matrix": "Hessian"})
    assert curvature.to_dataset().eigenvalues.attrs["units"] == CURVATURE
