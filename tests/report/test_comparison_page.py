"""The page of a comparison: what it holds, and what a reader sees in three widths, light and dark, and by a link."""

import csv
import io
import json
import re

import numpy as np
import pytest
from browsing import needs_browser
from seeing import (
    LEGEND,
    PAPER,
    SIZES,
    STAGE,
    legend_is_whole,
    lightness,
    texts_are_apart_and_inside,
    ticks_are_whole_numbers_of_one_size,
)

import hesspec
from hesspec.applications.comparison.record import MANY
from hesspec.report import write_comparison

NAMES = ["<b>sgd</b> %{x}", "adam", "=1+1"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, make_spectrum):
    """Three runs at four places, which differ in scale at the end alone."""
    folder = tmp_path_factory.mktemp("compared")
    for run, scale in (("a", 1.0), ("b", 1.5), ("c", 1.0)):
        for epoch, factor in ((0, 0.1), (20, scale)):
            for matrix in ("Hessian", "GaussNewton"):
                spectrum = make_spectrum(matrix, scale=factor, split="train", epoch=epoch)
                spectrum.save(folder / run / f"{matrix}-{epoch}.nc")
    return hesspec.compare(*(folder / run for run in "abc"), names=NAMES)


@pytest.fixture(scope="module")
def page_file(comparison, tmp_path_factory):
    return write_comparison(comparison, tmp_path_factory.mktemp("page") / "compared.html")


def data_of(file):
    text = file.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


def test_every_difference_that_is_known_is_on_the_page(comparison, page_file):
    text = page_file.read_text(encoding="utf-8")
    for each in comparison.shown():
        assert f'<td class="number">{each.text}</td>' in text
    rows = list(csv.DictReader(io.StringIO(data_of(page_file)["files"]["differences.csv"])))
    assert len(rows) == len(list(comparison.differences()))
    assert {row["run"] for row in rows} == {"adam", "'=1+1"}


def test_names_are_texts_and_the_same_comparison_gives_the_same_page(comparison, page_file, tmp_path):
    text = page_file.read_text(encoding="utf-8")
    assert "<b>sgd" not in text
    assert "&lt;b&gt;sgd" in text
    assert write_comparison(comparison, tmp_path / "again.html").read_bytes() == page_file.read_bytes()


def test_it_opens_where_the_runs_differ_most_and_says_by_what(comparison, page_file):
    data = data_of(page_file)
    place = data["places"][data["first"]]
    assert place["name"] == comparison.places[comparison.distances.max(axis=0).argmax()]
    assert "epoch 20" in place["name"]
    assert place["sentence"].startswith("Adam: largest eigenvalue")
    assert "=1+1: no number differs by more than its error" in place["sentence"]


def test_what_is_not_known_is_not_shown_but_named(comparison):
    unknown = [each for each in comparison.differences() if np.isfinite(each.difference) and not each.is_known]
    assert unknown
    for each in unknown:
        assert each.lower <= 0 <= each.upper
        assert each.upper - each.lower >= 2 * max(abs(each.first), abs(each.second))
    (remark,) = [text for text in comparison.remarks() if text.startswith("Not shown")]
    assert all(each.quantity in remark for each in unknown if each.quantity != "mean eigenvalue")


def test_many_pairs_are_an_overview(comparison):
    assert comparison.is_long
    assert (comparison.runs.size - 1) * comparison.places.size > MANY
    table = comparison.overview()
    assert table.columns[:3] == ["", "compared", "largest"]
    assert len(table.rows) == 8
    cells = {(row[0], row[1]): row[2] for row in table.rows}
    assert cells["Hess, train, epoch 20", "adam"].endswith("*")
    assert not cells["Hess, train, epoch 20", "=1+1"].endswith("*")
    assert repr(comparison).count("Hess, train, epoch 20") == 2


@pytest.mark.long
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_seen_whole_in_every_width(opened, page_file, size, scheme):
    page = opened(page_file, width=size[0], height=size[1], scheme=scheme)
    assert page.evaluate(LEGEND, "spectrum")["wanted"] == 6
    for axis in ("log", "linear"):
        page.check(f"input[value={axis}]")
        legend_is_whole(page, "spectrum")
        texts_are_apart_and_inside(page, "spectrum")
        ticks_are_whole_numbers_of_one_size(page, "spectrum")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for colour in (PAPER, STAGE):
        assert (lightness(page, colour) > 0.9) == (scheme == "light")
    assert page.complaints == []
    assert page.requests == [page_file.resolve().as_uri()]


@pytest.mark.long
@needs_browser
def test_a_place_can_be_chosen_and_a_link_shows_it(opened, page_file):
    page = opened(page_file)
    first = page.inner_text("#headline")
    page.select_option("#place", label="G, train, epoch 0")
    assert page.inner_text("#differences-title") == "Differences, G, train, epoch 0"
    assert page.locator("[data-place]:visible table").count() == 2
    page.check("input[value=linear]")
    other = opened(page_file, address=page.evaluate("location.hash"))
    assert other.is_checked("input[value=linear]")
    assert other.inner_text("#headline") == page.inner_text("#headline") != first
    other.click("#overview a >> nth=3")
    other.wait_for_function("() => location.hash.startsWith('#place=')")
    assert other.inner_text("#overview tr.now th") in other.inner_text("#differences-title")
    page.click("#theme")
    assert lightness(page, STAGE) < 0.15
    assert "theme=dark" in page.evaluate("location.hash")
    with page.expect_download() as download:
        page.click("[data-file='differences.csv']")
    assert download.value.path().read_text(encoding="utf-8").startswith("place,quantity,reference,run")
    assert other.complaints == page.complaints == []
