"""The page in a browser: it draws, answers to its controls, asks the network for nothing, and runs no name as code."""

import csv
import io
import itertools
import json

import numpy as np
import pytest
from browsing import DRAWN, needs_browser

from hesspec.plot import bulk_on_logarithmic_axis
from hesspec.report import write_report
from hesspec.spectra.record import load

pytestmark = [pytest.mark.long, needs_browser]

TRACES = "id => document.getElementById(id).data.map(trace => trace.name)"
AXIS = "name => document.getElementById('spectrum').layout[name]"


@pytest.fixture
def page(shared, report):
    return shared(report)


@pytest.fixture
def study_page(shared, study_report):
    return shared(study_report)


def labels(page):
    """Values beside the outliers, from left to right, when they are drawn."""
    page.wait_for_selector("#spectrum .annotation-text")
    return page.locator("#spectrum .annotation-text").all_text_contents()


def shown_tables(page):
    return page.locator("table.outliers:visible caption").all_text_contents()


def test_it_opens_without_complaint_and_asks_for_nothing_but_itself(opened, report):
    page = opened(report)
    assert page.complaints == []
    assert page.requests == [report.resolve().as_uri()]
    assert page.title() == "Spectra of VGG11-BN on FashionMNIST"


def test_the_figures_are_drawn(page):
    bulk = ["Hess, train", "G, train", "H, train"]
    resolved = ["resolved eigenvalue in the bulk"] * 3
    outliers = ["10 outliers", "10 outliers", "0 outliers"]
    # The bulk takes little of the axis, and is drawn again in an inset.
    assert page.evaluate(TRACES, "spectrum") == [*bulk, *resolved, *outliers, *bulk, *resolved]
    assert len(page.evaluate(TRACES, "dynamics")) == 9
    assert page.evaluate(TRACES, "training") == ["train", "test", "train", "test"]
    for name in ("spectrum", "dynamics", "training"):
        assert page.locator(f"#{name} .scatterlayer .trace").count() > 0


def test_outliers_carry_their_values(page):
    assert {"10.0", "9.80"} <= set(labels(page))


def test_labels_do_not_overlap(page):
    labels(page)
    boxes = [box.bounding_box() for box in page.locator("#spectrum .annotation-text").all()]
    edges = sorted((box["x"], box["x"] + box["width"]) for box in boxes)
    assert all(left[1] <= right[0] + 4 for left, right in itertools.pairwise(edges))


def test_the_matrix_can_be_chosen(page):
    page.uncheck("input[value=G]")
    page.uncheck("input[value=H]")
    assert page.evaluate(TRACES, "spectrum")[:3:2] == ["Hess, train", "10 outliers"]
    assert shown_tables(page) == ["Hess · train · end (epoch 12)"]
    assert page.inner_text("#status") == "Shown at end (epoch 12): Hess, train: 10 outliers."
    page.uncheck("input[value=Hess]")
    assert page.evaluate(TRACES, "spectrum") == []
    assert "Nothing is chosen" in page.inner_text("#spectrum")
    assert page.complaints == []


def test_train_and_test_can_be_laid_over_one_another(page):
    page.check("input[value=test]")
    assert page.evaluate(TRACES, "spectrum")[:6] == [
        "Hess, train",
        "Hess, test",
        "G, train",
        "G, test",
        "H, train",
        "H, test",
    ]
    assert len(page.evaluate(TRACES, "dynamics")) == 18
    page.uncheck("input[value=train]")
    assert page.evaluate(TRACES, "spectrum")[:3] == ["Hess, test", "G, test", "H, test"]


def test_the_checkpoint_can_be_chosen_with_the_keyboard(page):
    page.focus("input[name=checkpoint]:checked")
    page.keyboard.press("ArrowLeft")
    assert "at middle (epoch 6)" in page.inner_text("#status")
    page.keyboard.press("ArrowLeft")
    assert "at initialisation (epoch 0): Hess, train: 3 outliers" in page.inner_text("#status")
    assert shown_tables(page)[0] == "Hess · train · initialisation (epoch 0)"
    assert "1.00" in labels(page)


def test_the_axis_can_be_chosen(page, study):
    spectrum = load(study / "hessian-train-end.nc")
    assert page.evaluate(AXIS, "xaxis")["type"] == "linear"
    page.check("input[value=log]")
    axis = page.evaluate(AXIS, "xaxis")
    assert axis["type"] == "log"
    assert axis["range"][0] < -2
    assert axis["range"][1] > 1
    page.check("input[value=bulk]")
    low, high = page.evaluate(AXIS, "xaxis")["range"]
    assert low < spectrum.bulk_nodes.min() < spectrum.bulk_nodes.max() < high < spectrum.outliers.min()


def test_the_height_holds_the_outliers_and_the_peak_in_every_state(page):
    for axis in ("linear", "bulk", "log"):
        page.check(f"input[value={axis}]")
        low, high = page.evaluate(AXIS, "yaxis")["range"]
        heights = page.evaluate("document.getElementById('spectrum').data.flatMap(t => t.y)")
        assert 10**low < 1 / 1500
        assert 10**high > max(heights)


def test_pointing_at_an_outlier_names_it(page, study):
    page.uncheck("input[value=G]")
    page.uncheck("input[value=H]")
    page.locator("#spectrum .xy .scatterlayer .trace").last.locator(".point").first.hover(force=True)
    words = page.wait_for_selector("#spectrum .hoverlayer .hovertext").text_content()
    for part in (
        "λ = 10.0",
        "error at most",
        "outlier 1 of 10",
        "matrix: Hess",
        "split: train",
        "checkpoint: end (epoch 12)",
    ):
        assert part in words


def test_zooming_places_the_labels_again(page):
    before = labels(page)
    page.evaluate("Plotly.relayout('spectrum', {'xaxis.range': [1.5, 3]})")
    page.wait_for_function("n => document.querySelectorAll('#spectrum .annotation-text').length < n", arg=len(before))
    assert labels(page)[:2] == ["1.96", "2.00"]


def test_the_figures_have_text_alternatives(page):
    assert page.get_attribute("#spectrum", "aria-label").startswith(
        "Spectrum. Shown at end (epoch 12): Hess, train: 10"
    )
    assert "Hess, train; G, train; H, train" in page.get_attribute("#dynamics", "aria-label")
    for name in ("checkpoint", "matrix", "split", "axis"):
        assert page.get_by_role("group", name=name).is_visible()


def test_no_button_sends_the_data_away(page):
    buttons = page.locator("#spectrum .modebar-btn")
    assert {button.get_attribute("aria-label") for button in buttons.all()} == {
        "Download plot",
        "Zoom",
        "Pan",
        "Reset axes",
    }


def test_the_csv_can_be_downloaded(page):
    with page.expect_download() as download:
        page.click("a[data-file='outliers.csv']")
    assert download.value.suggested_filename == "outliers.csv"
    assert (
        download.value.path()
        .read_text(encoding="utf-8")
        .startswith("run,matrix,split,checkpoint,epoch,rank,eigenvalue")
    )


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_window(opened, report, width):
    page = opened(report, width)
    for axis in ("linear", "log"):
        page.check(f"input[value={axis}]")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#spectrum .main-svg").first.bounding_box()["width"] <= width


def test_the_figures_follow_the_window(page):
    page.set_viewport_size({"width": 800, "height": 900})
    page.wait_for_function("() => document.querySelector('#spectrum .main-svg').getBoundingClientRect().width < 800")
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
    assert labels(page)
    assert page.complaints == []


def test_one_spectrum_has_only_the_controls_that_it_needs(opened, tmp_path, make_spectrum):
    make_spectrum().save(tmp_path / "one.nc")
    page = opened(write_report(tmp_path))
    assert page.locator("fieldset:visible legend").all_text_contents() == ["axis"]
    assert page.complaints == []


def test_names_do_nothing_and_are_shown_as_they_are(opened, tmp_path, make_spectrum):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>%{x}"
    for epoch in (1, 2):
        spectrum = make_spectrum(evil, split=evil, checkpoint=evil, network=evil, dataset=evil, epoch=epoch)
        spectrum.save(tmp_path / f"<img src=x onerror=alert(4)>{epoch}.nc")
    (tmp_path / "training.json").write_text(json.dumps([{"epoch": 1, evil: evil, "train_loss": 1.0}]), encoding="utf-8")
    page = opened(write_report(tmp_path))
    page.check("input[value=bulk]")
    page.evaluate("Plotly.Fx.hover('spectrum', [{curveNumber: 0, pointNumber: 20}])")
    assert f"bulk of {evil}" in page.wait_for_selector("#spectrum .hoverlayer .hovertext").text_content()
    page.check("input[value=log]")
    page.locator("#spectrum .xy .scatterlayer .trace").last.locator(".point").first.hover(force=True)
    assert f"matrix: {evil}" in page.wait_for_selector("#spectrum .hoverlayer .hovertext").text_content()
    assert page.inner_text("h1") == f"Spectra of {evil} on {evil}"
    assert evil in page.locator("#spectrum .legendtext").first.text_content()
    assert page.locator("main img, main a[href^=javascript]").count() == 0
    assert page.complaints == []
    assert len(page.requests) == 1


def test_class_structures_are_drawn_when_they_are_opened(tmp_path, make_spectrum, make_structure, opened):
    where = {"network": "net", "dataset": "<script>alert(1)</script>", "split": "train"}
    for epoch in (1, 2):
        make_spectrum("GaussNewton", epoch=epoch, **where).save(tmp_path / f"{epoch}-train-GaussNewton.nc")
        make_structure(epoch=epoch, checkpoint="", **where).save(tmp_path / f"{epoch}-train-ClassStructure.nc")
    page = opened(write_report(tmp_path))
    figures = (
        "() => [...document.querySelectorAll('.structure')].map(part => part.querySelectorAll('.main-svg').length > 0)"
    )
    page.wait_for_selector(".structure[open] .main-svg")
    assert page.evaluate(figures) == [False, True]
    page.locator(".structure summary").first.click()
    page.locator(".structure").first.locator(".main-svg").first.wait_for()
    assert page.evaluate(figures) == [True, True]
    assert page.locator("#structures-over .main-svg").count() > 0
    assert not page.complaints


# A study


def slide(page, name, place):
    page.evaluate(
        """([name, place]) => {
            const slider = document.getElementById(`${name}-slider`);
            slider.value = place;
            slider.dispatchEvent(new Event("input"));
        }""",
        [name, place],
    )


def status_becomes(page, text):
    page.wait_for_function("text => document.getElementById('status').textContent.includes(text)", arg=text)


EVIL = "<img src=x onerror=window.ran=1>'\"`=1,%{x}\u202e</script><script>window.ran=2</script>"


@pytest.fixture(scope="module")
def evil_report(tmp_path_factory, write_study):
    """Page of a study that is half done, with names that look like code."""

    def skip(size, epoch, _, matrix):
        return size == 37 and (epoch == 20 or (epoch == 2 and matrix != "Hessian"))

    folder = tmp_path_factory.mktemp("evil") / "study"
    names = {"network": EVIL, "dataset": EVIL, "checkpoint": EVIL, "loss": EVIL}
    return write_report(write_study(folder, splits=("train",), skip=skip, **names))


def test_a_study_is_gone_through_with_two_sliders(study_page):
    page = study_page
    assert page.inner_text("#status").startswith("Shown at n = 37, epoch 20: Hess, train: 10 outliers")
    for name in ("spectrum", "dynamics", "samples", "pairs", "overlaps", "training"):
        assert page.locator(f"#{name} .scatterlayer .trace, #{name} .heatmaplayer image").count() > 0
    page.focus("#n-slider")
    page.keyboard.press("ArrowLeft")
    status_becomes(page, "at n = 19, epoch 20")
    assert page.get_attribute("#n-slider", "aria-valuetext") == "19"
    page.focus("#epoch-slider")
    page.keyboard.press("Home")
    status_becomes(page, "at n = 19, epoch 0")
    assert shown_tables(page)[0].startswith("Hess · train · n = 19 · epoch 0")
    assert page.locator("#laws").count() == 0
    assert "No power law is shown: it takes five sample sizes" in page.inner_text(
        "section[aria-labelledby=samples-title]"
    )
    # Five areas and edges, and outliers.
    assert len(page.evaluate(TRACES, "samples")) == 3 + 2 + 3
    # Outliers that change places between epochs 0 and 2 are joined across one another.
    first = page.evaluate("document.getElementById('dynamics').data.at(-3).y.slice(0, 3)")
    assert first[0] / (1 / 19) == pytest.approx(10, rel=1e-3)
    assert first[1] / (3 / 19) == pytest.approx(8.363, rel=1e-3)
    page.evaluate("Plotly.Fx.hover('dynamics', [{curveNumber: 6, pointNumber: 1}])")
    words = page.wait_for_selector("#dynamics .hoverlayer .hovertext").text_content()
    for part in (
        "outlier 2 of 10",
        "eigenvector 1 of this training",
        "matrix: Hess",
        "split: train",
        "n = 19",
        "epoch 2",
    ):
        assert part in words
    page.evaluate("Plotly.Fx.hover('pairs', [{curveNumber: 1, pointNumber: 0}])")
    words = page.wait_for_selector("#pairs .hoverlayer .hovertext").text_content()
    assert "Hess is 2.0% larger" in words
    assert "squared overlap 1.00 with that of outlier 1 of G" in words
    assert page.complaints == []


def downloaded(page, name):
    """Rows of a table that the page offers, by column."""
    with page.expect_download() as download:
        page.locator(f"a[data-file='{name}']").first.click()
    return list(csv.DictReader(io.StringIO(download.value.path().read_bytes().decode(), newline="")))


def test_the_tables_behind_the_spectrum_hold_what_is_drawn(page, study):
    curves = downloaded(page, "density.csv")
    for name in ("hessian-train-end.nc", "residual-test-middle.nc"):
        for axis, x, density in (
            ("linear", *(load(study / name).density()[key].to_numpy() for key in ("eigenvalue", "density"))),
            ("log", *bulk_on_logarithmic_axis(load(study / name))),
        ):
            mine = [row for row in curves if (row["file"], row["axis"]) == (name, axis)]
            places, heights = (np.array([float(row[key]) for row in mine]) for key in ("abscissa", "density"))
            seen = density > 1e-3 / 1500
            found = np.interp(x[seen], places, np.log10(heights))
            # Thinned to 0.01 in log10 of the density; abscissae and heights rounded to five digits.
            assert np.abs(found - np.log10(density[seen])).max() < 0.011
    resolved = downloaded(page, "resolved.csv")
    for path in study.glob("*.nc"):
        spectrum = load(path)
        mine = [row for row in resolved if row["file"] == path.name]
        assert [float(row["eigenvalue"]) for row in mine] == pytest.approx(spectrum.eigenvalues, rel=1e-8)
        assert [row["outlier_rank"] != "" for row in mine] == spectrum.is_outlier.tolist()
        assert {float(row["weight"]) for row in mine} <= {1 / 1500}


def test_the_table_of_overlaps_is_whole(study_page):
    page = study_page
    rows = downloaded(page, "overlaps.csv")
    assert len(rows) == 9 * 100
    assert sum(float(row["squared_overlap"]) for row in rows) == pytest.approx(90)
    assert {row["hess_file"].count("Hessian") + row["g_file"].count("GaussNewton") for row in rows} == {2}
    assert page.complaints == []


def test_a_study_can_be_played(study_page):
    page = study_page
    page.click("#epoch-play")
    status_becomes(page, "epoch 0")
    assert page.is_checked("#fixed")
    before = page.evaluate(AXIS, "xaxis")["range"]
    status_becomes(page, "epoch 2:")
    assert page.evaluate(AXIS, "xaxis")["range"] == before
    status_becomes(page, "epoch 20")
    assert page.inner_text("#epoch-play") == "▶"
    assert page.complaints == []


def test_what_is_not_measured_yet_is_said(shared, evil_report):
    page = shared(evil_report)
    at = f"{EVIL} (epoch "
    status_becomes(page, f"at n = 37, {at}2): Hess, train: 10 outliers. Not measured yet: G, train; H, train.")
    slide(page, "epoch", 2)
    status_becomes(page, f"Nothing is shown. Not measured yet at n = 37, {at}20)")
    assert f"Not measured yet at n = 37, {at}20)." in page.inner_text("#spectrum")
    assert "22 of the 54 requested spectra are here" in page.inner_text("main")
    page.uncheck("input[value=Hess]")
    for axis in ("bulk", "log"):
        page.check(f"input[value={axis}]")
    for place in (0, 1):
        slide(page, "n", place)
    status_becomes(page, f"at n = 19, {at}20): G, train: 10 outliers")
    assert page.complaints == []


def test_hostile_names_are_text_and_the_page_works(shared, evil_report):
    page = shared(evil_report)
    assert EVIL in page.inner_text("h1")
    assert json.dumps(EVIL) in page.inner_text("#study")
    rows = downloaded(page, "density.csv")
    assert {row["checkpoint"] for row in rows} == {EVIL}
    assert page.evaluate("window.ran") is None
    assert page.locator("main img").count() == 0
    assert page.complaints == []
    assert {address.partition("#")[0] for address in page.requests} == {evil_report.resolve().as_uri()}


def test_a_study_that_is_still_training_shows_its_losses(opened, tmp_path, write_study):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    study = write_study(tmp_path / "study", network=evil, skip=lambda *_: True)
    other = study / "runs" / "data-net-n37-seed0-lr0.01-0123456789" / "training.json"
    other.write_text('[{"epoch": 0, "train_loss": 3.0}, {"epoch": 1, "train_loss": 1.5}]', encoding="utf-8")
    page = opened(write_report(study), figure="training")
    assert "trainings begun: 6 of 6, the furthest at epoch 12 of 20" in page.inner_text("header")
    assert page.locator("fieldset:visible").count() == 0
    losses = "document.getElementById('training').data[0].y"
    assert page.evaluate(losses)[:2] == [2.3, 1.15]
    page.select_option("#run", "data-net-n37-seed0-lr0.01-0123456789")
    assert page.evaluate(losses)[:2] == [3.0, 1.5]
    assert page.locator("#unmeasured tbody tr").count() == 6
    assert evil in page.inner_text("#study")
    with page.expect_download() as download:
        page.click("a[data-file='training.csv']")
    assert download.value.path().read_text(encoding="utf-8").count("\n") == 1 + 5 * 13 + 2
    assert page.complaints == []
    assert len(page.requests) == 1


def test_a_study_without_any_training_says_so(opened, tmp_path):
    (tmp_path / "study.yaml").write_text("networks: [net]", encoding="utf-8")
    page = opened(write_report(tmp_path), figure=None)
    assert "Not measured yet: trainings begun: 0;" in page.inner_text("header")
    assert not page.is_visible("#controls")
    assert page.complaints == []


def test_every_table_is_offered(study_page):
    for name in ("spectra", "hess-against-g", "training", "outliers"):
        with study_page.expect_download() as download:
            study_page.locator(f"a[data-file='{name}.csv']").first.click()
        assert download.value.suggested_filename == f"{name}.csv"


def test_no_script_but_the_pages_own_runs(browser, report, tmp_path):
    """Scripts, handlers and addresses that a fault of the page might let through do not run, whatever they hold."""
    evil = (
        "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'><svg onload='window.ran = 3'></svg>"
        "<a id='evil' href='javascript:window.ran = 4'>x</a><iframe srcdoc='<script>parent.ran = 5</script>'></iframe>"
        "<form action='http://example.com/'><button id='send'></button></form><base href='http://example.com/'>"
        "<script src='http://example.com/x.js'></script><object data='http://example.com/x'></object>"
    )
    text = report.read_text(encoding="utf-8")
    (tmp_path / "evil.html").write_text(text.replace("<main>", f"<main>{evil}", 1), encoding="utf-8")
    page = browser.new_page()
    asked, refused = [], []
    page.on("request", lambda request: asked.append(request.url))
    # What the policy refuses is never sent.
    page.on("requestfailed", lambda request: refused.append(request.url) if request.failure == "csp" else None)
    page.goto((tmp_path / "evil.html").resolve().as_uri())
    page.wait_for_selector(DRAWN, state="attached")  # the page's own scripts do run, and Plotly does
    page.evaluate("document.getElementById('evil').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    page.evaluate("document.getElementById('send').form.requestSubmit()")
    page.evaluate(
        "() => { const added = document.createElement('script'); added.textContent = 'window.ran = 6'; "
        "document.body.append(added); }"
    )
    # What was going to run has run when a task that was queued after it does.
    page.evaluate("new Promise((done) => setTimeout(done, 50))")
    assert page.evaluate("window.ran") is None
    assert {url for url in asked if not url.startswith(("file:", "data:", "about:", "blob:"))} <= set(refused)
    page.close()


def test_formulas_are_texts_in_what_the_page_writes_too(opened, tmp_path, make_spectrum):
    evil = '=HYPERLINK("http://example.com")'
    make_spectrum(split=evil, checkpoint="-0.5").save(tmp_path / "+x.nc")
    rows = downloaded(opened(write_report(tmp_path)), "resolved.csv")
    assert {row["split"] for row in rows} == {f"'{evil}"}
    assert {row["checkpoint"] for row in rows} == {"-0.5"}
    assert {row["file"] for row in rows} == {"'+x.nc"}
    assert all(float(row["eigenvalue"]) for row in rows)
