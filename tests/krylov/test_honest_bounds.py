"""What a spectrum states of its errors holds on random symmetric operators, each against its true eigenvalues."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_operators import SPECTRA, Operator, operator_of, paired
from sweeps import swept

import hesspec
from hesspec.krylov.vectors import random_vector

LARGEST = 300
SCALES = {torch.float32: (1.0, 1e-30, 1e30), torch.float64: (1.0, 1e-100, 1e100)}


@st.composite
def operators(draw):
    """Random symmetric operators of every kind, size, precision and scale, dense or diagonal."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    p = draw(st.one_of(st.integers(1, 12), st.integers(1, LARGEST)))
    kind = draw(st.sampled_from(list(SPECTRA)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    dense = draw(st.booleans())
    scale = draw(st.sampled_from(SCALES[dtype]))
    return operator_of(SPECTRA[kind](p, rng), dense=dense, dtype=dtype, scale=scale, seed=seed)


def count_of_steps(operator: Operator, fraction: float) -> int:
    return max(1, round(fraction * operator.p))


def properties(count: int):
    def decorate(test):
        checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
        return settings(
            max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks
        )(test)

    return decorate


fractions = st.one_of(st.floats(0, 1), st.just(1.0), st.just(1.3))


def in_mode(mode: str, operator: Operator, steps: int):
    """A run that keeps its basis in one of the ways that there are, at a size at which "auto" would not choose it."""
    rows = {"restarted": 18 + operator.seed % 40}.get(mode)
    memory = None if rows is None else rows * operator.p * operator.matrix.dtype.itemsize
    basis = {"partial": "full", "partial, half": "half"}.get(mode, mode)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hesspec.krylov.run.PARTIAL_FROM", 1 if mode.startswith("partial") else sys.maxsize)
        return hesspec.spectrum(operator.matrix, steps=steps, seed=operator.seed, basis=basis, memory=memory)


MODES = ["half", "partial", "partial, half", "restarted"]


@properties(200)
@given(operators(), fractions, st.integers(1, 3))
def test_eigenvalues_weights_and_the_bracket_of_the_distribution_hold(operator, fraction, probes):
    steps = count_of_steps(operator, fraction)
    one = hesspec.spectrum(operator.matrix, steps=steps, seed=operator.seed)
    check_pairs(one, operator)
    check_bracket(one, operator)
    check_weights(one, steps)
    if probes > 1:
        more = hesspec.spectrum(operator.matrix, steps=steps, probes=probes, seed=operator.seed)
        check_pairs(more, operator)
        check_weights(more, steps)


def check_pairs(spectrum, operator):
    """Resolved eigenvalues pair one to one with true ones within their bounds."""
    assert paired(spectrum.eigenvalues, spectrum.error_bounds, operator.eigenvalues)


def check_weights(spectrum, steps):
    """Weights are a probability measure."""
    rounding = np.finfo(float).eps * (spectrum.weights.size + steps)
    assert (spectrum.weights >= 0).all()
    assert spectrum.weights.sum() == pytest.approx(1, abs=rounding)
    for probe in range(spectrum.probes):
        raw = spectrum.ritz_weights[spectrum.ritz_probe == probe]
        assert (raw >= 0).all()
        assert raw.sum() == pytest.approx(1, abs=rounding)


def check_bracket(spectrum, operator):
    """The bracket contains the distribution of the first probe."""
    generator = torch.Generator().manual_seed(operator.seed)
    probe = random_vector(operator.p, generator, dtype=operator.matrix.dtype, device=operator.matrix.device)
    mass = (operator.eigenvectors.T @ (probe.double() / probe.double().norm()).numpy()) ** 2

    truth, ritz = operator.eigenvalues, np.sort(spectrum.ritz_values)
    outside = [truth[0] - operator.norm, truth[-1] + operator.norm]
    x = np.concatenate([ritz, (ritz[1:] + ritz[:-1]) / 2, truth, (truth[1:] + truth[:-1]) / 2, outside])
    distribution = np.concatenate([[0], np.cumsum(mass)])[np.searchsorted(truth, x, side="right")]

    bracket = spectrum.cdf_bracket(x)
    # Sums of up to LARGEST squares of components of LAPACK's eigenvectors.
    rounding = LARGEST * np.finfo(float).eps
    assert (bracket.lower.to_numpy() <= distribution + rounding).all()
    assert (bracket.upper.to_numpy() >= distribution - rounding).all()


@pytest.mark.parametrize("mode", swept(MODES, "partial, half", "restarted"))
@properties(100)
@given(operators(), fractions)
def test_they_do_however_the_basis_is_kept(mode, operator, fraction):
    spectrum = in_mode(mode, operator, count_of_steps(operator, fraction))
    check_pairs(spectrum, operator)


@properties(200)
@given(operators(), st.sampled_from([0, 1, 100]))
def test_as_many_steps_as_dimensions_give_all_eigenvalues_with_their_multiplicities(operator, more):
    spectrum = hesspec.spectrum(operator.matrix, steps=operator.p + more, seed=operator.seed)
    assert spectrum.exact
    copies = np.rint(spectrum.eigenvalue_weights * operator.p).astype(int)
    np.testing.assert_allclose(copies, spectrum.eigenvalue_weights * operator.p, rtol=1e-12)
    assert copies.sum() == operator.p

    # The copies of the last one are those of a complement on which two random vectors were eigenvectors up to rounding.
    # Such a vector has 1/q of its squared length along each of q eigenvectors, so that the root mean square of their
    # distances is bounded by less than each distance is.
    values, bounds = np.repeat(spectrum.eigenvalues, copies), np.repeat(spectrum.error_bounds, copies)
    assert paired(values, bounds, operator.eigenvalues)
    order = np.argsort(values, kind="stable")
    distance = np.abs(values[order] - operator.eigenvalues)
    rest = np.repeat(copies, copies)[order] > 1
    if rest.any():
        assert np.sqrt(np.mean(distance[rest] ** 2)) <= bounds[order][rest].max() / np.sqrt(copies.max())


@properties(150)
@given(st.data())
def test_no_isolated_eigenvalue_has_more_converged_copies_than_its_multiplicity(data):
    check_copies("full", data)


@pytest.mark.parametrize("mode", swept(MODES, "partial, half", "restarted"))
@properties(40)
@given(st.data())
def test_no_ghost_copies_appear_however_the_basis_is_kept(mode, data):
    check_copies(mode, data)


def check_copies(mode, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    p = data.draw(st.integers(20, LARGEST))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    multiplicities = rng.integers(1, 4, data.draw(st.integers(1, 5)))
    isolated = np.cumsum(1 + rng.random(multiplicities.size)) * rng.choice([1, -1])
    values = np.concatenate([np.repeat(isolated, multiplicities), 0.2 * rng.standard_normal(p).clip(-2, 2)])[:p]
    basis = np.linalg.qr(rng.standard_normal((p, p)))[0]
    full = (basis * values) @ basis.T
    matrix = torch.from_numpy((full + full.T) / 2).to(dtype)
    operator = Operator(matrix, values, basis, 0)
    spectrum = in_mode(mode, operator, count_of_steps(operator, data.draw(fractions)))

    # k Ritz values with residuals of at most r have k eigenvalues within sqrt(k) r (Kahan): one copy too many, four
    # with r = 0.05, would have four within 0.1 of themselves and 0.2 of the isolated one, which is 0.6 from all others.
    near = 0.1
    for value, multiplicity in zip(isolated, multiplicities, strict=True):
        converged = (spectrum.ritz_bounds <= 0.05) & (np.abs(spectrum.ritz_values - value) < near)
        assert converged[spectrum.ritz_probe == 0].sum() <= multiplicity
        # A restarted basis leaves further copies to the run for the bulk, which is orthogonal to those it resolves.
        resolved = (np.abs(spectrum.eigenvalues - value) < near).sum()
        assert resolved + converged[spectrum.ritz_probe == 1].sum() <= multiplicity
