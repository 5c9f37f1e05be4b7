"""Results of gradient noise: files, impossible values, what they show, and figures."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from saved_results import check_refused, check_saved
from torch import nn

import hesspec

noise = hesspec.noise
LONGEST = 4_000  # characters; a screen holds about as many


def simulated(steps, seed=0):
    return noise.first_exit_times(
        torch.eye(2), 1.0, learning_rate=0.5, alpha=1.5, scale=0.1, runs=200, max_steps=steps, seed=seed
    )


@cache
def exits():
    return simulated(100_000)


@cache
def censored():
    return simulated(40)


@cache
def never():
    return noise.first_exit_times(torch.eye(2), 1.0, learning_rate=0.5, gaussian=0.01, runs=20, max_steps=20)


@cache
def tail():
    values = noise.stable_noise(1.5, (1_000, 3), torch.Generator().manual_seed(0)).numpy()
    values[:, 1] = 0
    return noise.tail_index(values)


@cache
def gradients():
    torch.manual_seed(0)
    model, loss_fn = nn.Linear(6, 1), nn.MSELoss()
    data = [(torch.randn(100, 6), torch.randn(100, 1))]
    pairs = hesspec.eigenpairs(hesspec.Hessian(model, loss_fn, data), count=3, steps=7)
    return noise.gradient_noise(model, loss_fn, data, pairs, batch_size=10, count=64, bulk=2)


ALL = pytest.mark.parametrize("make", [exits, censored, never, tail, gradients])


@ALL
def test_a_file_gives_back_every_field(make, tmp_path):
    check_saved(make(), tmp_path)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (exits, {"radius": 0.0}, "Its 'radius' is 0.0"),
        (exits, {"alpha": 2.5}, "Its alpha is 2.5"),
        (exits, {"scale": -1.0}, "'scale' is -1.0"),
        (exits, {"exited": np.full(200, 2)}, "exited are not all 0 or 1"),
        (exits, {"max_steps": 3}, "steps are not all from 1 to 3"),
        (exits, {"exited": np.zeros(200, np.int64)}, "A run was stopped before the last step"),
        (exits, {"dimension": 0}, "no runs, or no dimensions"),
        (tail, {"block": 1}, "blocks of 1 are not those of 1000 values"),
        (tail, {"zeros": np.full(3, 1_001)}, "zeros are more than its 1000 values"),
        (tail, {"lengths": np.ones(7, np.int64)}, "lengths are not all at least 2"),
        (tail, {"inverse_error": -1.0}, "inverse_error"),
        (gradients, {"is_eigenvector": np.ones(5, np.int64)}, "eigenvalues are not those of its eigenvectors"),
        (gradients, {"is_eigenvector": np.full(5, 3)}, "is_eigenvector are not all 0 or 1"),
        (gradients, {"batch_size": 101}, "batches have 101 of 100 samples"),
        (gradients, {"projections": np.full((64, 5), np.inf)}, "projections are not all finite"),
    ],
)
def test_impossible_values_are_refused(make, changes, message):
    check_refused(make(), message, **changes)


def test_results_are_read_without_pytorch(tmp_path):
    exits().save(tmp_path / "exits.nc")
    gradients().save(tmp_path / "noise.nc")
    code = (
        "import sys, hesspec\n"
        "found, noise = (hesspec.load(path) for path in sys.argv[1:])\n"
        "found.plot(), noise.plot(), noise.tail_indices()['bulk'].plot()\n"
        "found.expected, hesspec.noise.tail_index(noise.in_bulk)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(  # noqa: S603 - this very Python
        [sys.executable, "-c", code, tmp_path / "exits.nc", tmp_path / "noise.nc"], check=True
    )


@pytest.mark.parametrize("name", sorted(noise.__all__))
def test_public_names_are_what_they_say_in_any_order_of_imports(name):
    # A module with the name of one of its functions would take its place.
    assert getattr(noise, name).__name__ == name


def test_an_unknown_name():
    with pytest.raises(AttributeError, match=r"module 'hesspec\.noise' has no attribute 'temperature'"):
        _ = noise.temperature
    assert "tail_index" in dir(noise)


@ALL
def test_results_show_themselves_briefly(make):
    result = make()
    text = repr(result)
    assert text.startswith(type(result).__name__)
    assert len(text) <= LONGEST
    assert "array(" not in text
    for table in result.tables():
        assert table.as_text() in text
    assert result._repr_html_().count("<table>") == 1 + len(result.tables())


def test_summaries_say_what_was_found():
    assert "of which 0 stayed" in repr(exits())
    assert "limit of small noise" in repr(exits())
    assert "Gaussian 0.01" in repr(never())
    assert "1 components are zero" in repr(tail())
    assert "3 eigenvectors, 2 of the bulk, of 7" in repr(gradients())
    assert "64 of 10 of 100 samples" in repr(gradients())


# Figures --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [exits, censored, never])
def test_figure_of_survival(make):
    found = make()
    (axes,) = found.plot().axes
    drawn = axes.lines[0]
    times, shares = found.survival()
    np.testing.assert_array_equal(drawn.get_xdata()[1:-1], times)
    np.testing.assert_array_equal(drawn.get_ydata()[1:-1], shares)
    assert len(axes.lines) == 1 + (found.exits > 0)


def test_figure_of_mean_exit_times():
    results = {"stable": {1.0: exits(), 2.0: censored()}, "Gaussian": {1.0: never()}}
    laws = {"stable": lambda a: noise.mean_exit_time(1.5, 0.1, a, 2)}
    figure = noise.plot_mean_exit_times(results, laws=laws, xlabel="radius")
    (axes,) = figure.axes
    points = axes.containers[0].lines[0]
    assert list(points.get_ydata()) == [exits().mean, censored().mean]
    law = next(line for line in axes.lines if len(line.get_xdata()) > 100)
    np.testing.assert_allclose(law.get_ydata()[[0, -1]], [laws["stable"](1.0), laws["stable"](2.0)])
    bound = next(line for line in axes.lines if line.get_marker() == "^" and len(line.get_xdata()))
    assert list(bound.get_ydata()) == [never().interval[0]]
    assert noise.plot_mean_exit_times(results, logarithmic=False).axes[0].get_xscale() == "linear"
    with pytest.raises(ValueError, match="no exit times to plot"):
        noise.plot_mean_exit_times({})


def test_figures_of_tail_indices():
    (axes,) = tail().plot().axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), tail().alpha_curve)
    assert axes.get_title(loc="left").startswith("α = 1.")
    parts = gradients().tail_indices()
    (axes,) = noise.plot_tail_indices(parts).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["eigenvectors", "bulk"]


def test_figure_of_gradient_noise():
    (axes,) = gradients().plot().axes
    drawn = [container.lines[0].get_ydata() for container in axes.containers]
    expected = [each.alphas for each in gradients().tail_indices().values()]
    for found, alphas in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(found, alphas)


def test_figures_are_drawn_into_a_given_panel():
    owner = exits().plot()
    axes = owner.add_subplot(2, 2, 4)
    for make in (exits, tail, gradients):
        assert make().plot(ax=axes) is owner
