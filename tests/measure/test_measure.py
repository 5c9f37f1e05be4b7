"""The measure and what is computed from it, against spectra that are known."""

import functools

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.stats import wasserstein_distance
from sweeps import swept

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

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.values * vectors if vectors.dim() == 1 else self.values[:, None] * vectors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.few(3)
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


@pytest.mark.long
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
    assert three.matvecs == 3 * 48 + 1
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
    share = 1 - spectrum.outliers.size / spectrum.dimension
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


# Nine spectra, one run and several of them ---------------------------------------------------------------------------

RNG = np.random.default_rng(0)
P = 600
RANKS = np.arange(1, P + 1)
KNOWN = {
    "normal": RNG.standard_normal(P),
    "cubed": RNG.standard_normal(P) ** 3,
    "log-normal": np.exp(RNG.standard_normal(P)),
    "Marchenko-Pastur": np.linalg.svd(RNG.standard_normal((P, 2 * P)), compute_uv=False) ** 2 / (2 * P),
    "spiked": np.concatenate([0.05 * RNG.standard_normal(P - 10), np.geomspace(5, 0.5, 10)]),
    "half zero": np.concatenate([np.zeros(P // 2), RNG.random(P - P // 2)]),
    "power law 1": 1.0 / RANKS,
    "power law 1/2": RANKS**-0.5,
    "two-sided power law": np.where(RANKS % 2, 1.0, -0.3) / RANKS,
}
every_spectrum = pytest.mark.parametrize("name", KNOWN)
every_run = pytest.mark.parametrize(("steps", "probes"), [(16, 1), (48, 1), (48, 4)])


@functools.cache
def runs(name, steps, probes):
    return [measured(KNOWN[name], steps=steps, probes=probes, seed=seed) for seed in range(5)]


def kolmogorov_smirnov(spectrum, truth):
    """sup |F_true - F_estimated|, but for points within an error bound of a resolved eigenvalue."""
    truth = np.sort(truth)
    x = np.unique(np.concatenate([spectrum.nodes, truth]))
    away = np.ones(x.size, bool)
    for value, bound in zip(spectrum.eigenvalues, spectrum.error_bounds, strict=True):
        away &= np.abs(x - value) > bound
    cumulative = np.concatenate([[0], np.cumsum(spectrum.weights)])
    distance = 0.0
    for side in ("left", "right"):
        estimated = cumulative[np.searchsorted(spectrum.nodes, x, side=side)]
        exact = np.searchsorted(truth, x, side=side) / truth.size
        distance = max(distance, np.abs(estimated - exact)[away].max(initial=0))
    return distance


@every_run
@every_spectrum
@pytest.mark.few(9)
def test_both_distances_are_within_their_bounds_for_every_spectrum(name, steps, probes):
    # Bounds of 95%, whose terms are each an upper estimate: W1 is 0.1 to 0.4 of its bound, KS 0.3 to 0.96.
    for spectrum in runs(name, steps, probes):
        assert wasserstein_distance(spectrum.nodes, KNOWN[name], spectrum.weights) <= spectrum.wasserstein_bound
        assert kolmogorov_smirnov(spectrum, KNOWN[name]) <= spectrum.kolmogorov_smirnov_bound


def test_bounds_of_an_exact_spectrum_are_its_rounding():
    spectrum = measured(KNOWN["normal"], steps=P)
    assert spectrum.wasserstein_bound == pytest.approx(spectrum.rounding)
    assert wasserstein_distance(spectrum.nodes, KNOWN["normal"], spectrum.weights) <= spectrum.wasserstein_bound
    assert spectrum.kolmogorov_smirnov_bound == 0


def test_bounds_hold_where_the_krylov_space_closes_early():
    # Three eigenvalues, 100 copies each: after three steps the next start vectors see the same ones again, and a block
    # that has just begun knows less than the one before it.
    truth = np.repeat([1.0, 2.0, 5.0], 100)
    for steps in [*range(1, 13), 299]:
        for seed in range(5):
            spectrum = measured(truth, steps=steps, seed=seed)
            distance = wasserstein_distance(spectrum.nodes, truth, spectrum.weights)
            assert not spectrum.exact
            assert distance <= spectrum.wasserstein_bound
            if steps >= 3:
                # Shares of 100 in 300 have a standard deviation of sqrt(2 2/9 / 302) = 0.038; four of it, from 1 to 5.
                assert distance <= 4 * 0.038 * 4


@every_run
@every_spectrum
def test_traces_are_within_four_standard_errors_for_every_spectrum(name, steps, probes):
    for spectrum in runs(name, steps, probes):
        assert abs(spectrum.trace - KNOWN[name].sum()) <= 4 * spectrum.trace_standard_error


@every_spectrum
@pytest.mark.parametrize("probes", [1, 4])
def test_second_moments_are_within_four_standard_errors(name, probes):
    for spectrum in runs(name, 48, probes):
        mean, error = spectrum.expectation(np.square)
        assert spectrum.moment(2) == pytest.approx(mean, rel=1e-12)
        assert abs(mean - np.mean(KNOWN[name] ** 2)) <= 4 * error


@every_spectrum
def test_effective_rank_is_the_sum_of_magnitudes_over_the_largest(name):
    for spectrum in runs(name, 48, 1):
        # The mean of |x| is off by its standard error and, as |x| has a kink, by the quadrature, within the W1 bound.
        error = 4 * spectrum.expectation(np.abs)[1] + spectrum.wasserstein_bound
        largest = np.abs(KNOWN[name]).max()
        expected = P * np.abs(KNOWN[name]).mean() / largest
        assert spectrum.effective_rank == pytest.approx(expected, rel=0.02, abs=P * error / largest)


def test_effective_rank_of_few_equal_eigenvalues_is_their_number():
    assert measured(np.array([0.0] * 95 + [2.0] * 3 + [-2.0] * 2), steps=100).effective_rank == pytest.approx(5)
    assert measured(np.zeros(9)).effective_rank == 0


@every_spectrum
@pytest.mark.parametrize("steps", [16, 48])
def test_number_of_negative_eigenvalues_is_in_its_interval(name, steps):
    for spectrum in runs(name, steps, 1):
        value, lower, upper = spectrum.num_negative
        assert lower <= value <= upper
        assert lower - 1e-9 <= (KNOWN[name] < 0).sum() <= upper + 1e-9


@pytest.mark.parametrize("probes", swept([1, 4], 1))
def test_interval_of_negative_eigenvalues_holds_where_quadrature_adds_nothing_to_it(probes):
    # A gap around zero, so that the bracket is next to nothing and the interval is that of sampling, two standard
    # errors: 95% of 40 seeds, of which 34 or more lie within with a probability of 0.99.
    truth = np.concatenate([np.linspace(-2, -1, 100), np.linspace(1, 2, 200)])
    intervals = [measured(truth, steps=24, probes=probes, seed=seed).num_negative for seed in range(40)]
    assert sum(interval.lower <= 100 <= interval.upper for interval in intervals) >= 34


def test_signs_of_an_exact_spectrum_are_counted():
    values = np.concatenate([np.linspace(-3, -1, 7), np.zeros(5), np.linspace(1, 2, 9)])
    assert measured(values, steps=30).num_negative == pytest.approx((7, 7, 12))


SPREADS = [("normal", 1), ("log-normal", 1), ("spiked", 1), ("half zero", 1), ("spiked", 3)]


@pytest.mark.parametrize(("name", "probes"), swept(SPREADS, ("log-normal", 1), ("spiked", 1)))
def test_standard_errors_are_the_spread_over_seeds(name, probes):
    truth = np.random.default_rng(1).choice(KNOWN[name], 300, replace=False)
    spectra = [measured(truth, steps=16, probes=probes, seed=seed) for seed in range(200)]
    for function in (lambda values: values, np.square):
        means, errors = np.array([spectrum.expectation(function) for spectrum in spectra]).T
        error = np.sqrt(np.mean(errors**2))
        # The spread of 200 normal variables is known to 1/sqrt(2 199) = 5%, four of which are 20%.
        assert np.std(means, ddof=1) == pytest.approx(error, rel=0.2)
        # Their mean to 1/sqrt(200) = 0.07 errors, of which four, and a bias of up to 0.3: outer eigenvalues that happen
        # to have large weights are resolved first, and put right; those with small ones are not.
        assert abs(means.mean() - function(truth).mean()) <= (4 * 0.07 + 0.3) * error


def test_standard_error_is_that_of_a_random_vector_on_the_sphere():
    # Nothing is resolved after four steps, whose quadrature is exact to degree 7: Var = 2 Var(lambda) / (p + 2).
    spectrum = measured(KNOWN["normal"], steps=4)
    assert not spectrum.eigenvalues.size
    variance = spectrum.weights @ spectrum.nodes**2 - (spectrum.weights @ spectrum.nodes) ** 2
    assert spectrum.trace_standard_error == pytest.approx(P * np.sqrt(2 * variance / (P + 2)))


@pytest.mark.parametrize("name", ["semicircle", "spiked", "power law"])
def test_auto_says_by_how_much_the_measure_moved(name):
    p, tolerance = 3000, 0.1
    bulk = 2 * scipy.stats.beta(1.5, 1.5).ppf((np.arange(p) + 0.5) / p) - 1
    truth = {
        "semicircle": bulk,
        "spiked": np.concatenate([bulk[10:], np.arange(10.0, 110.0, 10.0)]),
        "power law": 1.0 / np.arange(1, p + 1),
    }[name]
    spectrum = measured(truth, steps="auto", tolerance=tolerance, seed=1)
    half = measured(truth, steps=spectrum.steps // 2, seed=1)
    moved = wasserstein_distance(spectrum.nodes, half.nodes, spectrum.weights, half.weights)
    moved /= spectrum.weights @ np.abs(spectrum.nodes)
    assert moved <= tolerance
    assert f"the measure moved by {moved:.2g} of the mean |eigenvalue|" in spectrum.stopped
    # The W1 distance itself is of the tolerance's order: 0.3 to 0.9 of it.
    distance = wasserstein_distance(spectrum.nodes, truth, spectrum.weights)
    assert distance <= 1.5 * tolerance * np.abs(truth).mean()


def test_auto_ends_with_an_exact_spectrum():
    spectrum = measured(np.array([1.0, 1.0, 4.0, 4.0, 4.0]), steps="auto")
    assert spectrum.exact
    assert spectrum.stopped == "the Krylov spaces filled R^p: the spectrum is exact"
    assert spectrum.trace == pytest.approx(14)


@pytest.mark.parametrize("value", [0.5, 3.0, -4.0])
def test_a_five_hundredfold_eigenvalue_keeps_its_weight_inside_and_outside_of_the_rest(value):
    truth = np.concatenate([np.full(500, value), KNOWN["normal"][:500].clip(-2, 2)])
    for seed in range(5):
        spectrum = measured(truth, steps=48, seed=seed)
        # Inside of the rest it is two nodes as often as one, which converge slowly; 2% of the rest are as near.
        here, raw = (np.abs(nodes - value) < 0.05 for nodes in (spectrum.nodes, spectrum.ritz_values))
        # Those that are resolved beside it are put right by about sqrt(2 k)/p in all, and the rest rescaled.
        assert spectrum.weights[here].sum() == pytest.approx(spectrum.ritz_weights[raw].sum(), abs=0.02)
        # Beta(250, 250): standard deviation sqrt(2 / 4 / 1002) = 0.022.
        assert spectrum.weights[here].sum() == pytest.approx(0.5, abs=4 * 0.022)


@pytest.mark.parametrize("steps", [16, 48])
def test_eigenvalues_that_are_all_tenfold_are_not_counted_once(steps):
    # The Hessian of a squared loss in the last layer is I x X X^T, each eigenvalue as often as there are outputs. No
    # single weight shows it (10/p where 20/p still could be a simple one), those of all resolved ones together do.
    truth = np.repeat(np.random.default_rng(4).standard_normal(60) ** 4, 10)
    spectra = [measured(truth, steps=steps, seed=seed) for seed in range(20)]
    error = np.sqrt(np.mean([spectrum.trace_standard_error**2 for spectrum in spectra]) / 20)
    assert np.mean([spectrum.trace for spectrum in spectra]) == pytest.approx(truth.sum(), abs=4 * error)
    for spectrum in spectra:
        assert spectrum.eigenvalues.size
        assert wasserstein_distance(spectrum.nodes, truth, spectrum.weights) <= spectrum.wasserstein_bound


def test_simple_eigenvalues_have_weight_one_over_p():
    spectrum = measured(KNOWN["spiked"], steps=32)
    assert (spectrum.eigenvalue_weights == 1 / P).all()
    np.testing.assert_allclose(spectrum.eigenvalues[:10], np.geomspace(5, 0.5, 10), rtol=1e-6)
    assert spectrum.bulk_weights.sum() == pytest.approx(1 - spectrum.eigenvalues.size / P)


def test_exact_says_whether_the_whole_space_was_filled():
    values = KNOWN["normal"][:40]
    assert not measured(values, steps=39).exact
    full = measured(values, steps=100)
    assert full.exact
    assert (full.steps, full.matvecs, full.bulk_nodes.size) == (40, 41, 0)
    np.testing.assert_allclose(full.nodes, np.sort(values), atol=full.rounding)
    assert (full.weights == 1 / 40).all()


def test_density_is_that_of_the_spectrum():
    density = measured(np.linspace(-1, 1, 4000), steps=32).density(grid=np.linspace(-0.8, 0.8, 50))
    # 1/2 everywhere. The probe's own is off by its standard error; the kernels' ripple and edges leave 0.05.
    assert (np.abs(density.density - 0.5) <= 4 * density.standard_error + 0.05).all()


@every_run
@every_spectrum
def test_distribution_and_bracket_rise_within_zero_and_one(name, steps, probes):
    for spectrum in runs(name, steps, probes)[:2]:
        x = np.linspace(-2 * spectrum.norm, 2 * spectrum.norm, 300)
        bracket = spectrum.cdf_bracket(x)
        assert (bracket.lower <= bracket.upper).all()
        for side in (bracket.lower, bracket.upper, spectrum.cdf(x).cdf, spectrum.cdf().cdf):
            assert (np.diff(side) >= 0).all()
            assert side.min() >= 0
            assert side.max() <= 1 + 1e-12


def test_distribution_counts_a_node_at_its_own_place():
    spectrum = measured(np.array([1.0, 2.0, 3.0, 4.0]), steps=4)
    np.testing.assert_allclose(spectrum.cdf().cdf, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(spectrum.cdf(np.array([0.9, 1.1, 3.5, 9])).cdf, [0, 0.25, 0.75, 1])


class Recording(Diagonal):
    """Keeps the numbers of vectors that it was multiplied with at a time."""

    def __init__(self, values: np.ndarray, dtype: torch.dtype) -> None:
        super().__init__(values, dtype)
        self.together = []

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        self.together.append(1 if vectors.dim() == 1 else vectors.shape[1])
        return super().__matmul__(vectors)


def test_probes_after_the_first_go_in_lockstep():
    operator = Recording(heavy_tailed(size=292), torch.float64)
    spectrum = hesspec.spectrum(operator, steps=20, probes=4)
    assert operator.together == [1] * 20 + [3] * 20 + [1]
    assert spectrum.matvecs == 81


def test_as_many_probes_go_in_lockstep_as_their_bases_fit_into_memory():
    operator = Recording(heavy_tailed(size=292), torch.float64)
    basis = 20 * 300 * 8
    together = hesspec.spectrum(operator, steps=20, probes=4, seed=3)
    operator.together.clear()
    apart = hesspec.spectrum(operator, steps=20, probes=4, seed=3, memory=3 * basis)
    assert operator.together == [1] * 20 + [2] * 20 + [1] * 20 + [1]
    np.testing.assert_allclose(apart.ritz_values, together.ritz_values, atol=1e-12)


def test_a_basis_that_does_not_fit_is_kept_in_less_memory():
    truth = heavy_tailed(size=292)
    full, half, restarted = 60 * 300 * 8, 60 * 300 * 4, 20 * 300 * 8
    kept = {memory: measured(truth, steps=60, memory=memory).attributes["basis"] for memory in (full, half, restarted)}
    assert kept == {full: "full", half: "half", restarted: "full on disk"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("basis", ["full", "half"])
@pytest.mark.parametrize("offload", [None, "host", "disk"])
def test_however_the_basis_is_kept_the_answer_is_the_same(basis, offload, dtype):
    truth = heavy_tailed(size=292)
    expected = measured(truth, dtype, steps=60, basis="full")
    found = measured(truth, dtype, steps=60, basis=basis, offload=offload)
    assert found.attributes["basis"] == basis + (f" on {offload}" if offload else "")
    resolved = min(expected.eigenvalues.size, found.eigenvalues.size)
    assert resolved >= 10
    tolerance = (expected.error_bounds[:resolved] + found.error_bounds[:resolved]).max()
    np.testing.assert_allclose(found.eigenvalues[:resolved], expected.eigenvalues[:resolved], atol=tolerance)
    assert wasserstein_distance(found.nodes, expected.nodes, found.weights, expected.weights) <= 1e-3 * expected.norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_restarted_basis_finds_the_outermost_eigenvalues_and_the_bulk(dtype):
    truth = heavy_tailed(size=1992)
    spectrum = measured(truth, dtype, steps=80, memory=36 * 2000 * dtype.itemsize, basis="restarted")
    assert spectrum.attributes["basis"] == "restarted, 24 vectors"
    assert spectrum.matvecs <= 81
    exact = truth[np.argsort(-np.abs(truth))]
    count = spectrum.eigenvalues.size
    assert count >= 5
    assert (np.abs(spectrum.eigenvalues - exact[:count]) <= spectrum.error_bounds).all()
    assert wasserstein_distance(spectrum.nodes, truth, spectrum.weights) <= spectrum.wasserstein_bound
    assert spectrum.weights.sum() == pytest.approx(1)


def test_several_probes_of_a_restarted_basis_share_its_eigenvalues():
    truth = heavy_tailed(size=1992)
    spectrum = measured(truth, steps=80, probes=3, memory=36 * 2000 * 8, basis="restarted")
    assert spectrum.probes == 3
    assert spectrum.weights.sum() == pytest.approx(1)
    assert wasserstein_distance(spectrum.nodes, truth, spectrum.weights) <= spectrum.wasserstein_bound


def test_a_basis_that_fits_nowhere_is_refused_with_sizes():
    with pytest.raises(MemoryError, match=r"60 vectors of 300 numbers, stored as 'full', needs .* GB"):
        measured(heavy_tailed(size=292), steps=60, basis="full", memory=30 * 300 * 8)
    with pytest.raises(MemoryError, match=r"Vectors of 300 numbers .* Increase memory="):
        measured(heavy_tailed(size=292), steps=60, basis="restarted", memory=5 * 300 * 8)
    with pytest.raises(ValueError, match="no basis 'hall'; did you mean 'half'"):
        measured(heavy_tailed(size=292), steps=60, basis="hall")
    with pytest.raises(ValueError, match="no offload 'disc'; did you mean 'disk'"):
        measured(heavy_tailed(size=292), steps=60, offload="disc")
    with pytest.raises(ValueError, match="offload='disk' cannot be combined with basis='restarted'"):
        measured(heavy_tailed(size=292), steps=60, basis="restarted", offload="disk")
    with pytest.raises(ValueError, match="give a number of steps with basis=.restarted."):
        measured(heavy_tailed(size=292), steps="auto", basis="restarted")


def test_where_it_is_offloaded_to_a_basis_is_kept_as_it_fits():
    truth = heavy_tailed(size=292)
    assert measured(truth, steps=60, offload="disk").attributes["basis"] == "full on disk"
    # On a CPU the memory of the host is that of the device.
    assert measured(truth, steps=60, offload="host", memory=60 * 300 * 4).attributes["basis"] == "half on host"
    with pytest.raises(MemoryError, match=r"stored as 'half on host', needs"):
        measured(truth, steps=60, offload="host", memory=20 * 300 * 8)


def test_a_product_at_lower_precision_has_its_error_measured_and_in_the_bounds():
    truth = heavy_tailed(size=292)

    class Coarse(Diagonal):
        """Rounds its products to 11 bits, and knows what they would be without."""

        reference = Diagonal(truth, torch.float32)

        def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
            return super().__matmul__(vectors).half().float()

    spectrum = hesspec.spectrum(Coarse(truth, torch.float32), steps=40)
    exact = truth[np.argsort(-np.abs(truth))]
    count = spectrum.eigenvalues.size
    assert count >= 3
    distance = np.abs(spectrum.eigenvalues - exact[:count])
    assert (distance <= spectrum.error_bounds).all()
    assert distance.max() > 1e-5 * spectrum.norm
    assert spectrum.error_bounds.max() <= 0.05 * spectrum.norm
