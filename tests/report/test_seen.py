"""What a reader sees of the page: in three widths, light and dark, on paper, and by a link."""

import pytest
from browsing import needs_browser
from seeing import (
    BOXES,
    INK,
    PAPER,
    SIZES,
    STAGE,
    legend_is_whole,
    lightness,
    overlapping,
    texts_are_apart_and_inside,
    ticks_are_whole_numbers_of_one_size,
)

pytestmark = [pytest.mark.long, needs_browser]

WIDE, _, PHONE = SIZES
VIEWS = [
    *(("report", size, "light") for size in SIZES),
    *(("report", size, "dark") for size in (WIDE, PHONE)),
    *(("study_report", size, "light") for size in SIZES),
    *(("runs_report", size, "light") for size in (WIDE, PHONE)),
]
PAGES = ["report", "study_report", "runs_report"]

FIGURES = """() => [...document.querySelectorAll('.js-plotly-plot')]
    .filter((figure) => figure.id && figure.offsetParent).map((figure) => figure.id)"""


@pytest.fixture(params=PAGES)
def seen(request, shared):
    """Function that opens the page of a width and a theme."""
    path = request.getfixturevalue(request.param)
    return lambda size, scheme="light": shared(path, *size, scheme)


@pytest.mark.parametrize(("name", "size", "scheme"), VIEWS)
def test_all_that_is_written_in_figures_can_be_read(request, shared, name, size, scheme):
    page = shared(request.getfixturevalue(name), *size, scheme)
    for axis in ("log", "linear"):
        page.check(f"input[value={axis}]")
        for figure in page.evaluate(FIGURES):
            legend_is_whole(page, figure)
            texts_are_apart_and_inside(page, figure)
            ticks_are_whole_numbers_of_one_size(page, figure)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.complaints == []


def test_the_first_figure_is_seen_without_scrolling(seen):
    for size in SIZES[:2]:
        page = seen(size)
        figure = page.locator("#spectrum").bounding_box()
        assert figure["y"] + figure["height"] <= size[1] + 1, size
        assert figure["height"] >= 0.45 * size[1]
        assert page.evaluate("scrollY") == 0


def test_controls_take_one_row_of_a_wide_page_and_stay_in_sight(seen):
    page = seen(SIZES[0])
    tops = page.evaluate(
        "[...document.querySelectorAll('#controls > .control')].filter((control) => control.offsetParent)"
        ".map((control) => Math.round(control.getBoundingClientRect().bottom))"
    )
    assert len(tops) >= 3
    assert max(tops) - min(tops) <= 4
    page.evaluate("document.getElementById('numbers-title').scrollIntoView()")
    assert 0 <= page.locator("#controls").bounding_box()["y"] < 5
    page.evaluate("scrollTo(0, 0)")


def test_contents_lead_to_every_section_and_fold_on_a_narrow_page(shared, report):
    page = shared(report, *SIZES[0])
    links = page.locator("#contents a:visible")
    titles = page.evaluate("[...document.querySelectorAll('main h2')].filter((h) => h.offsetParent).map((h) => h.id)")
    assert [link.get_attribute("href").lstrip("#") for link in links.all()] == titles
    links.last.click()
    page.wait_for_function("() => scrollY > 500")
    assert page.evaluate("location.hash") == ""
    page.evaluate("scrollTo(0, 0)")
    narrow = shared(report, *SIZES[2])
    assert narrow.locator("#contents a:visible").count() == 0
    narrow.click("#contents > summary")
    assert narrow.locator("#contents a:visible").count() == len(titles)
    narrow.click("#contents > summary")


# Light and dark


TICK = "getComputedStyle(document.querySelector('#spectrum .ytick text')).fill"
POINTS = "document.getElementById('spectrum').data.find((trace) => trace.name === '10 outliers').marker.color"


def test_the_page_is_dark_where_the_reader_wants_it(shared, report):
    page = shared(report, *SIZES[0], "dark")
    assert max(lightness(page, PAPER), lightness(page, STAGE)) < 0.15
    assert min(lightness(page, INK), lightness(page, TICK)) > 0.7
    before = page.evaluate(POINTS)
    page.click("#theme")
    assert min(lightness(page, PAPER), lightness(page, STAGE)) > 0.9
    assert max(lightness(page, INK), lightness(page, TICK)) < 0.3
    assert page.evaluate(POINTS) != before
    assert "theme=light" in page.evaluate("location.hash")
    page.click("#theme")
    assert lightness(page, STAGE) < 0.15
    assert page.evaluate(POINTS) == before
    assert page.complaints == []


def test_the_theme_is_kept_when_the_page_is_opened_again(opened, report):
    page = opened(report, figure=None)
    page.click("#theme")
    page.goto("about:blank")
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("#spectrum .main-svg")
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    assert lightness(page, STAGE) < 0.15


# The view in the address


def test_a_link_shows_the_same_view(shared, opened, study_report):
    page = shared(study_report)
    page.uncheck("input[value=H]")
    page.check("input[value=log]")
    page.focus("#n-slider")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => location.hash.includes('n=19')")
    address = page.evaluate("location.hash")
    other = opened(study_report, address=address)
    for what in (
        "document.getElementById('status').textContent",
        "document.getElementById('spectrum').layout.xaxis.range",
    ):
        assert other.evaluate(what) == page.evaluate(what)
    assert other.is_checked("input[value=log]")
    assert not other.is_checked("input[value=H]")
    assert other.evaluate("document.getElementById('n-value').textContent") == "19"
    assert other.complaints == []


def test_going_back_undoes_a_choice(shared, report):
    page = shared(report)
    first = page.inner_text("#status")
    page.check("input[value=test]")
    page.check("input[value=log]")
    both = page.inner_text("#status")
    assert both != first
    page.go_back()
    page.wait_for_function("() => document.querySelector('input[value=linear]').checked")
    assert page.inner_text("#status") == both
    page.go_back()
    page.wait_for_function("(text) => document.getElementById('status').textContent === text", arg=first)
    assert not page.is_checked("input[value=test]")
    page.go_forward()
    page.wait_for_function("() => document.querySelector('input[value=test]').checked")
    assert page.complaints == []


@pytest.mark.parametrize(
    "address",
    [
        "#run=nobody&matrix=X&split=&n=7&axis=spiral&theme=pink&checkpoint=never",
        "#=&=&%",
        "#spectra-title",
        "#x=%E0%A4%A",
    ],
)
def test_an_address_of_nothing_shows_the_page_as_it_opens(opened, report, address):
    page = opened(report, address=address, figure=None)
    assert page.inner_text("#status")
    assert page.is_checked("input[value=linear]")
    assert page.complaints == []


# Several runs


def test_every_run_has_a_name_and_a_row(shared, runs_report):
    page = shared(runs_report, *SIZES[0])
    names = page.locator("#run option").all_text_contents()
    assert sorted(names) == ["adam", "sgd", "study"]
    assert page.locator("#runs tbody th").all_text_contents() == names
    assert names[0] in page.inner_text("header")
    page.click("#runs a >> text=sgd")
    page.wait_for_function("() => document.getElementById('run').value === 'sgd'")
    assert "sgd" in page.inner_text("#spectrum-place")
    assert page.inner_text("#headline").startswith("sgd · Hess · train · epoch 20: 10 outliers")
    assert page.evaluate("location.hash") == "#run=sgd"
    page.evaluate("scrollTo(0, 0)")
    assert page.complaints == []


def test_runs_are_drawn_over_one_another(shared, runs_report):
    page = shared(runs_report, *SIZES[0])
    page.select_option("#run", "adam")
    page.click("#compare-now")
    page.locator("#others label", has_text="sgd").click()
    traces = page.evaluate(
        "document.getElementById('spectrum').data.filter((trace) => trace.showlegend !== false)"
        ".map((trace) => [trace.name, trace.mode, trace.line?.color ?? trace.marker.color, trace.marker?.symbol?.[0]])"
    )
    lines = [trace for trace in traces if trace[1] == "lines"]
    points = [trace for trace in traces if trace[1] == "markers"]
    assert [trace[0] for trace in lines] == ["adam", "sgd"], "the same matrix of both, named by the run"
    assert lines[0][2] != lines[1][2]
    assert points[0][2] != points[1][2]
    assert points[0][3] == points[1][3] == "circle", "the mark is that of the matrix"
    assert {"adam", "sgd"} <= set(page.locator("#spectrum .legendtext").all_text_contents())
    assert "adam and sgd" in page.inner_text("#spectrum-place")
    assert "with=sgd" in page.evaluate("location.hash")
    assert page.locator("#glance tbody tr").count() == 2
    assert any(
        "sgd" in (name or "") for name in page.evaluate("document.getElementById('dynamics').data.map((t) => t.name)")
    )
    page.check("#runs input[data-run=study]")
    assert "study, n = 37" in page.locator("#spectrum .legendtext").all_text_contents()
    page.go_back()
    page.wait_for_function("() => !location.hash.includes('study')")
    assert not page.is_checked("#runs input[data-run=study]")
    assert page.complaints == []


def test_a_run_without_what_another_has_hides_it(shared, runs_report):
    page = shared(runs_report)
    page.select_option("#run", "study")
    assert page.is_visible("#samples")
    page.select_option("#run", "sgd")
    assert not page.is_visible("#samples")
    assert page.is_visible("#dynamics")
    assert page.is_visible("#checkpoint-control")
    assert page.inner_text("#status") == "Shown at epoch 20: Hess, train: 10 outliers; G, train: 10 outliers."


# Downloads and tables


def test_a_figure_is_named_by_what_it_shows(shared, report):
    page = shared(report)
    page.uncheck("input[value=G]")
    page.uncheck("input[value=H]")
    with page.expect_download() as download:
        page.locator("#spectrum .modebar-btn").first.dispatch_event("click")
    name = download.value.suggested_filename
    assert name.endswith(".svg")
    for part in ("VGG11-BN", "spectrum", "Hess", "train", "end_epoch_12", "linear"):
        assert part in name, name
    assert "<svg" in download.value.path().read_text(encoding="utf-8")


def test_a_table_that_is_too_wide_says_so(shared, report):
    narrow = shared(report, *SIZES[2])
    boxes = narrow.evaluate(
        "[...document.querySelectorAll('.wide')].filter((box) => box.offsetParent).map((box) => "
        "[box.scrollWidth > box.clientWidth + 1, getComputedStyle(box, '::before').content, box.tabIndex])"
    )
    assert any(scrolls for scrolls, *_ in boxes)
    for scrolls, hint, index in boxes:
        assert ("Scroll sideways" in hint, index) == (scrolls, 0 if scrolls else -1)


def test_what_was_run_can_be_read(shared, study_report):
    page = shared(study_report)
    assert page.locator(".groups h3").all_text_contents() == ["Network", "Data", "Options"]
    assert page.locator("#checkpoint-table thead th").all_text_contents() == ["n", "checkpoint", "mean loss, train"]
    assert page.locator("#checkpoint-table tbody tr").count() == 9
    assert "bytes" not in page.inner_text("main")


# On paper


def test_the_page_prints_whole(opened, report):
    page = opened(report, width=703, scheme="dark")  # a sheet of A4 without its margins
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    width = 186 / 25.4 * 96
    for name in ("spectrum", "dynamics", "training"):
        assert page.locator(f"#{name} .main-svg").first.bounding_box()["width"] <= width
        assert overlapping(page.evaluate(BOXES, name)) == []
    assert lightness(page, STAGE) > 0.9
    assert page.locator("#controls:visible, .download:visible, .files-of:visible, nav:visible").count() == 0
    for box in page.locator(".wide:visible").all():
        assert box.evaluate("(box) => box.scrollWidth - box.clientWidth") <= 1
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert lightness(page, STAGE) < 0.15
    assert page.complaints == []


def test_a_browser_that_cannot_unpack_the_figures_says_so_and_shows_the_tables(browser, report):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("#too-old:visible")
    assert "Firefox 113" in page.inner_text("#too-old")
    assert page.locator("#outlier-tables tbody tr").count() == 20
    page.uncheck("input[value=G]")
    assert page.locator("#outlier-tables tbody tr").count() == 10
    page.close()
