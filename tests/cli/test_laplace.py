"""hesspec laplace: tables on the terminal, two files, and the page that shows them."""

import numpy as np
import pytest

from hesspec.spectra.record import load

LAPLACE = ("laplace", "tanh_mlp", "--data", "digits", "--samples-per-class", "3", "--test-samples-per-class", "2")
SHORT = ("--steps", "12", "--rank", "8")


def test_it_computes_and_keeps_two_files(hesspec, here):
    result = hesspec(*LAPLACE, *SHORT)
    assert result.exit_code == 0, result.stderr
    for text in (
        "best prior precision",
        "log evidence",
        "effective parameters",
        "Laplace, probit",
        "calibration error",
    ):
        assert text in result.stdout
    evidence = load(here / "spectra" / "initialisation-train-Evidence.nc")
    comparison = load(here / "spectra" / "initialisation-test-PredictionComparison.nc")
    assert evidence.attributes["network"] == "tanh_mlp"
    assert comparison.attributes["prior_precision"] == pytest.approx(evidence.best)
    assert comparison.counts.sum(axis=1).tolist() == [20, 20]
    assert comparison.names.tolist() == ["network", "Laplace, probit"]
    # The probit does not change the order of equal variances much, and an untrained network is at chance.
    assert (comparison.accuracy <= 0.5).all()
    assert np.isfinite(comparison.plot().axes[0].get_xlim()).all()
    report = hesspec("report", "spectra")
    assert report.exit_code == 0, report.stderr
    page = (here / "spectra" / "report.html").read_text(encoding="utf-8")
    assert "Evidence of a Laplace approximation · digits · tanh_mlp" in page
    assert "Comparison of predictions · digits · tanh_mlp" in page
    again = hesspec(*LAPLACE, *SHORT)
    assert again.exit_code == 0, again.stderr
    assert "Already computed: spectra/initialisation-train-Evidence.nc" in again.stderr
    assert again.stdout == result.stdout[: result.stdout.index("Saved")]
    other = hesspec(*LAPLACE, *SHORT[:-1], "6")
    assert other.exit_code == 1
    assert "its --rank was 8, where it is 6 now" in other.stderr
    shown = hesspec("show", "spectra/initialisation-test-PredictionComparison.nc")
    assert shown.exit_code == 0, shown.stderr
    assert "Laplace, probit" in shown.stdout


def test_priors_must_be_positive(hesspec):
    result = hesspec(*LAPLACE, "--prior-precision", "-1")
    assert result.exit_code == 1
    assert "--prior-precision is -1.0; it must be a positive finite number" in result.stderr
