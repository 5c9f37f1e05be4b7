"""Kinds of figures of spectra: what they hold, how they look, and how they are saved."""

import re

import matplotlib as mpl
import numpy as np
import pytest
from made_spectra import OUTLIERS, P, make_spectrum, overlapping, texts, value_labels
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from hesspec.matrices import MATRICES, symbol_of
from hesspec.plot import KINDS, plot_multiples, plot_spectrum, plot_training

SPECTRA = {
    "Hessian": make_spectrum(OUTLIERS, matrix="Hessian"),
    "GaussNewton": make_spectrum(OUTLIERS * 0.985, (0, 0.16), matrix="GaussNewton", positive_semidefinite=True),
    "Residual": make_spectrum((), (-0.1, 0.1), matrix="Residual"),
}


def labelled(*names):
    return {symbol_of(name): SPECTRA[name] for name in names}


def curves(axes):
    """Colour and dashes of the curve of each spectrum."""
    return [(line.get_color(), line.get_linestyle()) for line in axes.get_lines() if line.get_label() == "bulk"]


def drawn(figure):
    FigureCanvasAgg(figure).draw()
    return figure


def tick_texts(axis):
    low, high = sorted(axis.get_view_interval())
    return [
        label.get_text()
        for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        if low <= place * (1 + 1e-9) and place <= high * (1 + 1e-9)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_has_one_colour_in_every_order_and_company(kind):
    colour = {}
    for names in (("Hessian", "GaussNewton", "Residual"), ("Residual", "GaussNewton", "Hessian"), ("GaussNewton",)):
        axes = plot_spectrum(labelled(*names), kind=kind).axes[0]
        for name, (mine, _) in zip(names, curves(axes), strict=True):
            assert colour.setdefault(name, mine) == mine
    assert len(set(colour.values())) == 3


def test_spectra_of_one_matrix_have_shades_of_its_colour_and_different_dashes():
    pair = {"train": SPECTRA["GaussNewton"], "test": SPECTRA["GaussNewton"]}
    (first, dashes), (second, others) = curves(plot_spectrum(pair, kind="linear").axes[0])
    assert first == curves(plot_spectrum(labelled("GaussNewton"), kind="linear").axes[0])[0][0]
    assert first != second
    hues = [mpl.colors.rgb_to_hsv(mpl.colors.to_rgb(colour))[0] for colour in (first, second)]
    assert hues[0] == pytest.approx(hues[1], abs=0.01)
    assert dashes != others or first != second


def test_training_has_the_colour_of_its_matrix():
    for name in MATRICES:
        spectrum = make_spectrum(OUTLIERS, matrix=name)
        line = plot_training({"a": spectrum, "b": spectrum}).axes[0].get_lines()[0]
        assert line.get_color() == curves(plot_spectrum({"x": spectrum}, kind="log").axes[0])[0][0]


def test_any_number_of_spectra_of_no_known_matrix_can_be_told_apart():
    spectra = {f"run {number}": make_spectrum(OUTLIERS) for number in range(9)}
    looks = curves(plot_spectrum(spectra, kind="linear").axes[0])
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [None, 3.25])
def test_texts_of_a_figure_do_not_overlap_and_stay_inside(kind, width):
    figure = drawn(plot_spectrum(labelled("Hessian", "GaussNewton", "Residual"), kind=kind, width=width))
    assert width is None or figure.get_figwidth() == width
    renderer = figure.canvas.get_renderer()
    panels = [axes for parent in figure.axes for axes in (parent, *parent.child_axes)]
    assert not overlapping([box for _, box in value_labels(figure)])
    for axes in panels:
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [label.get_window_extent(renderer) for label in axis.get_majorticklabels() if label.get_text()]
            inside = [box for box in boxes if axes.bbox.padded(40).overlaps(box)]
            assert not overlapping(inside)
    # Ticks beyond the view have labels that are not drawn.
    ticks = {id(label) for axes in panels for axis in (axes.xaxis, axes.yaxis) for label in axis.get_majorticklabels()}
    for text in texts(figure):
        if text.axes is None and id(text) not in ticks:
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1
            assert box.x1 <= figure.bbox.width + 1
    smallest = 9 if width is None else 6.5
    assert min(text.get_fontsize() for text in texts(figure)) >= smallest - 1e-9


@pytest.mark.parametrize("width", [None, 5.0, 4.0, 3.25])
def test_the_inset_lies_on_no_label(width):
    figure = drawn(plot_spectrum(labelled("Hessian", "GaussNewton"), kind="linear", width=width))
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    for inset in axes.child_axes:
        box = inset.get_tightbbox(renderer)
        assert not [label.get_text() for label, mine in value_labels(figure) if mine.overlaps(box)]
    assert axes.child_axes or width == 3.25


def test_scree_has_eigenvalues_at_their_ranks_with_their_bounds():
    spectrum = make_spectrum((9.0, -7.0, 5.0), bounds=0.02, resolved=(-0.3, 0.29, 0.28, 0.27))
    (axes,) = plot_spectrum({"Hess": spectrum}, kind="scree").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    points = {}
    for bars in axes.containers:
        assert isinstance(bars, ErrorbarContainer)
        line, _, (segments,) = bars.lines
        hollow = line.get_markerfacecolor() == "white"
        for x, y, segment in zip(line.get_xdata(), line.get_ydata(), segments.get_segments(), strict=True):
            points[round(float(x))] = (-y if hollow else y, np.ptp(segment[:, 1]) / 2)
    expected = spectrum.eigenvalues
    assert sorted(points) == list(range(1, expected.size + 1))
    assert_allclose([points[rank][0] for rank in sorted(points)], expected)
    assert_allclose([points[rank][1] for rank in sorted(points)], 0.02)


def test_the_scree_bracket_holds_the_true_ranks():
    import torch  # noqa: PLC0415 - only this test measures

    import hesspec  # noqa: PLC0415

    generator = torch.Generator().manual_seed(3)
    values = torch.cat([torch.randn(1500, generator=generator, dtype=torch.float64) * 0.1, torch.tensor([5.0, -3.0])])
    spectrum = hesspec.spectrum(torch.diag(values.double()), steps=40)
    (axes,) = plot_spectrum({"operator": spectrum}, kind="scree").axes
    (band,) = axes.collections[:1]
    vertices = band.get_paths()[0].vertices
    sizes = np.sort(np.abs(values.numpy()))[::-1]
    outside = 0
    checked = np.flatnonzero(sizes > 3 * axes.get_ylim()[0])
    heights = np.unique(vertices[:, 1])
    for height in heights[(heights > sizes[checked[-1]]) & (heights < 0.99 * sizes[0])]:
        at = vertices[np.isclose(vertices[:, 1], height, rtol=1e-9), 0]
        true = max(int((sizes >= height).sum()), 1)
        outside += not at.min() * (1 - 1e-6) <= true <= at.max() * (1 + 1e-6)
    assert outside <= 0.05 * heights.size


def test_the_cdf_is_that_of_the_spectrum_inside_its_bracket():
    spectrum = SPECTRA["Hessian"]
    (axes,) = plot_spectrum({"Hess": spectrum}, kind="cdf").axes
    (line,) = [line for line in axes.get_lines() if line.get_label() == "bulk"]
    x, y = line.get_data()
    assert_allclose(y, spectrum.cdf(x)["cdf"], atol=1e-12)
    assert axes.get_xlim()[0] < spectrum.nodes[0]
    assert axes.get_xlim()[1] > spectrum.nodes[-1]
    assert (np.diff(y) >= 0).all()


def test_the_cdf_of_a_positive_matrix_has_no_share_below_zero():
    (axes,) = plot_spectrum(labelled("GaussNewton"), kind="cdf").axes
    vertices = axes.collections[0].get_paths()[0].vertices
    assert vertices[vertices[:, 0] < 0, 1].max(initial=0) <= 1e-12


def test_spectra_are_drawn_into_given_axes():
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, kind in zip(panels.flat, KINDS[1:], strict=True):
        assert SPECTRA["Hessian"].plot(kind, ax=axes, title=kind) is figure
        assert curves(axes)
        assert axes.get_title(loc="left") == kind or axes.get_title() == kind
    drawn(figure)


def test_arguments_that_contradict_or_do_not_exist_are_refused():
    axes = Figure().subplots()
    spectrum = SPECTRA["Hessian"]
    with pytest.raises(ValueError, match="There is no kind 'scre'; did you mean 'scree'"):
        spectrum.plot("scre")
    with pytest.raises(ValueError, match="ax is a single panel"):
        spectrum.plot(ax=axes)
    with pytest.raises(ValueError, match="ax is a single panel"):
        spectrum.plot("cdf", ax=axes, width=3)
    for width in (0.3, 80, float("nan")):
        with pytest.raises(ValueError, match=r"width is .* in inches"):
            spectrum.plot("log", width=width)


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_a_figure_is_saved_in_the_format_of_its_suffix(tmp_path, suffix):
    file = tmp_path / f"figure.{suffix}"
    SPECTRA["Hessian"].plot("scree", width=3.25).savefig(file)
    content = file.read_bytes()
    begin = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}[suffix]
    assert content.startswith(begin)
    if suffix == "pdf":
        assert b"/FontFile2" in content
        assert b"/Type3" not in content
        (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ", content)
        assert float(box) == pytest.approx(72 * 3.25, abs=0.1)


# Ticks


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1.5, 60), ["2", "5", "10", "20", "50"]),
        ((0.008, 0.3), ["0.01", "0.02", "0.05", "0.1", "0.2"]),
        ((150, 4000), ["200", "500", "1,000", "2,000"]),
        ((0.5, 3e4), ["1", "10", "100", "1,000", "10,000"]),
    ],
)
def test_logarithmic_ticks_are_full_numbers_in_ascending_order(limits, expected):
    from hesspec.plot.ticks import number_ticks  # noqa: PLC0415

    figure = Figure(figsize=(4, 4))
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", ylim=limits, xlim=limits)
    number_ticks(axes.xaxis, axes.yaxis)
    drawn(figure)
    assert tick_texts(axes.yaxis) == expected
    sizes = {label.get_fontsize() for label in axes.yaxis.get_majorticklabels()}
    assert len(sizes) == 1


def test_ticks_exist_on_every_range_and_never_touch():
    from hesspec.plot.ticks import number_ticks  # noqa: PLC0415

    rng = np.random.default_rng(0)
    for size in (1.2, 5.0):
        figure = Figure(figsize=(size, size))
        axes = figure.subplots()
        for _ in range(40):
            low = 10 ** rng.uniform(-9, 6)
            high = low * 10 ** rng.uniform(0.02, 12)
            scale = rng.choice(["log", "symlog"])
            axes.set_yscale("log") if scale == "log" else axes.set_yscale("symlog", linthresh=low)
            axes.set_ylim((low if scale == "log" else -high * rng.uniform(0, 1)), high)
            number_ticks(axes.yaxis)
            drawn(figure)
            renderer = figure.canvas.get_renderer()
            shown = tick_texts(axes.yaxis)
            assert len(shown) >= 2, (scale, low, high)
            boxes = [label.get_window_extent(renderer) for label in axes.yaxis.get_majorticklabels()]
            inside = [box for box in boxes if axes.bbox.y0 - 5 <= (box.y0 + box.y1) / 2 <= axes.bbox.y1 + 5]
            assert not overlapping(inside)


# River and small multiples


def test_epochs_are_whole_numbers():
    for last in (1, 3, 7, 200):
        spectra = {str(epoch): make_spectrum(OUTLIERS, epoch=epoch) for epoch in (0, last)}
        (axes,) = plot_training(spectra).axes
        places = axes.get_xticks()
        assert_allclose(places, np.round(places))


def test_the_river_follows_the_largest_eigenvalues_though_none_is_an_outlier():
    values = np.geomspace(0.5, 0.3, 60)
    spectra = {
        str(epoch): make_spectrum((), (-0.3 * epoch, 0.3 * epoch), resolved=values * epoch, epoch=epoch)
        for epoch in (1, 2, 3)
    }
    assert not any(spectrum.outliers.size for spectrum in spectra.values())
    (axes,) = plot_training(spectra).axes
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white" and line.get_marker() == "o"]
    assert_allclose(max(line.get_ydata().max() for line in hollow), 1.5)
    assert len(hollow) >= 5


def test_the_bands_of_the_river_hold_their_shares_of_the_bulk():
    spectrum = make_spectrum(OUTLIERS)
    (axes,) = plot_training({"start": spectrum, "end": spectrum}).axes
    nodes, weights = spectrum.bulk_nodes, spectrum.bulk_weights / spectrum.bulk_weights.sum()
    for band, share in zip(axes.collections, (0.99, 0.9, 0.5), strict=False):
        low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
        inside = weights[(nodes >= low) & (nodes <= high)].sum()
        assert share - 0.01 <= inside <= share + 2 * weights.max() + 0.02


@pytest.mark.parametrize("kind", KINDS[1:])
def test_small_multiples_share_their_axes_and_hold_all_spectra(kind):
    panels = {f"epoch {epoch}": labelled(*SPECTRA) for epoch in (0, 1, 5)} | {"end": SPECTRA["Hessian"]}
    scaled = make_spectrum(OUTLIERS * 4, (-0.3, 0.9), matrix="Hessian")
    figure = drawn(plot_multiples(panels | {"later": scaled}, kind=kind, title="A network"))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == [*panels, "later"]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in shown}) == 1
    assert [len(curves(axes)) for axes in shown] == [3, 3, 3, 1, 1]
    if kind != "cdf":
        assert shown[0].get_ylim()[0] < 1 / P or kind == "scree"
    if kind in ("linear", "log", "cdf"):
        assert shown[0].get_xlim()[1] > 40
    else:
        assert shown[0].get_ylim()[1] > 40
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Hess", "G", "H", ""][:3]


def test_small_multiples_in_a_table_have_headings_and_may_have_gaps():
    cells = {("epoch 0", "n = 10"): SPECTRA["Hessian"], ("epoch 9", "n = 20"): SPECTRA["Hessian"]}
    figure = drawn(plot_multiples(cells, kind="scree"))
    words = {text.get_text() for text in texts(figure)}
    assert {"epoch 0", "epoch 9", "n = 10", "n = 20"} <= words
    assert sum(bool(curves(axes)) for axes in figure.axes) == 2
    with pytest.raises(ValueError, match="all must be of one kind"):
        plot_multiples({"a": SPECTRA["Hessian"], ("b", "c"): SPECTRA["Hessian"]})
    with pytest.raises(ValueError, match="columns is 0"):
        plot_multiples({"a": SPECTRA["Hessian"]}, columns=0)
    with pytest.raises(ValueError, match="no spectra to plot"):
        plot_multiples({})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "overview"])
@pytest.mark.parametrize(
    ("matrices", "unit"),
    [
        (("Hessian", "GaussNewton"), "loss per squared parameter"),
        (("SecondMoment",), "squared loss per squared parameter"),
        (("Covariance",), None),  # of one's own: it is no curvature of a loss
        ((None,), None),
        (("Hessian", "Covariance"), None),
        (("Hessian", "SecondMoment"), None),
    ],
)
def test_axes_name_the_unit_that_all_their_matrices_have_and_no_other(kind, matrices, unit):
    members = [make_spectrum(OUTLIERS, **({} if name is None else {"matrix": name})) for name in matrices]
    axes = plot_spectrum({str(number): each for number, each in enumerate(members)}, kind=kind).axes[0]
    label = axes.get_ylabel() if kind == "scree" else axes.get_xlabel()
    assert label.startswith(("eigenvalue λ", "|λ|"))
    assert ("(" in label) == (unit is not None)
    assert unit is None or f"({unit})" in label
    narrow = plot_spectrum({"": members[0]}, kind=kind, width=3.25).axes[0]
    assert "(" not in narrow.get_xlabel() + narrow.get_ylabel()


def test_a_river_names_the_unit_of_its_matrix():
    for name, words in (("Hessian", "eigenvalue λ  (loss per squared parameter)"), ("Covariance", "eigenvalue λ")):
        spectra = {f"{epoch}": make_spectrum(OUTLIERS, matrix=name, epoch=epoch) for epoch in (0, 1)}
        assert plot_training(spectra).axes[0].get_ylabel() == words


@pytest.mark.parametrize("dpi", [72, 220])
@pytest.mark.parametrize("width", [3.25, 7.8, 8.0, 8.2])
def test_legends_are_inside_the_figure_at_every_resolution(width, dpi):
    spectra = {f"{epoch}": make_spectrum(OUTLIERS, matrix="Hessian", epoch=epoch) for epoch in (0, 1)}
    figure = plot_training(spectra, width=width, tracks=[np.arange(each.outliers.size) for each in spectra.values()])
    figure.set_dpi(dpi)
    drawn(figure)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
