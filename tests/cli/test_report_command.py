"""`hesspec report`: one page of a folder."""

import json
from dataclasses import replace

import pytest

from hesspec import load


def test_the_example_in_the_help_works(hesspec, example, measured, here):
    measured()
    result = hesspec(*example("report"))
    assert result.exit_code == 0, result.output
    assert result.stdout == "Report: spectra/report.html\n"
    page = (here / "spectra" / "report.html").read_text(encoding="utf-8")
    for matrix in ("Hessian", "GaussNewton", "Residual"):
        assert f"initialisation-train-{matrix}.nc" in page


def test_the_training_is_on_the_page(hesspec, measured, here):
    measured("--matrix", "g")
    record = dict.fromkeys(("train_loss", "train_error", "test_loss", "test_error", "learning_rate"), 0.5)
    (here / "spectra" / "training.json").write_text(json.dumps([{"epoch": 0, **record}]), encoding="utf-8")
    assert hesspec("report", "spectra").exit_code == 0
    assert ">Training<" in (here / "spectra" / "report.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_figures_of_a_study_are_written_on_request(hesspec, measured, here):
    measured("--matrix", "g")
    spectrum = load(next((here / "spectra").glob("*.nc")))
    for size in (5, 10):
        attributes = {**spectrum.attributes, "train_samples_per_class": size, "epoch": 1}
        replace(spectrum, attributes=attributes).save(here / "study" / f"{size}.nc")
    (here / "study" / "study.yaml").write_text("", encoding="utf-8")

    def places():
        return {path.stem.partition("tails-train")[2] for path in (here / "study" / "figures").glob("*tails-train*")}

    result = hesspec("report", "study")
    assert result.exit_code == 0
    assert result.stdout == "Report: study/report.html\n"
    assert not (here / "study" / "figures").exists()
    result = hesspec("report", "study", "--figures", "last")
    assert result.exit_code == 0
    count = len(list((here / "study" / "figures").glob("*.pdf")))
    assert result.stdout == f"Report: study/report.html\nFigures: {count} PDF files in study/figures\n"
    assert places() == {""}
    assert hesspec("report", "study", "--figures", "all").exit_code == 0
    assert places() == {"", "-n5-epoch1", "-n10-epoch1"}


def test_the_page_is_opened_on_request(hesspec, measured, here, monkeypatch):
    measured("--matrix", "g")
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert hesspec("report", "spectra").exit_code == 0
    assert opened == []
    result = hesspec("report", "spectra", "--open", "--figures", "last")
    assert result.exit_code == 0
    assert opened == [(here / "spectra" / "report.html").resolve().as_uri()]
    assert result.stdout.endswith("Figures: none, as only studies have them\n")


def test_a_page_is_replaced_by_a_newer_one(hesspec, measured, here):
    measured("--matrix", "g")
    (here / "spectra" / "report.html").write_text("earlier", encoding="utf-8")
    assert hesspec("report", "spectra").exit_code == 0
    assert len((here / "spectra" / "report.html").read_text(encoding="utf-8")) > 10_000


def test_a_folder_without_spectra(hesspec, here):
    result = hesspec("report", ".")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: There are no readable results in '.'")
    assert result.stderr.count("\n") == 1
    assert not (here / "report.html").exists()
