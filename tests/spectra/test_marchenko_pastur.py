from dataclasses import replace

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

import hesspec
from hesspec.spectra.marchenko_pastur import (
    MarchenkoPasturFit,
    _Law,
    compare_with_marchenko_pastur,
    law_of_gauss_newton,
    marchenko_pastur_density,
    marchenko_pastur_edges,
)

ASPECTS = [0.01, 0.4, 1.0, 1.7, 50.0, 1e6]


def sum_of_squares(rows, dtype=torch.float64):
    return (rows.T @ rows / len(rows)).to(dtype)


def wishart(rank, dimension):
    return torch.randn(rank, dimension, dtype=torch.float64)


def integral(function, low, high, upto):
    """Integral from low to upto, in the angle in which square-root edges are smooth."""
    width = high - low
    end = 2 * np.arcsin(np.sqrt((upto - low) / width))

    def integrand(phi):
        x = low + width * np.sin(phi / 2) ** 2
        return float(function(x)) * width * np.sin(phi) / 2

    return scipy.integrate.quad(integrand, 0, end, epsabs=1e-13, epsrel=1e-11)[0]


# The law -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aspect", ASPECTS)
def test_distribution_is_the_integral_of_the_density(aspect):
    low, high = marchenko_pastur_edges(aspect, 2.0)
    atom = max(0, 1 - 1 / aspect)
    for share in (0.01, 0.3, 0.9, 1.0):
        x = low + share * (high - low)
        mass = integral(lambda x: marchenko_pastur_density(x, aspect, 2.0), low, high, x)
        # Rounding of the edges of a law of aspect 1e6 moves both by 1e-16 of them, 1e-13 of what is between them.
        assert _Law.of(aspect, 2.0).cdf(x) - atom == pytest.approx(mass, rel=1e-7, abs=1e-13)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_outside_of_the_edges(aspect):
    low, high = marchenko_pastur_edges(aspect, 2.0)
    atom = max(0, 1 - 1 / aspect)
    found = _Law.of(aspect, 2.0).cdf(np.array([-1.0, 0.0, low / 2, high, 2 * high]))
    assert found == pytest.approx([0, atom, atom, 1, 1], abs=1e-15)
    assert (marchenko_pastur_density([-1.0, 0.0, low / 2, 2 * high], aspect, 2.0) == 0).all()


@pytest.mark.parametrize("aspect", ASPECTS)
def test_mean_is_the_variance_of_the_entries(aspect):
    low, high = marchenko_pastur_edges(aspect, 2.0)
    mean = integral(lambda x: x * marchenko_pastur_density(x, aspect, 2.0), low, high, high)
    assert mean == pytest.approx(2, rel=1e-7)
    assert _Law.of(aspect, 2.0).first_moment(np.array(np.pi)) == pytest.approx(2)


@pytest.mark.parametrize(("rank", "dimension"), [(600, 300), (300, 600), (300, 300)])
def test_eigenvalues_of_random_matrices_follow_the_law(rank, dimension):
    rows = np.sqrt(3) * wishart(rank, dimension)
    values = torch.linalg.eigvalsh(sum_of_squares(rows)).numpy()
    values[np.abs(values) < 1e-10] = 0
    places = values[values > 0]
    count = np.searchsorted(values, places, side="right") / dimension
    # Eigenvalues are rigid: the distributions differ by O(log p / p), not by 1/sqrt(p).
    difference = np.abs(count - _Law.of(dimension / rank, 3.0).cdf(places)).max()
    assert difference < 3 * np.log(dimension) / dimension


@pytest.mark.parametrize("aspect", [0.4, 1.0, 4.0])
def test_quantiles_invert_the_distribution(aspect):
    law = _Law.of(aspect, 1.5)
    levels = np.linspace(law.atom, 1, 12)[1:-1]
    assert law.cdf(law.quantile(levels)) == pytest.approx(levels, abs=1e-13)
    assert law.quantile(np.array([0.0, 1.0])) == pytest.approx([0 if law.atom else law.low, law.high])


@pytest.mark.parametrize("aspect", [0.4, 1.0, 4.0])
def test_wasserstein_distance_is_exact(aspect):
    law = _Law.of(aspect, 1.5)
    nodes = np.array([-0.3, 0.0, 0.7, 3.0, 9.0, 20.0])
    shares = np.array([0.05, 0.5, 0.2, 0.15, 0.08, 0.02])
    points = 100_000
    quantiles = law.quantile((np.arange(points) + 0.5) / points)
    expected = scipy.stats.wasserstein_distance(nodes, quantiles, shares)
    assert law.wasserstein(nodes, shares) == pytest.approx(expected, abs=law.high / points)
    # A point in the middle of the law: the mean absolute deviation.
    deviation = integral(lambda x: abs(x - 1.5) * marchenko_pastur_density(x, aspect, 1.5), law.low, law.high, law.high)
    found = law.wasserstein(np.array([1.5]), np.array([1.0]))
    assert found == pytest.approx(deviation + 1.5 * law.atom, rel=1e-6)
    # The law itself, cut into equal shares.
    assert law.wasserstein(quantiles[::100], np.full(1000, 1e-3)) < law.high / 1000


def test_arguments_without_a_law_are_said():
    with pytest.raises(ValueError, match=r"aspect is 0; the Marchenko-Pastur law requires a positive, finite value"):
        marchenko_pastur_edges(0, 1.0)
    with pytest.raises(ValueError, match=r"variance is -1.0; the Marchenko-Pastur law"):
        marchenko_pastur_density(1.0, 0.5, -1.0)
    with pytest.raises(ValueError, match=r"aspect is nan"):
        marchenko_pastur_density(1.0, float("nan"), 1.0)


# The comparison ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rank", "dimension"), [(600, 300), (200, 800)])
def test_a_wishart_matrix_follows_the_law(rank, dimension, dtype):
    spectrum = hesspec.spectrum(sum_of_squares(wishart(rank, dimension), dtype), steps=48, probes=8)
    fit = compare_with_marchenko_pastur(spectrum, rank=rank)
    aspect = dimension / rank
    assert fit.aspect == aspect
    # What the probes do not see of the mean, four times, and the fluctuation of the matrix's own trace.
    uncertainty = 4 * fit.variance_error / fit.variance + 4 * np.sqrt(2 / (rank * dimension))
    assert abs(fit.variance - 1) < uncertainty
    assert fit.law_edges == pytest.approx(marchenko_pastur_edges(aspect, fit.variance))
    # Tracy and Widom: the largest eigenvalue's scale is (1 + sqrt(aspect))^(-2/3) aspect^(-1/6) N^(-2/3), relatively.
    fluctuation = 4 * (1 + np.sqrt(aspect)) ** (-2 / 3) * aspect ** (-1 / 6) * rank ** (-2 / 3)
    assert abs(fit.edge_ratio - 1) < uncertainty + fluctuation
    assert fit.trace_beyond < 0.1
    assert fit.kolmogorov_smirnov < 0.05
    assert fit.wasserstein < (uncertainty + 0.05) * fit.variance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rank", "dimension"), [(600, 300), (200, 800)])
@pytest.mark.few(2)
def test_heavy_tailed_rows_do_not(rank, dimension, dtype):
    scales = torch.distributions.StudentT(2.5).sample((rank, 1)).abs().double()
    rows = wishart(rank, dimension)
    fits = [
        compare_with_marchenko_pastur(hesspec.spectrum(sum_of_squares(x, dtype), steps=48, probes=8), rank=rank)
        for x in (rows, scales * rows)
    ]
    light, heavy = fits
    assert heavy.edge_ratio > 2.5
    assert heavy.trace_beyond > 0.3
    assert heavy.kolmogorov_smirnov > 2 * light.kolmogorov_smirnov
    assert heavy.wasserstein / heavy.variance > 5 * light.wasserstein / light.variance


def test_outliers_are_no_part_of_the_bulk():
    rows = wishart(600, 300)
    spiked = rows.clone()
    spiked[:, :3] *= torch.tensor([8.0, 10.0, 12.0], dtype=torch.float64)
    plain, with_spikes = (hesspec.spectrum(sum_of_squares(x), steps=300) for x in (rows, spiked))
    assert with_spikes.outliers.size == 3
    expected = compare_with_marchenko_pastur(plain, rank=600)
    fit = compare_with_marchenko_pastur(with_spikes, rank=600)
    assert fit.aspect == 297 / 597
    # Spectra are exact here. Three of 300 directions less change the bulk's mean by a share of about 3/300.
    assert fit.variance == pytest.approx(expected.variance, rel=0.03)
    assert fit.variance_error == 0
    assert fit.edge_ratio == pytest.approx(expected.edge_ratio, rel=0.05)
    assert fit.kolmogorov_smirnov < 3 * np.log(300) / 300


def test_rank_deficiency_is_an_atom_at_zero():
    # At most half of all eigenvalues pass for outliers, so that the gap above zero is none with this rank.
    rank, dimension = 300, 500
    spectrum = hesspec.spectrum(sum_of_squares(wishart(rank, dimension)), steps=500)
    assert spectrum.exact
    rigidity = 3 * np.log(dimension) / dimension
    assert compare_with_marchenko_pastur(spectrum, rank=rank).kolmogorov_smirnov < rigidity
    # The atom of the law of rank 400 is smaller by 100/500, and so is its distribution just below the bulk.
    assert compare_with_marchenko_pastur(spectrum, rank=400).kolmogorov_smirnov > 0.2 - rigidity


def test_an_exact_spectrum_is_compared_exactly():
    values = np.linspace(1, 3, 50)
    spectrum = hesspec.spectrum(torch.diag(torch.tensor(values)), steps=60)
    assert spectrum.exact
    fit = compare_with_marchenko_pastur(spectrum, rank=200)
    expected = _Law.of(0.25, 2.0).cdf(values)
    after = np.arange(1, 51) / 50
    assert fit.variance == pytest.approx(2)
    assert fit.kolmogorov_smirnov == pytest.approx(
        np.maximum(abs(after - expected), abs(after - 0.02 - expected)).max()
    )
    quantiles = _Law.of(0.25, 2.0).quantile((np.arange(50_000) + 0.5) / 50_000)
    assert fit.wasserstein == pytest.approx(np.abs(np.repeat(values, 1000) - quantiles).mean(), abs=1e-4)


def test_what_cannot_be_compared_is_said():
    spectrum = hesspec.spectrum(torch.diag(torch.cat([torch.linspace(0, 1, 100), torch.tensor([50.0])])), steps=32)
    assert spectrum.outliers.size == 1
    with pytest.raises(ValueError, match="rank is 1, and the spectrum has 1 outliers"):
        compare_with_marchenko_pastur(spectrum, rank=1)
    negative = hesspec.spectrum(-torch.diag(torch.linspace(1, 3, 50)), steps=20)
    with pytest.raises(ValueError, match=r"The mean of the bulk is -\d.* positive semi-definite"):
        compare_with_marchenko_pastur(negative, rank=5)


def test_the_law_of_g_takes_its_rank_from_samples_and_classes():
    rows = torch.randn(270, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    measured = hesspec.spectrum(rows.T @ rows / 270, steps=64, probes=4)
    told = {"matrix": "GaussNewton", "samples": 30, "classes": 10}
    law = law_of_gauss_newton(replace(measured, attributes={**measured.attributes, **told}))

    assert law == compare_with_marchenko_pastur(measured, rank=270)
    assert law_of_gauss_newton(measured) is None
    assert law_of_gauss_newton(replace(measured, attributes={**told, "matrix": "Hessian"})) is None
    assert law_of_gauss_newton(replace(measured, attributes={"matrix": "GaussNewton", "samples": 30})) is None
    # Fewer rows than outliers: nothing to compare.
    assert law_of_gauss_newton(replace(measured, attributes={**told, "samples": 0})) is None


@pytest.mark.parametrize("aspect", [0.5, 1.0, 40.0])
def test_the_drawn_law_has_the_mass_of_its_continuous_part(aspect):
    low, high = marchenko_pastur_edges(aspect, 2.0)
    law = MarchenkoPasturFit(2.0, 0.0, aspect, (low, high), high, 1.0, 0.0, 0.0, 0.0)
    x, y = law.per_decade(4001)

    # For aspect 1 the curve begins at 1e-6 of the edge, below which (2/pi) sqrt(1e-6) of the mass lies.
    assert np.trapezoid(y, np.log10(x)) == pytest.approx(min(1, 1 / aspect), abs=2e-3)
