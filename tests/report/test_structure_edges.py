"""Class structures with little in them are drawn and reported too."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hesspec.applications.class_structure.figure import plot_structure
from hesspec.applications.class_structure.record import ClassStructure
from hesspec.report import write_report

MAP = "map of the means (t-SNE, no unit)"


def class_means_only(classes=10, **more):
    points = np.random.default_rng(0).standard_normal((classes, 50))
    return ClassStructure(
        dimension=50,
        classes=classes,
        weights=np.full((classes, classes), 0.1),
        gram=points @ points.T,
        gram_true=np.arange(classes),
        gram_other=np.full(classes, -1),
        class_eigenvalues=np.array([3.0, 2.0, 1.0]),
        same_eigenvalues=np.array([0.2]),
        **more,
    )


def data_of(folder):
    text = write_report(folder).read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))


def test_without_cross_class_means_the_map_shows_every_class_within_its_axes():
    figure = plot_structure(class_means_only())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == MAP]
    for text in axes.texts:
        assert axes.bbox.contains(*axes.transData.transform(text.get_position()))


@pytest.mark.parametrize("edge", [0.0, np.nan])
def test_a_hessian_with_no_bulk_left_is_drawn_and_reported(edge, tmp_path, make_spectrum):
    structure = class_means_only(knockout_edges=np.array([[-0.2, 0.3], [edge, edge]]), traces=np.ones(4),
                                 trace_errors=np.zeros(4))  # fmt: skip
    FigureCanvasAgg(plot_structure(structure)).draw()
    make_spectrum().save(tmp_path / "one.nc")
    structure.save(tmp_path / "a-ClassStructure.nc")
    assert len(data_of(tmp_path)["structures"]) == 1


def test_what_was_not_asked_for_is_not_on_the_page(tmp_path, make_spectrum):
    make_spectrum().save(tmp_path / "one.nc")
    class_means_only().save(tmp_path / "a-ClassStructure.nc")
    titles = [figure["title"] for figure in data_of(tmp_path)["structures"][0]]
    assert [title.split(":")[0] for title in titles] == ["Components of G"]


def test_a_structure_without_eigenvalues_has_no_panel_of_them(make_spectrum):
    structure = class_means_only()
    nothing = replace(structure, class_eigenvalues=np.empty(0), same_eigenvalues=np.empty(0))
    assert len(plot_structure(nothing, make_spectrum("GaussNewton")).axes) == 1
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_structure(replace(nothing, gram=np.eye(1), gram_true=np.zeros(1, int), gram_other=np.full(1, -1)))


@pytest.mark.parametrize("other", [{"network": "B"}, {"epoch": 9, "checkpoint": "late"}])
def test_sizes_are_compared_where_all_else_is_the_same(other, tmp_path, make_spectrum):
    make_spectrum().save(tmp_path / "one.nc")
    here = {"network": "A", "dataset": "d", "epoch": 1, "split": "train"}
    for size, more in ((5, {}), (50, other)):
        structure = class_means_only(attributes={**here, "samples_per_class": size, **more})
        structure.save(tmp_path / f"{size}-ClassStructure.nc")
    assert data_of(tmp_path)["structures_over"] == []


def test_names_from_a_file_are_no_html_in_the_knock_out(tmp_path, make_spectrum):
    make_spectrum().save(tmp_path / "one.nc")
    evil = "<a href='https://example.org'>here</a>"
    structure = class_means_only(
        knockout_edges=np.array([[-0.2, 0.3]]), knockout_removed=np.array([evil]),
        knockout_eigenvalues=np.array([1.0]), knockout_bounds=np.array([1e-3]),
    )  # fmt: skip
    structure.save(tmp_path / "a-ClassStructure.nc")
    assert "<a " not in json.dumps(data_of(tmp_path)["structures"])
