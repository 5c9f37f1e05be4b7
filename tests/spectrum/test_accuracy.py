"""One run of 64 matvecs in float32 against the exact spectra of trained networks."""

import functools

import numpy as np
import pytest
from scipy.stats import wasserstein_distance
from torch import nn

import exact_networks
import hesspec

SEEDS = range(10)
CASES = [(name, matrix) for name in exact_networks.NAMES for matrix in ("Hessian", "GaussNewton")]


@functools.cache
def runs(name, matrix):
    network = exact_networks.load(name)
    operator = getattr(hesspec, matrix)(network.model, nn.CrossEntropyLoss(), network.data)
    return [hesspec.spectrum(operator, steps=64, seed=seed) for seed in SEEDS], network.eigenvalues[matrix]


@pytest.mark.parametrize(("name", "matrix"), CASES)
def test_the_ten_largest_eigenvalues_are_within_1e5(name, matrix):
    spectra, exact = runs(name, matrix)
    truth = exact[np.argsort(-np.abs(exact))][:10]
    for spectrum in spectra:
        np.testing.assert_allclose(spectrum.eigenvalues[:10], truth, rtol=1e-5)


@pytest.mark.parametrize(("name", "matrix"), CASES)
def test_error_bounds_hold_one_to_one(name, matrix):
    spectra, exact = runs(name, matrix)
    for spectrum in spectra:
        given, bounds = spectrum.eigenvalues, spectrum.error_bounds
        # Both sides sorted: the pairing that the bounds promise, as intervals of one width do not cross.
        for sign in (1, -1):
            mine = np.flatnonzero(sign * given > 0)
            truth = np.sort(sign * exact)[::-1][: mine.size]
            order = mine[np.argsort(-sign * given[mine])]
            assert (np.abs(truth - sign * given[order]) <= bounds[order]).all()


@pytest.mark.parametrize(("name", "matrix"), CASES)
def test_wasserstein_distance_is_a_fraction_of_that_of_plain_quadrature(name, matrix):
    spectra, exact = runs(name, matrix)
    ours = [wasserstein_distance(s.nodes, exact, s.weights) for s in spectra]
    plain = [wasserstein_distance(s.ritz_values, exact, s.ritz_weights) for s in spectra]
    assert np.mean(ours) <= np.mean(plain) / {"Hessian": 3, "GaussNewton": 8}[matrix]


@pytest.mark.parametrize(("name", "matrix"), CASES)
def test_wasserstein_and_supremum_bounds_hold(name, matrix):
    spectra, exact = runs(name, matrix)
    for spectrum in spectra:
        assert wasserstein_distance(spectrum.nodes, exact, spectrum.weights) <= spectrum.wasserstein_bound


@pytest.mark.parametrize(("name", "matrix"), CASES)
def test_trace_is_within_four_standard_errors(name, matrix):
    spectra, exact = runs(name, matrix)
    for spectrum in spectra:
        assert abs(spectrum.trace - exact.sum()) <= 4 * spectrum.trace_standard_error


@pytest.mark.parametrize(("name", "matrix"), CASES)
def test_number_of_negative_eigenvalues_is_in_its_interval(name, matrix):
    spectra, exact = runs(name, matrix)
    # The dense matrix has its own rounding: eigenvalues nearer to zero than this have no sign.
    floor = 1e-12 * np.abs(exact).max()
    for spectrum in spectra:
        assert spectrum.num_negative.lower <= (exact < floor).sum()
        assert spectrum.num_negative.upper >= (exact < -floor).sum()
