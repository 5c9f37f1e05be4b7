"""Values that no result has, in files whose digest is right: refused, or said to be what cannot be shown."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from made_spectra import OUTLIERS, make_spectrum

import hesspec
from hesspec.applications.laplace.prediction_comparison import PredictionComparison, compare_predictions
from hesspec.applications.optim.share_run import DominantShareRun
from hesspec.backend.netcdf import sealed, write_dataset
from hesspec.backend.number_text import percent, plus_minus, three_digits
from hesspec.backend.shown import contents
from hesspec.report.application_results import ApplicationResult, result_sections

SPECTRUM = make_spectrum(OUTLIERS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_have_a_text(value):
    assert three_digits(value) == percent(value) == "not finite"
    assert plus_minus(value, value) == "not finite ± unknown"
    assert plus_minus(1.0, value) == "1.000000000 ± unknown"


def test_a_number_of_probes_does_not_ask_for_time(tmp_path):
    dataclasses.replace(SPECTRUM, probes=10**15).save(tmp_path / "a.nc")
    with pytest.raises(ValueError, match="It has too few Ritz values for 1000000000000000 probes"):
        hesspec.load(tmp_path / "a.nc")


def test_any_error_of_a_check_is_one_of_the_file(tmp_path, monkeypatch):
    def check(self):
        raise IndexError("index 0 is out of bounds")

    compare_predictions({"a": np.eye(2)}, [0, 1]).save(tmp_path / "a.nc")
    monkeypatch.setattr(PredictionComparison, "check", check)
    with pytest.raises(ValueError, match=r"a\.nc' has no valid .*: its values contradict one another \(IndexError"):
        hesspec.load(tmp_path / "a.nc")


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("dimension", ["prediction", "bin"])
def test_predictions_of_other_lengths_are_read_or_refused(tmp_path, length, dimension):
    result = compare_predictions({"a": np.eye(2), "b": np.full((2, 2), 0.5)}, [0, 1])
    cut = result.to_dataset().isel({dimension: slice(0, length)})
    write_dataset(sealed(cut), tmp_path / "a.nc")
    try:
        found = hesspec.load(tmp_path / "a.nc")
    except ValueError as error:
        assert "a.nc' has no valid " in str(error)  # noqa: PT017 - any of them has to say so
    else:
        contents(found)


def contradictory() -> DominantShareRun:
    """A run whose shares are of fewer vectors than it names."""
    return DominantShareRun(
        steps=np.arange(2),
        names=np.array(["gradient"]),
        values=np.zeros((2, 0)),
        low=np.zeros((2, 0)),
        high=np.zeros((2, 0)),
        eigenvectors=np.full(2, 3),
        dimension=100,
        optimizer="SGD",
    )


def test_a_page_shows_the_other_results_where_one_contradicts_itself():
    good = compare_predictions({"a": np.eye(2)}, [0, 1])
    bad, other = result_sections(
        [
            ApplicationResult(path=Path("bad.nc"), record=contradictory()),
            ApplicationResult(path=Path("good.nc"), record=good),
        ]
    )
    assert "its values contradict one another (IndexError" in bad["without"]
    assert (bad["summary"], bad["tables"], bad["figure"]) == ([], [], "")
    assert other["figure"]
    assert other["summary"]
