"""The folder of a study: groups, sizes and epochs, what is missing, tables, PDF files."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from hesspec.report import csv_tables, figure_data, pdf, write_report
from hesspec.report.across_spectra import laws_of, pairs_of, tracks_of
from hesspec.report.collection import read_folder
from hesspec.report.pdf import write_figures

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture
def data_of():
    """Function from a folder to the text and the data of its page."""

    def read(folder):
        text = write_report(folder).read_text(encoding="utf-8")
        return text, json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))

    return read


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_study):
    return write_study(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def collection(folder):
    return read_folder(folder)


def rows(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_sample_sizes_and_epochs_are_one_group(folder, data_of):
    text, data = data_of(folder)
    (run,) = data["runs"]
    assert (run["name"], run["sizes"]) == ("digits · net", [10, 19, 37])
    assert run["checkpoints"] == ["epoch 0", "epoch 2", "epoch 20"]
    assert data["first"] == {"run": "digits · net", "n": 37, "checkpoint": "epoch 20", "split": "train"}
    assert len(data["spectra"]) == 54
    assert "All 54 requested spectra are here." in text
    assert "hesspec study study.yaml --out whole" in text


def test_records_of_trainings_that_were_not_measured_are_left_out(collection):
    assert [(item.samples, item.path.parent.name.split("-")[4]) for item in collection.training] == [
        (10, "lr0.01"),
        (19, "lr0.01"),
        (37, "lr0.01"),
    ]


def test_seeds_and_networks_are_groups_of_their_own(tmp_path, make_spectrum):
    for seed in (0, 1):
        for network in ("a", "b"):
            spectrum = make_spectrum(
                network=network, dataset="d", training_seed=seed, train_samples_per_class=5, epoch=1, split="train"
            )
            spectrum.save(tmp_path / "runs" / f"{network}{seed}" / "one.nc")
    assert {member.run for member in read_folder(tmp_path).members} == {
        "a · seed 0", "a · seed 1", "b · seed 0", "b · seed 1",
    }  # fmt: skip


def test_a_training_that_a_newer_one_replaced_is_a_group_of_its_own(tmp_path, make_spectrum):
    for name, created, epochs in (("old", "2026-01-01", (0, 1)), ("new", "2026-01-02", (0,))):
        for epoch in epochs:
            spectrum = make_spectrum(train_samples_per_class=5, epoch=epoch, split="train", created=created)
            spectrum.save(tmp_path / name / f"{epoch}.nc")
    found = {(member.run, member.epoch, member.path.parent.name) for member in read_folder(tmp_path).members}
    assert found == {("new", 0.0, "new"), ("old", 0.0, "old"), ("old", 1.0, "old")}


def test_outliers_are_followed_by_their_eigenvectors(collection):
    tracks = tracks_of(collection.members)
    found = {
        m.epoch: numbers.tolist()
        for m, numbers in zip(collection.members, tracks, strict=True)
        if (m.samples, m.matrix, m.split) == (37, "Hess", "train")
    }
    assert found == {0: list(range(10)), 2: [1, 0, *range(2, 10)], 20: [1, 0, *range(2, 10)]}


def test_three_sample_sizes_have_no_power_law(collection):
    assert laws_of(collection.members) == []


SIZES = (10, 20, 40, 80, 160)


def laws_in(folder, make_spectrum, outliers):
    """Power laws of spectra whose outliers are given for each of `SIZES`."""
    for size, values in zip(SIZES, outliers, strict=True):
        spectrum = make_spectrum(outliers=values, train_samples_per_class=size, epoch=1, split="train")
        spectrum.save(folder / f"{size}.nc")
    return {law.what: law for law in laws_of(read_folder(folder).members)}


def test_power_laws_are_fitted_against_the_training_samples_for_either_sign(tmp_path, make_spectrum):
    laws = laws_in(tmp_path, make_spectrum, [[-640 / n, 400 / n, 240 / n] for n in SIZES])
    for what, prefactor in (("negative outlier 1", 640), ("outlier 1", 400), ("outlier 2", 240)):
        assert laws[what].law.exponent == pytest.approx(-1, abs=1e-6)
        assert laws[what].law.prefactor == pytest.approx(prefactor, rel=1e-5)
        assert (laws[what].law.points, laws[what].sizes) == (5, (10, 160))
    assert not {"outlier 3", "negative outlier 2"} & laws.keys()


def test_no_law_is_fitted_where_the_number_of_outliers_changes(tmp_path, make_spectrum):
    outliers = [[-640 / n, 400 / n, 240 / n] for n in SIZES]
    outliers[2] = outliers[2][:2]
    assert laws_in(tmp_path, make_spectrum, outliers) == {}


def test_hess_and_g_are_compared_at_every_place(collection):
    pairs = pairs_of(collection.members)
    assert len(pairs) == 18
    assert all(np.allclose(pair.overlaps, np.eye(10)) for pair in pairs)
    assert pairs[0].positive == [(k, k) for k in range(10)]


def test_the_tables_hold_the_numbers(folder, data_of):
    files = data_of(folder)[1]["files"]
    assert set(files) == {"outliers.csv", "spectra.csv", "hess-against-g.csv", "training.csv"}
    outliers = rows(files["outliers.csv"])
    assert {(row["n"], row["seed"]) for row in outliers} == {("10", "0"), ("19", "0"), ("37", "0")}
    assert len(rows(files["spectra.csv"])) == 54
    assert {row["tail_resolved"] for row in rows(files["spectra.csv"])} <= {"True", "False"}
    pair = rows(files["hess-against-g.csv"])[0]
    assert float(pair["relative_difference"]) == pytest.approx(1 / 0.98 - 1, rel=1e-3)
    assert float(pair["squared_overlap"]) == pytest.approx(1)
    assert len(rows(files["training.csv"])) == 3 * 13


def test_a_tail_that_is_not_resolved_has_no_exponent_in_the_tables_and_no_line(collection, monkeypatch):
    tail = collection.members[0].tail
    for lower, resolved in ((0.1, True), (-0.1, False)):
        monkeypatch.setattr("hesspec.report.member.fit_tail", lambda *_, lower=lower, **__: replace(tail, lower=lower))
        member = replace(collection.members[0])
        (row,) = rows(csv_tables.spectra([member]))
        assert row["tail_resolved"] == str(resolved)
        names = [name for name in row if name.startswith("tail_") and name != "tail_resolved"]
        assert {row[name] != "" for name in names} == {resolved}
        assert (figure_data.spectrum_data(member, None)["tail"] is not None) == resolved


def test_progress_compares_what_is_there_with_what_is_requested(collection):
    study = collection.study
    assert study.progress(collection.members).startswith("All 54 requested spectra")
    assert study.progress(collection.members[:5]).startswith("5 of the 54 requested spectra")
    more = replace(study.requested, spectra=study.requested.spectra | {("digits", "another")})
    assert replace(study, requested=more).progress(collection.members).startswith("54 of the 55 requested spectra")
    assert replace(study, requested=None).progress(collection.members) == "54 spectra are here."
    assert (study.requested.trainings, study.requested.epochs) == (6, [20])


REQUESTED = {"trainings": 1, "epochs": [1], "splits": ["train"], "matrices": ["Hessian"], "measured": []}
MEASURED = ["digits", "net", "sgd", "scratch", 0, 10]
DAMAGED = {
    "empty": "",
    "no object": "[]",
    "brackets": "[" * 100_000,
    "no keys": "{}",
    "a word for a number": json.dumps(REQUESTED | {"trainings": "x"}),
    "a number for a list": json.dumps(REQUESTED | {"measured": [3]}),
    "a number for epochs": json.dumps(REQUESTED | {"measured": [[*MEASURED, 7]]}),
    "infinity": json.dumps(REQUESTED | {"trainings": float("inf")}),
    "many spectra": json.dumps(
        REQUESTED | {"splits": ["train"] * 2000, "matrices": ["Hessian"] * 2000, "measured": [[*MEASURED, [1]]]}
    ),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_list_of_requested_spectra_is_named_and_left_out(tmp_path, make_spectrum, data_of, text):
    make_spectrum(train_samples_per_class=5, epoch=1).save(tmp_path / "one.nc")
    (tmp_path / "study.yaml").write_text("networks: [a]", encoding="utf-8")
    (tmp_path / "requested.json").write_text(text, encoding="utf-8")
    page, _ = data_of(tmp_path)
    assert "One spectrum is here." in page
    assert "not read: <code>requested.json</code>" in page


def test_a_study_without_a_spectrum_tells_how_far_its_trainings_are(tmp_path, write_study, data_of):
    study = write_study(tmp_path / "study", skip=lambda *_: True)
    text, data = data_of(study)
    assert "trainings begun: 6 of 6, the furthest at epoch 12 of 20; the first spectra are measured when" in text
    assert "0 of the 54 requested spectra are here" in text
    assert "hesspec study study.yaml --out study" in text
    names = [f"data-net-n{size}-seed0-lr{rate}-0123456789" for size in (10, 19, 37) for rate in (0.003, 0.01)]
    assert [run["name"] for run in data["runs"]] == [item["run"] for item in data["training"]] == names
    assert data["spectra"] == []
    assert [row["run"] for row in rows(data["files"]["training.csv"])[::13]] == names
    last = re.search(r"<code>runs/data-net-n10-seed0-lr0.003-0123456789</code></th>(.*)</tr>", text).group(1)
    assert re.findall(r">([^<>]+)<", last) == ["12 of 20", "0.1769", "6.92%", "0.2846", "11.92%"]


def test_a_study_that_has_only_begun_is_told_too(tmp_path, data_of):
    (tmp_path / "study.yaml").write_text(f"networks: [{EVIL}]", encoding="utf-8")
    (tmp_path / "half.nc").write_bytes(b"")
    text, data = data_of(tmp_path)
    assert "trainings begun: 0; the first spectra" in text
    assert "not read: <code>half.nc</code>" in text
    assert EVIL not in text
    assert (data["runs"][0]["name"], data["training"]) == ("", [])


def test_trainings_without_spectra_are_listed(folder, data_of):
    text, data = data_of(folder)
    assert re.findall(r"<code>runs/data-net-n(\d+)-seed0-lr([\d.]+)-0123456789</code></th><td", text) == [
        ("10", "0.003"), ("19", "0.003"), ("37", "0.003"),
    ]  # fmt: skip
    assert len(data["training"]) == 3


@pytest.mark.parametrize(
    "text", ["", "[", "datasets: 3", "- a", "datasets: [a]\nmeasure: {epochs: [x]}\ntraining: {epochs: 2}"]
)
def test_an_odd_study_file_is_shown_all_the_same(tmp_path, make_spectrum, data_of, text):
    make_spectrum(train_samples_per_class=5, epoch=1).save(tmp_path / "one.nc")
    (tmp_path / "study.yaml").write_text(text + f"\n# {EVIL}", encoding="utf-8")
    page_text, _ = data_of(tmp_path)
    assert "One spectrum is here." in page_text
    assert EVIL not in page_text


def test_an_odd_sample_size_is_no_fault(tmp_path, make_spectrum, data_of):
    for number, size in enumerate(("many", -1, 2.5, True)):
        make_spectrum(train_samples_per_class=size, epoch=1).save(tmp_path / f"{number}.nc")
    assert [run["sizes"] for run in data_of(tmp_path)[1]["runs"]] == [[]] * 4


@pytest.mark.long
def test_figures_of_a_study_are_pdf_files_with_their_fonts(tmp_path, write_study):
    study = write_study(
        tmp_path / "study",
        dataset="../$x$",
        network=EVIL,
        splits=("train",),
        skip=lambda size, epoch, _, matrix: matrix == "Residual" or (size == 37 and epoch == 20),
    )
    collection = read_folder(study)
    figures = write_figures(collection, tracks_of(collection.members), tmp_path / "figures")
    assert sorted(tmp_path.joinpath("figures").iterdir()) == sorted(figures)
    (prefix,) = [path.stem.removesuffix("Hess-splits") for path in figures if path.stem.endswith("Hess-splits")]
    assert re.fullmatch(r"[\w-]+-", prefix)
    names = {path.stem.removeprefix(prefix) for path in figures}
    assert names == {
        "Hess-splits", "matrices-train", "tails-train", "epochs-Hess-train", "epochs-G-train",
        "samples-Hess-train", "samples-G-train", "Hess-against-G", "training", "overlaps-train",
    }  # fmt: skip
    for path in figures:
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/FontFile2" in content


def test_figures_of_a_study_are_drawn_at_every_place_if_asked_for(tmp_path, write_study, make_structure, monkeypatch):
    study = write_study(tmp_path / "study", splits=("train",), skip=lambda _, epoch, __, matrix: epoch == 2)
    for size in (10, 37):
        (run,) = study.glob(f"runs/*n{size}-seed0-lr0.01-*")
        where = {"network": "net", "dataset": "digits", "samples_per_class": size, "train_samples_per_class": size}
        make_structure(epoch=20, checkpoint="", **where).save(run / "structure.nc")
    collection = read_folder(study)
    titles = {}
    for name in (name for name in vars(pdf) if name.startswith("plot_")):
        monkeypatch.setattr(pdf, name, lambda what, title, name=name, **_: titles.setdefault(title, name) and Figure())

    def names(**how):
        figures = write_figures(collection, tracks_of(collection.members), tmp_path / "figures", **how)
        return {path.stem.removeprefix("digits-net-") for path in figures}

    once = names()
    assert {"structure-train", "training", "matrices-train", "epochs-H-train", "samples-G-train"} <= once
    assert titles["digits · net: class structure, train, n = 37, epoch 20"] == "plot_structure"
    assert titles["digits · net: training, n = 37"] == "plot_learning_curves"
    at_places = {
        f"{name}-n{size}-epoch{epoch}"
        for name in ("matrices-train", "tails-train", "Hess-splits", "Hess-against-G", "overlaps-train")
        for size in (10, 19, 37)
        for epoch in (0, 20)
    }
    structures = {f"structure-train-n{size}-epoch20" for size in (10, 37)}
    of_sizes = {
        f"{name}-n{size}"
        for name in ("training", *(f"epochs-{matrix}-train" for matrix in ("Hess", "G", "H")))
        for size in (10, 19, 37)
    }
    of_epochs = {f"samples-{matrix}-train-epoch{epoch}" for matrix in ("Hess", "G", "H") for epoch in (0, 20)}
    assert names(everywhere=True) == once | at_places | structures | of_sizes | of_epochs
    assert titles["digits · net: train, n = 10, epoch 0"] == "plot_spectrum"


@pytest.mark.long
def test_a_class_structure_is_drawn_without_a_word_of_its_fonts(tmp_path, write_study, make_structure, caplog):
    study = write_study(tmp_path, splits=("train",), skip=lambda size, epoch, *_: (size, epoch) != (10, 20))
    (run,) = study.glob("runs/*n10-seed0-lr0.01-*")
    where = {"network": "net", "dataset": "digits", "samples_per_class": 10, "train_samples_per_class": 10}
    make_structure(epoch=20, checkpoint="", **where).save(run / "structure.nc")
    collection = read_folder(study)
    figures = write_figures(collection, tracks_of(collection.members), tmp_path / "figures")
    (structure,) = [path for path in figures if path.stem == "digits-net-structure-train"]
    assert b"/FontFile2" in structure.read_bytes()
    assert not caplog.records


def test_other_folders_have_no_pdf_files(tmp_path, make_spectrum):
    make_spectrum().save(tmp_path / "one.nc")
    write_report(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.nc", "report.html"]


# A folder of several studies and runs


@pytest.fixture(scope="module")
def parent(tmp_path_factory, write_study, make_spectrum):
    parent = tmp_path_factory.mktemp("parent")
    for name in ("first", "second/deeper"):
        write_study(parent / name, splits=("train",), skip=lambda size, *_: size == 10)
    for matrix in ("Hessian", "GaussNewton"):
        spectrum = make_spectrum(matrix, split="train", checkpoint="end", network="net", dataset="digits")
        spectrum.save(parent / "spectra" / f"{matrix}.nc")
    return parent


def test_runs_of_several_studies_are_named_by_their_folders(parent, data_of):
    text, data = data_of(parent)
    assert [run["name"] for run in data["runs"]] == ["first", "second/deeper", "spectra"]
    assert {item["run"] for item in data["training"]} == {"first", "second/deeper"}
    for place in ("first", "second/deeper"):
        assert f"<code>{place}</code> <span>18 of the 54 requested spectra are here" in text


def test_every_run_has_a_row_that_leads_to_it(parent, data_of):
    text, _ = data_of(parent)
    table = text[text.index('<table id="runs">') :]
    table = table[: table.index("</table>")]
    assert re.findall(r'<a href="(#[^"]+)">([^<]+)</a>', table) == [
        ("#run=first", "first"), ("#run=second%2Fdeeper", "second/deeper"), ("#run=spectra", "spectra"),
    ]  # fmt: skip
    assert table.count("Hess · train · n = 37 · epoch 20") == 2
    assert "Hess · train · end" in table
    assert "first · Hess · train · n = 37 · epoch 20" in text[: text.index("<form")], "the headline names the run"


def test_a_single_run_has_no_table_of_runs(folder, data_of):
    assert 'id="runs"' not in data_of(folder)[0]


@pytest.mark.parametrize("attributes", [{}, {"network": "net"}, {"dataset": "digits", "loss": "ce"}])
def test_no_run_is_without_a_name(tmp_path, make_spectrum, data_of, attributes):
    make_spectrum(checkpoint="end", **attributes).save(tmp_path / "a" / "one.nc")
    make_spectrum(checkpoint="end", train_samples_per_class=5, epoch=1).save(tmp_path / "b" / "one.nc")
    (tmp_path / "b" / "study.yaml").write_text("", encoding="utf-8")
    names = [run["name"] for run in data_of(tmp_path)[1]["runs"]]
    assert len(names) == len(set(names)) == 2
    assert not {"", "?"} & set(names)


def test_figures_of_several_studies_have_names_of_their_own(parent, tmp_path, monkeypatch):
    for name in (name for name in vars(pdf) if name.startswith("plot_")):
        monkeypatch.setattr(pdf, name, lambda *_, **__: Figure())
    collection = read_folder(parent)
    steps = []
    written = write_figures(
        collection, tracks_of(collection.members), tmp_path / "figures", on_figure=lambda *step: steps.append(step)
    )
    assert steps == [(done, len(written)) for done in range(len(written) + 1)]
    assert len({path.name for path in written}) == len(written) > 20
    assert {path.name.split("-")[2] for path in written} == {"first", "second_deeper"}
