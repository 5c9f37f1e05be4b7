"""CSV files: any name comes back, and none is a formula."""

import csv
import io
import json
import re

import pytest

from hesspec.backend.csv_text import csv_text
from hesspec.report import write_report
from hesspec.spectra.record import load

FORMULAS = [
    '=HYPERLINK("http://example.com","x")',
    "+1+1",
    "-2+3|cmd",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "  =1",
    "＝1",
    "=1,2\n3",
]
NAMES = [
    "λ 网络",
    "a/b\\c",
    "quote\"'`",
    "two\nlines",
    "x" * 300,
    "<script>alert(1)</script>",
    "a,b;c",
    "a=b",
    "",
    "-0.5",
]


def cells(text):
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_a_text(text):
    assert cells(csv_text(["name"], [[text]]))[1] == [f"'{text}"]


@pytest.mark.parametrize("text", NAMES)
def test_another_name_is_unchanged(text):
    assert cells(csv_text(["name", "more"], [[text, 1]]))[1] == [text, "1"]


@pytest.mark.parametrize("number", [-0.0, -1e-300, 0.1, 1 / 3, 2**60, -5, True])
def test_a_number_is_a_number_to_all_digits(number):
    (cell,) = cells(csv_text(["number"], [[number]]))[1]
    assert cell == repr(number)


@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_what_is_not_known_is_empty(unknown):
    assert cells(csv_text(["number", "more"], [[unknown, 1]]))[1] == ["", "1"]


@pytest.mark.parametrize("evil", [FORMULAS[0], FORMULAS[4], NAMES[0], NAMES[3], NAMES[5], NAMES[4]])
def test_names_come_back_from_files_pages_and_tables(tmp_path, make_spectrum, evil):
    attributes = dict.fromkeys(("network", "dataset", "split", "checkpoint", "mine"), evil)
    folder = tmp_path / "a#b?c%20'\"<b>"
    for epoch in range(2):
        make_spectrum(epoch=epoch, **attributes).save(folder / f"{epoch}.nc")
    assert load(folder / "0.nc").attributes["mine"] == evil
    page = write_report(folder).read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))
    assert "<script>alert" not in page
    rows = list(csv.DictReader(io.StringIO(data["files"]["spectra.csv"], newline="")))
    marked = f"'{evil}" if evil in FORMULAS else evil
    assert {row["split"] for row in rows} == {marked}
    assert {row["checkpoint"] for row in rows} == {marked}
    assert {spectrum["split"] for spectrum in data["spectra"]} == {evil}
