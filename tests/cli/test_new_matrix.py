"""A matrix that is added with one file and one row is measured, planned, plotted and reported by its alias."""

import re
import sys

import numpy as np
import pytest

import hesspec as package
from hesspec.matrices import MATRICES, Matrix, matrix_names, symbol_of
from hesspec.operators.named import operator_class

FILE = """
from hesspec.operators import GaussNewton


class Fisher(GaussNewton):
    "The Fisher matrix, which is G where the loss is a log-likelihood of an exponential family."
"""


@pytest.fixture
def _fisher(here, monkeypatch):
    (here / "fisher.py").write_text(FILE, encoding="utf-8")
    sys.path.insert(0, str(here))
    row = Matrix("Fisher", "F", "the Fisher matrix", ("fisher-information",), "fisher", 4, (1, 1))
    monkeypatch.setitem(MATRICES, "Fisher", row)
    yield
    sys.modules.pop("fisher", None)


@pytest.mark.usefixtures("_fisher")
def test_one_file_and_one_row_are_a_matrix(hesspec, measured, here):
    printed = measured("--matrix", "Fisher-Information", "--matrix", "g").stdout
    found, newton = (package.load(here / "spectra" / f"initialisation-train-{n}.nc") for n in ("Fisher", "GaussNewton"))
    np.testing.assert_array_equal(found.ritz_values, newton.ritz_values)
    assert (found.attributes["matrix"], symbol_of("Fisher")) == ("Fisher", "F")
    assert " F " in printed
    planned = hesspec("plan", "own:linear", "--data", "digits", "--samples-per-class", 5, "--matrix", "fisher")
    assert planned.exit_code == 0, planned.output
    assert planned.stdout.split("\n", 1)[0].strip() == "F"
    assert found.plot().axes
    reported = hesspec("report", "spectra")
    assert reported.exit_code == 0, reported.output
    page = (here / "spectra" / "report.html").read_text(encoding="utf-8")
    assert "F is the Fisher matrix" in page
    # What is added comes last.
    assert page.index("G is its Gauss") < page.index("F is the Fisher matrix")


def test_every_row_has_an_operator_and_names_of_its_own():
    names = [name.lower() for matrix in MATRICES.values() for name in (matrix.name, *matrix.aliases)]
    distinct = {name for matrix in MATRICES.values() for name in {matrix.name.lower(), *matrix.aliases}}
    assert len(set(names)) == len(distinct) == sum(len({m.name.lower(), *m.aliases}) for m in MATRICES.values())
    assert len({matrix.symbol for matrix in MATRICES.values()}) == len(MATRICES)
    for name in MATRICES:
        assert operator_class(name) is getattr(package, name)


def test_unknown_matrices_are_named_with_the_nearest():
    with pytest.raises(ValueError, match="There is no matrix 'hesian'; did you mean 'hessian'"):
        matrix_names(["hesian"])


def test_second_moments_of_gradients_are_measured_planned_and_reported(hesspec, measured, here):
    printed = measured("--matrix", "hess", "--matrix", "m", "--matrix", "likelihood-residual").stdout
    names = ("Hessian", "SecondMoment", "LikelihoodResidual")
    found = {n: package.load(here / "spectra" / f"initialisation-train-{n}.nc") for n in names}
    assert {n: found[n].attributes["matrix"] for n in names} == dict(zip(names, names, strict=True))
    # Hess = M - H_p, so that traces add up; a few Lanczos steps give them with an error.
    traces = {n: found[n].trace for n in names}
    errors = sum(found[n].trace_standard_error for n in names)
    assert abs(traces["Hessian"] - traces["SecondMoment"] + traces["LikelihoodResidual"]) <= 4 * errors + 1e-6
    assert re.search(r"Hess +M +H_p", printed)
    planned = hesspec("plan", "own:linear", "--data", "digits", "--samples-per-class", 5, "--matrix", "h-p")
    assert planned.exit_code == 0, planned.output
    reported = hesspec("report", "spectra")
    assert reported.exit_code == 0, reported.output
    page = (here / "spectra" / "report.html").read_text(encoding="utf-8")
    assert "M is the second moment" in page
