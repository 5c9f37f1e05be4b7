"""The folder of a study: groups, sizes and epochs, what is missing, tables, PDF files."""

import csv
import io
import json
import re

import numpy as np
import pytest

from hesspec.report import page, write_report
from hesspec.report.collection import read_folder
from hesspec.report.dynamics import laws_of, pairs_of, tracks_of
from hesspec.report.pdf import write_figures
from hesspec.report.progress import progress

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture
def data_of(monkeypatch):
    """Function from a folder to the data of its page, without the slow figures."""
    monkeypatch.setattr(page, "write_figures", lambda *_: None)

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
    assert (run["name"], run["sizes"]) == ("", [10, 19, 37])
    assert run["checkpoints"] == ["epoch 0", "epoch 2", "epoch 20"]
    assert data["first"] == {"run": "", "n": 37, "checkpoint": "epoch 20", "split": "train"}
    assert len(data["spectra"]) == 54
    assert "All 54 spectra that it asks for are here." in text
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
    assert found == {("", 0.0, "new"), ("old", 0.0, "old"), ("old", 1.0, "old")}


def test_outliers_are_followed_by_their_eigenvectors(collection):
    tracks = tracks_of(collection.members)
    found = {
        m.epoch: numbers.tolist()
        for m, numbers in zip(collection.members, tracks, strict=True)
        if (m.samples, m.matrix, m.split) == (37, "Hess", "train")
    }
    assert found == {0: list(range(10)), 2: [1, 0, *range(2, 10)], 20: [1, 0, *range(2, 10)]}


def test_power_laws_are_fitted_against_the_training_samples(collection):
    laws = {
        (law.member.epoch, law.member.matrix, law.member.split, law.what): law for law in laws_of(collection.members)
    }
    assert len(laws) == 3 * 2 * (2 + 2 + 1)  # H has no outliers
    law = laws[20, "Hess", "train", "largest outlier"]
    assert law.law.exponent == pytest.approx(-1, abs=1e-6)
    assert law.sizes == (10, 37)


def test_hess_and_g_are_compared_at_every_place(collection):
    pairs = pairs_of(collection.members)
    assert len(pairs) == 18
    assert all(np.allclose(pair.overlaps, np.eye(10)) for pair in pairs)
    assert pairs[0].positive == [(k, k) for k in range(10)]


def test_the_tables_hold_the_numbers(folder, data_of):
    files = data_of(folder)[1]["files"]
    assert set(files) == {"outliers.csv", "spectra.csv", "power-laws.csv", "hess-against-g.csv", "training.csv"}
    outliers = rows(files["outliers.csv"])
    assert {(row["n"], row["seed"]) for row in outliers} == {("10", "0"), ("19", "0"), ("37", "0")}
    assert len(rows(files["spectra.csv"])) == 54
    pair = rows(files["hess-against-g.csv"])[0]
    assert float(pair["relative_difference"]) == pytest.approx(1 / 0.98 - 1, rel=1e-3)
    assert float(pair["squared_overlap"]) == pytest.approx(1)
    assert len(rows(files["training.csv"])) == 3 * 13


def test_progress_is_told_from_the_study_file(collection):
    assert progress(collection.study, collection.members) == (54, 54)
    assert progress(collection.study, collection.members[:5]) == (5, 54)
    assert progress(collection.study.replace("2, end", "2, 3, end"), collection.members) == (54, 72)


@pytest.mark.parametrize(
    "text", ["", "[", "datasets: 3", "- a", "datasets: [a]\nmeasure: {epochs: [x]}\ntraining: {epochs: 2}"]
)
def test_an_odd_study_file_is_shown_all_the_same(tmp_path, make_spectrum, data_of, text):
    make_spectrum(train_samples_per_class=5, epoch=1).save(tmp_path / "one.nc")
    (tmp_path / "study.yaml").write_text(text + f"\n# {EVIL}", encoding="utf-8")
    page_text, _ = data_of(tmp_path)
    assert "1 spectra are here." in page_text
    assert EVIL not in page_text


def test_an_odd_sample_size_is_no_fault(tmp_path, make_spectrum, data_of):
    for number, size in enumerate(("many", -1, 2.5, True)):
        make_spectrum(train_samples_per_class=size, epoch=1).save(tmp_path / f"{number}.nc")
    assert [run["sizes"] for run in data_of(tmp_path)[1]["runs"]] == [[]] * 4


def test_figures_of_a_study_are_pdf_files_with_their_fonts(tmp_path, write_study):
    study = write_study(
        tmp_path / "study",
        dataset="../$x$",
        network=EVIL,
        splits=("train",),
        skip=lambda size, epoch, _, matrix: matrix == "Residual" or (size == 37 and epoch == 20),
    )
    members = read_folder(study).members
    figures = write_figures(members, tracks_of(members), tmp_path / "figures")
    assert sorted(tmp_path.joinpath("figures").iterdir()) == sorted(figures)
    (prefix,) = [path.stem.removesuffix("Hess-splits") for path in figures if path.stem.endswith("Hess-splits")]
    assert re.fullmatch(r"[\w-]+-", prefix)
    names = {path.stem.removeprefix(prefix) for path in figures}
    assert names == {
        "Hess-splits", "matrices-train", "tails-train", "epochs-Hess-train", "epochs-G-train",
        "samples-Hess-train", "samples-G-train", "Hess-against-G",
    }  # fmt: skip
    for path in figures:
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/FontFile2" in content


def test_other_folders_have_no_pdf_files(tmp_path, make_spectrum):
    make_spectrum().save(tmp_path / "one.nc")
    write_report(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.nc", "report.html"]
