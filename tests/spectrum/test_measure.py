"""The measure and what is computed from it, against spectra that are known."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

import hesspec


def heavy_tailed(seed: int = 0, size: int = 1500) -> np.ndarray:
    """Eight outliers over a two-sided bulk with heavy tails."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.standard_normal(size) ** 3 * 1e-3, np.geomspace(1, 0.2, 8)])


def one_sided(seed: int = 0, size: int = 1500) -> np.ndarray:
    """A covariance-like bulk, zeros, and outliers."""
    rng = np.random.default_rng(seed)
    bulk = np.concatenate([np.zeros(size // 2), 0.01 * rng.chisquare(2, size // 2)])
    return np.concatenate([bulk, np.geomspace(5, 1, 5)])


SPECTRA = {"heavy-tailed": heavy_tailed, "one-sided": one_sided}


def measured(values: np.ndarray, dtype: torch.dtype = torch.float64, **options) -> hesspec.Spectrum:
    return hesspec.spectrum(Diagonal(values, dtype), **options)


class Diagonal:
    """diag(values): its eigenvectors do not matter to a probe that is uniform on the sphere."""

    def __init__(self, values: np.ndarray, dtype: torch.dtype) -> None:
        self.values = torch.tensor(values, dtype=dtype)
        self.shape, self.dtype, self.device = (len(values),) * 2, dtype, torch.device("cpu")

    def __matmul__(self, vector: torch.Tensor) -> torch.Tensor:
        return self.values * vector


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("probes", [1, 3])
def test_distances_are_within_their_bounds(name, dtype, probes):
    for seed in range(10):
        exact = SPECTRA[name](seed)
        spectrum = measured(exact, dtype, steps=48, seed=seed, probes=probes)
        assert wasserstein_distance(spectrum.nodes, exact, spectrum.weights) <= spectrum.wasserstein_bound
        # Away from resolved eigenvalues, where a bound of their positions moves a step of 1/p.
        x = np.linspace(*np.quantile(exact, [0.01, 0.99]), 400)
        truth = np.searchsorted(np.sort(exact), x, side="right") / exact.size
        assert np.abs(truth - spectrum.cdf(x).cdf.to_numpy()).max() <= spectrum.kolmogorov_smirnov_bound


@pytest.mark.parametrize("name", SPECTRA)
def test_outliers_are_found(name):
    exact = SPECTRA[name]()
    spectrum = measured(exact, steps=64)
    top = np.sort(exact)[::-1][: {"heavy-tailed": 8, "one-sided": 5}[name]]
    np.testing.assert_allclose(spectrum.outliers[: top.size], top, rtol=1e-10)


@pytest.mark.parametrize("name", SPECTRA)
def test_functionals_of_an_exact_spectrum(name):
    exact = SPECTRA[name](size=60)
    spectrum = measured(exact, steps=500)
    assert spectrum.exact
    assert spectrum.trace == pytest.approx(exact.sum(), rel=1e-10)
    assert spectrum.trace_standard_error == 0
    assert spectrum.moment(2) == pytest.approx((exact**2).mean(), rel=1e-10)
    assert spectrum.effective_rank == pytest.approx(np.abs(exact).sum() / np.abs(exact).max(), rel=1e-10)
    assert spectrum.num_negative.lower <= (exact < 0).sum() <= spectrum.num_negative.upper
    assert spectrum.wasserstein_bound >= wasserstein_distance(spectrum.nodes, exact, spectrum.weights)


def test_standard_errors_are_the_spread_over_probes():
    exact = heavy_tailed()
    functions = [lambda x: x, np.abs, lambda x: (x > 1e-3).astype(float)]
    spectra = [measured(exact, steps=40, seed=seed) for seed in range(200)]
    for function in functions[:2]:
        means, errors = np.array([spectrum.expectation(function) for spectrum in spectra]).T
        # The spread of 200 values is known to 1/sqrt(400) = 5%, heavy tails and plug-in errors double that; 4 of these.
        assert errors.mean() == pytest.approx(means.std(ddof=1), rel=0.4)
    means, errors = np.array([spectrum.expectation(functions[2]) for spectrum in spectra]).T
    # A step function meets the quadrature's own error too: the standard error of sampling is a lower bound.
    assert errors.mean() <= 1.4 * means.std(ddof=1)


def test_trace_is_within_four_standard_errors():
    exact = heavy_tailed()
    for seed in range(20):
        spectrum = measured(exact, steps=40, seed=seed)
        assert abs(spectrum.trace - exact.sum()) <= 4 * spectrum.trace_standard_error


def test_more_probes_reduce_the_error():
    exact = heavy_tailed()
    error = {
        probes: np.mean(
            [wasserstein_distance(s.nodes, exact, s.weights) for s in
             (measured(exact, steps=48, seed=seed, probes=probes) for seed in range(5))]
        )
        for probes in (1, 6)
    }  # fmt: skip
    assert error[6] < 0.7 * error[1]


def test_probes_after_the_first_do_not_change_resolved_eigenvalues():
    exact = heavy_tailed()
    one, three = (measured(exact, steps=48, probes=probes) for probes in (1, 3))
    assert np.array_equal(one.eigenvalues, three.eigenvalues)
    assert three.matvecs == 3 * 48
    assert three.trace_standard_error < one.trace_standard_error


def test_the_same_seed_gives_the_same_spectrum():
    one, other = (measured(heavy_tailed(), steps=30, probes=2, seed=7) for _ in range(2))
    assert np.array_equal(one.nodes, other.nodes)
    assert np.array_equal(one.weights, other.weights)


@pytest.mark.parametrize("tolerance", [0.2, 0.05])
def test_auto_stops_when_it_says_so(tolerance):
    exact = heavy_tailed()
    spectrum = measured(exact, steps="auto", tolerance=tolerance)
    assert "since half of the steps" in spectrum.stopped
    assert spectrum.steps % 8 == 0
    # What is left after the movement has fallen to the tolerance is of its order, and the sampling error of one probe.
    mean = np.abs(exact).mean()
    sampling = spectrum.expectation(np.abs)[1]
    assert wasserstein_distance(spectrum.nodes, exact, spectrum.weights) <= tolerance * mean + 3 * sampling


def test_a_smaller_tolerance_takes_more_steps():
    steps = [measured(heavy_tailed(), steps="auto", tolerance=tolerance).steps for tolerance in (0.2, 0.1, 0.05)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


@pytest.mark.parametrize("name", SPECTRA)
def test_density_integrates_to_the_share_of_the_bulk(name):
    spectrum = measured(SPECTRA[name](), steps=64)
    density = spectrum.density()
    share = 1 - spectrum.eigenvalues.size / spectrum.dimension
    assert np.trapezoid(density.density, density.eigenvalue) == pytest.approx(share, rel=1e-3)
    assert density.eigenvalue.size == 1024
    assert (density.standard_error >= 0).all()


def test_density_on_a_grid_of_the_users_own():
    spectrum = measured(heavy_tailed(), steps=64)
    density = spectrum.density(grid=np.array([0.0, 10.0]), width=1e-3)
    assert density.attrs["width"] == 1e-3
    assert float(density.density[0]) > 0
    assert float(density.density[1]) == 0


def test_log_density_is_the_sum_of_both_signs():
    density = measured(heavy_tailed(), steps=64).log_density()
    np.testing.assert_allclose(density.positive + density.negative, density.density, rtol=1e-12)
    # As many small eigenvalues are negative as positive here.
    assert np.trapezoid(density.negative, density.log10_magnitude) > 0.2


def test_cdf_rises_from_zero_to_one():
    spectrum = measured(heavy_tailed(), steps=64)
    cdf = spectrum.cdf(np.linspace(-1, 2, 500)).cdf.to_numpy()
    assert cdf[0] == 0
    assert cdf[-1] == pytest.approx(1, abs=1e-12)
    assert (np.diff(cdf) >= 0).all()


def test_a_five_hundredfold_eigenvalue_keeps_its_measured_weight():
    exact = np.concatenate([np.full(500, 2.0), np.random.default_rng(0).uniform(-0.1, 0.1, 1500)])
    spectrum = measured(exact, steps=48)
    near = np.abs(spectrum.nodes - 2) < 1e-6
    # Beta(250, 750): mean 1/4, standard deviation 1.4%.
    assert spectrum.weights[near].sum() == pytest.approx(0.25, abs=0.06)


def test_progress_is_reported_after_each_step():
    seen = []
    measured(heavy_tailed(), steps=5, probes=2, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(1, 11)]
    seen.clear()
    measured(heavy_tailed(), steps="auto", tolerance=0.3, on_step=lambda done, total: seen.append((done, total)))
    assert seen[0] == (1, None)


def test_a_basis_that_does_not_fit_is_an_error_in_gigabytes(monkeypatch):
    monkeypatch.setattr("hesspec.measurement.free_memory", lambda _: 1_000_000)
    with pytest.raises(MemoryError, match=r"64 vectors of 1,508 numbers needs 0\.0 GB|at most 82") as error:
        measured(heavy_tailed(), steps=500)
    assert "take fewer steps (at most 82)" in str(error.value)
