"""`hesspec compare`: what it prints, and the files that it writes."""

import io
import json

import pandas as pd
import pytest

import hesspec as package


@pytest.fixture
def spectra(measured):
    for split in ("train", "test"):
        measured("--split", split, "--matrix", "hess", "--matrix", "g", "--steps", 12)
    return [f"spectra/initialisation-{split}-Hessian.nc" for split in ("train", "test")]


def test_two_files(hesspec, spectra, here):
    result = hesspec("compare", *spectra, "--figure", "a.png")
    assert result.exit_code == 0, result.output
    assert "Hess, initialisation: test compared with train" in result.stdout
    assert (here / "a.png").read_bytes().startswith(b"\x89PNG")
    lines = result.stdout.splitlines()
    assert lines[-1] == "Saved a.png"
    assert max(map(len, lines)) <= 80


def test_other_programs_get_all_differences(hesspec, spectra):
    expected = package.compare(*spectra).to_dataframe()
    result = hesspec("compare", *spectra, "--csv", "--label", "=1+1", "--label", "two")
    table = pd.read_csv(io.StringIO(result.stdout))
    assert table["difference"].to_numpy() == pytest.approx(expected["difference"].to_numpy(), nan_ok=True)
    # No cell that a spreadsheet takes for a formula.
    assert set(table["reference"]) == {"'=1+1"}
    content = json.loads(hesspec("compare", *spectra, "--json").stdout)
    assert [row["quantity"] for row in content["differences"]] == expected["quantity"].tolist()
    both = hesspec("compare", *spectra, "--json", "--csv")
    assert both.exit_code == 1
    assert "cannot be combined" in both.stderr


def test_a_page(hesspec, spectra, here):
    result = hesspec("compare", *spectra, "--page", "a.html")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "Saved a.html"
    assert "test compared with train" in (here / "a.html").read_text(encoding="utf-8")
    assert "its name must end in .html" in hesspec("compare", *spectra, "--page", "a.png").stderr


def test_labels_and_selection(hesspec, spectra):
    result = hesspec("compare", "spectra", "spectra", "--label", "one", "--label", "two", "--matrix", "g")
    assert result.exit_code == 0, result.output
    assert "G, train, initialisation: two compared with one" in result.stdout
    assert "Hess" not in result.stdout


def test_what_cannot_be_compared(hesspec, spectra):
    for arguments, message in [
        (spectra[:1], "at least two spectra, files or folders, and was given 1"),
        ([spectra[0], "missing.nc"], "missing.nc"),
        ([*spectra, "--matrix", "h"], "has no spectrum with matrix H; it has Hess."),
    ]:
        result = hesspec("compare", *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
        assert message in result.stderr
