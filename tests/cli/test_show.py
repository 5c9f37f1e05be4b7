"""`hesspec show`: tables and figures of files."""

import csv
import dataclasses
import io
import json
import re
import unicodedata
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

import hesspec as package
from hesspec.applications.laplace.prediction_comparison import PredictionComparison, compare_predictions
from hesspec.applications.optim.share_run import DominantShareRun
from hesspec.backend.number_text import with_bound

OLD = Path(__file__).parents[1] / "data" / "format1"
MINUS = "\N{MINUS SIGN}"


@pytest.fixture
def spectra(measured, here):
    """A folder with all three matrices of a linear network on both splits."""
    measured()
    measured("--split", "test")
    return here / "spectra"


def headings(text):
    """Names of the columns of the printed tables."""
    lines = text.splitlines()
    return [re.split(r"  +", lines[index - 1].strip()) for index, line in enumerate(lines) if line.startswith("───")]


def test_the_example_in_the_help_works(hesspec, example, measured, here):
    measured()
    arguments = [part for word in example("show") for part in (sorted(here.glob(word)) if "*" in word else [word])]
    result = hesspec(*arguments)
    assert result.exit_code == 0, result.output
    image = mpl.image.imread(here / "spectra.png")
    assert image.shape[0] > 500
    assert image.shape[1] > 1000
    assert image[..., :3].std() > 0.05
    assert "Saved spectra.png" in result.stdout
    assert list(here.glob(".*")) == []


def test_a_result_that_is_no_spectrum_alone(hesspec, here):
    package.stability.sharpness_dimension([25.0, 10.0, -5.0], 0.1).save(here / "dimension.nc")
    result = hesspec("show", "dimension.nc")
    assert result.exit_code == 0, result.output
    assert "sharpness dimension" in result.stdout
    assert json.loads(hesspec("show", "dimension.nc", "--json").stdout)[0]["kind"] == "sharpness dimension"


def test_one_file(hesspec, here):
    file = here / "spectra" / "initialisation-train-GaussNewton.nc"
    eigenvalues = torch.cat([torch.linspace(-1, 1, 500), torch.tensor([9.0, -7.0, 5.0])]).double()
    spectrum = dataclasses.replace(
        package.spectrum(torch.diag(eigenvalues), steps=48),
        attributes={
            "matrix": "GaussNewton",
            "network": "own:linear",
            "dataset": "digits",
            "split": "train",
            "checkpoint": "initialisation",
        },
    )
    spectrum.save(file)
    text = hesspec("show", file).stdout
    assert text.startswith(f"G: own:linear, digits, train, initialisation; {file}\n")
    assert headings(text) == [["G"]]
    outliers = re.findall(r"^outlier +(\d+) +(\S+) ± (\S+)$", text, re.MULTILINE)
    bounds = spectrum.error_bounds[spectrum.is_outlier]
    assert outliers == [
        (str(rank), *with_bound(float(value), float(bound)))
        for rank, (value, bound) in enumerate(zip(spectrum.outliers, bounds, strict=True), start=1)
    ]
    assert len(outliers) == 3
    low, high = spectrum.bulk_edges
    (bulk,) = re.findall(r"^bulk +(.+) to (.+)$", text, re.MULTILINE)
    np.testing.assert_allclose([float(edge.replace(MINUS, "-")) for edge in bulk], [low, high], rtol=1e-2)


def test_columns_are_named_by_what_differs(hesspec, spectra):
    train, test = (spectra / f"initialisation-{split}-Hessian.nc" for split in ("train", "test"))
    assert headings(hesspec("show", train, test).stdout) == [["Hess, train", "Hess, test"]]
    assert headings(hesspec("show", train, spectra / "initialisation-train-Residual.nc").stdout) == [["Hess", "H"]]


def test_columns_are_named_by_the_files_where_nothing_else_tells_them_apart(hesspec, spectra, here):
    for name in ("one [x].nc", "two:+1:.nc"):
        (here / name).write_bytes((spectra / "initialisation-train-Hessian.nc").read_bytes())
    assert headings(hesspec("show", "one [x].nc", "two:+1:.nc").stdout) == [["one [x]", "two:+1:"]]


def test_a_spectrum_that_says_nothing_of_itself(hesspec, here):
    package.spectrum(torch.diag(torch.arange(1.0, 41.0)), steps=8).save(here / "bare.nc")
    text = hesspec("show", "bare.nc").stdout
    assert text.startswith("bare: bare.nc\n")
    assert "samples" not in text
    assert "loss" not in text


def test_class_structures_are_shown_beside_spectra(hesspec, here):
    result = hesspec("show", OLD / "structure.nc", OLD / "spectrum.nc")
    assert result.exit_code == 0, result.output
    assert "Parts of G" in result.output
    assert "largest" in result.output


def test_a_figure_needs_a_spectrum(hesspec, here):
    result = hesspec("show", OLD / "structure.nc", "--figure", "a.png")
    assert result.exit_code == 1
    assert "--figure needs spectra, and none of these files holds one." in result.output
    assert not (here / "a.png").exists()


def test_the_figure_is_there_whole_or_not_at_all(hesspec, spectra, here, monkeypatch):
    (here / "figure.png").write_bytes(b"earlier")

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    result = hesspec("show", spectra / "initialisation-train-Hessian.nc", "--figure", "figure.png")
    assert result.exit_code == 130
    assert (here / "figure.png").read_bytes() == b"earlier"
    assert list(here.glob(".*")) == []


def test_files_that_cannot_be_read_are_named_and_the_others_shown(hesspec, spectra, here):
    (here / "bad.nc").write_text("no")
    good = spectra / "initialisation-train-Hessian.nc"
    result = hesspec("show", "bad.nc", good, "gone.nc")
    assert result.exit_code == 1
    assert headings(result.stdout) == [["Hess"]]
    first, second = result.stderr.splitlines()
    assert first.startswith("Warning: left out: 'bad.nc' is not a NetCDF file")
    assert second.startswith("Warning: left out: There is no file 'gone.nc'")
    both = hesspec("show", "bad.nc", "gone.nc")
    assert both.exit_code == 1
    assert both.stdout == ""
    assert both.stderr.endswith("Error: None of these files can be read.\n")


EVIL = "\x1b]0;title\x07\x1b[2J\u202egnp.exe\nError: no\r\x9b1m\udc80λ"


def test_text_of_others_does_nothing_to_the_terminal(hesspec, here):
    operator = torch.diag(torch.arange(1.0, 41.0))
    for number in range(2):
        attributes = dict.fromkeys(("matrix", "network", "dataset", "split", "checkpoint", "samples", "risk"), EVIL)
        spectrum = package.spectrum(operator, steps=8)
        named = {**spectrum.attributes, **attributes, "epoch": number}
        dataclasses.replace(spectrum, attributes=named, stopped=EVIL.replace("\udc80", "")).save(
            here / f"{number}\x1b[2J\n.nc"
        )
    result = hesspec("show", *sorted(here.glob("*.nc")), "gone\x1b[2J.nc")
    shown = result.stdout + result.stderr
    assert result.exit_code == 1
    assert "\\x1b]0;title\\x07" in shown
    assert "λ" in shown
    assert {unicodedata.category(character) for character in shown.replace("\n", "")}.isdisjoint({"Cc", "Cf", "Cs"})
    assert not re.search("^Error: no", shown, re.MULTILINE)
    assert "\x1b" not in repr(package.load(here / "0\x1b[2J\n.nc"))


def test_labels_are_given_or_short(hesspec, spectra, here):
    files = [spectra / "initialisation-train-Hessian.nc", spectra / "initialisation-train-Residual.nc"]
    assert headings(hesspec("show", *files, "--label", "before", "--label", "after").stdout) == [["before", "after"]]
    result = hesspec("show", *files, "--label", "before")
    assert result.exit_code == 1
    assert "There are 1 labels for 2 spectra" in result.output
    (here / "a").mkdir()
    (here / "b").mkdir()
    for folder in "ab":
        (here / folder / "x.nc").write_bytes(files[0].read_bytes())
    assert headings(hesspec("show", "a/x.nc", "b/x.nc").stdout) == [["a/x", "b/x"]]


def test_a_folder_stands_for_the_files_in_it(hesspec, spectra, here):
    assert hesspec("show", spectra).stdout == hesspec("show", *sorted(spectra.rglob("*.nc"))).stdout
    (here / "empty").mkdir()
    assert "holds no NetCDF files" in hesspec("show", "empty").output


def test_json_has_all_numbers_and_nothing_else_on_standard_output(hesspec, spectra, here):
    file = spectra / "initialisation-train-Hessian.nc"
    result = hesspec("show", file, OLD / "structure.nc", "--json", "--figure", "a.svg", "--kind", "scree")
    first, second = json.loads(result.stdout)
    spectrum = package.load(file)
    assert first["kind"] == "spectrum"
    assert first["numbers"]["trace"] == spectrum.trace
    assert first["outliers"] == spectrum.outliers.tolist()
    assert first["attributes"]["split"] == "train"
    assert second["kind"] == "class structure"
    assert second["numbers"]["classes"] > 0
    assert (here / "a.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_csv_has_a_row_for_each_spectrum(hesspec, spectra):
    files = sorted(spectra.glob("*.nc"))
    rows = list(csv.DictReader(io.StringIO(hesspec("show", *files, "--csv").stdout)))
    assert [row["file"] for row in rows] == [str(file) for file in files]
    for row, file in zip(rows, files, strict=True):
        spectrum = package.load(file)
        assert float(row["trace"]) == spectrum.trace
        assert int(row["outliers"]) == spectrum.outliers.size
        assert row["matrix"] == spectrum.attributes["matrix"]


def test_options_that_contradict_are_refused(hesspec, spectra):
    file = spectra / "initialisation-train-Hessian.nc"
    assert "cannot be combined" in hesspec("show", file, "--json", "--csv").output
    assert "must end in .pdf, .svg or .png" in hesspec("show", file, "--figure", "a.gif").output
    assert "There is no kind 'scre'" in hesspec("show", file, "--figure", "a.pdf", "--kind", "scre").output
    assert "--csv needs spectra" in hesspec("show", OLD / "structure.nc", "--csv").output


def test_a_result_that_contradicts_itself_is_named_and_the_others_are_shown(hesspec, here, monkeypatch):
    def tables(_):
        raise IndexError("index 0 is out of bounds")

    compare_predictions({"network": np.eye(2)}, [0, 1]).save(here / "bad.nc")
    monkeypatch.setattr(PredictionComparison, "tables", tables)
    shares = np.full((2, 1), 0.5)
    good = DominantShareRun(
        steps=np.arange(2),
        names=np.array(["gradient"]),
        values=shares,
        low=shares,
        high=shares,
        eigenvectors=np.full(2, 3),
        dimension=100,
        optimizer="SGD",
    )
    good.save(here / "good.nc")
    result = hesspec("show", here)
    assert result.exit_code == 1
    assert "gradient" in result.stdout
    assert "It cannot be shown, as its values contradict one another" in " ".join(result.stderr.split())


def test_formulas_are_texts_in_csv_whatever_stands_before_them(hesspec, here, measured):
    measured()
    spectrum = package.load(next((here / "spectra").glob("*.nc")))
    for text in ("=1+1", " =1+1", "\uff1d1+1", "\t=1+1", "@SUM(A1)", "-1+1|calc"):
        dataclasses.replace(spectrum, attributes={"network": text}).save(here / "evil.nc")
        (row,) = csv.DictReader(io.StringIO(hesspec("show", "--csv", here / "evil.nc").stdout))
        assert row["network"].startswith("'")
