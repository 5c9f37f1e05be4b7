"""What the page says, and that nothing in a folder keeps it from being written."""

import base64
import csv
import gzip
import hashlib
import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from plotly.offline import get_plotlyjs

from hesspec.backend.number_text import with_bound
from hesspec.plot import OKABE_ITO
from hesspec.report import write_report
from hesspec.report.collection import read_folder
from hesspec.report.figure_data import CURVE_TOLERANCE, PlotlyLook, spectrum_data, thinned
from hesspec.spectra.record import load

MINUS = "\N{MINUS SIGN}"


class Page(HTMLParser):
    """Text of the elements, data of the script, and addresses of a page, as a browser would read them."""

    VOID = ("meta", "link", "input", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.pieces, self.json, self.tables = [], [], [], "", 0
        self._open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in self.VOID:
            self._open.append((tag, attributes))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, text):
        tag, attributes = self._open[-1] if self._open else ("", {})
        if attributes.get("type") == "application/json":
            self.json += text
        elif tag not in {"script", "style"}:
            self.pieces.append(text)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.pieces))

    @property
    def data(self):
        return json.loads(self.json)


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(study):
    return page_of(study)


@pytest.fixture
def one(tmp_path, make_spectrum):
    """Folder with one spectrum of these attributes."""

    def write(name="one.nc", **attributes):
        make_spectrum(**attributes).save(tmp_path / name)
        return tmp_path

    return write


# What it says


def test_the_headline_says_what_was_measured_and_the_result(page, study):
    spectrum = load(study / "hessian-train-end.nc")
    value, bound = with_bound(spectrum.outliers[0], spectrum.error_bounds[0])
    assert "Spectra of VGG11-BN on FashionMNIST" in page.text
    assert (
        f"Hess · train · end (epoch 12): 10 outliers, as many as classes; the largest is {value} ± {bound};"
        in page.text
    )
    assert f"99% of the bulk lies between {MINUS}0." in page.text
    assert "H · train · end (epoch 12): no outliers; 99% of the bulk" in page.text


def test_the_matrices_are_explained(page):
    assert (
        "Hess = G + H : Hess is the Hessian of the loss, G is its Gauss–Newton part, H is its residual part."
        in page.text
    )


def test_the_sum_is_not_claimed_where_a_matrix_is_missing(one):
    text = page_of(one(matrix="GaussNewton")).text
    assert "Hess = G + H" not in text
    assert "G is its Gauss–Newton part" in text


def test_every_attribute_is_listed(page):
    for name, value in [
        ("network", "VGG11-BN"),
        ("samples per class (n)", "136"),
        ("loss", "CrossEntropyLoss"),
        ("dtype", "float32"),
        ("device", "cpu"),
        ("measured at (UTC)", "2026-01-02T03:04:05+00:00"),
        ("torch", "2.11.0"),
        ("machine", "x86_64"),
        ("Lanczos steps", "40"),
    ]:
        assert f"{name} {value}" in page.text


def test_the_summary_of_every_file_is_there(page, study):
    for path in study.glob("*.nc"):
        assert path.name in page.text
    for name, value in load(study / "gaussnewton-test-middle.nc").summary().items():
        assert f"{name} {value}" in page.text


def test_totals_of_time_and_matvecs(page):
    assert "matvecs in all 720" in page.text
    assert "time in all 3.75 min" in page.text


def test_every_outlier_is_in_the_table_with_its_bound(page, study):
    for path in study.glob("*.nc"):
        spectrum = load(path)
        for rank, (value, bound) in enumerate(zip(spectrum.outliers, spectrum.error_bounds, strict=True), start=1):
            assert "{} {} {}".format(rank, *with_bound(value, bound)) in page.text


def test_the_csv_holds_every_outlier_to_all_digits(page, study):
    rows = list(csv.DictReader(io.StringIO(page.data["files"]["outliers.csv"], newline="")))
    for path in study.glob("*.nc"):
        spectrum = load(path)
        mine = [row for row in rows if row["file"] == path.name]
        assert [float(row["eigenvalue"]) for row in mine] == spectrum.outliers.tolist()
        assert [float(row["error_bound"]) for row in mine] == spectrum.error_bounds[spectrum.is_outlier].tolist()
        assert [int(row["rank"]) for row in mine] == list(range(1, len(mine) + 1))
        assert all((row["matrix"], row["epoch"]) != ("", "") for row in mine)


def test_the_page_needs_no_other_file(page):
    assert [address for address in page.addresses if not address.startswith("#")] == []
    assert "link" not in page.tags
    assert page.tags.count("script") == 3


# What it draws


def test_what_is_drawn_of_a_spectrum_is_its_bulk_and_its_resolved_eigenvalues(make_spectrum, tmp_path):
    make_spectrum(split="test", checkpoint="end").save(tmp_path / "one.nc")
    (member,) = read_folder(tmp_path).members
    spectrum = member.spectrum
    data = spectrum_data(member, None)
    for x, y in (data["linear"], data["log"]):
        assert x == sorted(x)
        assert min(y) > 0
    assert data["floor"] == 1 / spectrum.dimension
    assert data["values"] == pytest.approx(spectrum.eigenvalues, rel=1e-8)
    assert data["bounds"] == pytest.approx(spectrum.error_bounds, rel=1e-2)
    assert data["texts"][1] == with_bound(spectrum.outliers[1], spectrum.error_bounds[1])
    assert data["ranks"] == [*range(1, 11), *[0] * (spectrum.eigenvalues.size - 10)]
    assert data["count"] == len(data["labels"]) == 10


@pytest.mark.parametrize("spikes", [1, 40])
def test_a_curve_of_few_points_is_the_curve(spikes):
    x = np.linspace(-1, 1, 1024)
    y = 1e-6 + sum(np.exp(-0.5 * ((x - place) / 0.01) ** 2) for place in np.linspace(-0.9, 0.9, spikes))
    few_x, few_y = thinned(x, y)
    assert few_x.size < 480
    if few_x.size < 240:
        assert np.abs(np.interp(x, few_x, np.log10(few_y)) - np.log10(y)).max() <= CURVE_TOLERANCE
    assert (few_x[0], few_x[-1]) == (x[0], x[-1])


def test_matrices_and_splits_differ_in_colour_symbol_and_dashes():
    looks = [PlotlyLook(matrix, split) for matrix in range(3) for split in range(2)]
    assert len({look.light for look in looks}) == 6
    assert len({look.symbol for look in looks}) == 6
    assert len({look.line["dash"] for look in looks}) == 6


def test_checkpoints_are_in_the_order_of_training(page):
    assert page.data["runs"] == [
        {
            "name": "FashionMNIST · VGG11-BN",
            "sizes": [],
            "checkpoints": ["initialisation (epoch 0)", "middle (epoch 6)", "end (epoch 12)"],
            "epochs": [0, 6, 12],
            "measured": [[matrix, split] for matrix in ("G", "H", "Hess") for split in ("test", "train")],
        }
    ]
    first = {"run": "FashionMNIST · VGG11-BN", "n": None, "checkpoint": "end (epoch 12)", "split": "train"}
    assert page.data["first"] == first
    assert [matrix["name"] for matrix in page.data["matrices"]] == ["Hess", "G", "H"]
    assert page.data["splits"] == ["train", "test"]


def test_named_checkpoints_are_in_the_order_of_training_without_epochs(tmp_path, make_spectrum):
    for name in ("end", "initialisation", "middle"):
        make_spectrum(checkpoint=name).save(tmp_path / f"{name}.nc")
    assert page_of(tmp_path).data["runs"][0]["checkpoints"] == ["initialisation", "middle", "end"]


def test_one_checkpoint_has_no_figure_of_training(one):
    page = page_of(one())
    assert "Through training" not in page.text


def test_the_training_record_is_drawn(page):
    (figure,) = page.data["training"]
    names = [(trace["name"], trace["yaxis"]) for trace in figure["traces"]]
    assert names == [("train", "y"), ("test", "y"), ("train", "y2"), ("test", "y2")]
    assert figure["traces"][0]["x"] == list(range(13))
    assert figure["rates"] == [{"x": 4.0, "text": "0.01"}, {"x": 8.0, "text": "0.001"}]


def test_incomplete_training_records_are_drawn_as_far_as_they_go(one):
    folder = one()
    records = [{"train_loss": 1.0}, {"train_loss": float("nan"), "test_error": "much"}, {"train_loss": 0.5}]
    (folder / "training.json").write_text(json.dumps(records), encoding="utf-8")
    (figure,) = page_of(folder).data["training"]
    (trace,) = figure["traces"]
    assert trace["x"] == [1, 2, 3]
    assert trace["y"] == [1.0, None, 0.5]


# Several runs


def test_runs_are_named_by_what_differs(tmp_path, make_spectrum):
    for network in ("VGG11", "ResNet18"):
        make_spectrum(network=network, dataset="MNIST").save(tmp_path / f"{network}.nc")
    page = page_of(tmp_path)
    assert [run["name"] for run in page.data["runs"]] == ["ResNet18", "VGG11"]


def test_runs_of_different_sample_sizes(tmp_path, make_spectrum):
    for size in (10, 136):
        make_spectrum(samples_per_class=size, checkpoint="end").save(tmp_path / f"{size}.nc")
    assert [run["name"] for run in page_of(tmp_path).data["runs"]] == ["n = 10", "n = 136"]


def test_runs_that_only_their_folders_or_files_tell_apart(tmp_path, make_spectrum):
    spectrum = make_spectrum(checkpoint="end")
    for name in ("a/one.nc", "b/one.nc", "b/two.nc"):
        spectrum.save(tmp_path / name)
    page = page_of(tmp_path)
    assert [run["name"] for run in page.data["runs"]] == ["a · one.nc", "b · one.nc", "b · two.nc"]


def test_a_training_record_belongs_to_the_spectra_beside_it(tmp_path, make_spectrum):
    for network in ("A", "B"):
        make_spectrum(network=network).save(tmp_path / network / "one.nc")
    (tmp_path / "B" / "training.json").write_text('[{"epoch": 1, "train_loss": 1}]', encoding="utf-8")
    (figure,) = page_of(tmp_path).data["training"]
    assert figure["run"] == "B"


# Robust


@pytest.mark.parametrize(
    "attributes", [{}, {"matrix": "Fisher"}, {"matrix": "Hessian"}, {"epoch": float("inf")}, {"risk": float("nan")}]
)
def test_missing_or_odd_attributes_are_no_fault(tmp_path, make_spectrum, attributes):
    spectrum = make_spectrum()
    object.__setattr__(spectrum, "attributes", attributes)
    spectrum.save(tmp_path / "one.nc")
    page = page_of(tmp_path)
    assert attributes.get("matrix", "operator").replace("Hessian", "Hess") in page.text
    assert len(page.data["spectra"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"bulk_nodes": [], "bulk_weights": [], "bulk_probe": []}, id="no bulk"),
        pytest.param({"eigenvalues": [], "error_bounds": [], "eigenvalue_weights": []}, id="nothing resolved"),
        pytest.param({"bulk_nodes": [0.0], "bulk_weights": [1.0], "bulk_probe": [0]}, id="one bulk node"),
        pytest.param(
            {
                "eigenvalues": [0.0],
                "error_bounds": [0.0],
                "eigenvalue_weights": [1.0],
                "bulk_nodes": [],
                "bulk_weights": [],
                "bulk_probe": [],
                "norm": 0.0,
            },
            id="zero operator",
        ),
    ],
)
def test_unusual_spectra_are_no_fault(tmp_path, make_spectrum, change):
    spectrum = make_spectrum()
    for name, value in change.items():
        kind = np.int64 if name == "bulk_probe" else np.float64
        object.__setattr__(spectrum, name, np.array(value, kind) if isinstance(value, list) else value)
    object.__setattr__(spectrum, "eigenvalue_sampled", np.zeros(len(spectrum.eigenvalues)))
    spectrum.save(tmp_path / "one.nc")
    assert len(page_of(tmp_path).data["spectra"]) == 1


def test_files_that_are_no_spectra_are_named_and_the_rest_is_reported(one):
    folder = one()
    (folder / "text.nc").write_text("no NetCDF", encoding="utf-8")
    xr.Dataset({"a": ("x", np.ones(3))}).to_netcdf(folder / "other.nc", engine="h5netcdf")
    (folder / "training.json").write_text('{"epoch": 1}', encoding="utf-8")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "training.json").write_text("[", encoding="utf-8")
    page = page_of(folder)
    for name in ("text.nc", "other.nc", "training.json", "deeper/training.json"):
        assert f"not read: {name} :" in page.text
    assert len(page.data["spectra"]) == 1
    assert page.data["training"] == []


def test_spectra_that_cannot_be_drawn_are_named_and_the_rest_is_reported(one, make_spectrum):
    folder = one()
    spectrum = make_spectrum()
    fields = ("eigenvalues", "bulk_nodes", "ritz_values", "error_bounds", "ritz_bounds", "norm", "rounding")
    tiny = {name: getattr(spectrum, name) * 1e-320 for name in fields}
    replace(spectrum, **tiny).save(folder / "tiny.nc")
    page = page_of(folder)
    assert "not read: tiny.nc : Its numbers are too large or too small to be drawn." in page.text
    assert len(page.data["spectra"]) == 1
    (folder / "one.nc").unlink()
    with pytest.raises(ValueError, match="None of the 1 spectra can be drawn"):
        write_report(folder)


def test_records_of_any_size_and_kind_are_read_or_named(one):
    folder = one()
    for number, content in enumerate(["[" * 100_000, '[{"epoch": 1' + "0" * 400 + "}]", "x" * (1 << 26) + "y"]):
        (folder / str(number)).mkdir()
        (folder / str(number) / "training.json").write_text(content, encoding="utf-8")
    os.mkfifo(folder / "training.json")
    page = page_of(folder)
    assert "not read: 0/training.json : It is nested too deeply." in page.text
    assert "not read: 2/training.json : It has 67,108,865 bytes" in page.text
    assert page.data["training"][0]["traces"] == []


def test_figures_are_not_written_through_a_link(one, tmp_path):
    folder = one()
    (folder / "study.yaml").write_text("", encoding="utf-8")
    (tmp_path / "outside").mkdir()
    (folder / "figures").symlink_to(tmp_path / "outside")
    with pytest.raises(NotADirectoryError, match="is a symbolic link, but figures are not written elsewhere"):
        write_report(folder, figures="last")


def test_names_that_are_not_utf_8_are_shown_with_escapes(one):
    folder = one()
    (folder / "one.nc").rename(folder / os.fsdecode(b"\xff.nc"))
    assert "\\udcff.nc" in page_of(folder).text


def test_files_that_are_being_written_are_not_looked_at(one):
    folder = one()
    (folder / ".one-abc.nc").write_bytes(b"half a")
    assert "not read" not in page_of(folder).text


def test_a_folder_without_spectra_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no readable results in .* 0 files named \*\.nc"):
        write_report(tmp_path)
    (tmp_path / "broken.nc").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 files(.|\n)*broken\.nc: "):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(NotADirectoryError, match="no folder"):
        write_report(tmp_path / "nowhere")


def test_the_page_goes_where_it_is_asked_to(one, tmp_path):
    target = tmp_path / "elsewhere" / "page.html"
    assert write_report(str(one()), target) == target
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not (tmp_path / "report.html").exists()


def test_the_page_is_replaced_whole(one, monkeypatch):
    folder = one()
    path = write_report(folder)
    before = path.read_bytes()
    monkeypatch.setattr("hesspec.report.markup.get_plotlyjs", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(folder)
    assert path.read_bytes() == before
    assert sorted(item.name for item in folder.iterdir()) == ["one.nc", "report.html"]


# Names


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_names_stay_text_everywhere(tmp_path, make_spectrum):
    for epoch in (1, 2):
        make_spectrum(
            matrix=EVIL, split=EVIL, checkpoint=EVIL, network=EVIL, dataset=EVIL, loss=EVIL, epoch=epoch, **{EVIL: EVIL}
        ).save(tmp_path / f"<b>{epoch}&.nc")
    (tmp_path / "<i>.nc").write_bytes(b"")
    page = page_of(tmp_path)
    assert "img" not in page.tags
    assert page.tags.count("script") == 3
    assert not {"b", "i"} & set(page.tags)
    assert page.data["matrices"][0]["name"] == EVIL
    assert f"Spectra of {EVIL} on {EVIL}" in page.text


# Rounding


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (12.30001234, 1.04e-5, ("12.300012", "1.1e−5")),
        (-0.01234, 0.00123, ("−0.0123", "0.0013")),
        (1.23456789e-7, 1.2e-9, ("1.235e−7", "1.3e−9")),
        (12345678.9, 1.0, ("1.23456789e7", "1.1")),
        (123456.0, 350.0, ("123460", "360")),
        (3.0, 0.0, ("3.000000000", "0")),
        (1.0, 9.96e-3, ("1.0000", "0.010")),
        (5.0, 100.0, ("0", "110")),
        (1.0, float("nan"), ("1.000000000", "unknown")),
        (float("nan"), 1.0, ("not finite", "unknown")),
    ],
)
def test_values_have_the_digits_that_their_bound_leaves(value, bound, text):
    assert with_bound(value, bound) == text


def test_the_rounded_bound_is_true_of_the_rounded_value():
    rng = np.random.default_rng(0)
    for _ in range(500):
        value = float(rng.standard_normal() * 10.0 ** rng.integers(-9, 9))
        bound = float(abs(value) * 10.0 ** rng.uniform(-14, 1))
        shown, rounded = (float(text.replace(MINUS, "-")) for text in with_bound(value, bound))
        slack = 1e-15 * abs(value)
        assert abs(shown - value) + bound <= rounded + slack
        assert rounded <= 1.2 * bound + 1.1e-9 * abs(value)


# Size, colours, choices


def test_the_page_is_half_as_large_as_plotly(study):
    path = write_report(study)
    assert path.stat().st_size < 2.6e6 < 0.6 * len(get_plotlyjs())


def test_what_is_packed_is_what_the_policy_admits(study):
    text = write_report(study).read_text(encoding="utf-8")
    packed = re.search(r'id="plotly">([^<]+)</script>', text).group(1)
    script = gzip.decompress(base64.b64decode(packed))
    assert script.decode() == get_plotlyjs().replace("\r\n", "\n")
    assert base64.b64encode(hashlib.sha256(script).digest()).decode() in text[: text.index("</head>")]


def test_two_pages_of_the_same_spectra_are_the_same(study, tmp_path):
    pages = [write_report(study, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_a_matrix_has_the_same_look_on_every_page(tmp_path, make_spectrum):
    looks = {}
    for name, matrices in (("all", ("Hessian", "GaussNewton", "Residual")), ("some", ("GaussNewton", "Residual"))):
        for matrix in matrices:
            make_spectrum(matrix).save(tmp_path / name / f"{matrix}.nc")
        data = page_of(tmp_path / name).data
        for place, matrix in enumerate(data["matrices"]):
            look = (matrix["mark"], data["looks"]["light"]["matrices"][place], data["looks"]["dark"]["matrices"][place])
            assert looks.setdefault(matrix["name"], look) == look
    assert [looks[name][1][0]["light"].upper() for name in ("Hess", "G", "H")] == list(OKABE_ITO[:3])


def test_points_can_be_told_from_both_papers():
    """Contrast of at least 3 to 1 (WCAG 2.2, success criterion 1.4.11) with white and with the dark page."""

    def luminance(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))

    for theme, paper in (("light", "#ffffff"), ("dark", "#15181b")):
        for matrix in range(len(OKABE_ITO)):
            for split in range(2):
                low, high = sorted((luminance(PlotlyLook(matrix, split, theme).dark), luminance(paper)))
                assert (high + 0.05) / (low + 0.05) >= 3, (theme, matrix, split)


def test_an_unknown_choice_of_figures_is_an_error(one):
    with pytest.raises(ValueError, match='figures=\'pdf\' is not a choice of figures. Use "last", "all" or None'):
        write_report(one(), figures="pdf")
    assert not list(one().glob("*.html"))
