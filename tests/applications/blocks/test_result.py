"""Result of `hesspec.by_block`: numbers, tables, figure, file, and arguments that are refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import hesspec
from hesspec.applications.blocks.distance import shape_distances

LOSS = nn.CrossEntropyLoss()


def diagonal(values, **settings):
    """Spectrum of a diagonal matrix."""
    return hesspec.spectrum(torch.diag(torch.as_tensor(values, dtype=torch.float64)), **settings)


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    return model, [(torch.randn(20, 5, dtype=torch.float64), torch.randint(3, (20,)))]


@pytest.fixture(scope="module")
def result(problem):
    return hesspec.by_block(*problem[:1], LOSS, problem[1], matrix="g", steps=12, mode="double backward")


def test_rows_are_the_numbers_of_the_spectra(result):
    assert list(result) == ["0", "2", "4"]
    frame = result.to_dataframe()
    for name in result:
        spectrum = result[name]
        assert frame.parameters[name] == spectrum.dimension
        assert frame.largest[name] == spectrum.eigenvalues[0]
        assert frame.largest_bound[name] == spectrum.error_bounds[0]
        assert (frame.trace[name], frame.trace_error[name]) == (spectrum.trace, spectrum.trace_standard_error)
        assert frame.effective_rank[name] == spectrum.effective_rank
        # G is positive semi-definite, and so are its blocks.
        assert frame.negative_share[name] == 0
    assert frame.trace_share.sum() == pytest.approx(1)
    assert result.whole == frame.parameters.sum() == 5 * 12 + 12 + 12 * 12 + 12 + 12 * 3 + 3


def test_the_trace_of_the_whole_is_within_its_error(problem, result):
    whole = hesspec.GaussNewton(problem[0], LOSS, problem[1], mode="double backward")
    trace = float(torch.trace(whole @ torch.eye(whole.shape[0], dtype=torch.float64)))
    assert abs(result.trace - trace) < 3 * result.trace_standard_error


def test_errors_of_shares_follow_from_those_of_traces(result):
    rng, draws = np.random.default_rng(0), 200_000
    traces = result.traces + 1e-3 * result.trace_errors * rng.standard_normal((draws, len(result)))
    spread = (traces / traces.sum(axis=1, keepdims=True)).std(axis=0)
    # The standard deviation of n draws has a relative error of 1 / sqrt(2 n).
    assert spread == pytest.approx(1e-3 * result.trace_share_errors, rel=5 / math.sqrt(2 * draws))


def test_a_saved_result_is_the_same(result, tmp_path):
    result.save(tmp_path / "blocks.nc")
    again = hesspec.load(tmp_path / "blocks.nc")
    assert isinstance(again, hesspec.BlockSpectra)
    assert repr(again) == repr(result)
    for name in result:
        assert again[name].nodes.tolist() == result[name].nodes.tolist()
        assert again[name].summary() == result[name].summary()


def test_a_damaged_file_is_refused(result, tmp_path):
    wrong = replace(result, num_bulk=result.num_bulk + 1)
    with pytest.raises(ValueError, match="Its num_bulk sum to"):
        hesspec.BlockSpectra.from_dataset(wrong.to_dataset())
    twice = replace(result, names=np.array(["0", "0", "4"]))
    with pytest.raises(ValueError, match="the same name"):
        hesspec.BlockSpectra.from_dataset(twice.to_dataset())


def test_what_is_shown(result):
    summary = result.summary()
    assert summary["blocks"] == "3, by layer"
    assert summary["matrix"] == "GaussNewton"
    assert "trace of the whole" in summary
    (table,) = result.tables()
    assert [row[0] for row in table.rows] == ["0", "2", "4"]
    assert table.rows[0][6] == "0.0%"


def test_a_block_that_does_not_exist(result):
    with pytest.raises(KeyError, match="There is no block '1'"):
        result["1"]


def test_the_figure_has_a_row_for_each_block(result):
    figure = result.plot()
    largest, shares, distances, _ = figure.axes
    assert [tick.get_text() for tick in largest.get_yticklabels()] == ["0", "2", "4"]
    assert len(shares.patches) == 3
    assert distances.images[0].get_array().shape == (3, 3)
    axes = figure.add_axes([0, 0, 1, 1])
    assert result.plot(axes) is figure


def test_one_block_has_no_distances(problem):
    found = hesspec.by_block(problem[0], LOSS, problem[1], blocks=["4"], rest=False, steps=10, mode="double backward")
    assert len(found.plot().axes) == 2
    assert math.isnan(found.trace)
    assert "mean distance of shapes" not in found.summary()
    assert "not known" in found.summary()["parameters"]


# Distances ------------------------------------------------------------------------------------------------------------


def test_distances_of_known_spectra():
    a = diagonal(np.linspace(1, 2, 40), steps=40)
    scaled, mirrored = diagonal(7 * np.linspace(1, 2, 40), steps=40), diagonal(-np.linspace(1, 2, 40), steps=40)
    # In units of the mean |eigenvalue|: one eigenvalue of 40 and 39 zeros, at a distance of E|X - Y| = 2 (1 - 1/40).
    spike, flat = diagonal([40.0] + [0.0] * 39, steps=40), diagonal([1.0] * 40, steps=40)
    distances, bounds = shape_distances([a, scaled, mirrored, spike, flat])
    assert distances[0, 1] == pytest.approx(0, abs=1e-12)
    assert distances[0, 2] == pytest.approx(1)
    assert distances[3, 4] == pytest.approx(39 / 40)
    assert distances == pytest.approx(distances.T)
    assert bounds.max() < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_of_a_distance_holds(seed):
    rng = np.random.default_rng(seed)
    values = [np.concatenate([rng.standard_normal(1500) * scale, [40, 30, 20]]) for scale in (0.5, 2)]
    true, _ = shape_distances([_exact(each) for each in values])
    found, bounds = shape_distances([diagonal(each, steps=150, seed=seed) for each in values])
    assert abs(found[0, 1] - true[0, 1]) <= bounds[0, 1] < 1


def _exact(values):
    order = np.argsort(-np.abs(values))
    count, none = len(values), np.empty(0)
    return replace(
        diagonal(np.ones(4), steps=4),
        dimension=count,
        eigenvalues=values[order],
        error_bounds=np.zeros(count),
        eigenvalue_weights=np.full(count, 1 / count),
        eigenvalue_sampled=np.zeros(count),
        bulk_nodes=none,
        bulk_weights=none,
        bulk_probe=np.empty(0, np.int64),
        exact=True,
    )


def test_a_spectrum_that_is_zero_has_no_shape():
    distances, bounds = shape_distances([diagonal(np.zeros(5), steps=5), diagonal(np.ones(5), steps=5)])
    assert math.isnan(distances[0, 1])
    assert math.isnan(bounds[0, 1])


# Arguments ------------------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit_are_refused(problem):
    model, data = problem
    hessian = hesspec.Hessian(model, LOSS, data, mode="double backward")
    with pytest.raises(ValueError, match="by_block needs the loss and the data of a model"):
        hesspec.by_block(model)
    with pytest.raises(ValueError, match="got an operator, a Hessian, and loss_fn, terms"):
        hesspec.by_block(hessian, LOSS, terms=len)
    with pytest.raises(ValueError, match="A Tensor does not name its parameters"):
        hesspec.by_block(torch.eye(4), blocks="layer")
    with pytest.raises(ValueError, match="'a' and 'b' overlap in 1 entries"):
        hesspec.by_block(torch.eye(4), blocks={"a": [0, 1], "b": slice(1, 2)})
    with pytest.raises(ValueError, match="'a' selects no entries of 4"):
        hesspec.by_block(torch.eye(4), blocks={"a": slice(7, 9)})
    with pytest.raises(ValueError, match="'a' is not a slice or indices of 4 entries"):
        hesspec.by_block(torch.eye(4), blocks={"a": [7]})
    with pytest.raises(ValueError, match="A block is named 'rest'"):
        hesspec.by_block(hessian, blocks={"rest": "0.weight"})
    with pytest.raises(ValueError, match="steps is 0"):
        hesspec.by_block(hessian, steps=0)
    with pytest.raises(ValueError, match="tolerance is 0"):
        hesspec.by_block(hessian, tolerance=0)
    with pytest.raises(ValueError, match="There is no matrix 'hesian'"):
        hesspec.by_block(model, LOSS, data, matrix="hesian")


def test_steps_are_counted_over_all_blocks(problem):
    seen = []
    hesspec.by_block(
        problem[0], LOSS, problem[1], steps=5, on_step=lambda *counts: seen.append(counts), mode="double backward"
    )
    assert seen[-1] == (15, 15)
    assert [done for done, _ in seen] == list(range(1, 16))


def test_as_many_steps_as_the_measure_needs(problem):
    found = hesspec.by_block(problem[0], LOSS, problem[1], steps="auto", mode="double backward")
    assert (found.steps >= 16).all()
    assert set(found.steps.tolist()) != {16}
