"""Figures of a class structure: a panel for each thing that was measured, with the values of the structure in it."""

import numpy as np
import pytest

from hesspec.applications.class_structure.figure import drawn_means, map_of_means, plot_structure
from hesspec.applications.class_structure.record import CLASS_MEANS, NOTHING, ClassStructure
from hesspec.spectra.spectrum import Spectrum


def minimal(classes=3, **more):
    return ClassStructure(
        dimension=50,
        classes=classes,
        weights=np.full((classes, classes), 0.1),
        gram=np.eye(classes),
        gram_true=np.arange(classes),
        gram_other=np.full(classes, -1),
        class_eigenvalues=np.array([3.0, 2.0, 1.0]),
        same_eigenvalues=np.array([0.2]),
        **more,
    )


def whole():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((12, 5))
    return ClassStructure(
        dimension=50,
        classes=3,
        weights=np.full((3, 3), 0.1),
        gram=points @ points.T,
        gram_true=np.concatenate([np.arange(3), np.repeat(np.arange(3), 3)]),
        gram_other=np.concatenate([np.full(3, -1), np.tile(np.arange(3), 3)]),
        class_eigenvalues=np.array([3.0, 2.0, 1.0]),
        same_eigenvalues=np.array([0.2]),
        cross_eigenvalues=np.array([0.5, 0.1]),
        sum_eigenvalues=np.array([3.4, 2.2]),
        traces=np.array([6.0, 0.6, 1.0, 0.2]),
        trace_errors=np.array([0.0, 0.0, 0.1, 0.0]),
        outlier_matrix=np.array(["Hessian", "Hessian", "GaussNewton"]),
        outliers=np.array([3.5, 2.5, 3.4]),
        outlier_bounds=np.array([1e-3, 1e-3, 1e-3]),
        outlier_shares=np.array([[3.0, 0.3, 0.1, 0.2, -0.1], [2.0, 0.3, 0.1, 0.1, 0.0], [3.0, 0.3, 0.1, 0.0, 0.0]]),
        outlier_in_class=np.array([0.9, 0.8, 0.9]),
        outlier_in_means=np.array([0.99, 0.98, 0.99]),
        outlier_vector_errors=np.zeros(3),
        knockout_removed=np.array([NOTHING, NOTHING, CLASS_MEANS]),
        knockout_eigenvalues=np.array([3.5, 2.5, 0.6]),
        knockout_bounds=np.full(3, 1e-3),
        knockout_edges=np.array([[-0.2, 0.3], [-0.2, 0.2], [-0.1, 0.1]]),
        attributes={"checkpoint": "end"},
    )


def spectrum():
    values = np.linspace(0.01, 0.3, 20)
    return Spectrum(
        dimension=50, eigenvalues=np.array([3.4, 2.3]), error_bounds=np.full(2, 1e-3),
        eigenvalue_weights=np.full(2, 1 / 50), bulk_nodes=values, bulk_weights=np.full(20, 0.96 / 20),
        bulk_probe=np.zeros(20, np.int64), ritz_values=values, ritz_weights=np.full(20, 0.05), ritz_bounds=np.zeros(20),
        ritz_probe=np.zeros(20, np.int64), norm=3.4, rounding=1e-7, probes=1, steps=22, matvecs=22, exact=False,
        stopped="all steps done", attributes={"matrix": "GaussNewton"},
    )  # fmt: skip


def drawn(figure):
    figure.canvas.draw()
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_a_panel_for_each_thing_that_was_measured():
    panels = drawn(plot_structure(whole(), spectrum(), title="network"))
    assert list(panels) == [
        "components of $G$",
        "largest eigenvalues, predicted and measured",
        "terms of the largest eigenvalues",
        "outliers without the means",
        "map of the means (t-SNE, no unit)",
    ]
    for axes in panels.values():
        assert axes.get_xlabel()


def test_what_was_not_measured_has_no_panel():
    assert list(drawn(plot_structure(minimal()))) == ["components of $G$"]


def test_panels_fill_their_rows_and_the_legend_hides_no_prediction():
    figure = plot_structure(whole(), spectrum())
    panels = drawn(figure)
    rows = {}
    for axes in figure.axes:
        rows.setdefault(axes.get_subplotspec().rowspan.start, []).append(axes.get_subplotspec().colspan)
    assert [[(span.start, span.stop) for span in row] for row in rows.values()] == [
        [(0, 2), (2, 4), (4, 6)],
        [(0, 3), (3, 6)],
    ]
    axes = panels["largest eigenvalues, predicted and measured"]
    box = axes.get_legend().get_window_extent()
    for container in axes.containers:
        assert not any(box.contains(x, y) for x, y in axes.transData.transform(container[0].get_xydata()))
    ticks = panels["terms of the largest eigenvalues"].get_yticks()
    assert max(ticks) <= 1.1


def test_values_are_those_of_the_structure():
    panels = drawn(plot_structure(whole(), spectrum()))
    lines = panels["components of $G$"].get_lines()
    seen = {line.get_label(): np.asarray(line.get_xdata()) for line in lines}
    assert list(seen["$G_{class}$"]) == [3, 2, 1]
    assert list(seen["$G_{cross}$"]) == [0.5, 0.1]
    assert list(seen["eigenvalues of $G$"]) == [3.4, 2.3]
    predictions = panels["largest eigenvalues, predicted and measured"]
    points = {container.get_label(): container[0].get_xydata() for container in predictions.containers}
    (label,) = [name for name in points if name.startswith("$G_{class}$,")]
    assert points[label].tolist() == [[3.0, 3.5], [2.0, 2.5]]
    assert "off by 17% (median)" in label
    bars = panels["terms of the largest eigenvalues"].containers
    assert bars[0][0].get_height() == pytest.approx(3.0 / 3.5)
    assert bars[4][0].get_height() == pytest.approx(-0.1 / 3.5)
    texts = [text.get_text() for text in panels["outliers without the means"].texts]
    assert texts == ["2 outliers", "1 outlier", "no outliers"]
    assert [text.get_text() for text in panels["outliers without the means"].get_yticklabels()][2].startswith(
        "class and"
    )
    assert {text.get_text() for text in panels["map of the means (t-SNE, no unit)"].texts} == {"0", "1", "2"}


def test_the_map_keeps_groups_together_and_needs_four_means():
    assert map_of_means(minimal()) is None
    centres = np.repeat(np.eye(4) * 50, 8, axis=0)
    points = centres + np.random.default_rng(0).standard_normal(centres.shape)
    structure = ClassStructure(
        dimension=9,
        classes=4,
        weights=np.ones((4, 4)),
        gram=points @ points.T,
        gram_true=np.repeat(np.arange(4), 8),
        gram_other=np.zeros(32, int),
        class_eigenvalues=np.ones(1),
        same_eigenvalues=np.ones(1),
    )
    places = map_of_means(structure)
    assert (places == map_of_means(structure)).all()
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(1) // 8 == np.arange(32) // 8).all()


def test_too_many_means_are_drawn_without_the_cross_class_ones(monkeypatch):
    monkeypatch.setattr("hesspec.applications.class_structure.figure.MOST_MEANS", 11)
    few = drawn_means(whole())
    assert (few.gram == whole().gram[:3, :3]).all()
    assert few.gram_true.tolist() == [0, 1, 2]
    assert "map of the means (t-SNE, no unit)" not in drawn(plot_structure(whole())), "three are too few for a map"
