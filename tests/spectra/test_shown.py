"""Every result shows itself briefly, as text and in notebooks."""

import dataclasses
import html
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from made_spectra import OUTLIERS, make_spectrum

import hesspec
from hesspec.backend.shown import MOST_ROWS, Shown, TextTable, capped
from hesspec.spectra.power_law import fit_power_law
from hesspec.spectra.record import KINDS

OLD = Path(__file__).parents[1] / "data" / "format1"
LONGEST = 4_000  # characters of any result's text; a screen holds about as many


def structure():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10))
    data = [(torch.randn(60, 16), torch.arange(60) % 10)]
    return hesspec.class_structure(model, torch.nn.CrossEntropyLoss(), data, steps=24, progress=False)


def laplace():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    data = [(torch.randn(20, 3), torch.arange(20) % 2)]
    return hesspec.laplace.Laplace(model, torch.nn.CrossEntropyLoss(), data, rank=4, steps=8)


RESULTS = {
    "spectrum": lambda: make_spectrum(np.geomspace(1e5, 10, 200), matrix="Hessian"),
    "structure": structure,
    "power law": lambda: fit_power_law([1, 2, 4, 8], [1, 0.5, 0.26, 0.12]),
    "tail": lambda: hesspec.fit_tail(make_spectrum((), nodes=80), sign=0),
    "law": lambda: hesspec.compare_with_marchenko_pastur(make_spectrum((), (0.0, 0.2)), rank=100),
    "eigenpairs": lambda: hesspec.eigenpairs(torch.diag(torch.arange(1.0, 60)), count=5, progress=False),
    "laplace": laplace,
    "low rank": lambda: laplace().pairs,
    "evidence": lambda: laplace().evidence(),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_show_the_same_short_text_everywhere(name):
    result = RESULTS[name]()
    text, shown = repr(result), result._repr_html_()
    assert text.startswith(type(result).__name__)
    assert len(text) <= LONGEST
    assert "array(" not in text
    assert "tensor(" not in text
    plain = html.unescape(re.sub("<[^>]+>", " ", shown))
    for title, value in result.summary().items():
        assert title in text
        assert title in plain
        assert value in plain
    for table in result.tables():
        assert all(len(row) == len(table.columns) for row in table.rows)
        for row in capped(table).rows:
            assert all(cell in text and cell in plain for cell in row)


def test_no_result_that_can_be_saved_has_the_text_of_a_dataclass():
    for kind in KINDS.values():
        module, _, name = kind.rpartition(".")
        assert getattr(import_module(module), name).__repr__ is Shown.__repr__


@pytest.mark.parametrize("name", ["SharpnessDimension", "LyapunovExponents", "StabilityRun", "TailFit", "PowerLaw"])
def test_results_of_stability_and_fits_use_the_same_text(name):
    homes = ("hesspec.applications.stability.record", "hesspec.spectra.tails", "hesspec.spectra.power_law")
    (found,) = {getattr(import_module(home), name) for home in homes if hasattr(import_module(home), name)}
    assert issubclass(found, Shown)
    assert dataclasses.is_dataclass(found)
    assert found.__repr__ is Shown.__repr__


def test_long_tables_are_cut_and_say_so():
    table = TextTable("t", ("", "value"), [(str(i), str(i * i)) for i in range(MOST_ROWS + 7)])
    assert len(capped(table).rows) == MOST_ROWS
    assert "and 7 more rows" in capped(table).as_text()
    assert "and 7 more rows" in capped(table).as_html()


def test_foreign_text_does_nothing_to_terminals_and_pages():
    table = TextTable("<b>\x1b[2J", ("<i>", "x"), [("<script>\x1b", "1")], ["<u>"])
    assert "\x1b" not in table.as_text()
    assert not re.search("<(b|i|script|u)>", table.as_html())


def test_columns_are_aligned():
    lines = TextTable("", ("name", "value"), [("a", "1"), ("long name", "1,000")]).as_text().splitlines()
    assert lines == ["name       value", "a              1", "long name  1,000"]


def test_an_old_class_structure_shows_its_tables():
    text = repr(hesspec.load(OLD / "structure.nc"))
    assert "Parts of G" in text
    assert len(text) <= LONGEST
    assert "G_cross" in hesspec.load(OLD / "structure.nc")._repr_html_()


def test_outliers_are_listed_largest_first():
    text = repr(make_spectrum(OUTLIERS, bounds=1e-3))
    assert re.search(r"^1 +10\.0000 ± 0\.001\d$", text, re.MULTILINE)
