"""Figures show what the spectrum holds, legibly."""

import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from made_spectra import OUTLIERS, P, make_spectrum, overlapping, texts, value_labels
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

import hesspec
from hesspec.backend.number_text import three_digits
from hesspec.plot import (
    bulk_on_logarithmic_axis,
    plot_against_samples,
    plot_hessian_against_gauss_newton,
    plot_overlaps,
    plot_spectrum,
    plot_tail,
    plot_training,
    spread,
)


@pytest.fixture
def components():
    return {
        "Hess": make_spectrum(OUTLIERS, matrix="Hessian"),
        "G": make_spectrum(OUTLIERS * 0.985, (0, 0.16), matrix="GaussNewton"),
        "H": make_spectrum((), (-0.1, 0.1), matrix="Residual"),
    }


def errorbars(axes):
    return [container for container in axes.containers if isinstance(container, ErrorbarContainer)]


# Spectrum


def test_outliers_are_points_at_height_one_over_p_with_their_bounds_as_bars():
    figure = plot_spectrum({"Hess": make_spectrum(OUTLIERS, bounds=0.02)})
    for axes in figure.axes:
        (bars,) = errorbars(axes)
        points, _, (segments,) = bars.lines
        assert_allclose(points.get_xdata(), OUTLIERS)
        assert_allclose(points.get_ydata(), 1 / P)
        ends = np.array([segment[:, 0] for segment in segments.get_segments()])
        assert_allclose(ends, np.stack([OUTLIERS - 0.02, OUTLIERS + 0.02], axis=1))


def test_both_panels_have_a_logarithmic_height_that_holds_the_outliers_and_the_peak_of_the_bulk():
    spectrum = make_spectrum(OUTLIERS)
    linear, logarithmic = plot_spectrum({"Hess": spectrum}).axes[:2]
    assert (linear.get_xscale(), logarithmic.get_xscale()) == ("linear", "log")
    peaks = (float(spectrum.density()["density"].max()), bulk_on_logarithmic_axis(spectrum)[1].max())
    for axes, peak in zip((linear, logarithmic), peaks, strict=True):
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert low < 1 / P
        assert high > peak


def test_the_axes_say_what_they_measure_and_in_which_unit(components):
    words = " ".join(text.get_text() for text in texts(plot_spectrum(components)))
    assert "loss per squared parameter" in words
    assert "per unit of λ" in words
    assert "per decade" in words


def test_the_legend_counts_outliers_and_says_how_the_matrices_add_up(components):
    figure = plot_spectrum(components, title="A network")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "Hess = G + H: 10 outliers",
        "G: 10 outliers",
        "H: no outliers",
    ]
    assert legend.get_title().get_text() == "A network"


def test_weak_evidence_for_outliers_is_said():
    # Nine eigenvalues before a power law: p = 0.11.
    values = np.concatenate([np.linspace(32, 20, 9), 8 * np.arange(1, 60) ** -0.45])
    spectrum = hesspec.spectrum(torch.diag(torch.from_numpy(values)), steps=len(values))
    least = spectrum.outlier_p_values.min()
    assert 0.05 < least <= 0.2
    (legend,) = spectrum.plot().legends
    apart = int((spectrum.outlier_p_values <= least).sum())
    assert legend.get_texts()[0].get_text().endswith(f"no outliers ({apart} apart, p = {least:.2g})")


def test_the_sum_is_not_claimed_where_a_matrix_is_missing(components):
    del components["H"]
    (legend,) = plot_spectrum(components).legends
    assert legend.get_texts()[0].get_text() == "Hess: 10 outliers"


def test_overlaid_spectra_differ_in_colour_marker_and_dashes(components):
    axes = plot_spectrum(components).axes[0]
    curves = [line for line in axes.get_lines() if line.get_label() == "bulk"]
    points = [bars.lines[0] for bars in errorbars(axes)]
    assert len({line.get_color() for line in curves}) == 3
    assert len({str(line._dash_pattern) for line in curves}) == 3
    assert len({line.get_marker() for line in points}) == 3


@pytest.mark.parametrize("names", [["Hess"], ["Hess", "G"], ["Hess", "G", "H"]])
@pytest.mark.few(1)
def test_no_labels_overlap_and_the_largest_are_there(components, names):
    figure = plot_spectrum({name: components[name] for name in names}, title="A network")
    labels = value_labels(figure)
    assert not overlapping([box for _, box in labels])
    for axes in figure.axes[:2]:
        assert "10.0" in [label.get_text() for label, _ in labels if label.axes is axes]
    if len(names) == 1:
        assert len(labels) == 20


def test_labels_stay_inside_their_panel(components):
    for label, box in value_labels(plot_spectrum(components)):
        panel = label.axes.bbox
        assert panel.x0 <= box.x0
        assert box.x1 <= panel.x1
        assert box.y1 <= panel.y1


def test_all_text_is_at_least_9_points(components):
    figures = (
        plot_spectrum(components, title="A network"),
        plot_training({"end": components["Hess"]}),
        plot_tail(components, title="A network"),
        plot_against_samples(dict.fromkeys((10, 19, 37), components["Hess"]), title="A network"),
        plot_hessian_against_gauss_newton({"train": (components["Hess"], components["G"])}, title="A network"),
    )
    for figure in figures:
        assert min(text.get_fontsize() for text in texts(figure)) >= 9


def test_a_bulk_that_is_a_sliver_is_enlarged_in_the_empty_room():
    assert len(plot_spectrum({"Hess": make_spectrum(OUTLIERS)}).axes[0].child_axes) == 1
    assert len(plot_spectrum({"Hess": make_spectrum(-OUTLIERS, (-0.1, 0.1))}).axes[0].child_axes) == 1
    assert not plot_spectrum({"H": make_spectrum(())}).axes[0].child_axes


def test_negative_outliers_stand_left_and_keep_their_sign_in_the_label_of_the_logarithmic_axis():
    spectrum = make_spectrum((-5.0, 3.0), (-0.2, 0.2), resolved=(-0.203, -0.202, -0.201))
    figure = plot_spectrum({"H": spectrum})
    linear, logarithmic = figure.axes[:2]
    assert_allclose(errorbars(linear)[0].lines[0].get_xdata(), [-5, 3])
    assert_allclose(errorbars(logarithmic)[0].lines[0].get_xdata(), [5, 3])
    assert [label.get_text() for label in logarithmic.texts] == ["3.00", "\N{MINUS SIGN}5.00"]


@pytest.mark.parametrize(
    "spectrum",
    [
        pytest.param(make_spectrum((2.0, 1.0), nodes=0, dimension=2), id="no bulk"),
        pytest.param(make_spectrum((2.0, 1.0), (0.1, 0.1), nodes=1, dimension=10), id="one bulk node"),
        pytest.param(make_spectrum((), (0.0, 0.0), nodes=1, dimension=100), id="zero operator"),
        pytest.param(make_spectrum((3e-9, 1e-9), (-1e-11, 2e-11)), id="tiny"),
        pytest.param(make_spectrum((3e9, 1e9), (-1e7, 2e7)), id="huge"),
        pytest.param(make_spectrum(np.linspace(1, 3, 200)), id="two hundred outliers", marks=pytest.mark.long),
        pytest.param(make_spectrum((5.0,), dimension=28_000_000), id="28 million parameters"),
    ],
)
@pytest.mark.few(3)
def test_unusual_spectra_are_drawn_without_a_warning_and_without_overlaps(spectrum):
    figure = plot_spectrum({"operator": spectrum})
    assert not overlapping([box for _, box in value_labels(figure)])
    assert not overlapping([box for _, box in value_labels(plot_training({"start": spectrum, "end": spectrum}))])
    for figure in (
        plot_tail({"operator": spectrum}),
        plot_against_samples({5: spectrum, 10: spectrum, 20: spectrum}),
        plot_hessian_against_gauss_newton({"train": (spectrum, spectrum)}),
    ):
        FigureCanvasAgg(figure).draw()


def test_nothing_to_plot_is_an_error():
    for draw in (plot_spectrum, plot_training, plot_tail, plot_against_samples, plot_hessian_against_gauss_newton):
        with pytest.raises(ValueError, match="no spectra to plot"):
            draw({})


def test_figures_leave_pyplot_and_the_user_settings_alone(components):
    before = dict(mpl.rcParams)
    plot_spectrum(components)
    plot_training(components)
    assert dict(mpl.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_a_spectrum_plots_itself():
    assert isinstance(make_spectrum(OUTLIERS, matrix="Hessian").plot(), Figure)


# Through training


def test_training_has_the_epoch_as_its_axis_where_each_spectrum_has_one():
    spectra = {name: make_spectrum(OUTLIERS, epoch=epoch) for name, epoch in (("start", 0), ("end", 200))}
    (axes,) = plot_training(spectra).axes
    assert axes.get_xlabel() == "epoch"
    assert_allclose(axes.get_lines()[0].get_xdata(), [0, 200])


def test_training_has_names_side_by_side_where_epochs_are_missing_or_repeated():
    for epochs in ({}, {"epoch": 3}):
        spectra = {name: make_spectrum(OUTLIERS, **epochs) for name in ("initialisation", "middle", "end")}
        (axes,) = plot_training(spectra, title="Hess").axes
        assert [tick.get_text() for tick in axes.get_xticklabels()] == list(spectra)
        assert axes.figure.legends[0].get_title().get_text() == "Hess"


def test_training_joins_outliers_of_one_rank_and_leaps_over_no_checkpoint():
    spectra = {"a": make_spectrum((9.0, 4.0)), "b": make_spectrum((8.0,)), "c": make_spectrum((7.0, 3.0))}
    (axes,) = plot_training(spectra).axes
    heights = [bars.lines[0].get_ydata() for bars in errorbars(axes)]
    assert_allclose(heights, [[9, 8, 7], [4, np.nan, 3]])


def test_training_joins_outliers_of_one_track_where_they_are_followed():
    spectra = {"a": make_spectrum((9.0, 4.0)), "b": make_spectrum((8.0, 5.0)), "c": make_spectrum((7.0, 3.0))}
    figure = plot_training(spectra, tracks=[np.array([0, 1]), np.array([1, 0]), np.array([-1, 0])])
    heights = [bars.lines[0].get_ydata() for bars in errorbars(figure.axes[0])]
    assert_allclose(heights, [[9, 5, 3], [4, 8, np.nan], [np.nan, np.nan, 7]])
    assert "eigenvector" in figure.legends[0].get_texts()[0].get_text()


def test_tracks_of_other_spectra_are_refused():
    with pytest.raises(ValueError, match=r"\[1\] numbers for spectra with \[2\] outliers"):
        plot_training({"a": make_spectrum((9.0, 4.0))}, tracks=[np.array([0])])


# Against sample size, tails, Hess against G


def test_power_laws_against_sample_size_are_drawn_and_named():
    spectra = {n: make_spectrum(OUTLIERS / n, (-0.1 / n, 0.2 / n)) for n in (37, 10, 19, 71, 136)}
    figure = plot_against_samples(spectra)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    exponent = "−1.00 (−1.00 to −1.00)"
    assert [text for text in words if "∝" in text] == [
        f"largest outlier ∝ $n^a$, a = {exponent}",
        f"upper edge ∝ $n^a$, a = {exponent}",
        f"lower edge ∝ $n^a$, a = {exponent}",
    ]
    bars = errorbars(figure.axes[0])
    assert_allclose(bars[0].lines[0].get_xdata(), [10, 19, 37, 71, 136])
    assert_allclose(bars[0].lines[0].get_ydata(), [1, 10 / 19, 10 / 37, 10 / 71, 10 / 136])


def test_a_lower_edge_that_is_zero_but_for_rounding_is_none():
    spectra = {n: replace(make_spectrum(OUTLIERS / n, (-1e-9, 0.2 / n)), rounding=1e-8) for n in (10, 19, 37)}
    figure = plot_against_samples(spectra)
    assert not any("lower edge" in text.get_text() for text in figure.legends[0].get_texts())


def test_four_sample_sizes_have_no_power_law_and_the_figure_says_why():
    figure = plot_against_samples({n: make_spectrum(OUTLIERS / n) for n in (10, 19, 37, 71)})
    words = " ".join(text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts())
    assert "∝" not in words
    assert "No power law of largest outlier, upper edge, lower edge (4 sample sizes where 5 are necessary)." in words


def test_a_tail_that_is_a_power_law_is_named():
    magnitudes = np.geomspace(0.01, 1, 60)
    # A density ~ |x|^-2: weights at equal ratios fall like 1/|x|.
    weights = magnitudes**-1.0 / (magnitudes**-1.0).sum()
    spectrum = replace(
        make_spectrum(()), eigenvalues=np.empty(0), error_bounds=np.empty(0), eigenvalue_weights=np.empty(0),
        bulk_nodes=magnitudes, bulk_weights=weights, bulk_probe=np.zeros(60, np.int64),
    )  # fmt: skip
    (legend,) = plot_tail({"Hess": spectrum}).legends
    text = legend.get_texts()[1].get_text()
    assert text.startswith("tail of Hess: density ∝ |λ|$^{−a}$, a = ")
    assert float(text.partition("a = ")[2].split()[0]) == pytest.approx(2, abs=0.15)


def test_outliers_of_hess_stand_over_those_of_g_of_the_same_rank():
    hessian, gauss_newton = make_spectrum((10.0, 5.0, -3.0)), make_spectrum((9.0, 5.5, 4.0))
    figure = plot_hessian_against_gauss_newton({"train": (hessian, gauss_newton)})
    (bars,) = errorbars(figure.axes[0])
    assert_allclose(bars.lines[0].get_xdata(), [9, 5.5])
    assert_allclose(bars.lines[0].get_ydata(), [10, 5])
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "train: 2 pairs, 1 of G without a partner" in words


def test_overlaps_stand_at_the_ranks_of_their_outliers():
    overlaps = np.array([[1.0, 0.0, 0.1], [0.0, 0.9, np.nan]])
    figure = plot_overlaps(overlaps, title="A network")
    FigureCanvasAgg(figure).draw()
    axes, bar = figure.axes
    (image,) = axes.get_images()
    assert_allclose(image.get_array().filled(np.nan), overlaps)
    assert_allclose(image.get_extent(), (0.5, 3.5, 2.5, 0.5))
    assert_allclose(image.get_clim(), (0, 1))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("outlier of G, by size", "outlier of Hess, by size")
    assert bar.get_ylabel() == "squared overlap of the eigenvectors"
    assert min(text.get_fontsize() for text in texts(figure)) >= 9
    with pytest.raises(ValueError, match=r"no overlaps to plot: their shape is \(0, 3\)"):
        plot_overlaps(np.zeros((0, 3)))


def test_training_is_linear_within_the_bulk_and_logarithmic_beyond():
    spectrum = make_spectrum(OUTLIERS)
    (axes,) = plot_training({"end": spectrum}).axes
    assert axes.get_yscale() == "symlog"
    assert axes.yaxis.get_transform().linthresh == pytest.approx(spectrum.bulk_edges[1])


def test_training_labels_do_not_overlap():
    spectra = {name: make_spectrum(np.linspace(5, 5.2, 12)) for name in ("start", "end")}
    labels = value_labels(plot_training(spectra))
    assert len(labels) == spectra["end"].outliers.size >= 12
    assert not overlapping([box for _, box in labels])


# Density on the logarithmic axis


def test_log_density_has_no_gaps_that_the_operator_does_not_have():
    # A density of 1 / (0.2 |x|) on both sides of zero, 54 Gauss nodes: flat in the logarithm.
    magnitude, density = bulk_on_logarithmic_axis(make_spectrum((), (-0.2, 0.2), nodes=54))
    inside = density[(magnitude > 2 * magnitude[0]) & (magnitude < 0.1)]
    assert (np.abs(np.diff(np.log(inside))) < 0.2).all()


def test_log_density_integrates_to_the_share_above_the_resolution():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(P) * 0.1
    nodes = np.quantile(values, (np.arange(200) + 0.5) / 200)
    spectrum = make_spectrum((), nodes=200)
    object.__setattr__(spectrum, "bulk_nodes", nodes)
    object.__setattr__(spectrum, "bulk_weights", np.full(200, 1 / 200))
    magnitude, density = bulk_on_logarithmic_axis(spectrum)
    share = float((np.abs(values) > magnitude[0]).mean())
    assert np.trapezoid(density, np.log10(magnitude)) == pytest.approx(share, abs=0.02)


def test_log_density_stops_at_the_resolution_near_zero():
    magnitude, _ = bulk_on_logarithmic_axis(make_spectrum((), (-0.2, 0.2), nodes=54))
    spacing = 0.4 / 54
    assert spacing / 4 < magnitude[0] < 2 * spacing


# Labels


def test_spread_keeps_labels_that_have_room():
    assert_allclose(spread(np.array([10.0, 40.0, 80.0]), 12, 0, 100), [10, 40, 80])


def test_spread_is_centred_on_a_crowd_and_stays_between_the_ends():
    assert_allclose(spread(np.array([50.0, 50.0, 50.0]), 10, 0, 100), [40, 50, 60])
    assert_allclose(spread(np.array([1.0, 2.0]), 10, 0, 100), [0, 10])
    assert_allclose(spread(np.array([98.0, 99.0]), 10, 0, 100), [90, 100])


def test_spread_keeps_order_distance_and_ends_for_any_targets():
    rng = np.random.default_rng(1)
    for _ in range(100):
        targets = np.sort(rng.uniform(-20, 120, rng.integers(1, 10)))
        positions = spread(targets, 10, 0, 100)
        assert (np.diff(positions) >= 10 - 1e-9).all()
        assert positions[0] >= -1e-9
        assert positions[-1] <= 100 + 1e-9


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (4.9, "4.90"),
        (-0.34, "\N{MINUS SIGN}0.340"),
        (123.4, "123"),
        (999.7, "1000"),
        (12345.6, "12346"),
        (1.234e7, "1.23e7"),
        (5.678e-8, "5.68e\N{MINUS SIGN}8"),
    ],
)
def test_three_digits(value, text):
    assert three_digits(value) == text
