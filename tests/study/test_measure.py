"""Measuring a network's matrices by name: results, what is kept with them, files and progress."""

import numpy as np
import pytest
import torch
from torch import nn

import hesspec
from hesspec.matrices import DEFAULT_MATRICES, matrix_names
from hesspec.study import Dataset
from hesspec.study.measuring import measure, spectrum_file


def dataset(counts=(4, 4, 4), *, split="train"):
    """Points in the plane, some of each class."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    inputs = torch.randn(len(targets), 2, generator=generator) + targets[:, None]
    return Dataset(name="points", split=split, inputs=inputs, targets=targets, class_names=("a", "b", "c"))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize(("steps", "probes"), [(6, 2), ("auto", 1)])
def test_it_measures_as_one_would_by_hand(steps, probes):
    spectra = measure(network(), dataset(), steps=steps, probes=probes, seed=5, batch_size=6)
    assert list(spectra) == list(DEFAULT_MATRICES) == ["Hessian", "GaussNewton", "Residual"]
    for name, found in spectra.items():
        operator = getattr(hesspec, name)(network().eval(), nn.CrossEntropyLoss(), dataset().batches(6))
        expected = hesspec.spectrum(operator, steps=steps, probes=probes, seed=5)
        np.testing.assert_array_equal(found.ritz_values, expected.ritz_values)
        np.testing.assert_array_equal(found.eigenvalues, expected.eigenvalues)
        assert found.attributes["matrix"] == name


def test_the_sum_of_the_parts_is_the_hessian():
    spectra = measure(network(), dataset(), steps=100)
    assert all(spectrum.exact for spectrum in spectra.values())
    whole, *parts = (spectrum.trace for spectrum in spectra.values())
    assert whole == pytest.approx(sum(parts), rel=1e-10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Hessian", "Hessian"),
        ("hess", "Hessian"),
        ("G", "GaussNewton"),
        ("GaussNewton", "GaussNewton"),
        ("gauss-newton", "GaussNewton"),
        ("h", "Residual"),
        ("RESIDUAL", "Residual"),
    ],
)
def test_names_of_matrices(name, expected):
    assert matrix_names([name]) == [expected]


def test_a_misspelt_matrix():
    with pytest.raises(ValueError, match="There is no matrix 'gaus-newton'; did you mean 'gauss-newton'?"):
        measure(network(), dataset(), matrices=["hess", "gaus-newton"])


def test_a_matrix_named_twice_is_measured_once():
    assert list(measure(network(), dataset(), matrices=["g", "GaussNewton"], steps=2)) == ["GaussNewton"]


def test_what_is_kept_with_a_spectrum():
    attributes = {"network": "small", "epoch": 3, "checkpoint": "late"}
    spectra = measure(network(), dataset(split="test"), matrices=["hess"], steps=2, attributes=attributes)
    kept = spectra["Hessian"].attributes
    expected = {
        **attributes,
        "matrix": "Hessian",
        "dataset": "points",
        "split": "test",
        "classes": 3,
        "samples": 12,
        "samples_per_class": 4,
        "loss": "CrossEntropyLoss",
        "dtype": "float64",
        "seed": 0,
    }
    assert expected.items() <= kept.items()


@pytest.mark.parametrize("counts", [(5, 4, 4), (6, 6, 0)])
def test_classes_of_different_sizes_have_no_one_size(counts):
    kept = measure(network(), dataset(counts), matrices=["g"], steps=2)["GaussNewton"].attributes
    assert "samples_per_class" not in kept
    assert kept["samples"] == sum(counts)


def test_files(tmp_path):
    attributes = {"checkpoint": "end"}
    folder = tmp_path / "new" / "folder"
    spectra = measure(network(), dataset(), steps=4, attributes=attributes, folder=folder)
    measure(network(), dataset(), matrices=["g"], steps=4, folder=folder)
    names = {spectrum_file(name, "train", "end"): spectrum for name, spectrum in spectra.items()}
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "train-GaussNewton.nc"])
    for name, spectrum in names.items():
        kept = hesspec.load(folder / name)
        np.testing.assert_array_equal(kept.ritz_values, spectrum.ritz_values)
        assert kept.attributes == spectrum.attributes


def test_what_is_complete_is_kept_when_the_rest_is_not(tmp_path):
    def stop(matrix, done, total):
        if matrix == "GaussNewton" and done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(network(), dataset(), steps=4, folder=tmp_path, on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["train-Hessian.nc"]
    hesspec.load(tmp_path / "train-Hessian.nc")


def test_progress():
    calls = []
    measure(network(), dataset(), steps=6, probes=2, on_progress=lambda *call: calls.append(call))
    assert [call for call in calls if call[0] == "Hessian"] == [("Hessian", done, 32) for done in range(13)]
    assert next(call for call in calls if call[0] == "Residual") == ("Residual", 20, 32)
    assert calls[-1] == ("Residual", 32, 32)


def test_progress_without_a_known_end():
    calls = []
    measure(network(), dataset(), matrices=["g"], steps="auto", on_progress=lambda *call: calls.append(call))
    assert {call[2] for call in calls} == {None}


def test_some_parameters_only():
    spectra = measure(network(), dataset(), matrices=["hess"], params=["0.*"], steps=3)
    assert spectra["Hessian"].dimension == 18


def test_the_network_is_measured_and_left_in_evaluation_mode():
    model = network()
    assert model.training
    measure(model, dataset(), matrices=["g"], steps=2)
    assert not model.training


@pytest.mark.parametrize(("outputs", "shape"), [(2, r"\(1, 2\)"), (4, r"\(1, 4\)")])
def test_a_network_for_other_classes(outputs, shape):
    with pytest.raises(ValueError, match=rf"'points' has shape {shape}, but it must be \(1, 3\)"):
        measure(nn.Linear(2, outputs), dataset())


def test_a_network_that_returns_something_else():
    class Two(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs), inputs

    with pytest.raises(ValueError, match="is a tuple, but it must be"):
        measure(Two(2, 3), dataset())


def test_a_network_without_parameters():
    with pytest.raises(ValueError, match="The network has no parameters"):
        measure(nn.Identity(), dataset())
