"""The drawn density is the measured measure."""

import numpy as np
import pytest
import scipy.stats
import torch
from random_operators import Diagonal

import hesspec
from hesspec.spectra.densities import bulk_atoms, bulk_widths, zero_peak


def network(p=4000, *, two_sided=False, seed=0):
    """A kernel, a power-law bulk and ten outliers."""
    rng = np.random.default_rng(seed)
    bulk = 0.5 * (1 - rng.random(p // 4)) ** 2 * (rng.choice([-1.0, 1.0], p // 4) if two_sided else 1.0)
    return np.concatenate([np.zeros(p - p // 4 - 10), bulk, np.linspace(3, 9, 10)])


def measured(values, **options):
    return hesspec.spectrum(Diagonal(np.asarray(values, float), torch.float64), **{"steps": 64, **options})


OPERATORS = {
    "semidefinite": network,
    "two-sided": lambda: network(two_sided=True),
    "semicircle": lambda: scipy.stats.semicircular.ppf((np.arange(2000) + 0.5) / 2000),
    "positive": lambda: np.linspace(2, 3, 1000),
    "power law": lambda: np.arange(1, 3000) ** -1.0,
    "few": lambda: np.repeat([1.0, 2.0, 4.0], 100),
}


@pytest.fixture(params=OPERATORS)
def spectrum(request):
    return measured(OPERATORS[request.param]())


@pytest.fixture
def semidefinite():
    return measured(network())


def mass_below(density, x):
    inside = np.append(density.eigenvalue[density.eigenvalue < x], x)
    return np.trapezoid(np.interp(inside, density.eigenvalue, density.density), inside)


def test_the_curve_has_all_of_the_mass_without_outliers(spectrum):
    density = spectrum.density()
    share = 1 - spectrum.eigenvalue_weights[spectrum.is_outlier].sum()
    assert np.trapezoid(density.density, density.eigenvalue) == pytest.approx(share, rel=2e-3)


def test_the_distance_to_the_measure_is_within_the_width_of_the_kernels(spectrum):
    density = spectrum.density()
    x, (nodes, weights, _) = density.eigenvalue.to_numpy(), bulk_atoms(spectrum)
    curve = density.density.to_numpy() * np.append(np.append(0.5, np.ones(x.size - 2)), 0.5)
    distance = scipy.stats.wasserstein_distance(x, nodes, curve, weights)
    # A Gaussian's mean distance from its centre is below its width, and reflection brings mass nearer; the grid's step.
    step = x[1] - x[0]
    assert distance <= weights @ np.maximum(bulk_widths(spectrum), step) / weights.sum() + step


def test_the_curve_ends_where_the_bulk_does(spectrum):
    density, (low, high) = spectrum.density(), spectrum.bulk_range
    if low < high:
        assert (float(density.eigenvalue[0]), float(density.eigenvalue[-1])) == (low, high)
        beyond = spectrum.density(grid=np.array([low - 1e-6, high + 1e-6]))
        assert (beyond.density == 0).all()
        assert 10 ** float(spectrum.log_density().log10_magnitude[-1]) == pytest.approx(max(abs(low), abs(high)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_semidefinite_matrix_has_no_mass_below_zero(dtype):
    spectrum = hesspec.spectrum(Diagonal(network(), dtype), steps=64)
    assert spectrum.bulk_range[0] == 0
    assert float(spectrum.density().eigenvalue[0]) == 0
    assert (spectrum.log_density().negative == 0).all()


def test_resolved_eigenvalues_of_the_bulk_are_in_the_curve():
    values = np.concatenate([np.linspace(-1, 1, 3000), 1.02 + 0.02 * np.arange(20)])
    spectrum = measured(values)
    inside = spectrum.eigenvalues[~spectrum.is_outlier]
    assert inside.size > 3
    density = spectrum.density(grid=inside)
    assert (density.density > 0).all()


def test_mass_by_side_is_that_of_the_measure(spectrum):
    density, negative = spectrum.density(), spectrum.num_negative
    outliers = spectrum.eigenvalue_weights[spectrum.is_outlier & (spectrum.eigenvalues < 0)].sum()
    drawn = (mass_below(density, 0.0) + outliers) * spectrum.dimension if density.eigenvalue[0] < 0 else 0.0
    share, _ = zero_peak(spectrum)
    assert (
        negative.lower - 1e-6 <= drawn <= negative.upper + 1e-6
        or abs(drawn - negative.value) <= max(share, 0.02) * spectrum.dimension
    )


def test_the_peak_at_zero_has_its_share(semidefinite):
    share = semidefinite.density().attrs["zero_share"]
    assert share == pytest.approx((network() == 0).mean(), abs=0.05)
    assert semidefinite.density().attrs["zero_reach"] < 0.05


def test_a_bulk_away_from_zero_has_no_peak_there():
    assert measured(np.linspace(2, 3, 1000)).density().attrs["zero_share"] == 0


def test_kernels_are_as_wide_as_the_resolution_there():
    spectrum = measured(np.arange(1, 3000) ** -1.0, steps=100)
    assert not spectrum.is_outlier.any()
    nodes, _, bounds = bulk_atoms(spectrum)
    ratio = bulk_widths(spectrum)[2:-2] * 4 / (nodes[4:] - nodes[:-4]) * np.sqrt(8 * np.log(1.25))
    peak = (np.abs(nodes) <= bounds)[2:-2]
    assert ratio[~peak] == pytest.approx(1)
    assert (ratio[peak] <= 1 + 1e-9).all()


def test_probes_share_the_curve():
    one, three = (measured(network(), probes=n).density() for n in (1, 3))
    assert np.trapezoid(three.density, three.eigenvalue) == pytest.approx(
        np.trapezoid(one.density, one.eigenvalue), rel=1e-3
    )
