"""The page's section on the class structure."""

import json
import re
from dataclasses import replace

import pytest

from hesspec.backend.number_text import with_bound
from hesspec.report import write_report

WHERE = {"network": "net", "dataset": "data", "samples_per_class": 5}


@pytest.fixture
def folder(tmp_path, make_spectrum, make_structure):
    for matrix in ("Hessian", "GaussNewton"):
        kept = make_spectrum(matrix, split="train", checkpoint="end", epoch=3, **WHERE)
        kept.save(tmp_path / f"end-train-{matrix}.nc")
    make_structure().save(tmp_path / "end-train-ClassStructure.nc")
    return tmp_path


def page(folder):
    text = write_report(folder).read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))
    return text, data


def traces(data, title):
    (figure,) = [figure for figure in data["structures"][0] if figure["title"].startswith(title)]
    return {trace["name"]: trace for trace in figure["traces"]}


def test_the_section_shows_what_the_file_holds(folder):
    text, data = page(folder)
    assert 'id="structure-title"' in text
    assert [figure["title"][:12] for figure in data["structures"][0]] == [
        "Components o", "Largest eige", "Terms of the", "Outliers of ",
    ]  # fmt: skip
    components = traces(data, "Components")
    assert components["G<sub>class</sub>"]["x"] == [9.0, 2.0]
    assert "eigenvalues of G" in components, "the spectrum of G at the same point"
    assert traces(data, "Largest eigenvalues of Hess, pred")["G<sub>class</sub>"]["y"] == [10.0, 2.5]
    assert traces(data, "Terms of")["H"]["y"] == pytest.approx([-1.0, 0.0])
    words = re.sub(r"<[^>]+>", " ", text[text.index('id="structure-title"') :])
    for shown in (" ± ".join(with_bound(10.0, 1e-3)), "9.00", "10.0%", "90.0%", "98.7%", "G_within"):
        assert shown in words, shown


def test_a_folder_without_structures_has_no_section(tmp_path, make_spectrum):
    make_spectrum().save(tmp_path / "one.nc")
    text, data = page(tmp_path)
    assert 'id="structure-title"' not in text
    assert data["structures"] == []


def test_structures_of_several_epochs_and_sizes_are_drawn_against_these(folder, make_structure):
    make_structure(checkpoint="start", epoch=0).save(folder / "start-train-ClassStructure.nc")
    make_structure(checkpoint="end", samples_per_class=50).save(folder / "large-train-ClassStructure.nc")
    _, data = page(folder)
    titles = [figure["title"] for figure in data["structures_over"]]
    assert any("against epoch" in title for title in titles)
    (sizes,) = [figure for figure in data["structures_over"] if "samples per class" in figure["title"]]
    assert set(sizes["traces"][0]["x"]) == {5, 50}


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "bad-ClassStructure.nc").write_text("no")
    (folder / "end-train-ClassStructure.nc").rename(folder / "any-name.nc")
    text, data = page(folder)
    assert "bad-ClassStructure.nc" in text
    assert "is not a NetCDF file" in text
    assert len(data["structures"]) == 1


def test_names_are_shown_and_not_run(folder, make_structure):
    evil = "<script>alert(1)</script>"
    bad = replace(
        make_structure(), attributes={**make_structure().attributes, "network": evil, "checkpoint": evil, "split": evil}
    )
    bad.save(folder / "evil-ClassStructure.nc")
    make_structure(checkpoint=evil, network=evil, epoch=9, split=evil).save(folder / "more-ClassStructure.nc")
    text, data = page(folder)
    assert evil not in text
    assert all("<script>" not in figure["title"] for figure in data["structures_over"])
