"""One run of 64 matvecs in float32 against the exact spectra of trained networks."""

import functools

import exact_networks
import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.stats import wasserstein_distance
from sweeps import swept
from torch import nn

import hesspec

SEEDS = range(10)
# What deflating the resolved eigenvalues has to gain over plain quadrature of the same 64 steps: it takes away the
# error that outliers make. The Hessian of the MLP has less of that: its bulk reaches to a sixth of its largest
# eigenvalue, and what remains is the resolution of 64 Gauss nodes near zero.
GAIN = {
    ("digits-cnn", "Hessian"): 3,
    ("digits-cnn", "GaussNewton"): 8,
    ("digits-mlp", "Hessian"): 1.8,
    ("digits-mlp", "GaussNewton"): 8,
}
CASES = [(name, matrix) for name in exact_networks.NAMES for matrix in ("Hessian", "GaussNewton")]


@functools.cache
def runs(name, matrix):
    network = exact_networks.load(name)
    operator = getattr(hesspec, matrix)(network.model, nn.CrossEntropyLoss(), network.data)
    return [hesspec.spectrum(operator, steps=64, seed=seed) for seed in SEEDS], network.eigenvalues[matrix]


@pytest.mark.parametrize(("name", "matrix"), swept(CASES, CASES[0], CASES[3]))
def test_the_ten_largest_eigenvalues_are_within_1e5(name, matrix):
    spectra, exact = runs(name, matrix)
    truth = exact[np.argsort(-np.abs(exact))][:10]
    for spectrum in spectra:
        np.testing.assert_allclose(spectrum.eigenvalues[:10], truth, rtol=1e-5)


@pytest.mark.parametrize(("name", "matrix"), swept(CASES, CASES[0], CASES[3]))
def test_error_bounds_hold_one_to_one(name, matrix):
    spectra, exact = runs(name, matrix)
    for spectrum in spectra:
        within = np.abs(exact - spectrum.eigenvalues[:, None]) <= spectrum.error_bounds[:, None]
        # A maximum matching: every resolved eigenvalue has a true one of its own.
        pairs = maximum_bipartite_matching(csr_array(within), perm_type="column")
        assert (pairs >= 0).all()


@pytest.mark.parametrize(("name", "matrix"), swept(CASES, CASES[0], CASES[3]))
def test_wasserstein_distance_is_a_fraction_of_that_of_plain_quadrature(name, matrix):
    spectra, exact = runs(name, matrix)
    ours = [wasserstein_distance(s.nodes, exact, s.weights) for s in spectra]
    plain = [wasserstein_distance(s.ritz_values, exact, s.ritz_weights) for s in spectra]
    assert np.mean(ours) <= np.mean(plain) / GAIN[name, matrix]


@pytest.mark.parametrize(("name", "matrix"), swept(CASES, CASES[0], CASES[3]))
def test_wasserstein_and_supremum_bounds_hold(name, matrix):
    spectra, exact = runs(name, matrix)
    for spectrum in spectra:
        assert wasserstein_distance(spectrum.nodes, exact, spectrum.weights) <= spectrum.wasserstein_bound


@pytest.mark.parametrize(("name", "matrix"), swept(CASES, CASES[0], CASES[3]))
def test_trace_is_within_four_standard_errors(name, matrix):
    spectra, exact = runs(name, matrix)
    for spectrum in spectra:
        assert abs(spectrum.trace - exact.sum()) <= 4 * spectrum.trace_standard_error


@pytest.mark.parametrize(("name", "matrix"), swept(CASES, CASES[0], CASES[3]))
def test_number_of_negative_eigenvalues_is_in_its_interval(name, matrix):
    spectra, exact = runs(name, matrix)
    # The dense matrix has its own rounding: eigenvalues nearer to zero than this have no sign.
    floor = 1e-12 * np.abs(exact).max()
    for spectrum in spectra:
        assert spectrum.num_negative.lower <= (exact < floor).sum()
        assert spectrum.num_negative.upper >= (exact < -floor).sum()
